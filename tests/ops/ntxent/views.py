"""Embeddings that NT-Xent is tested on, its float64 truth, and how errors are measured."""

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import ntxent_reference

KINDS = ("random", "aligned", "opposed", "equal", "zero rows", "huge row")
TEMPERATURES = (0.5, 0.1, 0.05, 0.03, 0.01)
# The first rows of both views, which the kind makes special: their gradients have another scale than the others'.
SPECIAL_ROWS = {"zero rows": 3, "huge row": 1}


def views(kind: str, n: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """z0, z1 [n, d]."""
    a, b = torch.randn(2, n, d, dtype=torch.float64)
    if kind == "aligned":
        b = a + 0.3 * b
    elif kind == "opposed":
        b = -a
    elif kind == "equal":
        a = a[:1].repeat(n, 1)
        b = a.clone()
    elif kind == "zero rows":  # in one view, in the other, in both
        a[0] = b[1 % n] = a[2 % n] = b[2 % n] = 0
    elif kind == "huge row":
        a[0] *= 60000 / a[0].abs().max() if dtype == torch.float16 else 1e30
    return a.to(dtype), b.to(dtype)


def truth(z0: Tensor, z1: Tensor, temperature: float, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, its gradient [2n, d] and its derivative by the temperature, in float64 of the same rounded inputs."""
    wide = [z.detach().double().requires_grad_() for z in (z0, z1)]
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    loss = ntxent_reference(*wide, t, eps=eps)
    loss.backward()
    return loss.detach(), torch.cat([z.grad for z in wide]), t.grad


def gradient_error(dz: Tensor, dz_true: Tensor, z: Tensor, temperature: float, kind: str) -> float:
    """Relative error of the gradient [2n, d]; of special rows apart, lest they hide the others.

    Where the true gradient is zero by symmetry (equal rows, one column, one sample), against its natural scale
    2 / (t M |z_i|).
    """
    rows = dz_true.shape[0]
    error = dz.double() - dz_true
    if kind == "equal" or z.shape[1] == 1 or rows == 2:
        natural = 2 / (temperature * rows * z.double().norm(dim=1, keepdim=True).clamp_min(1e-8))
        return (error / natural).norm(dim=1).max().item()
    special = torch.arange(rows) % (rows // 2) < SPECIAL_ROWS.get(kind, 0)
    errors = [error[group].norm() / dz_true[group].norm() for group in (special, ~special) if group.any()]
    return torch.stack(errors).nan_to_num(float("inf")).max().item()


def half_scale(dz_true: Tensor, kind: str) -> float:
    """The power of two that brings an ordinary row of the gradient near 1, as a GradScaler would."""
    if kind == "equal":  # the true gradient is 0
        return 1024.0
    return 2.0 ** -dz_true.norm(dim=1).median().log2().round().item()


def half_error(dz: Tensor, dz_true: Tensor, z: Tensor, temperature: float, kind: str) -> float:
    """gradient_error of a gradient of a half type against the true one rounded to that type, all that it can hold.

    Overflow (rows of length 0: 1 / eps) must be where the rounded one has it.
    """
    rounded = dz_true.to(dz.dtype).double()
    if not torch.equal(dz.isinf(), rounded.isinf()):
        return float("inf")
    return gradient_error(dz.masked_fill(dz.isinf(), 0), rounded.masked_fill(rounded.isinf(), 0), z, temperature, kind)


def error_beside_rounding(dz: Tensor, dz_true: Tensor) -> float:
    """Relative error of a gradient of a half type, without what rounding it to that type adds, which is independent.

    Small errors make some entries round the other way, so that a distance from the rounded gradient exaggerates them.
    """
    rounding = (dz_true.to(dz.dtype).double() - dz_true).square().sum()
    return ((dz.double() - dz_true).square().sum() - rounding).clamp_min(0).sqrt().item() / dz_true.norm().item()
