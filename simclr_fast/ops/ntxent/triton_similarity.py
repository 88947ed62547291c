"""Host side of the Triton kernels of similarities: buffers and launches; nothing here waits for the device.

`fwd` and `bwd` take the arguments of the ops simclr_fast::similarity_{fwd,bwd}. Launches: 2 forward (tiles; finish),
one more where a rectangle's columns are finished, too; 3 backward (terms; tiles; finish).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from simclr_fast.ops.ntxent import triton_tiles
from simclr_fast.ops.ntxent.triton_host import (
    COEFFICIENT_ROWS,
    FINISH_ROWS,
    ROW_STAGES,
    ROW_WARPS,
    GradientCut,
    ceil_div,
    dot_precision,
    needs_online_max,
    readable_rows,
    stride_unit,
    tl_precision,
)
from simclr_fast.ops.ntxent.triton_similarity_kernels import (
    OWN_OF_NONE,
    similarity_bwd_finish_kernel,
    similarity_bwd_kernel,
    similarity_bwd_terms_kernel,
    similarity_fwd_finish_kernel,
    similarity_fwd_kernel,
)
from simclr_fast.ops.ntxent.triton_tiles import (
    Target,
    forward_bands,
    target_of,
)
from simclr_fast.triton_launch import Launch, aligned, launch_on_device


@dataclass(frozen=True)
class TritonSimilarity:
    """The backend's two functions, for a choice of tiles and a way to run a launch."""

    run: Callable[[Launch], None] = launch_on_device
    target: Callable[[torch.device], Target] = target_of

    def fwd(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        row_offset: int,
        exclude: str,
        both: bool,
        need_max: bool,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        precision: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """rows [n, D], columns [m, D] -> lse [n], max [n] or [0], column_lse [m] or [0], float32."""
        (n, dim), m = rows.shape, columns.shape[0]
        dot = dot_precision(rows, precision)

        def new(*size: int) -> torch.Tensor:
            return rows.new_empty(size, dtype=torch.float32)

        _check_sizes(n, m)
        if n == 0 or m == 0:
            return tuple(new(k).fill_(-torch.inf) for k in (n, n if need_max else 0, m if both else 0))
        same = rows.data_ptr() == columns.data_ptr() and rows.stride() == columns.stride() and n == m
        symmetric = same and (exclude == "none" or row_offset == 0)
        rows = aligned(rows.contiguous())
        columns = rows if same else aligned(columns.contiguous())
        target = self.target(rows.device)
        online_max = need_max or needs_online_max(temperature, temperature_tensor)
        tiles = triton_tiles.forward_tiles(target, dot, dim, online_max)
        row_tiles, column_tiles = ceil_div(n, tiles.block_m), ceil_div(m, tiles.block_m)
        column_sums = both and not symmetric
        band_m, band_n = forward_bands(target, symmetric, row_tiles, column_tiles, column_sums)
        row_bands, column_bands = ceil_div(row_tiles, band_m), ceil_div(column_tiles, band_n)
        column_slots = row_bands if symmetric else 0

        sums = new(column_slots + column_bands, n)
        maxima = torch.empty_like(sums) if online_max else sums
        of_columns = new(row_bands, m) if column_sums else sums
        maxima_of_columns = (torch.empty_like(of_columns) if column_sums else maxima) if online_max else of_columns
        lse, row_max = new(n), new(n) if need_max else None
        by_temperature = {"temperature": temperature, "temperature_ptr": temperature_tensor}
        partner, own = _left_out(exclude, row_offset, n)
        self.run(
            Launch(
                kernel=similarity_fwd_kernel,
                grid=(row_bands, column_bands),
                arguments={
                    "rows_ptr": rows,
                    "columns_ptr": columns,
                    "sum_ptr": sums,
                    "max_ptr": maxima,
                    "column_sum_ptr": of_columns,
                    "column_max_ptr": maxima_of_columns,
                    **by_temperature,
                    "rows": n,
                    "n": partner,
                    "own": own,
                    "columns": m,
                    "band_m": band_m,
                    "band_n": band_n,
                    "column_slots": column_slots,
                },
                constants={
                    "D": dim,
                    "SYMMETRIC": symmetric,
                    "COLUMN_SUMS": symmetric or column_sums,
                    "ONLINE_MAX": online_max,
                    "PRECISION": tl_precision(dot),
                    "BLOCK_M": tiles.block_m,
                    "BLOCK_D": tiles.block_d,
                    "SLICES": ceil_div(dim, tiles.block_d),
                    "HOLD_ROWS": tiles.holds_rows,
                    "EVEN": n % tiles.block_m == 0 and m % tiles.block_m == 0,
                    "EVEN_D": dim % tiles.block_d == 0,
                },
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
            )
        )

        def finish(sums, maxima, lse, row_max, column_slots: int, symmetric: bool) -> None:
            self.run(
                Launch(
                    kernel=similarity_fwd_finish_kernel,
                    grid=(ceil_div(lse.shape[0], FINISH_ROWS),),
                    arguments={
                        "sum_ptr": sums,
                        "max_ptr": maxima,
                        "lse_ptr": lse,
                        "row_max_ptr": row_max,
                        **by_temperature,
                        "rows": lse.shape[0],
                        "band_m": band_m,
                        "band_n": band_n,
                        "column_slots": column_slots,
                        "slots": sums.shape[0],
                    },
                    constants={
                        "SYMMETRIC": symmetric,
                        "ONLINE_MAX": online_max,
                        "TILE_M": tiles.block_m,
                        "BLOCK_M": FINISH_ROWS,
                        "BLOCK_SLOTS": 128,
                    },
                    num_stages=ROW_STAGES,
                )
            )

        finish(sums, maxima, lse, row_max, column_slots, symmetric)
        column_lse = new(0)
        if column_sums:
            column_lse = new(m)
            finish(of_columns, maxima_of_columns, column_lse, None, 0, False)
        elif both:
            column_lse = lse.clone()
        return lse, new(0) if row_max is None else row_max, column_lse

    def bwd(
        self,
        drows: torch.Tensor,
        dcolumns: torch.Tensor,
        z: torch.Tensor,
        rows: torch.Tensor,
        inv_norm: torch.Tensor,
        columns: torch.Tensor,
        lse: torch.Tensor,
        column_lse: torch.Tensor,
        row_offset: int,
        exclude: str,
        eps: float,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        precision: str,
        need_dt: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """drows, lse, inv_norm [n], dcolumns, column_lse [m], z, rows [n, D], columns [m, D] -> dz [n, D], dt []."""
        (n, dim), m = rows.shape, columns.shape[0]
        dot = dot_precision(rows, precision)
        dz, dt = z.new_empty(z.shape), inv_norm.new_empty(())
        _check_sizes(n, m)
        if n == 0 or m == 0:
            return dz.zero_(), dt.zero_()
        rows, columns, z = aligned(rows.contiguous()), aligned(columns.contiguous()), readable_rows(z)
        drows, dcolumns, lse, column_lse = (x.contiguous() for x in (drows, dcolumns, lse, column_lse))
        target = self.target(rows.device)
        online_max = needs_online_max(temperature, temperature_tensor)
        cut = GradientCut.of(target, n, m, dim, dot, online_max)
        unit = stride_unit(dim)

        row_term, row_weight, column_term, column_weight, w_max = (inv_norm.new_empty(size) for size in (n, n, m, m, 1))
        part = inv_norm.new_empty((cut.splits, n, dim))
        dt_part = inv_norm.new_empty((cut.splits, cut.row_tiles))
        terms = {
            "row_term_ptr": row_term,
            "row_weight_ptr": row_weight,
            "column_term_ptr": column_term,
            "column_weight_ptr": column_weight,
        }
        by_temperature = {"temperature": temperature, "temperature_ptr": temperature_tensor}
        partner, own = _left_out(exclude, row_offset, n)
        self.run(
            Launch(
                kernel=similarity_bwd_terms_kernel,
                grid=(ceil_div(max(n, m), COEFFICIENT_ROWS),),
                arguments={
                    "drows_ptr": drows,
                    "dcolumns_ptr": dcolumns,
                    "lse_ptr": lse,
                    "column_lse_ptr": column_lse,
                    **terms,
                    "w_max_ptr": w_max,
                    **by_temperature,
                    "rows": n,
                    "columns": m,
                },
                constants={"ONLINE_MAX": online_max, "BLOCK_M": COEFFICIENT_ROWS, "BLOCK_SCAN": 1024},
                num_warps=ROW_WARPS,
                num_stages=ROW_STAGES,
            )
        )
        self.run(
            Launch(
                kernel=similarity_bwd_kernel,
                grid=cut.grid,
                arguments={
                    "rows_ptr": rows,
                    "columns_ptr": columns,
                    **terms,
                    "part_ptr": part,
                    "dt_part_ptr": dt_part,
                    **by_temperature,
                    "rows": n,
                    "n": partner,
                    "own": own,
                    "columns": m,
                },
                constants=cut.tile_constants(need_dt),
                num_warps=cut.tiles.num_warps,
                num_stages=cut.tiles.num_stages,
            )
        )
        self.run(
            Launch(
                kernel=similarity_bwd_finish_kernel,
                grid=cut.finish_grid,
                arguments={
                    "part_ptr": part,
                    "dt_part_ptr": dt_part,
                    "w_max_ptr": w_max,
                    "inv_norm_ptr": inv_norm,
                    "z_ptr": z,
                    "dz_ptr": dz,
                    "dt_ptr": dt,
                    **by_temperature,
                    "eps": eps,
                    "rows": n,
                    "stride": z.stride(0) // unit,
                    "splits": cut.splits,
                    "dt_parts": cut.dt_parts,
                },
                constants=cut.finish_constants(need_dt),
                num_warps=ROW_WARPS,
                num_stages=ROW_STAGES,
            )
        )
        return dz, dt


def _check_sizes(rows: int, columns: int) -> None:
    if max(rows, columns) >= -OWN_OF_NONE:
        raise ValueError(f"rows {rows}, columns {columns}: the Triton kernels take fewer than 2^30; use backend='cpp'")


def _left_out(exclude: str, row_offset: int, rows: int) -> tuple[int, int]:
    """The kernels' `n` and `own` of what rows leave out."""
    return rows // 2 if exclude == "pair" else 0, OWN_OF_NONE if exclude == "none" else row_offset


_default = TritonSimilarity()
fwd, bwd = _default.fwd, _default.bwd
