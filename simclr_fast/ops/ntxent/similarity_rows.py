"""Log-sum-exps of rows whose columns want no gradient: their derivatives are made with them, in one pass.

The gradient of lse_i by row i is the columns' average under its softmax, whatever arrives from above but a factor. What
the backward pass takes is this, [n, D], and a number a row: no operand, and nothing of another process.
"""

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.ops.ntxent import function
from simclr_fast.ops.ntxent.similarity_ops import FWD_BWD, Options, operands


def wants_rows_alone(rows: Tensor, columns: Tensor | None, both: bool) -> bool:
    """Whether autograd records the rows [n, D] and not the columns [m, D], of a call whose result is the rows' alone.

    Ranks of a group must have this alike: their collectives depend on it.
    """
    if columns is None or both:
        return False
    return rows.requires_grad and not columns.requires_grad and torch.is_grad_enabled()


def rows_logsumexp(
    rows: Tensor, columns: Tensor, temperature_tensor: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """(lse [n], [0], max [n] with `need_max`, else [0]) as `similarity` returns them, of the C++ kernels for CPUs."""
    lse, maximum, *_ = function.apply(_Rows, options.called, rows, columns, temperature_tensor, options)
    return lse, lse.new_empty(0), maximum


class _Rows(torch.autograd.Function):
    """(lse [n], max [n] or [0], dlse_dz [n, D'], dlse_dt [n])."""

    @staticmethod
    def forward(rows, columns, temperature_tensor, options: Options):
        n = rows.shape[0]
        rank, world = distributed.rank_and_size(options.group)
        x, y, inv_norm = operands(rows, columns, options)
        return FWD_BWD(
            x,
            inv_norm[:n],
            y if world == 1 else distributed.all_gather_shards(y, options.group),
            row_offset=rank * n,
            exclude=options.exclude,
            need_max=options.need_max,
            eps=1.0 if options.eps is None else options.eps,
            temperature=options.temperature,
            temperature_tensor=temperature_tensor,
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        rows, _, temperature_tensor, options = inputs
        ctx.called = options.called
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, temperature_tensor, *output[2:])

    @staticmethod
    def backward(ctx, dlse, *_):
        if dlse is None:
            return None, None, None, None
        inputs = (dlse, *ctx.saved_tensors, ctx.needs_input_grad[2], ctx.called)
        drows, dt = function.apply(_RowsGradient, ctx.called, *inputs)
        return drows, None, dt, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        function.refuse_vmap(inputs[-1].called)


class _RowsGradient(torch.autograd.Function):
    """(drows [n, D], dt [] or None), recorded by autograd only to refuse a second derivative.

    It depends on the rows and on the temperature, though of the rows it reads no more than their dtype.
    """

    @staticmethod
    def forward(dlse, rows, temperature_tensor, dlse_dz, dlse_dt, need_dt: bool, called: str):
        drows = (dlse[:, None] * dlse_dz).to(rows.dtype)
        return drows, (dlse * dlse_dt).sum(dtype=torch.float64).to(dlse_dt.dtype) if need_dt else None

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.called = inputs[-1]

    @staticmethod
    def backward(ctx, *_):
        function.refuse_second_derivative(ctx.called)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        function.refuse_vmap_of_gradient(inputs[-1])
