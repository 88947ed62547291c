"""Host side of the Triton NT-Xent backend: buffers and launches; nothing here waits for the device.

Its functions take the arguments of the ops simclr_fast::ntxent_{normalize,fwd,normalize_fwd,bwd}. Launches: 1 to
normalise, 2 forward (tiles; finish), 3 backward (coefficients; tiles; finish).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from simclr_fast.ops.ntxent import triton_tiles
from simclr_fast.ops.ntxent.reference import row_scale
from simclr_fast.ops.ntxent.triton_backward import (
    ntxent_bwd_coefficients_kernel,
    ntxent_bwd_finish_kernel,
    ntxent_bwd_kernel,
)
from simclr_fast.ops.ntxent.triton_forward import ntxent_fwd_finish_kernel, ntxent_fwd_kernel, ntxent_normalize_kernel
from simclr_fast.ops.ntxent.triton_host import (
    COEFFICIENT_ROWS,
    FINISH_ROWS,
    ROW_STAGES,
    ROW_WARPS,
    GradientCut,
    ceil_div,
    dot_precision,
    needs_online_max,
    operand_dtype,
    readable_rows,
    row_blocks,
    stride_unit,
    tl_precision,
)
from simclr_fast.ops.ntxent.triton_tiles import (
    Target,
    forward_bands,
    target_of,
)
from simclr_fast.triton_launch import Launch, launch_on_device


@dataclass(frozen=True)
class TritonNtxent:
    """The backend's functions, for a choice of tiles and a way to run a launch."""

    run: Callable[[Launch], None] = launch_on_device
    target: Callable[[torch.device], Target] = target_of

    def normalize(self, z0: torch.Tensor, z1: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """z0 [n0, D], z1 [n1, D] of one float type -> u [n0 + n1, D] (fp16 for half inputs, else fp32), inv_norm."""
        operand = operand_dtype(z0)
        z0, z1 = readable_rows(z0), readable_rows(z1)
        n, dim = z0.shape
        rows = n + z1.shape[0]
        u = z0.new_empty((rows, dim), dtype=operand)
        inv_norm = z0.new_empty(rows, dtype=torch.float32)
        block_m, block_d = row_blocks(dim)
        unit = stride_unit(dim)
        self.run(
            Launch(
                kernel=ntxent_normalize_kernel,
                grid=(ceil_div(rows, block_m),),
                arguments={
                    "z0_ptr": z0,
                    "z1_ptr": z1,
                    "u_ptr": u,
                    "inv_norm_ptr": inv_norm,
                    "eps": eps,
                    "n": n,
                    "rows": rows,
                    "D": dim,
                    "stride0": z0.stride(0) // unit,
                    "stride1": z1.stride(0) // unit,
                },
                constants={"UNIT": unit, "BLOCK_M": block_m, "BLOCK_D": block_d},
                num_warps=ROW_WARPS,
                num_stages=ROW_STAGES,
            )
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
        reduced = reduction != "none"
        target = self.target(u.device)
        dot = dot_precision(u, precision)
        online_max = needs_online_max(temperature, temperature_tensor)
        tiles = triton_tiles.forward_tiles(target, dot, dim, online_max)
        row_tiles, column_tiles = ceil_div(rows, tiles.block_m), ceil_div(columns, tiles.block_m)
        symmetric = row_offset == 0 and columns == rows
        band_m, band_n = forward_bands(target, symmetric, row_tiles, column_tiles)
        row_bands, column_bands = ceil_div(row_tiles, band_m), ceil_div(column_tiles, band_n)
        column_slots = row_bands if symmetric else 0
        slots = column_slots + column_bands
        programs = ceil_div(rows, FINISH_ROWS)

        sums = u.new_empty((slots, rows), dtype=torch.float32)
        maxima = torch.empty_like(sums) if online_max else sums
        done = u.new_empty(1, dtype=torch.int32)
        part = u.new_empty(programs, dtype=torch.float32)
        lse_neg, s_pos = (u.new_empty(rows, dtype=torch.float32) for _ in range(2))
        loss = u.new_empty(() if reduced else rows, dtype=torch.float32)
        self.run(
            Launch(
                kernel=ntxent_fwd_kernel,
                grid=(row_bands, column_bands),
                arguments={
                    "u_ptr": u,
                    "sum_ptr": sums,
                    "max_ptr": maxima,
                    "done_ptr": done,
                    "temperature": temperature,
                    "temperature_ptr": temperature_tensor,
                    "n": n,
                    "row_offset": row_offset,
                    "columns": columns,
                    "band_m": band_m,
                    "band_n": band_n,
                    "column_slots": column_slots,
                },
                constants={
                    "D": dim,
                    "SYMMETRIC": symmetric,
                    "ONLINE_MAX": online_max,
                    "PRECISION": tl_precision(dot),
                    "BLOCK_M": tiles.block_m,
                    "BLOCK_D": tiles.block_d,
                    "SLICES": ceil_div(dim, tiles.block_d),
                    "HOLD_ROWS": tiles.holds_rows,
                    "EVEN": columns % tiles.block_m == 0 and rows % tiles.block_m == 0,
                    "EVEN_D": dim % tiles.block_d == 0,
                },
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
            )
        )
        self.run(
            Launch(
                kernel=ntxent_fwd_finish_kernel,
                grid=(programs,),
                arguments={
                    "sum_ptr": sums,
                    "max_ptr": maxima,
                    "u_ptr": u,
                    "lse_neg_ptr": lse_neg,
                    "s_pos_ptr": s_pos,
                    "loss_ptr": loss,
                    "part_ptr": part,
                    "done_ptr": done,
                    "temperature": temperature,
                    "temperature_ptr": temperature_tensor,
                    "scale": row_scale(reduction, n, columns),
                    "n": n,
                    "row_offset": row_offset,
                    "band_m": band_m,
                    "band_n": band_n,
                    "column_slots": column_slots,
                    "slots": slots,
                },
                constants={
                    "D": dim,
                    "REDUCED": reduced,
                    "SYMMETRIC": symmetric,
                    "ONLINE_MAX": online_max,
                    "TILE_M": tiles.block_m,
                    "BLOCK_M": FINISH_ROWS,
                    "BLOCK_SLOTS": 128,
                    "BLOCK_D": 64,
                },
                num_stages=ROW_STAGES,
            )
        )
        return loss, lse_neg, s_pos

    def normalize_fwd(
        self,
        z0: torch.Tensor,
        z1: torch.Tensor,
        eps: float,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        reduction: str,
        precision: str,
    ) -> tuple[torch.Tensor, ...]:
        """z0, z1 [n, D] of a process that is alone -> loss, u, inv_norm, lse_neg, s_pos as of the two steps."""
        u, inv_norm = self.normalize(z0, z1, eps)
        loss, lse_neg, s_pos = self.fwd(u, z0.shape[0], 0, temperature, temperature_tensor, reduction, precision)
        return loss, u, inv_norm, lse_neg, s_pos

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
        z0, z1 = readable_rows(z0), readable_rows(z1)
        n, dim = z0.shape
        columns = u.shape[0]
        target = self.target(u.device)
        dot = dot_precision(u, precision)
        online_max = needs_online_max(temperature, temperature_tensor)
        cut = GradientCut.of(target, 2 * n, columns, dim, dot, online_max)
        unit = stride_unit(dim)

        term = u.new_empty(columns, dtype=torch.float32)
        weight = u.new_empty(columns + 1, dtype=torch.float32)
        positive = u.new_empty(columns, dtype=torch.float32)
        part = u.new_empty((cut.splits, 2 * n, dim), dtype=torch.float32)
        dt_part = u.new_empty((cut.splits, cut.row_tiles), dtype=torch.float32)
        dz0, dz1 = (torch.empty((n, dim), dtype=z0.dtype, device=z0.device) for _ in range(2))
        dt = u.new_empty((), dtype=torch.float32)

        self.run(
            Launch(
                kernel=ntxent_bwd_coefficients_kernel,
                grid=(ceil_div(columns, COEFFICIENT_ROWS),),
                arguments={
                    "dloss_ptr": dloss,
                    "lse_neg_ptr": lse_neg,
                    "s_pos_ptr": s_pos,
                    "term_ptr": term,
                    "weight_ptr": weight,
                    "positive_ptr": positive,
                    "temperature": temperature,
                    "temperature_ptr": temperature_tensor,
                    "n": n,
                    "columns": columns,
                },
                constants={
                    "REDUCED": reduction != "none",
                    "ONLINE_MAX": online_max,
                    "BLOCK_M": COEFFICIENT_ROWS,
                    # Many numbers at once, since every program waits for all of them: with 1024 and 4 warps 10 us
                    # instead of 7. But not more than there are: a masked step does not load vectors.
                    "BLOCK_SCAN": 4096 if columns >= 4096 else 1024,
                },
                num_warps=ROW_WARPS,
                num_stages=ROW_STAGES,
            )
        )
        self.run(
            Launch(
                kernel=ntxent_bwd_kernel,
                grid=cut.grid,
                arguments={
                    "u_ptr": u,
                    "term_ptr": term,
                    "weight_ptr": weight,
                    "lse_neg_ptr": lse_neg,
                    "s_pos_ptr": s_pos,
                    "part_ptr": part,
                    "dt_part_ptr": dt_part,
                    "temperature": temperature,
                    "temperature_ptr": temperature_tensor,
                    "n": n,
                    "row_offset": row_offset,
                    "columns": columns,
                },
                constants=cut.tile_constants(need_dt),
                num_warps=cut.tiles.num_warps,
                num_stages=cut.tiles.num_stages,
            )
        )
        self.run(
            Launch(
                kernel=ntxent_bwd_finish_kernel,
                grid=cut.finish_grid,
                arguments={
                    "part_ptr": part,
                    "dt_part_ptr": dt_part,
                    "weight_ptr": weight,
                    "positive_ptr": positive,
                    "u_ptr": u,
                    "inv_norm_ptr": inv_norm,
                    "z0_ptr": z0,
                    "z1_ptr": z1,
                    "dz0_ptr": dz0,
                    "dz1_ptr": dz1,
                    "dt_ptr": dt,
                    "temperature": temperature,
                    "temperature_ptr": temperature_tensor,
                    "scale": row_scale(reduction, n, columns),
                    "eps": eps,
                    "n": n,
                    "row_offset": row_offset,
                    "columns": columns,
                    "stride0": z0.stride(0) // unit,
                    "stride1": z1.stride(0) // unit,
                    "splits": cut.splits,
                    "dt_parts": cut.dt_parts,
                },
                constants=cut.finish_constants(need_dt),
                num_warps=ROW_WARPS,
                num_stages=ROW_STAGES,
            )
        )
        return dz0, dz1, dt


_default = TritonNtxent()
normalize, fwd, normalize_fwd, bwd = _default.normalize, _default.fwd, _default.normalize_fwd, _default.bwd
