"""Cases for the Triton kernels of similarities, for one process of several, and the errors of what they return."""

from dataclasses import dataclass

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.ops import split_rows
from simclr_fast.ops.ntxent.reference import normalize_rows, similarity_logits
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_similarity import TritonSimilarity
from tests.ntxent_truth import EPS


@dataclass(frozen=True)
class Case:
    """One call of normalize, fwd and bwd: n rows and m columns of D features on each of `world` processes.

    m None: the columns are the rows. sides: those that have an upstream gradient, of "rows" and "columns", about as
    large as `weight`.
    """

    n: int
    m: int | None
    D: int
    temperature: float
    dtype: torch.dtype = torch.float32
    precision: str = "ieee"
    exclude: str = "none"
    need_max: bool = False
    sides: tuple[str, ...] = ("rows", "columns")
    weight: float = 1.0
    world: int = 1
    rank: int = 0
    zero_row: bool = False
    normalize: bool = True
    temperature_on_device: bool = False

    @property
    def rows(self) -> slice:
        """The local rows among those of all processes."""
        return slice(self.n * self.rank, self.n * (self.rank + 1))

    @property
    def columns(self) -> int:
        """The columns of one process."""
        return self.n if self.m is None else self.m


@dataclass
class Values:
    """What fwd and bwd return for the local rows; max and column_lse may be empty."""

    lse: Tensor
    max: Tensor
    column_lse: Tensor
    dz: Tensor
    dt: Tensor


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Raw rows [W n, D] and columns [W m, D]; one tensor where the columns are the rows."""
    generator = torch.Generator().manual_seed(case.n * 1000 + case.D)
    z = torch.randn(case.world * case.n, case.D, dtype=torch.float64, generator=generator)
    if case.zero_row:
        z[0] = 0
    if not case.normalize:
        z = normalize_rows(z, EPS)
    z = z.to(case.dtype)
    if case.m is None:
        return z, z
    y = torch.randn(case.world * case.m, case.D, dtype=torch.float64, generator=generator)
    return z, (y if case.normalize else normalize_rows(y, EPS)).to(case.dtype)


def upstream(case: Case) -> tuple[Tensor, Tensor]:
    """drows [W n], dcolumns [W m]: zero of a side without gradient; one tensor where the columns are the rows."""
    generator = torch.Generator().manual_seed(1)
    drows = case.weight * torch.randn(case.world * case.n, generator=generator)
    if case.m is None:
        return drows, drows
    dcolumns = case.weight * torch.randn(case.world * case.m, generator=generator)
    return drows * ("rows" in case.sides), dcolumns * ("columns" in case.sides)


def truth(case: Case) -> Values:
    """Float64 autograd of the dense logits: the gradient of both sides' sums by the local rows, columns being fixed."""
    z, y = (x.double() for x in inputs(case))
    z = z[case.rows].clone().requires_grad_()
    own_t, other_t = (torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True) for _ in range(2))
    unit = (lambda x: normalize_rows(x, EPS)) if case.normalize else lambda x: x
    of_ranks = list(inputs(case)[0].double().split(case.n))
    of_ranks[case.rank] = z
    columns = unit(y)
    drows, dcolumns = (w.double() for w in upstream(case))

    def logits(t: Tensor) -> Tensor:
        return torch.cat(
            [similarity_logits(unit(x), columns, t, k * case.n, case.exclude) for k, x in enumerate(of_ranks)]
        )

    s = logits(own_t)[case.rows]
    lse, column_lse = torch.logsumexp(s, dim=1), torch.logsumexp(logits(other_t), dim=0)
    finite, finite_columns = lse.isfinite(), column_lse.isfinite()  # of nothing, no gradient
    loss = (lse[finite] * drows[case.rows][finite]).sum()
    (loss + (column_lse[finite_columns] * dcolumns[finite_columns]).sum()).backward()
    return Values(*(x.detach() for x in (lse, s.amax(dim=1), column_lse)), z.grad, own_t.grad)


def run(case: Case, backend: TritonSimilarity, need_dt: bool = True) -> Values:
    """The case through the backend; with several processes column_lse is the true one."""
    z, y = inputs(case)
    exact = truth(case)
    if case.normalize:
        other = y if case.m is not None else y[:0]
        u, inv_norm = TritonNtxent(backend.run, backend.target).normalize(z, other, EPS)
    else:
        u = z if case.m is None else torch.cat([z, y])
        u = u if u.dtype == torch.float16 else split_rows(u)
        inv_norm = torch.ones(u.shape[0])
    rows_all = u[: z.shape[0]]
    rows, columns = rows_all[case.rows], rows_all if case.m is None else u[z.shape[0] :]
    drows, dcolumns = upstream(case)
    by_value = 1.0 if case.temperature_on_device else case.temperature  # ignored beside a tensor
    on_device = torch.tensor(case.temperature) if case.temperature_on_device else None
    offset = case.rows.start
    both = case.m is not None and case.world == 1
    lse, row_max, column_lse = backend.fwd(
        rows, columns, offset, case.exclude, both, case.need_max, by_value, on_device, case.precision
    )
    seen = lse if case.m is None and case.world == 1 else column_lse if both else exact.column_lse.float()
    lse_seen = lse if "rows" in case.sides else torch.full_like(lse, torch.inf)
    seen = seen if "columns" in case.sides else torch.full_like(seen, torch.inf)
    dz, dt = backend.bwd(
        drows[case.rows], dcolumns, z[case.rows], rows, inv_norm[case.rows], columns, lse_seen, seen,
        offset, case.exclude, EPS if case.normalize else 1.0, by_value, on_device, case.precision, need_dt,
    )  # fmt: skip
    assert dz.dtype == case.dtype
    return Values(lse, row_max, column_lse, dz, dt)


def errors(case: Case, values: Values) -> dict[str, float]:
    """Largest error of each value, relative to its largest entry, or to a part of its natural size where that is less.

    Sizes are 1 for log-sum-exps, w / (t |z|) for a row of dz, and the sum of |w| / t^2 for dt; where there is nothing
    to sum over, -inf must be met exactly.
    """
    exact = truth(case)
    result = {"lse": _relative(values.lse, exact.lse)}
    if case.need_max:
        result["max"] = _relative(values.max, exact.max)
    if case.m is not None and case.world == 1:
        result["column_lse"] = _relative(values.column_lse, exact.column_lse)
    z = inputs(case)[0][case.rows].double()
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(EPS) if case.normalize else 1.0
    weights = torch.cat(upstream(case)).double().abs()
    natural = weights.max().clamp_min(1e-30) / (case.temperature * norm)
    assert not values.dz.isnan().any()
    difference = torch.linalg.vector_norm((values.dz.double() - exact.dz) / natural, dim=1).max()
    # A row that meets itself is drawn along itself by w / t, of which the normalisation leaves nothing but rounding.
    least = 0.1 if case.m is None and case.exclude == "none" else 1e-2
    size = torch.linalg.vector_norm(exact.dz / natural, dim=1).max().clamp_min(least)
    result["dz"] = (difference / size).item()
    dt_size = max(exact.dt.abs().item(), 0.1 * upstream(case)[0][case.rows].abs().sum().item() / case.temperature**2)
    result["dt"] = abs(values.dt.item() - exact.dt.item()) / max(dt_size, 1e-30)
    return result


def _relative(actual: Tensor, exact: Tensor) -> float:
    assert actual.shape == exact.shape
    nothing = exact == -torch.inf
    assert torch.equal(actual == -torch.inf, nothing)
    if nothing.all():
        return 0.0
    actual, exact = actual[~nothing].double(), exact[~nothing]
    assert not actual.isnan().any()
    return ((actual - exact).abs().max() / exact.abs().max().clamp_min(1.0)).item()
