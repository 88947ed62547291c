"""Cases for the Triton NT-Xent kernels, for one process of several, and the errors of what they return."""

from dataclasses import dataclass

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import row_scale
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from tests import ntxent_truth
from tests.ntxent_truth import EPS, embeddings


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
    return [tuple(embeddings(case.kind, case.n, case.D, case.dtype, generator)) for _ in range(case.world)]


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
    _, reduction, weights = upstream(case)
    exact = ntxent_truth.truth(views(case), case.rank, case.temperature, weights)
    scale = row_scale(reduction, case.n, len(weights))
    loss = exact.losses.sum() * scale if case.reduce else exact.losses
    dz = torch.cat([exact.dz0, exact.dz1])
    values = Values(loss, exact.lse_neg[case.rows], exact.s_pos[case.rows], dz, exact.dt)
    return values, exact.lse_neg, exact.s_pos


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
