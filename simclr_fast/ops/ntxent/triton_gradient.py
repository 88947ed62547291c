"""Tiles of the gradient by unit rows, and its finish to dz and dt: what the Triton backward kernels share.

du_i is a sum over columns j of coefficient_ij u_j / t. A coefficient, w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), is
an operand of the tensor cores. So that fp16 holds it, weights are divided by a number W that makes each of its two
terms at most 1, and the exponent is shifted by OPERAND_SHIFT: it is then at most 2 * 2^14 < 65504, and has full
precision down to 2^-28 of that. In full float32 it is split in two, as the rows are.
"""

import triton
import triton.language as tl

from simclr_fast.ops.ntxent.triton_common import (
    LOG2_E,
    SPLIT_UNSCALE,
    add_logits,
    is_negative,
    load_rows,
    load_vector,
    logit_scale,
    multiply,
    read_temperature,
    special_tiles,
    split,
)

OPERAND_SHIFT = tl.constexpr(14.0)  # log2 of the factor carried by a coefficient
OPERAND_UNSHIFT = tl.constexpr(2.0**-OPERAND_SHIFT.value)  # takes it out again
MASKED = tl.constexpr(-1e30)  # a logit whose exponential is 0, as is its product with the logit


@triton.jit
def power_of_two_above(x):
    """The least power of two that is no less than a normal x > 0: to divide by it is exact."""
    return ((x.to(tl.int32, bitcast=True) + 0x007FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _add_tile(
    acc,  # SLICES x [BLOCK_M, BLOCK_D]
    row_dt,  # [BLOCK_M]
    u_rows,  # SLICES x the parts of [BLOCK_M, BLOCK_D], with HOLD_ROWS
    row_term,  # [BLOCK_M]
    row_weight,  # [BLOCK_M]
    to_log2,
    rows_ptr,
    columns_ptr,
    column_term_ptr,
    column_weight_ptr,
    local,  # [BLOCK_M]
    first_row,
    row_limit,
    first_col,
    d_first,
    n,
    own,
    columns,
    D: tl.constexpr,
    NEED_DT: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,
    HOLD_ROWS: tl.constexpr,
    EVEN_D: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """acc and row_dt with one tile of columns added, all exponents shifted by OPERAND_SHIFT.

    PLAIN: nothing in the tile is to be masked.
    """
    cols = first_col + tl.arange(0, BLOCK_N)  # [BLOCK_N]

    # 1. s2_ij = u_i . u_j log2(e) / t, a slice of D at a time; masked where i leaves j out, or j is no column. The
    #    slices of u_j that the program owns (all, with HOLD_ROWS) stay on chip for step 4.
    s2 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if not HOLD_ROWS:
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            u_slice = load_rows(rows_ptr, first_row, row_limit, d, D, BLOCK_M, False, EVEN_D, OPERAND)
            v_slice = load_rows(columns_ptr, first_col, columns, d, D, BLOCK_N, PLAIN, EVEN_D, OPERAND)
            s2 = add_logits(s2, u_slice, v_slice, D, OPERAND)
    u_cols = ()  # SLICES x the parts of [BLOCK_N, BLOCK_D]
    for c in tl.static_range(SLICES):
        d = d_first + c * BLOCK_D + tl.arange(0, BLOCK_D)
        u_cols += (load_rows(columns_ptr, first_col, columns, d, D, BLOCK_N, PLAIN, EVEN_D, OPERAND),)
        if HOLD_ROWS:
            s2 = add_logits(s2, u_rows[c], u_cols[c], D, OPERAND)
    s2 = s2 * logit_scale(to_log2, OPERAND)
    if not PLAIN:
        s2 = tl.where(is_negative(local, cols - own, n, columns - own), s2, MASKED)

    # 2. Coefficients: w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j), of row i and column j. With the constant maximum
    #    one exponential serves both terms: exp(s_ij - 1/t) (w_i exp(1/t - lse_i) + w_j exp(1/t - lse_j)); to_log2 is
    #    1/t to base 2.
    col_term = load_vector(column_term_ptr, cols, columns, PLAIN)
    if ONLINE_MAX:
        col_weight = load_vector(column_weight_ptr, cols, columns, PLAIN)
        e = tl.math.exp2(s2 - (row_term - OPERAND_SHIFT)[:, None])
        coefficients = row_weight[:, None] * e + col_weight[None, :] * tl.math.exp2(
            s2 - (col_term - OPERAND_SHIFT)[None, :]
        )
    else:
        e = tl.math.exp2(s2 - (to_log2 - OPERAND_SHIFT))
        coefficients = e * (row_term[:, None] + col_term[None, :])

    # 3. sum_j exp(s_ij - lse_i) s_ij log2(e), but for the row's factor, which is put in at the end.
    if NEED_DT:
        row_dt += tl.sum(e * s2, axis=1)

    # 4. du_i += sum_j coefficient_ij u_j. In full float32 a tile's product starts from zero, and is added by ordinary
    #    additions, which round: sums over all columns by tensor cores, which truncate, are ten times less exact.
    coefficients = split(coefficients, OPERAND)
    new_acc = ()
    for c in tl.static_range(SLICES):
        if OPERAND == "ieee":
            new_acc += (acc[c] + multiply(coefficients, u_cols[c], None, OPERAND, False),)
        else:
            new_acc += (multiply(coefficients, u_cols[c], acc[c], OPERAND, False),)
    return new_acc, row_dt


@triton.jit
def add_gradient(
    rows_ptr,  # [row_limit, D] of "fp16", else [row_limit, 2, D]
    columns_ptr,  # [columns, D] of "fp16", else [columns, 2, D]
    row_term_ptr,
    row_weight_ptr,
    column_term_ptr,  # [columns]
    column_weight_ptr,  # [columns]
    part_ptr,  # [splits, VIEWS * samples, D] out
    temperature,
    temperature_ptr,
    rows_first,  # where row 0 lies in rows_ptr, row_term_ptr and row_weight_ptr
    row_limit,
    samples,  # the rows are VIEWS times as many
    n,  # how far from a row its partner is, which it leaves out, too; 0: nothing but the own column
    own,  # the column that row 0 leaves out
    columns,
    D: tl.constexpr,
    NEED_DT: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,
    HOLD_ROWS: tl.constexpr,
    EVEN_D: tl.constexpr,
    SPECIAL_FIRST: tl.constexpr,
    SPECIAL: tl.constexpr,
    VIEWS: tl.constexpr,
):
    """Sum over one split of the columns of coefficient_ij u_j, for BLOCK_M rows and SLICES * BLOCK_D of the D columns.

    Plain tiles go through a loop without masks. Which of the loops comes first changes what ptxas spills;
    ntxent_bwd_kernel has the constants. Returns what weighted_dt takes of the rows.
    """
    local_row = tl.program_id(0) * BLOCK_M
    local = local_row + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row_inside = local < VIEWS * samples
    first_row = rows_first + local_row
    to_log2 = tl.div_rn(LOG2_E, read_temperature(temperature, temperature_ptr))
    d_first = tl.program_id(2) * SLICES * BLOCK_D

    # 1. What stays on chip of the rows: their part of t du / W in acc, and with HOLD_ROWS their u.
    acc = ()  # SLICES x [BLOCK_M, BLOCK_D]
    u_rows = ()  # SLICES x the parts of [BLOCK_M, BLOCK_D]
    for c in tl.static_range(SLICES):
        acc += (tl.zeros((BLOCK_M, BLOCK_D), tl.float32),)
        if HOLD_ROWS:
            d = c * BLOCK_D + tl.arange(0, BLOCK_D)
            u_rows += (load_rows(rows_ptr, first_row, row_limit, d, D, BLOCK_M, False, EVEN_D, OPERAND),)
    # Rows beyond the last may hold another process's u: what stands for their term makes all their coefficients 0.
    row_term = tl.load(row_term_ptr + rows_first + local, mask=row_inside, other=1e30 if ONLINE_MAX else 0.0)
    row_weight = tl.load(row_weight_ptr + rows_first + local, mask=row_inside, other=0.0)
    row_dt = tl.zeros((BLOCK_M,), tl.float32)

    # 2. The tiles [first, last) of this split, of which [first, full) are whole. Special are [lo1, hi1) and [lo2, hi2),
    #    and a ragged last one; all others are plain.
    column_tiles = tl.cdiv(columns, BLOCK_N)
    per_split = tl.cdiv(column_tiles, tl.num_programs(1))
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, column_tiles)
    full = tl.maximum(tl.minimum(last, columns // BLOCK_N), first)
    lo1, hi1, lo2, hi2 = special_tiles(own + local_row, local_row, n, first, full, BLOCK_M, BLOCK_N)

    # 3. Both loops. Special tiles are taken SPECIAL columns at a time: their masks need registers.
    steps: tl.constexpr = BLOCK_N // SPECIAL
    for loop in tl.static_range(2):
        if (loop == 0) == SPECIAL_FIRST:
            for i in tl.range(0, (hi1 - lo1 + hi2 - lo2 + last - full) * steps, num_stages=1):
                tile = lo1 + i // steps
                tile += tl.where(tile >= hi1, lo2 - hi1, 0)
                tile += tl.where(tile >= hi2, full - hi2, 0)
                acc, row_dt = _add_tile(
                    acc, row_dt, u_rows, row_term, row_weight, to_log2, rows_ptr, columns_ptr, column_term_ptr,
                    column_weight_ptr, local, first_row, row_limit, tile * BLOCK_N + i % steps * SPECIAL, d_first, n,
                    own, columns, D, NEED_DT, ONLINE_MAX, OPERAND, BLOCK_M, SPECIAL, BLOCK_D, SLICES, HOLD_ROWS,
                    EVEN_D, False,
                )  # fmt: skip
        else:
            for i in range(0, full - first - (hi1 - lo1) - (hi2 - lo2)):
                tile = first + i
                tile += tl.where(tile >= lo1, hi1 - lo1, 0)
                tile += tl.where(tile >= lo2, hi2 - lo2, 0)
                acc, row_dt = _add_tile(
                    acc, row_dt, u_rows, row_term, row_weight, to_log2, rows_ptr, columns_ptr, column_term_ptr,
                    column_weight_ptr, local, first_row, row_limit, tile * BLOCK_N, d_first, n, own, columns, D,
                    NEED_DT, ONLINE_MAX, OPERAND, BLOCK_M, BLOCK_N, BLOCK_D, SLICES, HOLD_ROWS, EVEN_D, True,
                )  # fmt: skip

    # 4. The split's partial of t du / W, without the shift of the exponents (2^OPERAND_SHIFT) and the rows' scale.
    part = part_ptr + tl.program_id(1).to(tl.int64) * VIEWS * samples * D
    unscale: tl.constexpr = OPERAND_UNSHIFT if OPERAND == "fp16" else OPERAND_UNSHIFT * SPLIT_UNSCALE
    for c in tl.static_range(SLICES):
        d = d_first + c * BLOCK_D + tl.arange(0, BLOCK_D)
        offsets = local.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(part + offsets, acc[c] * unscale, mask=row_inside[:, None] & (d < D)[None, :])
    return row_dt, row_term, row_weight


@triton.jit
def weighted_dt(row_dt, row_term, row_weight, ONLINE_MAX: tl.constexpr):
    """sum_j w_i / W exp(s_ij - lse_i) s_ij of each row, without the shift of the exponents.

    With the constant maximum the row's term holds w_i / W.
    """
    if ONLINE_MAX:
        row_dt *= row_weight * (OPERAND_UNSHIFT / LOG2_E)
    else:
        row_dt *= row_term * (OPERAND_UNSHIFT / LOG2_E)
    return row_dt


@triton.jit
def add_splits(part_ptr, offsets, mask, splits, size, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The splits' partials, of `size` numbers each, in order.  # [BLOCK_M, BLOCK_D]"""
    g = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for _ in range(splits):
        g += tl.load(part_ptr + offsets, mask=mask, other=0.0)
        part_ptr += size
    return g


@triton.jit
def through_normalisation(g, direction, inv_norm, eps, factor):
    """dz_i = (g_i - u_i (u_i . g_i)) / |z_i| times a factor; a clamped norm is a constant.  # [BLOCK_M, BLOCK_D]"""
    radial = tl.sum(direction * g, axis=1)
    radial = tl.where(inv_norm >= tl.div_rn(1.0, eps), 0.0, radial)
    return (g - radial[:, None] * direction) * (inv_norm * factor)[:, None]


@triton.jit
def store_dt(dt_part_ptr, dt_ptr, dt_parts, factor, NEED_DT: tl.constexpr, BLOCK_DT: tl.constexpr):
    """dt = -(W / t) sum of the partials of dt, by the first program; 0 without NEED_DT."""
    if tl.program_id(0) == 0:
        dt = tl.zeros((BLOCK_DT,), tl.float32)
        if NEED_DT:
            for start in range(0, dt_parts, BLOCK_DT):
                i = start + tl.arange(0, BLOCK_DT)
                dt += tl.load(dt_part_ptr + i, mask=i < dt_parts, other=0.0)
        tl.store(dt_ptr, -tl.sum(dt, axis=0) * factor)
