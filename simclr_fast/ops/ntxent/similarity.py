"""`similarity`: log-sum-exps of similarities by a named backend, differentiable in rows, columns and temperature."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.ops.ntxent import function
from simclr_fast.ops.ntxent.reference import (
    compute_dtype,
    log_sum_exp,
    normalize_rows,
    similarity_logits,
    without_autocast,
)
from simclr_fast.ops.ntxent.similarity_ops import OPS, Options, operands
from simclr_fast.ops.ntxent.similarity_rows import rows_logsumexp, wants_rows_alone


class _Saved(NamedTuple):
    """Operands and log-sum-exps of all processes, and the inverse norms of this one; columns None: the rows."""

    rows: Tensor  # [W n, D']
    inv_norm: Tensor  # [n + m]
    lse: Tensor  # [W n]
    columns: Tensor | None  # [W m, D']
    column_lse: Tensor | None  # [W m], with both


class _Similarity(torch.autograd.Function):
    """(lse [n], column_lse [m] or [0], max [n] or [0]), then the fields of _Saved."""

    @staticmethod
    def forward(rows, columns, temperature_tensor, options: Options):
        fwd = OPS[options.backend].fwd
        n = rows.shape[0]
        rank, world = distributed.rank_and_size(options.group)
        x, y, inv_norm = operands(rows, columns, options)
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
        rank, world = distributed.rank_and_size(options.group)
        n = rows.shape[0]
        alone = saved.columns is None
        m = n if alone else saved.columns.shape[0] // world

        def of_all(upstream: Tensor | None, count: int) -> Tensor:
            """[count] of this rank, None for zeros -> [W count]"""
            upstream = saved.lse.new_zeros(count) if upstream is None else upstream.contiguous()
            return upstream if world == 1 else distributed.all_gather_shards(upstream, options.group)

        drows_all, dcolumns_all = of_all(drows, n), of_all(dcolumns, m) if options.both else None

        def of_side(z, inv_norm, own: tuple[Tensor, ...], others: tuple[Tensor, ...], need_dt: bool):
            """(dz, dt) of this rank's rows z [count, D]; own, others: upstream, operands, log-sum-exps of all ranks."""
            mine = slice(rank * z.shape[0], (rank + 1) * z.shape[0])
            return OPS[options.backend].bwd(
                *(own[0][mine], others[0], z, own[1][mine], inv_norm, others[1], own[2][mine], others[2]),
                row_offset=rank * z.shape[0],
                exclude=options.exclude,
                eps=1.0 if options.eps is None else options.eps,
                temperature=options.temperature,
                temperature_tensor=temperature_tensor,
                precision=options.precision,
                need_dt=need_dt,
            )

        need_rows, need_columns, need_dt = needs
        of_rows = (drows_all, saved.rows, saved.lse)
        if alone:
            dz, dt = of_side(rows, saved.inv_norm, of_rows, of_rows, need_dt)
            return dz, None, dt if need_dt else None
        # A side without an upstream gradient: its terms vanish, 0 exp(s - inf).
        column_lse = saved.column_lse
        if dcolumns_all is None:
            dcolumns_all = saved.lse.new_zeros(world * m)
            column_lse = saved.lse.new_full((world * m,), torch.inf)
        of_columns = (dcolumns_all, saved.columns, column_lse)
        drow_z = dcolumn_z = dt = None
        if need_rows or need_dt:
            drow_z, dt = of_side(rows, saved.inv_norm[:n], of_rows, of_columns, need_dt)
        need_dt = need_dt and options.both  # the columns' sums depend on t, too
        if need_columns or need_dt:
            dcolumn_z, column_dt = of_side(columns, saved.inv_norm[n:], of_columns, of_rows, need_dt)
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
    if backend == "reference" or (columns is not None and columns.shape[0] == 0):  # of no columns there is no product
        if fixed_columns and eps is None:
            columns = columns.clone()  # which autograd would save
        return _reference(rows, columns, temperature, exclude, both, need_max, eps, group)
    if eps is None and not isinstance(temperature, Tensor):
        # The kernels bound logits by 1 / temperature where they know it, which rows that are no unit rows may exceed.
        temperature = rows.new_full((), temperature, dtype=compute_dtype(rows.dtype))
    scaled = eps is None and rows.dtype == torch.float32 and (rows.is_cuda or backend == "triton")
    if scaled:
        rows, columns, temperature = _of_entries_below_one(rows, columns, temperature, group)
    value, tensor = (0.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)
    options = Options(value, exclude, both, need_max, fixed_columns, eps, precision, backend, group, called)
    # The gradient of rows alone is made with the log-sum-exps, by two products in place of three. On GPUs fwd_bwd has
    # no kernel, and the backward pass makes it.
    alone = wants_rows_alone(rows, columns, both) and not torch._C._are_functorch_transforms_active()
    if alone and backend == "cpp" and rows.device.type == "cpu":
        return rows_logsumexp(rows, columns, tensor, options)
    if fixed_columns and eps is None and not scaled:
        columns = columns.clone()  # unit rows and scaled ones are new, but rows as they are would be saved themselves
    return function.apply(_Similarity, called, rows, columns, tensor, options)[:3]


def _of_entries_below_one(rows: Tensor, columns: Tensor | None, temperature: Tensor, group) -> tuple:
    """Rows, columns and temperature of the same logits: rows and columns times a power of two each.

    The kernels split float32 operands into two numbers of half a float's range. The scales are exact, and those of all
    ranks of the group. They end at 2^60, where the product of both, times a temperature near 1, and its inverse are
    normal numbers still: largest entries from 1e-18 to 1e18 are served, and those of 2^68 overflow. The temperature's
    gradient is the square of a logit in size on the way, and loses digits where all logits are below 1e-17.
    """
    parts = [x for x in (rows, columns) if x is not None]
    with torch.no_grad():
        peaks = torch.stack([torch.linalg.vector_norm(x, torch.inf) for x in parts])
        if distributed.rank_and_size(group)[1] > 1:
            peaks = distributed.all_gather_shards(peaks[None], group).amax(0)
        exponents = torch.frexp(peaks).exponent.clamp(-60, 60)
        scales = torch.ldexp(torch.ones_like(peaks), -exponents)
    x, y = rows * scales[0], None if columns is None else columns * scales[1]
    return x, y, temperature * (scales[0] * scales[-1])


def _reference(rows, columns, temperature, exclude, both, need_max, eps, group) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch under the same rules for several processes, O(n m) memory; differentiated by autograd."""
    rank, world = distributed.rank_and_size(group)

    def of_dtype(z: Tensor) -> Tensor:
        return z.to(compute_dtype(z.dtype)) if eps is None else normalize_rows(z, eps)

    def of_all(u: Tensor) -> Tensor:
        return u if world == 1 else distributed.all_gather_with_gradient(u, group)

    with without_autocast(rows.device):
        x = of_dtype(rows)
        y = x if columns is None else of_dtype(columns)
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
