"""Sums of exponentials of logits by tiles, and the adding up of their slots: what the Triton forward kernels share.

Logits are taken to base 2, s_ij log2(e), so that exp is exp2 without a multiplication. A partial sum is a pair: the
sum of 2^(s_ij log2(e) - m), and m, either the online maximum of its logits or the constant one, which is not stored
(triton_common.py). Each has a slot and a writer of its own, and is added in a fixed order. A row has at most as many
slots as MAX_SLOTS allows: memory is linear in the rows.

E = exp(S) is symmetric where rows and columns are the same set: then only tiles on and above the diagonal are computed,
and each serves both its rows and its columns.
"""

import triton
import triton.language as tl

from simclr_fast.ops.ntxent.triton_common import (
    LOG2_E,
    add_logits,
    is_negative,
    is_plain_tile,
    load_rows,
    logit_scale,
    read_temperature,
)


@triton.jit
def _finite(maximum):
    """A maximum to subtract: 0 for that of nothing, -inf, since -inf + inf is NaN."""
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def merge(sum_a, max_a, sum_b, max_b, ONLINE_MAX: tl.constexpr):
    """sum_a 2^max_a + sum_b 2^max_b in the same form; with the constant maximum both have that one."""
    if ONLINE_MAX:
        new_max = tl.maximum(max_a, max_b)
        base = _finite(new_max)
        return sum_a * tl.math.exp2(max_a - base) + sum_b * tl.math.exp2(max_b - base), new_max
    else:
        return sum_a + sum_b, max_a


@triton.jit
def sum_of_exp2(s2, constant_max2, axis: tl.constexpr, ONLINE_MAX: tl.constexpr):
    """(sum of 2^(s2 - m), m) along an axis; m is the online maximum, or 0 in the place of the constant one."""
    if ONLINE_MAX:
        axis_max = tl.max(s2, axis=axis)
        base = _finite(axis_max)
        return tl.sum(tl.math.exp2(s2 - tl.expand_dims(base, axis)), axis=axis), axis_max
    else:
        axis_sum = tl.sum(tl.math.exp2(s2 - constant_max2), axis=axis)
        return axis_sum, tl.zeros_like(axis_sum)


@triton.jit
def add_band_sums(
    rows_ptr,  # [row_limit, D] of "fp16", else [row_limit, 2, D]
    columns_ptr,  # [columns, D] of "fp16", else [columns, 2, D]
    sum_ptr,  # [column_slots + column bands, rows] out
    max_ptr,  # [column_slots + column bands, rows] out, with ONLINE_MAX
    column_sum_ptr,  # [row bands, columns] out, with COLUMN_SUMS; sum_ptr where SYMMETRIC
    column_max_ptr,  # [row bands, columns] out, with COLUMN_SUMS and ONLINE_MAX; max_ptr where SYMMETRIC
    temperature,
    temperature_ptr,
    rows_first,  # where in rows_ptr row 0 lies
    row_limit,
    rows,
    n,  # how far from a row its partner is, which it leaves out, too; 0: nothing but the own column
    own,  # the column that row 0 leaves out
    columns,
    band_m,
    band_n,
    column_slots,
    D: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    COLUMN_SUMS: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,
    HOLD_ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    EVEN_D: tl.constexpr,
):
    """Sums of exp(s_ij). Program (a, b): row band a against column band b; ntxent_fwd_kernel has the constants.

    The row sums go to slot column_slots + b of the rows, the column sums to slot a of the columns. SYMMETRIC: only
    tiles on and above the diagonal, and the column sums of those above are sums of rows, too.
    """
    column_tiles = tl.cdiv(columns, BLOCK_M)
    # log2(e) / t, which is also the constant maximum to base 2.
    to_log2 = tl.div_rn(LOG2_E, read_temperature(temperature, temperature_ptr))
    row_slot = (column_slots + tl.program_id(1)).to(tl.int64) * rows
    column_slot = tl.program_id(0).to(tl.int64) * (rows if SYMMETRIC else columns)

    for r in range(band_m):
        # 1. One row tile, and the column tiles [first, last) that it meets.
        tile_m = tl.program_id(0) * band_m + r
        first = tl.program_id(1) * band_n
        last = tl.minimum(first + band_n, column_tiles)
        if SYMMETRIC:
            first = tl.maximum(first, tile_m)
        if (first < last) & (tile_m * BLOCK_M < rows):
            local = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
            first_row = rows_first + tile_m * BLOCK_M
            u_rows = ()  # SLICES x [BLOCK_M, BLOCK_D]
            if HOLD_ROWS:
                for c in tl.static_range(SLICES):
                    d = c * BLOCK_D + tl.arange(0, BLOCK_D)
                    u_rows += (load_rows(rows_ptr, first_row, row_limit, d, D, BLOCK_M, EVEN, EVEN_D, OPERAND),)
            row_sum = tl.zeros((BLOCK_M,), tl.float32)
            row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
            for tile_n in range(first, last):
                # 2. s2_ij = u_i . u_j log2(e) / t, a slice of D at a time.
                first_col = tile_n * BLOCK_M
                cols = first_col + tl.arange(0, BLOCK_M)  # [BLOCK_M]
                s2 = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
                if HOLD_ROWS:
                    for c in tl.static_range(SLICES):
                        d = c * BLOCK_D + tl.arange(0, BLOCK_D)
                        u_cols = load_rows(columns_ptr, first_col, columns, d, D, BLOCK_M, EVEN, EVEN_D, OPERAND)
                        s2 = add_logits(s2, u_rows[c], u_cols, D, OPERAND)
                else:
                    for start in range(0, D, BLOCK_D):
                        d = start + tl.arange(0, BLOCK_D)
                        u_slice = load_rows(rows_ptr, first_row, row_limit, d, D, BLOCK_M, EVEN, EVEN_D, OPERAND)
                        u_cols = load_rows(columns_ptr, first_col, columns, d, D, BLOCK_M, EVEN, EVEN_D, OPERAND)
                        s2 = add_logits(s2, u_slice, u_cols, D, OPERAND)
                s2 = s2 * logit_scale(to_log2, OPERAND)

                # 3. s2_ij = -inf where row i leaves column j out, or j is no column. Most tiles hold none of these.
                #    In a rectangle whose columns are summed, nor may what is no row be counted.
                plain = is_plain_tile(tile_m * BLOCK_M, first_col - own, n, columns - own, BLOCK_M, BLOCK_M)
                if COLUMN_SUMS and not SYMMETRIC:
                    plain = plain & ((tile_m + 1) * BLOCK_M <= rows)
                if not plain:
                    counted = is_negative(local, cols - own, n, columns - own)
                    if COLUMN_SUMS and not SYMMETRIC:
                        counted &= (local < rows)[:, None]
                    s2 = tl.where(counted, s2, -float("inf"))

                # 4. Row sums: sum_j 2^(s2_ij - m_i) of the tile, added to those of the band's tiles before it.
                tile_sum, tile_max = sum_of_exp2(s2, to_log2, 1, ONLINE_MAX)
                row_sum, row_max = merge(row_sum, row_max, tile_sum, tile_max, ONLINE_MAX)

                # 5. Column sums: sum_i 2^(s2_ij - m_j). Those of the band's further row tiles (r > 0) are added to what
                #    stands in the slot. On a symmetric diagonal the row sums have counted both already; no ragged row
                #    tile lies above it.
                if COLUMN_SUMS:
                    col_sum, col_max = sum_of_exp2(s2, to_log2, 0, ONLINE_MAX)
                    inside = cols < columns
                    if SYMMETRIC:
                        inside &= tile_m != tile_n
                    again = inside & (r > 0)
                    old_sum = tl.load(column_sum_ptr + column_slot + cols, mask=again, other=0.0)
                    if ONLINE_MAX:
                        old_max = tl.load(column_max_ptr + column_slot + cols, mask=again, other=-float("inf"))
                        col_sum, col_max = merge(col_sum, col_max, old_sum, old_max, ONLINE_MAX)
                        tl.store(column_max_ptr + column_slot + cols, col_max, mask=inside)
                    else:
                        col_sum += old_sum
                    tl.store(column_sum_ptr + column_slot + cols, col_sum, mask=inside)

            # 6. The row tile's sums over the column band.
            tl.store(sum_ptr + row_slot + local, row_sum, mask=local < rows)
            if ONLINE_MAX:
                tl.store(max_ptr + row_slot + local, row_max, mask=local < rows)
        tl.debug_barrier()  # the next row tile adds to column sums that other threads have written


@triton.jit
def add_slots(
    sum_ptr,  # [slots, rows]
    max_ptr,  # [slots, rows], with ONLINE_MAX
    local,  # [BLOCK_M]
    rows,
    band_m,
    band_n,
    column_slots,  # slots of column sums, before those of row sums
    slots,
    SYMMETRIC: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    TILE_M: tl.constexpr,  # rows of a tile of the launch before
    BLOCK_M: tl.constexpr,  # divides TILE_M
    BLOCK_SLOTS: tl.constexpr,
):
    """(sum, max) of the slots that were written for the rows `local`, those of program_id(0).

    Column sums are written by the row bands that lie above a row's tile, row sums by the column bands that reach the
    diagonal or lie beyond it. Not SYMMETRIC: all slots.
    """
    inside = local < rows
    tile = tl.program_id(0) * BLOCK_M // TILE_M
    column_end = tl.cdiv(tile, band_m) if SYMMETRIC else 0
    row_begin = column_slots + (tile // band_n if SYMMETRIC else 0)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    for start in range(0, slots, BLOCK_SLOTS):
        slot = start + tl.arange(0, BLOCK_SLOTS)
        offsets = slot.to(tl.int64)[:, None] * rows + local[None, :]
        written = (slot < column_end) | ((slot >= row_begin) & (slot < slots))
        mask = written[:, None] & inside[None, :]
        sums = tl.load(sum_ptr + offsets, mask=mask, other=0.0)  # [BLOCK_SLOTS, BLOCK_M]
        if ONLINE_MAX:
            maxima = tl.load(max_ptr + offsets, mask=mask, other=-float("inf"))
            block_max = tl.max(maxima, axis=0)
            block_sum = tl.sum(sums * tl.math.exp2(maxima - _finite(block_max)[None, :]), axis=0)
            row_sum, row_max = merge(row_sum, row_max, block_sum, block_max, True)
        else:
            row_sum += tl.sum(sums, axis=0)
    return row_sum, row_max


@triton.jit
def log_of_sum(row_sum, row_max, temperature, ONLINE_MAX: tl.constexpr):
    """log(sum_j exp(s_ij - m_i)) + m_i; -inf of nothing.

    The rounding of to_log2, 6e-8 of a logit, stays in the online maximum; CUDA's kernel takes it out
    (csrc/cuda/ntxent_statistics.cuh).
    """
    if ONLINE_MAX:
        natural_max = tl.div_rn(row_max, LOG2_E)
    else:
        natural_max = tl.div_rn(1.0, temperature)
    return tl.where(row_sum == 0.0, -float("inf"), tl.log(row_sum) + natural_max)
