"""The public primitive: `similarity_logsumexp`, of which a contrastive loss of one's own is made in three lines."""

import torch
from torch import Tensor

from simclr_fast.backends import resolve_backend
from simclr_fast.losses.arguments import (
    Backend,
    Precision,
    check_choice,
    check_flags,
    check_options,
    check_rows,
    check_together,
    common_dtype,
    default_precision,
    for_backward,
    ready_temperature,
)
from simclr_fast.losses.ranks import ALIKE, Shared, check_same_call, choice, flag
from simclr_fast.ops.ntxent.limits import is_large
from simclr_fast.ops.ntxent.similarity import similarity
from simclr_fast.ops.ntxent.similarity_ops import EXCLUDE, Exclude
from simclr_fast.ops.ntxent.similarity_rows import wants_rows_alone


def similarity_logsumexp(
    rows: Tensor,
    columns: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    *,
    exclude: Exclude = "none",
    both: bool = False,
    normalize: bool = True,
    group: "torch.distributed.ProcessGroup | None" = None,
    eps: float = 1e-8,
    precision: Precision | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """log sum_j exp(x_i . y_j / temperature) over the columns j of each row i, exact, in memory linear in n + m.

    x_i is rows_i / max(|rows_i|, eps), y_j likewise of columns. Never holds an n x m matrix, forward or backward.

    Args:
        rows: [n, D], n >= 1, D >= 1; float16, bfloat16, float32 or float64, any strides.
        columns: [m, D], m >= 0, or None for the rows themselves. Under autocast the two may differ in dtype.
        temperature: a positive float, or a 0-dim tensor on the rows' device, which may require grad.
        exclude: the columns that row i leaves out: "none"; "self", column i; "pair", for columns=None, columns i and
            (i + n / 2) mod n: itself and its partner, in the order of the views of `ntxent_loss`.
        both: also return the log-sum-exp of each column over the rows, from the same products.
        normalize: False takes rows and columns as they are, unit rows or not. On CUDA entries of bfloat16 overflow from
            65520 on. Those of float32 are exact to 22 bits if they are above 2^-11 of the largest one of the rows, or
            of the columns, where that is from 1e-18 to 1e18; from 2e20 on they overflow, below 1e-18 they lose digits,
            as the temperature's gradient does where all logits are below 1e-17. What overflows gives NaN; with
            half dtypes and "tf32" also +inf where a logit is +inf, and a column whose logit is -inf counts as left out.
        group: processes whose columns are columns of every row, in rank order, and whose rows, for `both`, are rows of
            every column; all must call with equal n, m, D and options. "self" then is the row's own index in its own
            process. The gradient is that of the sum over the ranks of what each makes of its result.
        eps, precision, backend: those of `ntxent_loss`.

    Returns:
        lse [n], and with `both` (lse [n], lse of the columns [m]); float32 (float64 for float64 rows). -inf where
        nothing is left to sum over. Differentiable once in rows, columns and temperature.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype, device or value.
        RuntimeError: the named backend cannot serve the rows.
    """
    options = {"group": group, "eps": eps, "precision": precision, "backend": backend}
    how = {"exclude": exclude, "both": both, "normalize": normalize}
    return agreed_logsumexp(rows, columns, temperature, **how, **options)


def agreed_logsumexp(
    rows: Tensor,
    columns: Tensor | None,
    temperature: float | Tensor,
    *,
    exclude: Exclude = "none",
    both: bool = False,
    normalize: bool = True,
    group: "torch.distributed.ProcessGroup | None",
    eps: float,
    precision: Precision | None,
    backend: Backend,
    called: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`similarity_logsumexp`, for the loss that users call by the name `called`.

    The loss has checked its arguments, made the temperature ready, and seen to it that the ranks' calls agree. With
    None users call the primitive, and this sees to it all.
    """
    if called is None:
        called = "similarity_logsumexp"
        check_choice("exclude", exclude, EXCLUDE)
        check_flags(both=both, normalize=normalize)
        check_rows("rows", rows)
        if columns is None:
            _check_of_rows_alone(rows, exclude, both)
        else:
            check_rows("columns", columns, empty=True)
            _check_columns(rows, columns, exclude)
            rows, columns = common_dtype(rows, columns)
        check_options("none", eps, precision)
        temperature = ready_temperature(temperature, rows, "rows")
        own = (
            Shared("number of columns (-1 for None)", -1 if columns is None else columns.shape[0], ALIKE),
            choice("exclude", exclude, EXCLUDE),
            flag("both", both),
            flag("normalize", normalize),
            flag("gradient of the rows alone (requires_grad)", wants_rows_alone(rows, columns, both)),
        )
        options = {"reduction": "none", "eps": eps, "precision": precision, "backend": backend}
        check_same_call(called, "rows", rows, temperature, **options, group=group, own=own)
    if columns is not None and exclude == "self" and group is not None and rows.shape[0] != columns.shape[0]:
        raise ValueError(
            f"exclude='self' with a group: rows {tuple(rows.shape)} and columns {tuple(columns.shape)} differ in "
            "number; pass one column per row"
        )
    if columns is None:
        (rows,) = for_backward(rows)
    else:
        rows, columns = for_backward(rows, columns)
    precision = default_precision() if precision is None else precision
    sizes = (rows.shape[0], rows.shape[0] if columns is None else columns.shape[0])
    large = is_large(rows, precision, group, sizes)
    lse, column_lse, _ = similarity(
        rows,
        columns,
        temperature,
        exclude=exclude,
        both=both,
        eps=float(eps) if normalize else None,
        precision=precision,
        backend=resolve_backend(backend, "similarity_fwd", rows.device, rows.dtype, large, called),
        group=group,
        called=called,
    )
    return (lse, column_lse) if both else lse


def _check_of_rows_alone(rows: Tensor, exclude: str, both: bool) -> None:
    if both:
        raise ValueError("both=True: without columns the rows are the columns, and both results are one; pass columns")
    if exclude == "pair" and rows.shape[0] % 2:
        raise ValueError(f"exclude='pair' with {rows.shape[0]} rows: pass an even number, view 0 before view 1")


def _check_columns(rows: Tensor, columns: Tensor, exclude: str) -> None:
    check_together(("rows", "columns"), rows, columns)
    if rows.shape[1] != columns.shape[1]:
        raise ValueError(f"rows {tuple(rows.shape)} and columns {tuple(columns.shape)} differ in width D")
    if exclude == "pair":
        raise ValueError("exclude='pair': pairs are of the rows themselves; pass columns=None, or exclude='self'")
