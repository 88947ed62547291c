"""What the host sides of the Triton NT-Xent and similarity backends share: operands, precision, row-wise launches."""

from __future__ import annotations

import torch
import triton

from simclr_fast.ops.ntxent.limits import NTXENT
from simclr_fast.ops.ntxent.triton_common import CONSTANT_MAX_LIMIT
from simclr_fast.triton_launch import aligned

# Full float32 ("ieee") on tensor cores: three tf32 products of operands split in two, a few ulps from FMA's result.
_DOT_OF = {"ieee": "tf32x3", "tf32": "tf32"}

ROW_WARPS = 8  # warps of a program of the row-wise kernels
ROW_STAGES = 2
FINISH_ROWS = 16  # of a program of the forward's finish; with 64, a multiprocessor gets one, which waits for its loads
COEFFICIENT_ROWS = 128  # of a program that makes coefficients; each of them reads the statistics of all rows


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv takes 7 us a call."""
    return -(-a // b)


def needs_online_max(temperature: float, temperature_tensor: torch.Tensor | None) -> bool:
    """Whether rows have maxima of their own: where 1/t is too large for all of them, or not known to the host."""
    return temperature_tensor is not None or 2.0 / temperature > CONSTANT_MAX_LIMIT


def operand_dtype(z: torch.Tensor) -> torch.dtype:
    """The dtype of the unit rows of z; TypeError where there is none."""
    if z.dtype not in NTXENT.triton_takes:
        raise TypeError(f"backend='triton' takes no {z.dtype}, which z0 is: cast it, or use another backend")
    return torch.float32 if z.dtype == torch.float32 else torch.float16


def dot_precision(u: torch.Tensor, precision: str) -> str:
    """Name of the product in the tile tables: "fp16", "tf32" or "tf32x3"."""
    if u.dtype not in (torch.float16, torch.float32):
        raise TypeError(f"backend='triton' takes u of float16 or float32, got {u.dtype}")
    if precision not in _DOT_OF:
        raise ValueError(f"precision must be one of {sorted(_DOT_OF)}, got {precision!r}")
    return "fp16" if u.dtype == torch.float16 else _DOT_OF[precision]


def tl_precision(dot: str) -> str:
    """The precision that tl.dot asks for, of fp16 operands too, where it ignores it."""
    return "ieee" if dot == "fp16" else dot


def stride_unit(dim: int) -> int:
    """What strides are counted in; that it depends on D alone leaves one compiled variant for all rows of that D."""
    return 16 if dim % 16 == 0 else 1


def readable_rows(z: torch.Tensor) -> torch.Tensor:
    """z [n, D] or a copy: contiguous rows, a stride of whole units, an aligned start."""
    readable = z.stride(1) == 1 and z.stride(0) % stride_unit(z.shape[1]) == 0
    return aligned(z if readable else z.contiguous())


def row_blocks(dim: int) -> tuple[int, int]:
    """(rows, columns) that a program of the row-wise kernels holds: whole rows, and 4 elements a thread where they fit.

    With 4, a warp's float32 and float16 accesses both fill their sectors.
    """
    block_d = triton.next_power_of_2(dim)
    return max(1, 4 * 32 * ROW_WARPS // block_d), block_d
