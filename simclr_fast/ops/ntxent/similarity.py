"""simclr_fast::similarity_{fwd,bwd}: log-sum-exps of similarities, schemas, fakes, and the differentiable function.

The ops take unit rows as `ntxent_normalize` makes them (rows and columns of one operand width D'), and are called once
for each side that wants something:

    fwd  rows [n, D'], columns [m, D'] -> lse [n], max [n], column_lse [m]
    bwd  drows [n], dcolumns [m], z [n, D] (the raw rows), ..., lse [n], column_lse [m] -> dz [n, D], dt []

Their formulas, and what `exclude` leaves out, stand in csrc/similarity_launch.h. max is empty unless `need_max`,
column_lse unless `both`. A side that has no upstream gradient passes zeros, and +inf for its log-sum-exps. Operands
without normalisation have inv_norm 1, and eps 1: clamped, which leaves du as it is.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.backends import describe, has_triton
from simclr_fast.ops.ntxent import function
from simclr_fast.ops.ntxent.limits import SIMILARITY
from simclr_fast.ops.ntxent.ops import OPS as NTXENT_OPS
from simclr_fast.ops.ntxent.ops import operand_dtype
from simclr_fast.ops.ntxent.reference import (
    compute_dtype,
    log_sum_exp,
    normalize_rows,
    similarity_logits,
    without_autocast,
)

Exclude = Literal["none", "self", "pair"]
EXCLUDE = ("none", "self", "pair")

_SCHEMAS = {
    "fwd": "(Tensor rows, Tensor columns, SymInt row_offset, str exclude, bool both, bool need_max, "
    "float temperature, Tensor? temperature_tensor, str precision) -> (Tensor lse, Tensor max, Tensor column_lse)",
    "bwd": "(Tensor drows, Tensor dcolumns, Tensor z, Tensor rows, Tensor inv_norm, Tensor columns, Tensor lse, "
    "Tensor column_lse, SymInt row_offset, str exclude, float eps, float temperature, Tensor? temperature_tensor, "
    "str precision, bool need_dt) -> (Tensor dz, Tensor dt)",
}


class Ops(NamedTuple):
    """The two operators of one backend."""

    fwd: Callable
    bwd: Callable


def _define(suffix: str) -> Ops:
    for name, schema in _SCHEMAS.items():
        torch.library.define(f"simclr_fast::similarity_{name}{suffix}", schema)

    @torch.library.register_fake(f"simclr_fast::similarity_fwd{suffix}")
    def _(rows, columns, row_offset, exclude, both, need_max, *options):
        dtype = compute_dtype(rows.dtype)
        n, m = rows.shape[0], columns.shape[0]
        return tuple(rows.new_empty(size, dtype=dtype) for size in (n, n if need_max else 0, m if both else 0))

    @torch.library.register_fake(f"simclr_fast::similarity_bwd{suffix}")
    def _(drows, dcolumns, z, rows, inv_norm, *options):
        return z.new_empty(z.shape), inv_norm.new_empty(())

    return Ops(*(getattr(torch.ops.simclr_fast, f"similarity_{name}{suffix}").default for name in _SCHEMAS))


_OPS = {"cpp": _define(""), "triton": _define("_triton")}
describe("similarity_fwd", SIMILARITY)

if has_triton():
    from simclr_fast.ops.ntxent import triton_similarity

    for _name in _SCHEMAS:
        torch.library.register_kernel(
            f"simclr_fast::similarity_{_name}_triton", "cuda", getattr(triton_similarity, _name)
        )


class Options(NamedTuple):
    """What a call is made with beside its tensors. A temperature tensor counts, where there is one; eps None: as is.

    called: what users call, for messages.
    """

    temperature: float
    exclude: str
    both: bool
    need_max: bool
    fixed_columns: bool
    eps: float | None
    precision: str
    backend: str
    group: "torch.distributed.ProcessGroup | None"
    called: str


class _Saved(NamedTuple):
    """Operands and log-sum-exps of all processes, and the inverse norms of this one; columns None: the rows."""

    rows: Tensor  # [W n, D']
    inv_norm: Tensor  # [n + m]
    lse: Tensor  # [W n]
    columns: Tensor | None  # [W m, D']
    column_lse: Tensor | None  # [W m], with both


def _operands(rows: Tensor, columns: Tensor | None, options: Options) -> tuple[Tensor, Tensor | None, Tensor]:
    """Operands of rows [n, D'] and of columns [m, D'], inv_norm [n + m]."""
    if options.eps is not None:
        other = rows.new_empty((0, rows.shape[1])) if columns is None else columns
        u, inv_norm = NTXENT_OPS[options.backend].normalize(rows, other, options.eps)
        return u[: rows.shape[0]], None if columns is None else u[rows.shape[0] :], inv_norm

    def as_they_are(z: Tensor) -> Tensor:
        """z itself, where it is of the operand dtype and dense."""
        u = z.detach().to(operand_dtype(z))
        if z.device.type == "cuda" and options.backend == "cpp":
            u = F.pad(u, (0, -z.shape[1] % (16 // u.dtype.itemsize)))
        return u.contiguous()

    count = rows.shape[0] + (0 if columns is None else columns.shape[0])
    inv_norm = rows.new_ones(count, dtype=compute_dtype(rows.dtype))
    return as_they_are(rows), None if columns is None else as_they_are(columns), inv_norm


class _Similarity(torch.autograd.Function):
    """(lse [n], column_lse [m] or [0], max [n] or [0]), then the fields of _Saved."""

    @staticmethod
    def forward(rows, columns, temperature_tensor, options: Options):
        fwd = _OPS[options.backend].fwd
        n = rows.shape[0]
        rank, world = distributed.rank_and_size(options.group)
        x, y, inv_norm = _operands(rows, columns, options)
        x_all, y_all = x, y
        if world > 1:
            # Every rank's rows are the columns of the backward of the columns, which would otherwise sum M x D.
            x_all = distributed.all_gather_shards(x, options.group)
            y_all = None if y is None else distributed.all_gather_shards(y, options.group)
        numbers = {
            "temperature": options.temperature,
            "temperature_tensor": temperature_tensor,
            "precision": options.precision,
            "row_offset": rank * n,
            "exclude": options.exclude,
        }
        one_pass = options.both and world == 1
        lse, maximum, column_lse = fwd(
            x, x_all if y_all is None else y_all, both=one_pass, need_max=options.need_max, **numbers
        )
        if options.both and world > 1:
            column_lse = fwd(y, x_all, both=False, need_max=False, **(numbers | {"row_offset": rank * y.shape[0]}))[0]
        lse_all, column_lse_all = lse, column_lse
        if world > 1:
            lse_all = distributed.all_gather_shards(lse, options.group)
            column_lse_all = distributed.all_gather_shards(column_lse, options.group) if options.both else column_lse
        # A saved tensor may be no output that autograd differentiates.
        return (
            lse,
            column_lse,
            maximum,
            x_all,
            inv_norm,
            lse_all.clone(),
            y_all,
            column_lse_all.clone() if options.both else None,
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        rows, columns, temperature_tensor, ctx.options = inputs
        _, column_lse, maximum, *saved = output
        constants = [x for x in (maximum, *saved) if x is not None]
        if not ctx.options.both:
            constants.append(column_lse)
        ctx.mark_non_differentiable(*constants)  # a second call would undo the first
        ctx.set_materialize_grads(False)
        # Fixed columns may be overwritten before the backward pass, which saved tensors must not be.
        ctx.save_for_backward(rows, None if ctx.options.fixed_columns else columns, temperature_tensor, *saved)

    @staticmethod
    def backward(ctx, drows, dcolumns, *_):
        if drows is None and dcolumns is None:
            return None, None, None, None
        rows, columns, temperature_tensor, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        inputs = (drows, dcolumns, rows, columns, temperature_tensor, _Saved(*saved), needs, ctx.options)
        return *function.apply(_SimilarityGradient, ctx.options.called, *inputs), None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        function.refuse_vmap(inputs[-1].called)


class _SimilarityGradient(torch.autograd.Function):
    """The bwd op for each side, recorded by autograd only to refuse a second derivative."""

    @staticmethod
    def forward(drows, dcolumns, rows, columns, temperature_tensor, saved: _Saved, needs, options: Options):
        bwd = _OPS[options.backend].bwd
        rank, world = distributed.rank_and_size(options.group)
        n = rows.shape[0]
        alone = saved.columns is None
        m = n if alone else saved.columns.shape[0] // world

        def of_all(upstream: Tensor | None, count: int) -> Tensor:
            """[count] of this rank, None for zeros -> [W count]"""
            upstream = saved.lse.new_zeros(count) if upstream is None else upstream.contiguous()
            return upstream if world == 1 else distributed.all_gather_shards(upstream, options.group)

        drows_all, dcolumns_all = of_all(drows, n), of_all(dcolumns, m) if options.both else None
        numbers = {
            "exclude": options.exclude,
            "eps": 1.0 if options.eps is None else options.eps,
            "temperature": options.temperature,
            "temperature_tensor": temperature_tensor,
            "precision": options.precision,
        }

        def own(x: Tensor, count: int) -> Tensor:
            return x[rank * count : (rank + 1) * count]

        need_rows, need_columns, need_dt = needs
        if alone:
            dz, dt = bwd(
                own(drows_all, n),
                drows_all,
                rows,
                own(saved.rows, n),
                saved.inv_norm,
                saved.rows,
                own(saved.lse, n),
                saved.lse,
                row_offset=rank * n,
                need_dt=need_dt,
                **numbers,
            )
            return dz, None, dt if need_dt else None
        # A side without an upstream gradient: its terms vanish, 0 exp(s - inf).
        column_lse = saved.column_lse
        if dcolumns_all is None:
            dcolumns_all = saved.lse.new_zeros(world * m)
            column_lse = saved.lse.new_full((world * m,), torch.inf)
        drow_z = dcolumn_z = dt = None
        if need_rows or need_dt:
            drow_z, dt = bwd(
                own(drows_all, n),
                dcolumns_all,
                rows,
                own(saved.rows, n),
                saved.inv_norm[:n],
                saved.columns,
                own(saved.lse, n),
                column_lse,
                row_offset=rank * n,
                need_dt=need_dt,
                **numbers,
            )
        need_dt = need_dt and options.both  # the columns' sums depend on t, too
        if need_columns or need_dt:
            dcolumn_z, column_dt = bwd(
                own(dcolumns_all, m),
                drows_all,
                columns,
                own(saved.columns, m),
                saved.inv_norm[n:],
                saved.rows,
                own(column_lse, m),
                saved.lse,
                row_offset=rank * m,
                need_dt=need_dt,
                **numbers,
            )
            dt = dt + column_dt if need_dt else dt
        return drow_z, dcolumn_z, dt if needs[2] else None

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.called = inputs[-1].called

    @staticmethod
    def backward(ctx, *_):
        function.refuse_second_derivative(ctx.called)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        function.refuse_vmap_of_gradient(inputs[-1].called)


def similarity(
    rows: Tensor,
    columns: Tensor | None,
    temperature: float | Tensor,
    *,
    exclude: str,
    both: bool,
    eps: float | None,
    precision: str,
    backend: str,
    group: "torch.distributed.ProcessGroup | None",
    need_max: bool = False,
    fixed_columns: bool = False,
    called: str = "similarity_logsumexp",
) -> tuple[Tensor, Tensor, Tensor]:
    """(lse [n], column_lse [m] with `both`, else [0], max [n] with `need_max`, else [0]) by a named backend.

    `simclr_fast.losses.similarity.similarity_logsumexp` documents and checks the arguments; eps None: without
    normalisation. max, each row's largest logit (-inf of none), has no gradient. fixed_columns, of a call without
    `both`: columns without gradient, which the caller may overwrite once this returns. called: what users call.
    """
    if fixed_columns and eps is None:
        columns = columns.clone()  # unit rows are new, but rows as they are would be saved themselves
    if backend == "reference" or (columns is not None and columns.shape[0] == 0):  # of no columns there is no product
        return _reference(rows, columns, temperature, exclude, both, need_max, eps, group)
    if eps is None and not isinstance(temperature, Tensor):
        # The kernels bound logits by 1 / temperature where they know it, which rows that are no unit rows may exceed.
        temperature = rows.new_full((), temperature, dtype=compute_dtype(rows.dtype))
    value, tensor = (0.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)
    options = Options(value, exclude, both, need_max, fixed_columns, eps, precision, backend, group, called)
    return function.apply(_Similarity, called, rows, columns, tensor, options)[:3]


def _reference(rows, columns, temperature, exclude, both, need_max, eps, group) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch under the same rules for several processes, O(n m) memory; differentiated by autograd."""
    rank, world = distributed.rank_and_size(group)

    def operands(z: Tensor) -> Tensor:
        return z.to(compute_dtype(z.dtype)) if eps is None else normalize_rows(z, eps)

    def of_all(u: Tensor) -> Tensor:
        return u if world == 1 else distributed.all_gather_with_gradient(u, group)

    with without_autocast(rows.device):
        x = operands(rows)
        y = x if columns is None else operands(columns)
        s = similarity_logits(x, of_all(y), temperature, rank * x.shape[0], exclude)
        lse = log_sum_exp(s)
        column_lse = maximum = lse.new_empty(0)
        if both:
            s_columns = similarity_logits(y, of_all(x), temperature, rank * y.shape[0], exclude)
            column_lse = log_sum_exp(s_columns)
        if need_max:
            # The column before the logits gives rows without columns a maximum, too.
            maximum = F.pad(s.detach(), (1, 0), value=-torch.inf).amax(dim=1)
        return lse, column_lse, maximum
