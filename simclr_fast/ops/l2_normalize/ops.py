"""simclr_fast::l2_normalize: schema, fake, autograd, public function. The C++ kernels register themselves on load.

This is the pattern every op follows: the schema is defined here, so that the package imports without a compiler;
csrc/<op>_binding.cpp registers C++ under the keys CPU and CUDA; Triton has an op of its own (one dispatch key holds one
kernel), with the same fake and the same autograd formula.
"""

import torch
from torch import Tensor

from simclr_fast.backends import has_triton, resolve_backend
from simclr_fast.ops.l2_normalize.reference import l2_normalize_reference

_SCHEMA = "(Tensor x, float eps) -> (Tensor u, Tensor inv_norm)"
_BACKWARD_SCHEMA = "(Tensor du, Tensor u, Tensor inv_norm, float eps) -> Tensor"


def _define(suffix: str) -> tuple[torch._ops.OpOverload, str, str]:
    """Defines the forward and backward op with this suffix, their fakes, and the autograd formula between them."""
    name, backward_name = f"simclr_fast::l2_normalize{suffix}", f"simclr_fast::l2_normalize_backward{suffix}"
    torch.library.define(name, _SCHEMA)
    torch.library.define(backward_name, _BACKWARD_SCHEMA)

    @torch.library.register_fake(name)
    def _(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[0])

    @torch.library.register_fake(backward_name)
    def _(du: Tensor, u: Tensor, inv_norm: Tensor, eps: float) -> Tensor:
        return torch.empty_like(du, memory_format=torch.contiguous_format)

    backward_op = getattr(torch.ops.simclr_fast, f"l2_normalize_backward{suffix}").default

    def setup_context(ctx, inputs, output) -> None:
        ctx.eps = inputs[1]
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def backward(ctx, du: Tensor | None, _) -> tuple[Tensor | None, None]:
        return None if du is None else backward_op(du, *ctx.saved_tensors, ctx.eps), None

    torch.library.register_autograd(name, backward, setup_context=setup_context)
    return getattr(torch.ops.simclr_fast, f"l2_normalize{suffix}").default, name, backward_name


_cpp_op, _, _ = _define("")
_triton_op, _triton_name, _triton_backward_name = _define("_triton")

if has_triton():
    from simclr_fast.ops.l2_normalize import triton_kernels

    torch.library.register_kernel(_triton_name, "cuda", triton_kernels.l2_normalize)
    torch.library.register_kernel(_triton_backward_name, "cuda", triton_kernels.l2_normalize_backward)


def l2_normalize(x: Tensor, eps: float = 1e-8, *, backend: str = "auto") -> Tensor:
    """Rows of unit length: u = x / max(|x|, eps).

    Args:
        x: [N, D], any float dtype, any strides. Half types are computed in float32 and rounded once at the end.
        eps: rows shorter than this are divided by it (> 0).
        backend: "auto", "cpp", "triton" or "reference"; see simclr_fast.backends.

    Returns:
        u: [N, D], dtype of x. Differentiable once.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: x is not two-dimensional, eps <= 0, or backend is unknown.
        RuntimeError: the named backend cannot serve x.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, got {what}; convert it with x.float()")
    if x.dim() != 2:
        raise ValueError(f"x must be [N, D], got shape {tuple(x.shape)}; flatten the leading dimensions")
    if not eps > 0:
        raise ValueError(f"eps must be > 0, got {eps}; the default is 1e-8")
    backend = resolve_backend(backend, "l2_normalize", x.device)
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if backend == "reference":
        return l2_normalize_reference(wide, eps).to(x.dtype)
    op = _cpp_op if backend == "cpp" else _triton_op
    return op(wide, eps)[0].to(x.dtype)
