"""Row L2-normalisation in Triton: kernels, and the functions that launch them.

    forward    r = 1 / max(|x|, eps),  u = r x
    backward   dx = r (du - u (u . du)),  or r du where the norm was clamped

One program owns BLOCK_M rows; a row is read in chunks of BLOCK_D. Squares are summed in float64: none overflows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from simclr_fast.triton_launch import aligned


@triton.jit(do_not_specialize=["N"])
def l2_normalize_fwd_kernel(x, u, inv_norm, N, D, eps: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """x, u: [N, D]; inv_norm: [N]. eps is a constexpr because Triton would round a float argument to float32."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    offsets = rows[:, None] * D + cols[None, :]  # [BLOCK_M, BLOCK_D]
    sum_sq = tl.zeros((BLOCK_M,), tl.float64)
    for start in range(0, D, BLOCK_D):
        mask = (rows[:, None] < N) & (cols[None, :] < D - start)
        chunk = tl.load(x + offsets + start, mask=mask, other=0.0).to(tl.float64)
        sum_sq += tl.sum(chunk * chunk, axis=1)
    norm = tl.sqrt(sum_sq)
    # Written so that a NaN norm is not clamped: NaN in gives NaN out.
    r = tl.where(norm <= eps, 1.0 / eps, 1.0 / norm).to(inv_norm.dtype.element_ty)  # [BLOCK_M]
    tl.store(inv_norm + rows, r, mask=rows < N)
    for start in range(0, D, BLOCK_D):
        mask = (rows[:, None] < N) & (cols[None, :] < D - start)
        chunk = tl.load(x + offsets + start, mask=mask, other=0.0)
        tl.store(u + offsets + start, chunk * r[:, None], mask=mask)


@triton.jit(do_not_specialize=["N"])
def l2_normalize_bwd_kernel(du, u, inv_norm, dx, N, D, eps: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """du, u, dx: [N, D]; inv_norm: [N]. A row whose inverse norm is 1 / eps was clamped."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    offsets = rows[:, None] * D + cols[None, :]  # [BLOCK_M, BLOCK_D]
    along = tl.zeros((BLOCK_M,), tl.float64)
    for start in range(0, D, BLOCK_D):
        mask = (rows[:, None] < N) & (cols[None, :] < D - start)
        u_chunk = tl.load(u + offsets + start, mask=mask, other=0.0).to(tl.float64)
        du_chunk = tl.load(du + offsets + start, mask=mask, other=0.0).to(tl.float64)
        along += tl.sum(u_chunk * du_chunk, axis=1)
    r = tl.load(inv_norm + rows, mask=rows < N, other=0.0)
    inv_eps = tl.full((BLOCK_M,), 1.0 / eps, tl.float64).to(r.dtype)  # rounded as the forward pass rounds it
    along = tl.where(r >= inv_eps, 0.0, along).to(r.dtype)
    for start in range(0, D, BLOCK_D):
        mask = (rows[:, None] < N) & (cols[None, :] < D - start)
        u_chunk = tl.load(u + offsets + start, mask=mask, other=0.0)
        du_chunk = tl.load(du + offsets + start, mask=mask, other=0.0)
        tl.store(dx + offsets + start, r[:, None] * (du_chunk - u_chunk * along[:, None]), mask=mask)


# 8 rows of up to 128 columns per program and 4 warps: a warp reads 512 contiguous bytes of a row at a time.
BLOCKS = {"BLOCK_M": 8, "BLOCK_D": 128, "num_warps": 4}


def l2_normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x: [N, D] float32 or float64 -> u [N, D], inv_norm [N]."""
    x = aligned(x.contiguous())
    N, D = x.shape
    u, inv_norm = torch.empty_like(x), x.new_empty(N)
    if N > 0:
        l2_normalize_fwd_kernel[(triton.cdiv(N, BLOCKS["BLOCK_M"]),)](x, u, inv_norm, N, D, eps, **BLOCKS)
    return u, inv_norm


def l2_normalize_backward(du: Tensor, u: Tensor, inv_norm: Tensor, eps: float) -> Tensor:
    """du, u: [N, D], inv_norm: [N] -> dx [N, D]."""
    du = aligned(du.contiguous())
    N, D = du.shape
    dx = torch.empty_like(du)
    if N > 0:
        grid = (triton.cdiv(N, BLOCKS["BLOCK_M"]),)
        l2_normalize_bwd_kernel[grid](du, u, inv_norm, dx, N, D, eps, **BLOCKS)
    return dx
