"""The primitive in tests: the rows it is tried on, its float64 truth, and errors of its results against that."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import normalize_rows, similarity_logits

EPS = 1e-8
# Of exclude, whether there are columns, both.
CALLS = [
    ("none", False, False),
    ("none", True, False),
    ("none", True, True),
    ("self", False, False),
    ("self", True, True),
    ("pair", False, False),
]
KINDS = ("random", "aligned", "opposed", "equal", "zero rows", "huge row")


def rows_and_columns(kind: str, n: int, m: int | None, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rows [n, d] and columns [m, d], None for m None, of a kind of KINDS; pairs are equal indices."""
    rows = torch.randn(n, d, dtype=torch.float64)
    columns = torch.randn(n if m is None else m, d, dtype=torch.float64)
    paired = min(n, columns.shape[0])
    if kind == "aligned":
        columns[:paired] = rows[:paired] + 0.3 * columns[:paired]
    elif kind == "opposed":
        columns[:paired] = -rows[:paired]
    elif kind == "equal":
        rows[:] = columns[:] = rows[0].clone()
    elif kind == "zero rows":
        rows[0] = columns[-1:] = 0
    elif kind == "huge row":
        rows[0] *= 60000 / rows[0].abs().max() if dtype == torch.float16 else 1e30
    elif kind != "random":
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    return rows.to(dtype), None if m is None else columns.to(dtype)


@dataclass(frozen=True)
class Values:
    """Results, and gradients of sum_i w_i lse_i + sum_j w'_j column_lse_j over those that are finite."""

    lse: Tensor
    column_lse: Tensor | None
    drows: Tensor
    dcolumns: Tensor | None
    dt: Tensor


def values_of(
    function: Callable,
    rows: Tensor,
    columns: Tensor | None,
    temperature: float,
    weights: tuple[Tensor, Tensor],
    rows_alone: bool = False,
    **options,
) -> Values:
    """What a form of `similarity_logsumexp` makes of leaves with these values; `weights`, of rows and of columns.

    rows_alone: columns that want no gradient.
    """
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in (rows, columns)]
    if rows_alone:
        leaves[1].requires_grad_(False)
    t = torch.tensor(temperature, dtype=weights[0].dtype, requires_grad=True)
    results = function(*leaves, t, **options)
    results = results if isinstance(results, tuple) else (results,)
    # An empty sum, -inf, has no gradient.
    objective = sum((x.masked_fill(x.isneginf(), 0) * w).sum() for x, w in zip(results, weights))
    wanted = [x for x in (*leaves, t) if x is not None and x.requires_grad]
    gradients = iter(torch.autograd.grad(objective, wanted))
    drows, dcolumns = (next(gradients) if x is not None and x.requires_grad else None for x in leaves)
    results = [x.detach() for x in results]
    return Values(results[0], results[1] if len(results) > 1 else None, drows, dcolumns, next(gradients))


def exact_logsumexp(
    rows: Tensor,
    columns: Tensor | None,
    temperature: Tensor,
    *,
    exclude: str = "none",
    both: bool = False,
    normalize: bool = True,
) -> tuple[Tensor, ...]:
    """The definition, in the dtype of the arguments: all logits at once, and their log-sum-exps."""
    x, y = (z if not normalize or z is None else normalize_rows(z, EPS) for z in (rows, columns))
    s = similarity_logits(x, x if y is None else y, temperature, 0, exclude)
    return (torch.logsumexp(s, 1), torch.logsumexp(s, 0)) if both else (torch.logsumexp(s, 1),)


def of_float16_rows(
    rows: Tensor, columns: Tensor | None, temperature: Tensor, *, exclude: str = "none", both: bool = False
) -> tuple[Tensor, ...]:
    """The definition in float32, of unit rows rounded to float16: all that GPUs see of half inputs.

    What such a rounding costs is what a kernel's error has to be measured by.
    """
    x, y = (None if z is None else normalize_rows(z.float(), EPS).half().float() for z in (rows, columns))
    return exact_logsumexp(x, y, temperature, exclude=exclude, both=both, normalize=False)


def truth(
    rows: Tensor, columns: Tensor | None, temperature: float, weights: tuple[Tensor, Tensor], **options
) -> Values:
    """Float64 autograd of the definition on the same, rounded inputs."""
    wide = [None if x is None else x.double() for x in (rows, columns)]
    return values_of(exact_logsumexp, *wide, temperature, tuple(w.double() for w in weights), **options)


def upstream(n: int, m: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random weights of the rows and of the columns, in the dtype of the results."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.randn(n, dtype=dtype), torch.randn(n if m is None else m, dtype=dtype)


def errors(actual: Values, exact: Values, inputs: Iterable[Tensor | None], temperature: float) -> dict[str, float]:
    """Errors of each field that the truth has; inf where NaN or infinity stands elsewhere than there.

    Of log-sum-exps: over the largest, at least 1. Of the gradient of a row z: over 1 / (t |z|), what a weight of 1
    makes it at most, since the truth itself may vanish by cancellation. Of the temperature's: over at least 1 / t^2.
    """
    found = {}
    for field, z in zip(fields(exact), (None, None, *inputs, None)):
        a, e = getattr(actual, field.name), getattr(exact, field.name)
        if e is None or e.numel() == 0:
            assert a is None or a.shape == e.shape
            continue
        a = a.double()
        if a.shape != e.shape or not torch.equal(a.isnan(), e.isnan()) or not torch.equal(a.isinf(), e.isinf()):
            found[field.name] = float("inf")
            continue
        a, e = (x.nan_to_num(0, 0, 0) for x in (a, e))
        if field.name == "dt":
            scale = e.abs().clamp_min(1 / temperature**2)
        elif field.name.startswith("d"):
            scale = 1 / (temperature * torch.linalg.vector_norm(z.double(), dim=1, keepdim=True).clamp_min(EPS))
        else:
            scale = e.abs().max().clamp_min(1)
        found[field.name] = ((a - e).abs() / scale).max().item()
    return found


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
