"""Host side of the Triton NT-Xent backend: buffers and launches; nothing here waits for the device.

`normalize`, `fwd` and `bwd` take the arguments of the ops simclr_fast::ntxent_{normalize,fwd,bwd}.  Launches: 1 to
normalise, 2 forward (tiles; reduction of their sums), 3 backward (row coefficients; tiles; reduction of their parts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from simclr_fast.ops.ntxent.limits import NTXENT
from simclr_fast.ops.ntxent.reference import row_scale
from simclr_fast.ops.ntxent.triton_backward import (
    ntxent_bwd_coefficients_kernel,
    ntxent_bwd_kernel,
    ntxent_bwd_reduce_kernel,
)
from simclr_fast.ops.ntxent.triton_common import CONSTANT_MAX_LIMIT
from simclr_fast.ops.ntxent.triton_forward import ntxent_fwd_kernel, ntxent_fwd_reduce_kernel, ntxent_normalize_kernel
from simclr_fast.ops.ntxent.triton_tiles import (
    Target,
    backward_splits,
    backward_tiles,
    forward_groups,
    forward_tiles,
    target_of,
)
from simclr_fast.triton_launch import Launch, aligned, launch_on_device

# Full float32 ("ieee") on tensor cores: three tf32 products of operands split in two, a few ulps from FMA's result.
_DOT_OF = {"ieee": "tf32x3", "tf32": "tf32"}

_ROW_WARPS = 8  # warps of a program of the row-wise kernels
_ROW_STAGES = 2


@dataclass(frozen=True)
class TritonNtxent:
    """The backend's three functions, for a choice of tiles and a way to run a launch."""

    run: Callable[[Launch], None] = launch_on_device
    target: Callable[[torch.device], Target] = target_of

    def normalize(self, z0: torch.Tensor, z1: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """z0, z1 [n, D] of one float type -> u [2n, D] (fp16 for half inputs, else fp32), inv_norm [2n] fp32."""
        operand = _operand_dtype(z0)
        z0, z1 = _readable_rows(z0), _readable_rows(z1)
        n, dim = z0.shape
        u = z0.new_empty((2 * n, dim), dtype=operand)
        inv_norm = z0.new_empty(2 * n, dtype=torch.float32)
        block_r, block_d = _row_blocks(dim)
        arguments = {"z0_ptr": z0, "z1_ptr": z1, "u_ptr": u, "inv_norm_ptr": inv_norm, "eps": eps, "n": n, "D": dim}
        unit = _stride_unit(dim)
        arguments |= {"stride0": z0.stride(0) // unit, "stride1": z1.stride(0) // unit}
        constants = {"UNIT": unit, "BLOCK_R": block_r, "BLOCK_D": block_d}
        self.run(
            Launch(ntxent_normalize_kernel, (_ceil_div(2 * n, block_r),), arguments, constants, _ROW_WARPS, _ROW_STAGES)
        )
        return u, inv_norm

    def fwd(
        self,
        u: torch.Tensor,
        n: int,
        row_offset: int,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        reduction: str,
        precision: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """u [M, D] -> loss ([] = row_scale * sum of the local L_i, or [2n] of "none"), lse_neg, s_pos [2n]."""
        u = u.contiguous()
        columns, dim = u.shape
        rows = 2 * n
        reduce = reduction != "none"
        target = self.target(u.device)
        dot = _dot_precision(u, precision)
        online_max = _needs_online_max(temperature, temperature_tensor)
        tiles = forward_tiles(target, dot, dim, online_max)
        row_tiles, column_tiles = _ceil_div(rows, tiles.block_m), _ceil_div(columns, tiles.block_m)
        symmetric = row_offset == 0 and columns == rows
        group_m, group_n = forward_groups(target, symmetric, row_tiles, column_tiles)
        row_groups, strips = _ceil_div(row_tiles, group_m), _ceil_div(column_tiles, group_n)
        column_slots = row_groups if symmetric else 0
        sums = u.new_empty((column_slots + strips, rows), dtype=torch.float32)
        peaks = torch.empty_like(sums) if online_max else sums
        done = u.new_empty(1, dtype=torch.int32)
        shared = {"u_ptr": u, "sum_ptr": sums, "peak_ptr": peaks, "done_ptr": done, "n": n, "row_offset": row_offset}
        shared |= {"group_m": group_m, "group_n": group_n, "column_slots": column_slots}
        shared |= {"temperature": temperature, "temperature_ptr": temperature_tensor}
        variant = {"D": dim, "SYMMETRIC": symmetric, "ONLINE_MAX": online_max, "BLOCK": tiles.block_m}
        constants = variant | {
            "PRECISION": _tl_precision(dot),
            "BLOCK_D": tiles.block_d,
            "CHUNKS": _ceil_div(dim, tiles.block_d),
            "HOLD_ROWS": tiles.holds_rows,
            "EVEN": columns % tiles.block_m == 0 and rows % tiles.block_m == 0,
            "EVEN_D": dim % tiles.block_d == 0,
        }
        arguments = shared | {"columns": columns}
        grid = (row_groups, strips)
        self.run(Launch(ntxent_fwd_kernel, grid, arguments, constants, tiles.num_warps, tiles.num_stages))

        block_r = 16  # with 64, a GPU's multiprocessors get one program each, which waits for its loads
        programs = _ceil_div(rows, block_r)
        part = u.new_empty(programs, dtype=torch.float32)
        lse_neg, s_pos = (u.new_empty(rows, dtype=torch.float32) for _ in range(2))
        loss = u.new_empty(() if reduce else rows, dtype=torch.float32)
        arguments = shared | {
            "lse_neg_ptr": lse_neg,
            "s_pos_ptr": s_pos,
            "loss_ptr": loss,
            "part_ptr": part,
            "scale": row_scale(reduction, n, columns),
        }
        arguments |= {"slots": column_slots + strips}
        constants = variant | {"REDUCE": reduce, "BLOCK_R": block_r, "BLOCK_SLOTS": 128, "BLOCK_D": 64}
        self.run(Launch(ntxent_fwd_reduce_kernel, (programs,), arguments, constants, num_stages=_ROW_STAGES))
        return loss, lse_neg, s_pos

    def bwd(
        self,
        dloss: torch.Tensor,
        z0: torch.Tensor,
        z1: torch.Tensor,
        u: torch.Tensor,
        inv_norm: torch.Tensor,
        lse_neg: torch.Tensor,
        s_pos: torch.Tensor,
        row_offset: int,
        reduction: str,
        eps: float,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        precision: str,
        need_dt: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dloss [], or [M] with reduction "none", u [M, D], lse_neg, s_pos [M] -> dz0, dz1 [n, D], dt []."""
        u, dloss, lse_neg, s_pos = (x.contiguous() for x in (u, dloss, lse_neg, s_pos))
        z0, z1 = _readable_rows(z0), _readable_rows(z1)
        n, dim = z0.shape
        columns = u.shape[0]
        reduced = reduction != "none"
        target = self.target(u.device)
        dot = _dot_precision(u, precision)
        online_max = _needs_online_max(temperature, temperature_tensor)
        tiles = backward_tiles(target, dot, dim, online_max)
        chunks = tiles.chunks(dim)
        d_parts = _ceil_div(dim, chunks * tiles.block_d)
        row_tiles, column_tiles = _ceil_div(2 * n, tiles.block_m), _ceil_div(columns, tiles.block_n)
        splits = backward_splits(target, row_tiles * d_parts, column_tiles)

        stat = u.new_empty(columns, dtype=torch.float32)
        weight = u.new_empty(columns + 1, dtype=torch.float32)
        positive = u.new_empty(columns, dtype=torch.float32)
        part = u.new_empty((splits, 2 * n, dim), dtype=torch.float32)
        dt_part = u.new_empty((splits, row_tiles), dtype=torch.float32)
        dz0, dz1 = (torch.empty((n, dim), dtype=z0.dtype, device=z0.device) for _ in range(2))
        dt = u.new_empty((), dtype=torch.float32)

        shared = {"weight_ptr": weight, "n": n, "columns": columns}
        shared |= {"temperature": temperature, "temperature_ptr": temperature_tensor}
        statistics = {"lse_neg_ptr": lse_neg, "s_pos_ptr": s_pos, "stat_ptr": stat}
        # Many numbers at once, since every program waits for all of them: with 1024 and 4 warps 10 us instead of 7.
        scan = 4096 if columns >= 4096 else 1024  # not more than there are: a masked step does not load vectors
        constants = {"REDUCED": reduced, "ONLINE_MAX": online_max, "BLOCK": 128, "BLOCK_SCAN": scan}
        arguments = shared | statistics | {"dloss_ptr": dloss, "positive_ptr": positive}
        grid = (_ceil_div(columns, 128),)
        self.run(Launch(ntxent_bwd_coefficients_kernel, grid, arguments, constants, _ROW_WARPS, _ROW_STAGES))

        shared |= {"u_ptr": u, "part_ptr": part, "dt_part_ptr": dt_part, "row_offset": row_offset}
        self.run(
            Launch(
                ntxent_bwd_kernel,
                (row_tiles, splits, d_parts),
                shared | statistics,
                {
                    "D": dim,
                    "NEED_DT": need_dt,
                    "ONLINE_MAX": online_max,
                    "PRECISION": _tl_precision(dot),
                    "BLOCK_M": tiles.block_m,
                    "BLOCK_N": tiles.block_n,
                    "BLOCK_D": tiles.block_d,
                    "CHUNKS": chunks,
                    "HOLD_ROWS": tiles.holds_rows,
                    "EVEN_D": tiles.even(dim),
                    "MASKED_FIRST": tiles.masked_first,
                    "SPECIAL": min(16, tiles.block_n),
                },
                tiles.num_warps,
                tiles.num_stages,
            )
        )
        arguments = shared | {"positive_ptr": positive, "inv_norm_ptr": inv_norm, "z0_ptr": z0, "z1_ptr": z1}
        unit = _stride_unit(dim)
        arguments |= {"stride0": z0.stride(0) // unit, "stride1": z1.stride(0) // unit}
        arguments |= {
            "dz0_ptr": dz0,
            "dz1_ptr": dz1,
            "dt_ptr": dt,
            "scale": row_scale(reduction, n, columns),
            "eps": eps,
        }
        arguments |= {"splits": splits, "dt_parts": splits * row_tiles}
        block_r, block_d = _row_blocks(dim)
        constants = {
            "D": dim,
            "UNIT": unit,
            "NEED_DT": need_dt,
            "BLOCK_R": block_r,
            "BLOCK_D": block_d,
            "BLOCK_DT": 128,
        }
        self.run(
            Launch(
                ntxent_bwd_reduce_kernel, (_ceil_div(2 * n, block_r),), arguments, constants, _ROW_WARPS, _ROW_STAGES
            )
        )
        return dz0, dz1, dt


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)  # triton.cdiv takes 7 us a call


def _needs_online_max(temperature: float, temperature_tensor: torch.Tensor | None) -> bool:
    return temperature_tensor is not None or 2.0 / temperature > CONSTANT_MAX_LIMIT


def _operand_dtype(z: torch.Tensor) -> torch.dtype:
    if z.dtype not in NTXENT.triton_takes:
        raise TypeError(f"backend='triton' takes no {z.dtype}, which z0 is: cast it, or use another backend")
    return torch.float32 if z.dtype == torch.float32 else torch.float16


def _dot_precision(u: torch.Tensor, precision: str) -> str:
    """Name of the product in the tile tables: "fp16", "tf32" or "tf32x3"."""
    if u.dtype not in (torch.float16, torch.float32):
        raise TypeError(f"backend='triton' takes u of float16 or float32, got {u.dtype}")
    if precision not in _DOT_OF:
        raise ValueError(f"precision must be one of {sorted(_DOT_OF)}, got {precision!r}")
    return "fp16" if u.dtype == torch.float16 else _DOT_OF[precision]


def _tl_precision(dot: str) -> str:
    return "ieee" if dot == "fp16" else dot  # tl.dot asks for a precision of fp16 operands too, and ignores it


def _stride_unit(dim: int) -> int:
    """What strides are counted in; that it depends on D alone leaves one compiled variant for all rows of that D."""
    return 16 if dim % 16 == 0 else 1


def _readable_rows(z: torch.Tensor) -> torch.Tensor:
    """z [n, D] or a copy: contiguous rows, a stride of whole units, an aligned start."""
    readable = z.stride(1) == 1 and z.stride(0) % _stride_unit(z.shape[1]) == 0
    return aligned(z if readable else z.contiguous())


def _row_blocks(dim: int) -> tuple[int, int]:
    """(rows, columns) that a program of the row-wise kernels holds: whole rows, and 4 elements a thread where they fit.

    With 4, a warp's float32 and float16 accesses both fill their sectors.
    """
    block_d = triton.next_power_of_2(dim)
    return max(1, 4 * 32 * _ROW_WARPS // block_d), block_d


_default = TritonNtxent()
normalize, fwd, bwd = _default.normalize, _default.fwd, _default.bwd
