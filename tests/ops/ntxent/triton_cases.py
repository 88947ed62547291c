"""Cases for the Triton NT-Xent kernels, and their truth: the dense loss of all processes in float64, by autograd."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.ops.ntxent.reference import row_scale
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent

EPS = 1e-8


@dataclass(frozen=True)
class Case:
    """One call of normalize, fwd and bwd: n samples of D features on each of `world` processes, seen from `rank`."""

    n: int
    D: int
    temperature: float
    dtype: torch.dtype = torch.float32
    precision: str = "ieee"
    reduce: bool = True
    world: int = 1
    rank: int = 0
    kind: str = "random"
    temperature_on_device: bool = False

    @property
    def rows(self) -> slice:
        """The local rows among the columns of all processes."""
        return slice(2 * self.n * self.rank, 2 * self.n * (self.rank + 1))


@dataclass
class Values:
    """What fwd and bwd return, with row losses (or their scaled sum) of the local rows; dz is [2n, D]."""

    loss: Tensor
    lse_neg: Tensor
    s_pos: Tensor
    dz: Tensor
    dt: Tensor


def views(case: Case) -> list[tuple[Tensor, Tensor]]:
    """(z0, z1) of every process."""
    generator = torch.Generator().manual_seed(case.n * 1000 + case.D)
    result = []
    for _ in range(case.world):
        z0 = torch.randn(case.n, case.D, generator=generator)
        z1 = torch.randn(case.n, case.D, generator=generator)
        if case.kind == "aligned":
            z1 = z0 + 0.3 * z1
        elif case.kind == "opposed":
            z1 = -z0
        elif case.kind == "equal":
            z0[:], z1[:] = z0[0], z0[0]
        elif case.kind == "zero rows":
            z0[::3], z1[1::4] = 0, 0
        elif case.kind == "huge and tiny rows":
            z0[0] *= 1e37
            z1[-1] *= 0.5 * EPS / z1[-1].norm()  # clamped, yet of a length that matters
        result.append((z0.to(case.dtype), z1.to(case.dtype)))
    return result


def upstream(case: Case) -> tuple[Tensor, str, Tensor]:
    """dloss, reduction, and the weights w [M] that they mean."""
    columns = 2 * case.n * case.world
    if case.reduce:
        weights = torch.full((columns,), 1.7 * row_scale("mean", case.n, columns), dtype=torch.float64)
        return torch.tensor(1.7), "mean", weights
    dloss = torch.randn(columns, generator=torch.Generator().manual_seed(1))
    return dloss, "none", dloss.double()


def truth(case: Case) -> tuple[Values, Tensor, Tensor]:
    """The exact values of the local rows, and lse_neg, s_pos of all columns."""
    z = [torch.cat(pair).double().requires_grad_() for pair in views(case)]
    temperature = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    u = torch.cat([rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(EPS) for rows in z])
    s = u @ u.T / temperature
    i = torch.arange(len(u))
    block = 2 * case.n
    p = i // block * block + (i + case.n) % block
    excluded = torch.zeros_like(s, dtype=torch.bool)
    excluded[i, i] = True
    excluded[i, p] = True
    if len(u) > 2:
        lse_neg = torch.logsumexp(s.masked_fill(excluded, -torch.inf), dim=1)
    else:
        lse_neg = torch.full((2,), -torch.inf, dtype=torch.float64)
    s_pos = s[i, p]
    losses = -F.logsigmoid(s_pos - lse_neg)
    _, reduction, weights = upstream(case)
    own = case.rows
    if len(u) > 2:
        (dz,) = torch.autograd.grad((losses * weights).sum(), z[case.rank], retain_graph=True)
        (dt,) = torch.autograd.grad((losses * weights)[own].sum(), temperature)
    else:
        dz, dt = torch.zeros_like(z[0]), torch.zeros_like(temperature)
    scale = row_scale(reduction, case.n, len(u))
    loss = losses[own].sum() * scale if case.reduce else losses[own]
    values = Values(*(x.detach() for x in (loss, lse_neg[own], s_pos[own], dz, dt)))
    return values, lse_neg.detach(), s_pos.detach()


def run(case: Case, backend: TritonNtxent, need_dt: bool = True) -> Values:
    """The case through the backend; other processes' statistics are the true ones."""
    pairs = views(case)
    dloss, reduction, _ = upstream(case)
    _, lse_neg_all, s_pos_all = truth(case)
    lse_neg_all, s_pos_all = lse_neg_all.float(), s_pos_all.float()
    on_device = torch.tensor(case.temperature) if case.temperature_on_device else None
    by_value = 1.0 if case.temperature_on_device else case.temperature  # ignored beside a tensor
    normalized = [backend.normalize(z0, z1, EPS) for z0, z1 in pairs]
    u = torch.cat([u for u, _ in normalized])
    offset = case.rows.start
    loss, lse_neg, s_pos = backend.fwd(u, case.n, offset, by_value, on_device, reduction, case.precision)
    lse_neg_all[case.rows], s_pos_all[case.rows] = lse_neg, s_pos
    dz0, dz1, dt = backend.bwd(
        dloss, *pairs[case.rank], u, normalized[case.rank][1], lse_neg_all, s_pos_all,
        offset, reduction, EPS, by_value, on_device, case.precision, need_dt,
    )  # fmt: skip
    assert dz0.dtype == dz1.dtype == case.dtype
    return Values(loss, lse_neg, s_pos, torch.cat([dz0, dz1]), dt)


def gradient_scale(case: Case) -> Tensor:
    """Natural size of each row of dz, [2n, 1]: w / (t |z|), by which the error of a vanishing gradient is measured."""
    z = torch.cat(views(case)[case.rank]).double()
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(EPS)
    return upstream(case)[2].abs().max() / (case.temperature * norm)


def errors(case: Case, values: Values, need_dt: bool = True) -> dict[str, float]:
    """Largest error of each value (of dz: of a row), relative to its largest entry (row).

    Where that is less than a part of its natural size, to this part: a hundredth of 1 for the loss and the statistics,
    and of w / (t |z|) for a row of dz; a tenth of the sum of w / t^2 for dt.
    """
    exact, _, _ = truth(case)
    for name in ("loss", "lse_neg", "s_pos", "dz", "dt"):
        if name != "dt" or need_dt:
            actual = getattr(values, name)
            assert actual.shape == getattr(exact, name).shape, name
            assert not actual.isnan().any(), name
    size = gradient_scale(case)
    dz_error = torch.linalg.vector_norm((values.dz.double() - exact.dz) / size, dim=1).max()  # of the worst row
    dz_size = torch.linalg.vector_norm(exact.dz / size, dim=1).max().clamp_min(1e-2)
    result = {
        "loss": _relative(values.loss, exact.loss),
        "s_pos": _relative(values.s_pos, exact.s_pos),
        "dz": (dz_error / dz_size).item(),
    }
    if case.n * case.world > 1:
        result["lse_neg"] = _relative(values.lse_neg, exact.lse_neg)
    if need_dt:
        rows_weight = upstream(case)[2][case.rows].abs().sum().item()
        dt_size = max(exact.dt.abs().item(), 0.1 * rows_weight / case.temperature**2)
        result["dt"] = abs(values.dt.item() - exact.dt.item()) / dt_size
    return result


def _relative(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-2)).item()
