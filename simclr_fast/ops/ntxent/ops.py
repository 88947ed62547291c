"""simclr_fast::ntxent_{normalize,fwd,normalize_fwd,bwd,fwd_bwd}: schemas, fakes, and the differentiable loss of them.

Rows, columns and statistics are those of docs/ntxent.md: a process holds n samples in two views, 2n rows; columns are
the M rows of all processes in rank order, of which its own start at row_offset.

    normalize  z0 [n, D], z1 [n', D], n' >= 0 -> u [n + n', D'], inv_norm [n + n'] (the loss has n' = n)
    fwd        u [M, D'] -> loss ([] = sum of L_i times their scale, or [2n] with reduction "none"), lse_neg, s_pos [2n]
    normalize_fwd  both at once, for a process that is alone: z0, z1 -> loss, u, inv_norm, lse_neg, s_pos
    bwd        dloss ([], or [M] with reduction "none"), ... -> dz0, dz1 [n, D], dt []
    fwd_bwd    all of it at once, for a scalar loss of a process that is alone, for whose gradient only a factor is yet
               to arrive from above: z0, z1 -> loss [], dz [2, n, D], dt [], the gradient for the factor 1

`row_scale` says what a reduction multiplies L_i by. Sizes are symbolic (SymInt), so that one compiled graph serves all
batch sizes, and no number that is made of them is an argument.

Statistics, and dz of fwd_bwd, are float32 (float64 for float64 inputs): a small gradient of half rows would be lost
before the factor, the loss scale of AMP, could save it. u is of the operand dtype: on CUDA float16 for half inputs (its
entries are at most 1, so that it is finer than bfloat16), else that of the statistics. The CUDA C++ kernels want rows
of whole 16 bytes: there D' is D rounded up, elsewhere it is D. On CUDA, float32 rows are split: u is [n + n', 2, D'] of
float16 then, the parts of `split_rows`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.backends import describe, has_triton
from simclr_fast.ops.ntxent import function
from simclr_fast.ops.ntxent.limits import NTXENT
from simclr_fast.ops.ntxent.reference import (
    compute_dtype,
    normalize_rows,
    row_loss,
    row_losses,
    row_scale,
    without_autocast,
)

_SCHEMAS = {
    "normalize": "(Tensor z0, Tensor z1, float eps) -> (Tensor u, Tensor inv_norm)",
    "fwd": "(Tensor u, SymInt n, SymInt row_offset, float temperature, Tensor? temperature_tensor, str reduction, "
    "str precision) -> (Tensor loss, Tensor lse_neg, Tensor s_pos)",
    "normalize_fwd": "(Tensor z0, Tensor z1, float eps, float temperature, Tensor? temperature_tensor, str reduction, "
    "str precision) -> (Tensor loss, Tensor u, Tensor inv_norm, Tensor lse_neg, Tensor s_pos)",
    "bwd": "(Tensor dloss, Tensor z0, Tensor z1, Tensor u, Tensor inv_norm, Tensor lse_neg, Tensor s_pos, "
    "SymInt row_offset, str reduction, float eps, float temperature, Tensor? temperature_tensor, str precision, "
    "bool need_dt) -> (Tensor dz0, Tensor dz1, Tensor dt)",
    "fwd_bwd": "(Tensor z0, Tensor z1, float eps, float temperature, Tensor? temperature_tensor, str reduction, "
    "str precision, bool need_dt) -> (Tensor loss, Tensor dz, Tensor dt)",
}


class Ops(NamedTuple):
    """The operators of one backend."""

    normalize: Callable
    fwd: Callable
    normalize_fwd: Callable
    bwd: Callable
    fwd_bwd: Callable


def operand_dtype(z: Tensor) -> torch.dtype:
    """The dtype of the unit rows that the kernels multiply."""
    half = z.dtype in (torch.float16, torch.bfloat16)
    return torch.float16 if half and z.device.type == "cuda" else compute_dtype(z.dtype)


SPLIT_SCALE = 2.0**8  # kSplitScale of csrc/cuda/ntxent_problem.h


def split_rows(rows: Tensor) -> Tensor:
    """rows [n, D'] of float32 as operands of the CUDA kernels, [n, 2, D'] of float16: hi + lo is 2^8 rows.

    22 bits of every entry above 2^-11 in size; an entry of 256 or more overflows.
    """
    scaled = rows * SPLIT_SCALE
    hi = scaled.half()
    return torch.stack([hi, (scaled - hi).half()], dim=1)


def _define(suffix: str) -> Ops:
    """Defines the ops with this suffix, and their fakes."""
    for name, schema in _SCHEMAS.items():
        torch.library.define(f"simclr_fast::ntxent_{name}{suffix}", schema)

    @torch.library.register_fake(f"simclr_fast::ntxent_normalize{suffix}")
    def normalize(z0, z1, eps):
        dtype, rows, width = operand_dtype(z0), z0.shape[0] + z1.shape[0], z0.shape[1]
        split = z0.device.type == "cuda" and dtype == torch.float32
        dtype = torch.float16 if split else dtype
        if z0.device.type == "cuda" and suffix == "":
            per_16_bytes = 16 // dtype.itemsize
            width = (width + per_16_bytes - 1) // per_16_bytes * per_16_bytes
        shape = (rows, 2, width) if split else (rows, width)
        return z0.new_empty(shape, dtype=dtype), z0.new_empty(rows, dtype=compute_dtype(z0.dtype))

    @torch.library.register_fake(f"simclr_fast::ntxent_fwd{suffix}")
    def fwd(u, n, row_offset, temperature, temperature_tensor, reduction, precision):
        dtype = compute_dtype(u.dtype)
        loss = u.new_empty(2 * n if reduction == "none" else (), dtype=dtype)
        return loss, *(u.new_empty(2 * n, dtype=dtype) for _ in range(2))

    @torch.library.register_fake(f"simclr_fast::ntxent_normalize_fwd{suffix}")
    def _(z0, z1, eps, *options):
        u, inv_norm = normalize(z0, z1, eps)
        loss, *statistics = fwd(u, z0.shape[0], 0, *options)
        return loss, u, inv_norm, *statistics

    @torch.library.register_fake(f"simclr_fast::ntxent_bwd{suffix}")
    def _(dloss, z0, z1, u, inv_norm, lse_neg, s_pos, *options):
        return z0.new_empty(z0.shape), z1.new_empty(z1.shape), inv_norm.new_empty(())

    @torch.library.register_fake(f"simclr_fast::ntxent_fwd_bwd{suffix}")
    def _(z0, z1, *options):
        dtype = compute_dtype(z0.dtype)
        return tuple(z0.new_empty(shape, dtype=dtype) for shape in ((), (2, *z0.shape), ()))

    return Ops(*(getattr(torch.ops.simclr_fast, f"ntxent_{name}{suffix}").default for name in _SCHEMAS))


OPS = {"cpp": _define(""), "triton": _define("_triton")}
describe("ntxent_fwd", NTXENT)

if has_triton():
    from simclr_fast.ops.ntxent import triton_backend

    for _name in _SCHEMAS:
        torch.library.register_kernel(f"simclr_fast::ntxent_{_name}_triton", "cuda", getattr(triton_backend, _name))


class Options(NamedTuple):
    """What a call of the loss is made with beside its tensors. A temperature tensor, where there is one, counts."""

    temperature: float
    reduction: str
    eps: float
    precision: str
    backend: str
    group: "torch.distributed.ProcessGroup | None"


class _Saved(NamedTuple):
    """What forward leaves to backward: operands and statistics of all columns, never a matrix of M x M."""

    u: Tensor  # [M, D'], or [M, 2, D']
    inv_norm: Tensor  # [2n]
    lse_neg: Tensor  # [M]
    s_pos: Tensor  # [M]


class _NTXent(torch.autograd.Function):
    """The loss, then the fields of _Saved."""

    @staticmethod
    def forward(z0, z1, temperature_tensor, options: Options):
        rank, world = distributed.rank_and_size(options.group)
        ops, reduction, precision = OPS[options.backend], options.reduction, options.precision
        temperature = (options.temperature, temperature_tensor)
        if world == 1:
            return ops.normalize_fwd(z0, z1, options.eps, *temperature, reduction, precision)
        n = z0.shape[0]
        local_u, inv_norm = ops.normalize(z0, z1, options.eps)
        u = distributed.all_gather_shards(local_u, options.group)  # [M, D']
        loss, lse_neg, s_pos = ops.fwd(u, n, rank * 2 * n, *temperature, "none", precision)
        statistics = torch.stack([lse_neg, s_pos], dim=1)  # [2n, 2]
        lse_neg, s_pos = distributed.all_gather_shards(statistics, options.group).unbind(1)  # [M]
        lse_neg, s_pos = lse_neg.contiguous(), s_pos.contiguous()
        if reduction != "none":
            losses = row_loss(lse_neg.double(), s_pos.double())  # [M]
            loss = (losses.mean() if reduction == "mean" else losses.sum()).to(lse_neg.dtype)
        return loss, u, inv_norm, lse_neg, s_pos

    @staticmethod
    def setup_context(ctx, inputs, output):
        z0, z1, temperature_tensor, ctx.options = inputs
        _, *saved = output
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z0, z1, temperature_tensor, *saved)

    @staticmethod
    def backward(ctx, dloss, *_):
        if dloss is None:
            return None, None, None, None
        z0, z1, temperature_tensor, *saved = ctx.saved_tensors
        dloss = dloss.contiguous()
        if ctx.options.reduction == "none" and distributed.rank_and_size(ctx.options.group)[1] > 1:
            dloss = distributed.all_gather_shards(dloss, ctx.options.group)  # [M]
        need_dt = ctx.needs_input_grad[2]
        inputs = (dloss, z0, z1, temperature_tensor, _Saved(*saved), need_dt, ctx.options)
        dz0, dz1, dt = function.apply(_NTXentGradient, "ntxent_loss", *inputs)
        return dz0, dz1, dt if need_dt else None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        function.refuse_vmap("ntxent_loss")


class _NTXentWithGradient(torch.autograd.Function):
    """The scalar loss of a process that is alone, of which forward makes the gradient, too."""

    @staticmethod
    def forward(ctx, z0, z1, temperature_tensor, temperature: float, reduction: str, eps: float, precision: str, op):
        ctx.need_dt = ctx.needs_input_grad[2]
        loss, dz, dt = op(z0, z1, eps, temperature, temperature_tensor, reduction, precision, ctx.need_dt)
        ctx.save_for_backward(z0, z1, temperature_tensor, dz, dt)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        dz0, dz1, dt = function.apply(_ScaledGradient, "ntxent_loss", dloss, *ctx.saved_tensors, ctx.need_dt)
        return dz0, dz1, dt, None, None, None, None, None


class _DifferentiableOnce(torch.autograd.Function):
    """What autograd records only to refuse a second derivative instead of dropping it silently."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        function.refuse_second_derivative("ntxent_loss")

    @staticmethod
    def vmap(info, in_dims, *args):
        function.refuse_vmap_of_gradient("ntxent_loss")


class _ScaledGradient(_DifferentiableOnce):
    """The gradient for the factor 1, dz [2, n, D] and dt, times dloss."""

    @staticmethod
    def forward(dloss, z0, z1, temperature_tensor, dz, dt, need_dt: bool):
        return *_scaled_halves(dz, dloss, z0.dtype), dt * dloss if need_dt else None


def _scaled_halves(dz: Tensor, dloss: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """dz * dloss, rounded to dtype as it is written, which is one kernel; then the halves of it, [n, D] each."""
    # torch.compile fuses anyway. Of many upstream gradients at once autograd makes a batch, which takes no `out`.
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(dloss)
    ):
        return (dz * dloss).to(dtype).unbind()
    product = dz * dloss if dz.dtype == dtype else torch.mul(dz, dloss, out=torch.empty_like(dz, dtype=dtype))
    # To autograd these are no views, which, made without a graph, it would let nobody change by what requires grad.
    return torch.unsafe_split(product.flatten(0, 1), dz.shape[1])


class _NTXentGradient(_DifferentiableOnce):
    """The bwd op."""

    @staticmethod
    def forward(dloss, z0, z1, temperature_tensor, saved: _Saved, need_dt: bool, options: Options):
        row_offset = distributed.rank_and_size(options.group)[0] * 2 * z0.shape[0]
        how = (options.reduction, options.eps, options.temperature, temperature_tensor, options.precision)
        return OPS[options.backend].bwd(dloss, z0, z1, *saved, row_offset, *how, need_dt)


def ntxent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor,
    *,
    reduction: str,
    eps: float,
    precision: str,
    backend: str,
    group: "torch.distributed.ProcessGroup | None",
) -> Tensor:
    """The loss of valid arguments by a named backend; `simclr_fast.losses.ntxent_loss` documents and checks them.

    The ranks of a group call with equal ones, or their collectives do not meet.
    """
    if backend == "reference":
        return _reference(z0, z1, temperature, reduction, eps, group)
    value, tensor = (0.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)
    if (
        reduction != "none"
        and torch.is_grad_enabled()
        and (z0.requires_grad or z1.requires_grad or (tensor is not None and tensor.requires_grad))
        and (group is None or distributed.rank_and_size(group)[1] == 1)
        and not torch._C._are_functorch_transforms_active()  # which want a Function that does not know ctx
    ):
        # All that backward has to do is to multiply by a number, a gradient that is wanted.
        op = OPS[backend].fwd_bwd
        return function.recorded(
            _NTXentWithGradient, "ntxent_loss", z0, z1, tensor, value, reduction, eps, precision, op
        )
    options = Options(value, reduction, eps, precision, backend, group)
    return function.apply(_NTXent, "ntxent_loss", z0, z1, tensor, options)[0]


def _reference(z0, z1, temperature, reduction, eps, group) -> Tensor:
    """row_losses under the same rules for several processes as the fused loss; differentiated by autograd."""
    rank, world = distributed.rank_and_size(group)
    with without_autocast(z0.device):
        u = normalize_rows(torch.cat([z0, z1]), eps)  # [2n, D]
        u_all = u if world == 1 else distributed.all_gather_with_gradient(u, group)  # [M, D]
        losses = row_losses(u, u_all, temperature, rank * u.shape[0])
        if reduction == "none":
            return losses
        value = losses.sum() * row_scale(reduction, z0.shape[0], u_all.shape[0])
        if world == 1:
            return value
        # All ranks return the mean of their values; each keeps the gradient of its own.
        return value + (distributed.all_gather_shards(value.detach()[None], group).mean() - value.detach())
