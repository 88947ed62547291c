"""Plans of the Triton backend of similarities: its launches but for their tensors, as triton_plans.py has NT-Xent's."""

from __future__ import annotations

from typing import NamedTuple

from simclr_fast.ops.ntxent import triton_tiles
from simclr_fast.ops.ntxent.triton_host import (
    COEFFICIENT_ROWS,
    FINISH_ROWS,
    ROW_STAGES,
    ROW_WARPS,
    GradientCut,
    ScratchSizes,
    Types,
    ceil_div,
    forward_tile_constants,
    stride_unit,
)
from simclr_fast.ops.ntxent.triton_similarity_kernels import (
    OWN_OF_NONE,
    similarity_bwd_finish_kernel,
    similarity_bwd_kernel,
    similarity_bwd_terms_kernel,
    similarity_fwd_finish_kernel,
    similarity_fwd_kernel,
)
from simclr_fast.ops.ntxent.triton_tiles import Target, forward_bands
from simclr_fast.triton_launch import LaunchPlan


def _left_out(exclude: str, row_offset: int, rows: int) -> dict[str, int]:
    """The kernels' `n` and `own` of what rows leave out."""
    return {"n": rows // 2 if exclude == "pair" else 0, "own": OWN_OF_NONE if exclude == "none" else row_offset}


class Forward(NamedTuple):
    """The forward's launches, and their scratch: sums and maxima of rows, sums and maxima of columns.

    A buffer that is not needed is empty. finish_columns is there where a rectangle's columns have sums.
    """

    scratch: ScratchSizes
    tiles: LaunchPlan
    finish: LaunchPlan
    finish_columns: LaunchPlan | None


def forward_plan(
    target: Target,
    types: Types,
    n: int,
    m: int,
    dim: int,
    same: bool,
    row_offset: int,
    exclude: str,
    both: bool,
    need_max: bool,
    online_max: bool,
    operand: str,
) -> Forward:
    """n rows and m columns of width dim; same: these are those. need_max: Triton compiles for whether rows have it."""
    symmetric = same and (exclude == "none" or row_offset == 0)
    tiles = triton_tiles.forward_tiles(target, operand, dim, online_max)
    row_tiles, column_tiles = ceil_div(n, tiles.block_m), ceil_div(m, tiles.block_m)
    column_sums = both and not symmetric
    band_m, band_n = forward_bands(target, symmetric, row_tiles, column_tiles, column_sums)
    row_bands, column_bands = ceil_div(row_tiles, band_m), ceil_div(column_tiles, band_n)
    column_slots = row_bands if symmetric else 0
    slots = column_slots + column_bands

    def finish(rows: int, slots: int, column_slots: int, symmetric: bool) -> LaunchPlan:
        return LaunchPlan.of(
            similarity_fwd_finish_kernel,
            (ceil_div(rows, FINISH_ROWS),),
            {"rows": rows, "band_m": band_m, "band_n": band_n, "column_slots": column_slots, "slots": slots},
            {
                "SYMMETRIC": symmetric,
                "ONLINE_MAX": online_max,
                "TILE_M": tiles.block_m,
                "BLOCK_M": FINISH_ROWS,
                "BLOCK_SLOTS": 128,
            },
            num_stages=ROW_STAGES,
        )

    of_rows, of_columns = slots * n, row_bands * m if column_sums else 0
    numbers = {"rows": n, "columns": m, "band_m": band_m, "band_n": band_n, "column_slots": column_slots}
    return Forward(
        ScratchSizes.of(of_rows, of_rows * online_max, of_columns, of_columns * online_max),
        LaunchPlan.of(
            similarity_fwd_kernel,
            (row_bands, column_bands),
            numbers | _left_out(exclude, row_offset, n),
            forward_tile_constants(tiles, n, m, dim, symmetric, online_max, operand)
            | {"COLUMN_SUMS": symmetric or column_sums},
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        ),
        finish(n, slots, column_slots, symmetric),
        finish(m, row_bands, 0, False) if column_sums else None,
    )


class Backward(NamedTuple):
    """The backward's launches, and their scratch.

    Scratch: terms and weights of rows, then of columns; W; the gradient's partials; those of dt.
    """

    scratch: ScratchSizes
    terms: LaunchPlan
    tiles: LaunchPlan
    finish: LaunchPlan


def backward_plan(
    target: Target,
    types: Types,
    n: int,
    m: int,
    dim: int,
    stride: int,
    row_offset: int,
    exclude: str,
    online_max: bool,
    operand: str,
    eps: float,
    need_dt: bool,
) -> Backward:
    """n rows and m columns of width dim; stride: of the raw rows, in elements."""
    cut = GradientCut.of(target, n, m, dim, operand, online_max)
    sizes = {"rows": n, "columns": m}
    return Backward(
        ScratchSizes.of(n, n, m, m, 1, cut.splits * n * dim, cut.dt_parts),
        LaunchPlan.of(
            similarity_bwd_terms_kernel,
            (ceil_div(max(n, m), COEFFICIENT_ROWS),),
            sizes,
            {"ONLINE_MAX": online_max, "BLOCK_M": COEFFICIENT_ROWS, "BLOCK_SCAN": 1024},
            num_warps=ROW_WARPS,
            num_stages=ROW_STAGES,
        ),
        cut.tiles_plan(similarity_bwd_kernel, sizes | _left_out(exclude, row_offset, n), need_dt),
        cut.finish_plan(
            similarity_bwd_finish_kernel,
            {"eps": eps, "rows": n, "stride": stride // stride_unit(dim)},
            need_dt,
        ),
    )
