"""Inputs for row L2-normalisation, and its float64 truth."""

import torch
from torch import Tensor

from simclr_fast.ops.l2_normalize.reference import l2_normalize_reference

EPS = 1e-8
SHAPES = [(1, 1), (1, 7), (3, 1), (5, 123), (64, 128), (33, 1030), (0, 4)]


def rows(n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Random rows with a zero row, a row shorter than EPS, a huge row and a NaN row where there is room for them."""
    x = torch.randn(n, d, dtype=torch.float64)
    if n >= 5:
        x[1], x[2], x[3] = 0, x[2] * 1e-12, x[3] * 1e30
        x[4, d // 2] = float("nan")
    return x.to(dtype)


def truth(x: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
    """u and dx in float64 of the same rounded input."""
    wide = x.detach().double().requires_grad_()
    u = l2_normalize_reference(wide, EPS)
    u.backward(du.double())
    return u, wide.grad


def gradient_error(dx: Tensor, dx_true: Tensor, x: Tensor, du: Tensor) -> float:
    """Error of one row's gradient against its natural scale |du| / max(|x|, eps): the gradient itself may be 0."""
    dx, x = dx.cpu(), x.detach().cpu()
    dx_true = dx_true.to(dx.dtype).double()
    if not torch.equal(dx.isnan(), dx_true.isnan()):
        return float("inf")
    scale = du.double().norm() / x.double().norm().nan_to_num(1.0).clamp_min(EPS)
    return ((dx.double() - dx_true).nan_to_num(0).abs().max() / scale).item()
