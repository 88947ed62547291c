"""Plans of the Triton NT-Xent backend: its launches but for their tensors, made of shapes, strides, types and options.

`types` of a plan are those of the tensors that it serves: Triton compiles for them, though no number here is made of
them. What is called for in a device's tile tables comes from its Target.
"""

from __future__ import annotations

from typing import NamedTuple

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
    ScratchSizes,
    Types,
    ceil_div,
    forward_tile_constants,
    row_blocks,
    stride_unit,
)
from simclr_fast.ops.ntxent.triton_tiles import Target, forward_bands
from simclr_fast.triton_launch import LaunchPlan


def normalize_plan(types: Types, n: int, rows: int, dim: int, stride0: int, stride1: int, eps: float) -> LaunchPlan:
    """The launch that normalises n rows of view 0 and all others of view 1, of these strides in elements."""
    block_m, block_d = row_blocks(dim)
    unit = stride_unit(dim)
    numbers = {"eps": eps, "n": n, "rows": rows, "D": dim, "stride0": stride0 // unit, "stride1": stride1 // unit}
    return LaunchPlan.of(
        ntxent_normalize_kernel,
        (ceil_div(rows, block_m),),
        numbers,
        {"SPLIT": types[0] == torch.float32, "UNIT": unit, "BLOCK_M": block_m, "BLOCK_D": block_d},
        num_warps=ROW_WARPS,
        num_stages=ROW_STAGES,
    )


class Forward(NamedTuple):
    """The forward's launches, and their scratch: sums, maxima (none where they are the sums), the programs' parts."""

    scratch: ScratchSizes
    online_max: bool
    tiles: LaunchPlan
    finish: LaunchPlan


def _check_own_rows(n: int, row_offset: int, columns: int) -> None:
    if n < 1 or row_offset < 0 or row_offset + 2 * n > columns:
        raise ValueError(f"ntxent: 2 x {n} rows from row {row_offset} on are not among the {columns} unit rows")


def forward_plan(
    target: Target,
    types: Types,
    n: int,
    columns: int,
    dim: int,
    row_offset: int,
    online_max: bool,
    reduction: str,
    operand: str,
) -> Forward:
    """n samples of `columns` unit rows of `dim` columns."""
    _check_own_rows(n, row_offset, columns)
    rows = 2 * n
    tiles = triton_tiles.forward_tiles(target, operand, dim, online_max)
    row_tiles, column_tiles = ceil_div(rows, tiles.block_m), ceil_div(columns, tiles.block_m)
    symmetric = row_offset == 0 and columns == rows
    band_m, band_n = forward_bands(target, symmetric, row_tiles, column_tiles)
    row_bands, column_bands = ceil_div(row_tiles, band_m), ceil_div(column_tiles, band_n)
    column_slots = row_bands if symmetric else 0
    slots = column_slots + column_bands
    programs = ceil_div(rows, FINISH_ROWS)
    numbers = {"n": n, "row_offset": row_offset, "band_m": band_m, "band_n": band_n, "column_slots": column_slots}
    return Forward(
        ScratchSizes.of(slots * rows, slots * rows if online_max else 0, programs),
        online_max,
        LaunchPlan.of(
            ntxent_fwd_kernel,
            (row_bands, column_bands),
            numbers | {"columns": columns},
            forward_tile_constants(tiles, rows, columns, dim, symmetric, online_max, operand),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        ),
        LaunchPlan.of(
            ntxent_fwd_finish_kernel,
            (programs,),
            numbers | {"scale": row_scale(reduction, n, columns), "slots": slots},
            {
                "D": dim,
                "SPLIT": operand != "fp16",
                "SYMMETRIC": symmetric,
                "ONLINE_MAX": online_max,
                "REDUCED": reduction != "none",
                "TILE_M": tiles.block_m,
                "BLOCK_M": FINISH_ROWS,
                "BLOCK_SLOTS": 128,
                "BLOCK_D": 64,
            },
            num_stages=ROW_STAGES,
        ),
    )


class Backward(NamedTuple):
    """The backward's launches, and their scratch: term, weight, positive, the gradient's partials and those of dt."""

    scratch: ScratchSizes
    coefficients: LaunchPlan
    tiles: LaunchPlan
    finish: LaunchPlan


def backward_plan(
    target: Target,
    types: Types,
    n: int,
    columns: int,
    dim: int,
    stride0: int,
    stride1: int,
    row_offset: int,
    online_max: bool,
    reduction: str,
    operand: str,
    eps: float,
    need_dt: bool,
) -> Backward:
    """The arguments of forward_plan, and the strides of the raw rows, in elements."""
    _check_own_rows(n, row_offset, columns)
    cut = GradientCut.of(target, 2 * n, columns, dim, operand, online_max)
    unit = stride_unit(dim)
    numbers = {"n": n, "columns": columns}
    return Backward(
        ScratchSizes.of(columns, columns + 1, columns, cut.splits * 2 * n * dim, cut.dt_parts),
        LaunchPlan.of(
            ntxent_bwd_coefficients_kernel,
            (ceil_div(columns, COEFFICIENT_ROWS),),
            numbers,
            {
                "REDUCED": reduction != "none",
                "ONLINE_MAX": online_max,
                "BLOCK_M": COEFFICIENT_ROWS,
                # Many numbers at once, since every program waits for all of them: with 1024 and 4 warps 10 us
                # instead of 7. But not more than there are: a masked step does not load vectors.
                "BLOCK_SCAN": 4096 if columns >= 4096 else 1024,
            },
            num_warps=ROW_WARPS,
            num_stages=ROW_STAGES,
        ),
        cut.tiles_plan(ntxent_bwd_kernel, numbers | {"row_offset": row_offset}, need_dt),
        cut.finish_plan(
            ntxent_bwd_finish_kernel,
            numbers
            | {
                "scale": row_scale(reduction, n, columns),
                "eps": eps,
                "row_offset": row_offset,
                "stride0": stride0 // unit,
                "stride1": stride1 // unit,
            },
            need_dt,
        ),
    )


class ForwardBackward(NamedTuple):
    """All launches of a process that is alone, and their scratch: inv_norm, lse_neg, s_pos, then that of the steps."""

    scratch: ScratchSizes
    normalize: LaunchPlan
    forward: Forward
    backward: Backward


def forward_backward_plan(
    target: Target,
    types: Types,
    n: int,
    dim: int,
    stride0: int,
    stride1: int,
    online_max: bool,
    reduction: str,
    operand: str,
    eps: float,
    need_dt: bool,
) -> ForwardBackward:
    """The arguments of the plans that it is made of."""
    rows = 2 * n
    strides = (stride0, stride1)
    forward = forward_plan(target, types, n, rows, dim, 0, online_max, reduction, operand)
    backward = backward_plan(target, types, n, rows, dim, *strides, 0, online_max, reduction, operand, eps, need_dt)
    scratch = ScratchSizes.of(rows, rows, rows, *forward.scratch.sizes, *backward.scratch.sizes)
    return ForwardBackward(scratch, normalize_plan(types, n, rows, dim, *strides, eps), forward, backward)
