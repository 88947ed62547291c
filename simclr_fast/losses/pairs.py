"""`pair_logits`: the logits of given pairs of rows, which a contrastive loss needs beside the log-sum-exps.

Where pairs are aligned, the positive's logit is the largest of its row, the loss is small, and as wrong, relatively, as
this logit. Hence it is computed in float64 where the device has it, normalisation included, of a part of the rows at a
time, so that the float64 copies stay small.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from simclr_fast.losses.arguments import for_backward
from simclr_fast.ops.ntxent import function
from simclr_fast.ops.ntxent.reference import row_norms, unit_rows, wide_dtype, without_autocast

# Elements of a part. On CUDA, where each part costs launches, a float64 copy is 256 MiB.
_CUDA_PART = 2**25
# On the CPU 256 KiB, the most that PyTorch gives to one thread: on a busy machine two would wait for each other at
# every step, ten times as long as they compute; parts of half the size take a third longer, for their calls. From this
# many threads on they save more than that, and a part is 2 MiB.
_CPU_PART, _SHARED_CPU_PART, _MANY_THREADS = 2**15 - 1, 2**18, 8


def pair_logits(
    a: Tensor,
    b: Tensor,
    temperature: float | Tensor,
    *,
    eps: float = 1e-8,
    normalize: bool = True,
    backend: str = "auto",
    called: str = "pair_logits",
) -> Tensor:
    """u . v / temperature for each pair of rows, u = a / max(|a|, eps) and v = b / max(|b|, eps).

    Args:
        a, b: [..., D], of one shape; any float dtype. Valid arguments are the caller's business.
        temperature: a float or a 0-dim tensor, which may require grad.
        normalize: False takes the rows as they are.
        backend: "reference" is plain PyTorch, also for forward mode and vmap; any other keeps nothing for the backward
            pass but a and b.
        called: what users call, for messages.

    Returns:
        [...] in float64 (float32 on devices that lack it); differentiable as often as wanted in a, b and temperature.
    """
    length = float(eps) if normalize else None
    a, b = for_backward(a, b)
    with without_autocast(a.device):
        if backend == "reference":
            u, v = (x.to(wide_dtype(x)) if length is None else unit_rows(x, length) for x in (a, b))
            return (u * v).sum(dim=-1) / temperature
        value, tensor = (0.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)
        return function.apply(_PairLogits, called, a, b, tensor, value, length, called)


class _PairLogits(torch.autograd.Function):
    """The logits of pairs [...]; the backward computes the unit rows anew."""

    @staticmethod
    def forward(a, b, temperature_tensor, temperature: float, eps: float | None, called: str):
        def cosines(a: Tensor, b: Tensor) -> tuple[Tensor]:
            return ((wide_rows(a, eps)[0] * wide_rows(b, eps)[0]).sum(dim=-1),)

        t = temperature if temperature_tensor is None else temperature_tensor
        return in_parts(cosines, a, b)[0] / t

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, temperature_tensor, ctx.temperature, ctx.eps, _ = inputs
        ctx.save_for_backward(a, b, temperature_tensor)

    @staticmethod
    def backward(ctx, ds):
        a, b, temperature_tensor = ctx.saved_tensors
        t = ctx.temperature if temperature_tensor is None else temperature_tensor
        need_a, need_b, need_dt = ctx.needs_input_grad[:3]

        def gradients(a: Tensor, b: Tensor, dcosine: Tensor) -> list[Tensor]:
            u, norm_a = wide_rows(a, ctx.eps)
            v, norm_b = wide_rows(b, ctx.eps)
            g, cosine = dcosine[..., None], (u * v).sum(dim=-1, keepdim=True)
            results = []
            if need_a:
                results.append(through_normalization(v, u, norm_a, ctx.eps, g, cosine).to(a.dtype))
            if need_b:
                results.append(through_normalization(u, v, norm_b, ctx.eps, g, cosine).to(b.dtype))
            if need_dt:
                results.append(cosine[..., 0])
            return results

        with without_autocast(a.device):
            results = list(in_parts(gradients, a, b, ds / t))
            da = results.pop(0) if need_a else None
            db = results.pop(0) if need_b else None
            dt = -(ds * results.pop(0)).sum() / (t * t) if need_dt else None
        return da, db, dt if dt is None else dt.to(temperature_tensor.dtype), None, None, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        function.refuse_vmap(inputs[-1])


def wide_rows(z: Tensor, eps: float | None) -> tuple[Tensor, Tensor | None]:
    """u = z / max(|z|, eps) in float64 and |z| [..., 1]; z as it is, and None, where eps is None."""
    wide = z.to(wide_dtype(z))
    if eps is None:
        return wide, None
    norm = row_norms(wide, z.dtype, eps)
    return wide * (1 / norm.clamp_min(eps)), norm


def through_normalization(
    du: Tensor, u: Tensor, norm: Tensor | None, eps: float | None, factor: float | Tensor, radial: Tensor
) -> Tensor:
    """dz of factor du: factor (du - u (u . du)) / |z|, or factor du / eps where the norm was clamped.

    du, u: [..., D]; norm, factor, and radial, which is u . du: [..., 1]; norm None: factor du, without normalisation.
    Numbers per row are multiplied first, since passes over the rows are what takes the time.
    """
    if norm is None:
        return factor * du
    scale = factor / norm.clamp_min(eps)
    return torch.addcmul(scale * du, u, torch.where(norm <= eps, 0, scale * radial), value=-1)


def _part(device: torch.device) -> int | None:
    """Elements of a part, None for everything at once."""
    if device.type == "cpu":
        return _SHARED_CPU_PART if torch.get_num_threads() >= _MANY_THREADS else _CPU_PART
    return _CUDA_PART if device.type == "cuda" else None


def in_parts(function: Callable[..., tuple[Tensor, ...] | list[Tensor]], *rows: Tensor) -> tuple[Tensor, ...]:
    """The results [n, ...] of a function of rows [n, ...], called for a part of the rows at a time.

    All at once where autograd records it (a second derivative), and where torch.compile would make a constant of the
    number of parts.
    """
    n, whole = rows[0].shape[0], torch.compiler.is_compiling() or torch.is_grad_enabled()
    limit = None if whole else _part(rows[0].device)
    if limit is None or rows[0].numel() <= limit:
        return tuple(function(*rows))
    step = max(1, limit * n // rows[0].numel())
    results: list[Tensor] = []
    for begin in range(0, n, step):
        end = min(begin + step, n)
        parts = function(*(x[begin:end] for x in rows))
        if not results:
            results = [part.new_empty((n, *part.shape[1:])) for part in parts]
        for result, part in zip(results, parts):
            result[begin:end] = part
    return tuple(results)
