"""Triton kernels of the NT-Xent backward pass: coefficients of rows; tiles of the gradient; finish it to dz and dt.

With s_ij = u_i.u_j / t, w_i the gradient that arrives for L_i, lse_i = row_lse and pull_i = row_pull of row i
(reference.py; the derivation is in docs/ntxent.md),

    t du_i = sum_{j not in {i, p}} (w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j)) u_j - (w_i pull_i + w_p pull_p) u_p
    dz_i   = (du_i - u_i (u_i.du_i)) / |z_i|,  or du_i / eps where the norm was clamped

The first bracket, the coefficient of u_j, is an operand of the tensor cores, of the type of u. So that fp16 holds it, w
is divided by W = max |w_i| pull_i, rounded up to a power of two, and the exponent shifted by OPERAND_SHIFT. The
exp(s_ij - lse_i) of a row add up to pull_i, so the coefficient is then at most 2 * 2^14 < 65504, and has full precision
down to 2^-28 of that, however aligned the pairs are.
"""

import triton
import triton.language as tl

from simclr_fast.ops.ntxent.triton_common import (
    LOG2_E,
    dot,
    is_negative,
    load_rows,
    load_vector,
    load_views,
    read_temperature,
    row_lse,
    row_pull,
    special_tiles,
)

OPERAND_SHIFT = tl.constexpr(14.0)  # log2 of the factor carried by an fp16 coefficient
OPERAND_UNSHIFT = tl.constexpr(2.0**-OPERAND_SHIFT.value)  # takes it out again
MASKED = tl.constexpr(-1e30)  # a logit whose exponential is 0, as is its product with the logit
LEAST_PULL = tl.constexpr(1e-30)  # what a pull counts in W at least: no w / W overflows


@triton.jit
def _power_of_two_above(x):
    """The least power of two that is no less than a normal x > 0: to divide by it is exact."""
    return ((x.to(tl.int32, bitcast=True) + 0x007FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _weighted_pull(dloss_ptr, lse_neg_ptr, s_pos_ptr, rows, columns, REDUCED: tl.constexpr, EVEN: tl.constexpr):
    """|w| pull of these rows, or if REDUCED (one w for all) lse_neg - s_pos, with which pulls grow.  # [len(rows)]"""
    lse_neg = load_vector(lse_neg_ptr, rows, columns, EVEN)
    s_pos = load_vector(s_pos_ptr, rows, columns, EVEN)
    if REDUCED:
        difference = lse_neg - s_pos
        return tl.where(rows < columns, difference, -float("inf"))
    else:
        w = load_vector(dloss_ptr, rows, columns, EVEN).to(tl.float32)
        return tl.abs(w) * tl.maximum(row_pull(lse_neg, s_pos), LEAST_PULL)


@triton.jit(do_not_specialize=["n", "columns"], do_not_specialize_on_alignment=["dloss_ptr", "temperature_ptr"])
def ntxent_bwd_coefficients_kernel(
    dloss_ptr,  # [] if REDUCED else [columns]
    lse_neg_ptr,  # [columns]
    s_pos_ptr,  # [columns]
    term_ptr,  # [columns] out: what a term is made of: lse log2(e) with ONLINE_MAX, else (w / W) exp(1/t - lse)
    weight_ptr,  # [columns + 1] out: w / W, then W
    positive_ptr,  # [columns] out: (w_i pull_i + w_p pull_p) / W
    temperature,
    temperature_ptr,
    n,
    columns,
    REDUCED: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SCAN: tl.constexpr,
):
    """What the tiles need to know of each of BLOCK_M rows.

    Every program finds W by itself: to read M numbers from the L2 cache costs less than another launch.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    inside = rows < columns
    partners = tl.where(rows % (2 * n) < n, rows + n, rows - n)  # of the same process

    # 1. max_i |w_i| pull_i over all rows, or max_i (lse_neg_i - s_ip). The last step, if it is not whole, has masks.
    whole = columns // BLOCK_SCAN * BLOCK_SCAN
    maxima = tl.full((BLOCK_SCAN,), -float("inf"), tl.float32)
    for start in range(0, whole, BLOCK_SCAN):
        others = start + tl.arange(0, BLOCK_SCAN)
        maxima = tl.maximum(maxima, _weighted_pull(dloss_ptr, lse_neg_ptr, s_pos_ptr, others, columns, REDUCED, True))
    if whole < columns:
        others = whole + tl.arange(0, BLOCK_SCAN)
        maxima = tl.maximum(maxima, _weighted_pull(dloss_ptr, lse_neg_ptr, s_pos_ptr, others, columns, REDUCED, False))
    largest = tl.max(maxima, axis=0)

    # 2. W, that maximum rounded up to a power of two, and w_i / W. With one w for all, w / W = 1 / max pull.
    if REDUCED:
        least = _power_of_two_above(tl.maximum(row_pull(largest, 0.0), LEAST_PULL))
        w_max = tl.load(dloss_ptr).to(tl.float32) * least
        weight = tl.div_rn(tl.full((BLOCK_M,), 1.0, tl.float32), least)
        partner_weight = weight
    else:
        w_max = tl.where(largest == 0.0, 1.0, _power_of_two_above(largest))
        weight = tl.div_rn(tl.load(dloss_ptr + rows, mask=inside, other=0.0).to(tl.float32), w_max)
        partner_weight = tl.load(dloss_ptr + partners, mask=inside, other=0.0).to(tl.float32)
        partner_weight = tl.div_rn(partner_weight, w_max)
    if tl.program_id(0) == 0:
        tl.store(weight_ptr + columns, w_max)
    tl.store(weight_ptr + rows, weight, mask=inside)

    # 3. The coefficient of the positive, (w_i pull_i + w_p pull_p) / W; s_ip = s_pi.
    lse_neg = tl.load(lse_neg_ptr + rows, mask=inside, other=0.0)
    s_pos = tl.load(s_pos_ptr + rows, mask=inside, other=0.0)
    partner_lse_neg = tl.load(lse_neg_ptr + partners, mask=inside, other=0.0)
    positive = weight * row_pull(lse_neg, s_pos) + partner_weight * row_pull(partner_lse_neg, s_pos)
    tl.store(positive_ptr + rows, positive, mask=inside)

    # 4. What the coefficients of the negatives are made of: with the online maximum lse_i to base 2, with the constant
    #    one (w_i / W) exp(1/t - lse_i), to be multiplied by exp(s_ij - 1/t).
    lse = row_lse(lse_neg, s_pos)
    if ONLINE_MAX:
        term = lse * LOG2_E
    else:
        # A row without negatives (of a batch of one pair) takes part in no tile; its weight, up to 1e30, times
        # exp(1/t - lse), up to exp(2/t), may not be infinite, for masked terms are products with 0.
        shifted = tl.exp(tl.div_rn(1.0, read_temperature(temperature, temperature_ptr)) - lse)
        term = tl.where(lse_neg == -float("inf"), 0.0, weight * shifted)
    tl.store(term_ptr + rows, term, mask=inside)


@triton.jit
def _bwd_tile(
    acc,  # SLICES x [BLOCK_M, BLOCK_D]
    row_dt,  # [BLOCK_M]
    u_rows,  # SLICES x [BLOCK_M, BLOCK_D], with HOLD_ROWS
    row_term,  # [BLOCK_M]
    row_weight,  # [BLOCK_M]
    to_log2,
    u_ptr,
    term_ptr,
    weight_ptr,
    local,  # [BLOCK_M]
    first_row,
    first_col,
    d_first,
    n,
    row_offset,
    columns,
    D: tl.constexpr,
    NEED_DT: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,
    HOLD_ROWS: tl.constexpr,
    EVEN_D: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """acc and row_dt with one tile of columns added. PLAIN: nothing in the tile is to be masked.

    All exponents are shifted by OPERAND_SHIFT where coefficients are fp16.
    """
    shift: tl.constexpr = OPERAND_SHIFT if u_ptr.dtype.element_ty == tl.float16 else 0.0
    cols = first_col + tl.arange(0, BLOCK_N)  # [BLOCK_N]

    # 1. s2_ij = u_i . u_j log2(e) / t, a slice of D at a time; masked where j is i, its positive, or no column. The
    #    slices of u_j that the program owns (all, with HOLD_ROWS) stay on chip for step 4.
    s2 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if not HOLD_ROWS:
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            u_slice = load_rows(u_ptr, first_row, columns, d, D, BLOCK_M, False, EVEN_D)
            v_slice = load_rows(u_ptr, first_col, columns, d, D, BLOCK_N, PLAIN, EVEN_D)
            s2 = dot(u_slice, tl.trans(v_slice), s2, PRECISION)
    u_cols = ()  # SLICES x [BLOCK_N, BLOCK_D]
    for c in tl.static_range(SLICES):
        d = d_first + c * BLOCK_D + tl.arange(0, BLOCK_D)
        u_cols += (load_rows(u_ptr, first_col, columns, d, D, BLOCK_N, PLAIN, EVEN_D),)
        if HOLD_ROWS:
            s2 = dot(u_rows[c], tl.trans(u_cols[c]), s2, PRECISION)
    s2 = s2 * to_log2
    if not PLAIN:
        s2 = tl.where(is_negative(local, cols - row_offset, n, columns - row_offset), s2, MASKED)

    # 2. Coefficients: w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j). With the constant maximum one exponential serves
    #    both terms: exp(s_ij - 1/t) (w_i exp(1/t - lse_i) + w_j exp(1/t - lse_j)); to_log2 is 1/t to base 2.
    col_term = load_vector(term_ptr, cols, columns, PLAIN)
    if ONLINE_MAX:
        col_weight = load_vector(weight_ptr, cols, columns, PLAIN)
        e = tl.math.exp2(s2 - (row_term - shift)[:, None])
        coefficients = row_weight[:, None] * e + col_weight[None, :] * tl.math.exp2(s2 - (col_term - shift)[None, :])
    else:
        e = tl.math.exp2(s2 - (to_log2 - shift))
        coefficients = e * (row_term[:, None] + col_term[None, :])

    # 3. sum_j exp(s_ij - lse_i) s_ij log2(e), but for the row's factor, which is put in at the end.
    if NEED_DT:
        row_dt += tl.sum(e * s2, axis=1)

    # 4. du_i += sum_j coefficient_ij u_j.
    coefficients = coefficients.to(u_ptr.dtype.element_ty)
    new_acc = ()
    for c in tl.static_range(SLICES):
        new_acc += (dot(coefficients, u_cols[c], acc[c], PRECISION, False),)
    return new_acc, row_dt


@triton.jit(do_not_specialize=["n", "row_offset", "columns"], do_not_specialize_on_alignment=["temperature_ptr"])
def ntxent_bwd_kernel(
    u_ptr,  # [columns, D]
    term_ptr,  # [columns]
    weight_ptr,  # [columns + 1]
    lse_neg_ptr,  # [columns]
    s_pos_ptr,  # [columns]
    part_ptr,  # [splits, 2n, D] out
    dt_part_ptr,  # [splits, row tiles] out, with NEED_DT
    temperature,
    temperature_ptr,
    n,
    row_offset,
    columns,
    D: tl.constexpr,
    NEED_DT: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,  # of BLOCK_D of the D columns: what one program owns of the gradient
    HOLD_ROWS: tl.constexpr,  # u of the rows stays on chip, and u of the columns is read once for both products
    EVEN_D: tl.constexpr,  # SLICES * BLOCK_D divides D
    SPECIAL_FIRST: tl.constexpr,  # whether the loop over special tiles comes before that over plain ones
    SPECIAL: tl.constexpr,  # columns of a step through the special tiles; divides BLOCK_N
):
    """Sum over one split of the columns of coefficient_ij u_j, for BLOCK_M rows and SLICES * BLOCK_D of the D columns.

    Plain tiles go through a loop without masks. Which of the loops comes first changes what ptxas spills.
    """
    half: tl.constexpr = u_ptr.dtype.element_ty == tl.float16
    local_row = tl.program_id(0) * BLOCK_M
    local = local_row + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row_inside = local < 2 * n
    first_row = row_offset + local_row
    to_log2 = tl.div_rn(LOG2_E, read_temperature(temperature, temperature_ptr))
    d_first = tl.program_id(2) * SLICES * BLOCK_D

    # 1. What stays on chip of the rows: their part of t du / W in acc, and with HOLD_ROWS their u.
    acc = ()  # SLICES x [BLOCK_M, BLOCK_D]
    u_rows = ()  # SLICES x [BLOCK_M, BLOCK_D]
    for c in tl.static_range(SLICES):
        acc += (tl.zeros((BLOCK_M, BLOCK_D), tl.float32),)
        if HOLD_ROWS:
            d = c * BLOCK_D + tl.arange(0, BLOCK_D)
            u_rows += (load_rows(u_ptr, first_row, columns, d, D, BLOCK_M, False, EVEN_D),)
    # Rows beyond the last may hold another process's u: what stands for their term makes all their coefficients 0.
    row_term = tl.load(term_ptr + row_offset + local, mask=row_inside, other=1e30 if ONLINE_MAX else 0.0)
    row_weight = tl.load(weight_ptr + row_offset + local, mask=row_inside, other=0.0)
    row_dt = tl.zeros((BLOCK_M,), tl.float32)

    # 2. The tiles [first, last) of this split, of which [first, full) are whole. Special are [lo1, hi1) and [lo2, hi2),
    #    and a ragged last one; all others are plain.
    column_tiles = tl.cdiv(columns, BLOCK_N)
    per_split = tl.cdiv(column_tiles, tl.num_programs(1))
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, column_tiles)
    full = tl.maximum(tl.minimum(last, columns // BLOCK_N), first)
    lo1, hi1, lo2, hi2 = special_tiles(first_row, local_row, n, first, full, BLOCK_M, BLOCK_N)

    # 3. Both loops. Special tiles are taken SPECIAL columns at a time: their masks need registers.
    steps: tl.constexpr = BLOCK_N // SPECIAL
    for loop in tl.static_range(2):
        if (loop == 0) == SPECIAL_FIRST:
            for i in tl.range(0, (hi1 - lo1 + hi2 - lo2 + last - full) * steps, num_stages=1):
                tile = lo1 + i // steps
                tile += tl.where(tile >= hi1, lo2 - hi1, 0)
                tile += tl.where(tile >= hi2, full - hi2, 0)
                acc, row_dt = _bwd_tile(
                    acc, row_dt, u_rows, row_term, row_weight, to_log2, u_ptr, term_ptr, weight_ptr, local, first_row,
                    tile * BLOCK_N + i % steps * SPECIAL, d_first, n, row_offset, columns, D, NEED_DT, ONLINE_MAX,
                    PRECISION, BLOCK_M, SPECIAL, BLOCK_D, SLICES, HOLD_ROWS, EVEN_D, False,
                )  # fmt: skip
        else:
            for i in range(0, full - first - (hi1 - lo1) - (hi2 - lo2)):
                tile = first + i
                tile += tl.where(tile >= lo1, hi1 - lo1, 0)
                tile += tl.where(tile >= lo2, hi2 - lo2, 0)
                acc, row_dt = _bwd_tile(
                    acc, row_dt, u_rows, row_term, row_weight, to_log2, u_ptr, term_ptr, weight_ptr, local, first_row,
                    tile * BLOCK_N, d_first, n, row_offset, columns, D, NEED_DT, ONLINE_MAX, PRECISION, BLOCK_M,
                    BLOCK_N, BLOCK_D, SLICES, HOLD_ROWS, EVEN_D, True,
                )  # fmt: skip

    # 4. The split's partial of t du / W, without the shift of the exponents (2^OPERAND_SHIFT).
    part = part_ptr + tl.program_id(1).to(tl.int64) * 2 * n * D
    unshift: tl.constexpr = OPERAND_UNSHIFT if half else 1.0
    for c in tl.static_range(SLICES):
        d = d_first + c * BLOCK_D + tl.arange(0, BLOCK_D)
        offsets = local.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(part + offsets, acc[c] * unshift, mask=row_inside[:, None] & (d < D)[None, :])

    # 5. sum_i w_i / W (sum_j exp(s_ij - lse_i) s_ij - pull_i s_ip): minus t dL/dt / W of these rows and this split. The
    #    first split has the positives' share.
    if NEED_DT and tl.program_id(2) == 0:
        if ONLINE_MAX:
            row_dt *= row_weight * (unshift / LOG2_E)
        else:
            row_dt *= row_term * (unshift / LOG2_E)
        if tl.program_id(1) == 0:
            lse_neg = tl.load(lse_neg_ptr + row_offset + local, mask=row_inside, other=0.0)
            s_pos = tl.load(s_pos_ptr + row_offset + local, mask=row_inside, other=0.0)
            row_dt -= row_weight * row_pull(lse_neg, s_pos) * s_pos
        tl.store(dt_part_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(row_dt, axis=0))


@triton.jit(
    do_not_specialize=["n", "row_offset", "columns", "stride0", "stride1", "splits", "dt_parts"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def ntxent_bwd_finish_kernel(
    part_ptr,  # [splits, 2n, D]
    dt_part_ptr,  # [dt_parts], with NEED_DT
    weight_ptr,  # [columns + 1]
    positive_ptr,  # [columns]
    u_ptr,  # [columns, D]
    inv_norm_ptr,  # [2n]
    z0_ptr,  # [n, D], row stride stride0 * UNIT
    z1_ptr,  # [n, D], row stride stride1 * UNIT
    dz0_ptr,  # [n, D] out
    dz1_ptr,  # [n, D] out
    dt_ptr,  # [] out
    temperature,
    temperature_ptr,
    scale,
    eps,
    n,
    row_offset,
    columns,
    stride0,
    stride1,
    splits,
    dt_parts,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    NEED_DT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= D
    BLOCK_DT: tl.constexpr,
):
    """dz of BLOCK_M whole rows: their splits in order, their positives, and the Jacobian of the normalisation; dt."""
    local = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    inside = local < 2 * n
    d = tl.arange(0, BLOCK_D)
    offsets = local.to(tl.int64)[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    inv_t = tl.div_rn(1.0, read_temperature(temperature, temperature_ptr))
    factor = tl.load(weight_ptr + columns) * scale * inv_t

    # 1. g = t du / W without the positives: the splits' partials, in order.
    g = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for _ in range(splits):
        g += tl.load(part_ptr + offsets, mask=mask, other=0.0)
        part_ptr += n.to(tl.int64) * 2 * D

    # 2. g_i -= (w_i pull_i + w_p pull_p) / W u_p. Between aligned pairs it nearly cancels the rest: of half inputs, u_i
    #    and u_p are made of z again, for u is rounded to fp16.
    inv_norm = tl.load(inv_norm_ptr + local, mask=inside, other=0.0)
    direction = load_views(z0_ptr, z1_ptr, stride0, stride1, local, d, n, 2 * n, D, UNIT) * inv_norm[:, None]
    partner = tl.where(local < n, local + n, local - n)
    if u_ptr.dtype.element_ty == tl.float16:
        u_partner = load_views(z0_ptr, z1_ptr, stride0, stride1, partner, d, n, 2 * n, D, UNIT)  # [BLOCK_M, BLOCK_D]
        u_partner *= tl.load(inv_norm_ptr + partner, mask=inside, other=0.0)[:, None]
    else:
        u_partner = tl.load(u_ptr + (row_offset + partner).to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
    positive = tl.load(positive_ptr + row_offset + local, mask=inside, other=0.0)
    g -= positive[:, None] * u_partner

    # 3. dz_i = (g_i - u_i (u_i . g_i)) / |z_i| times W / t and the reduction's scale. A clamped norm is a constant.
    radial = tl.sum(direction * g, axis=1)
    radial = tl.where(inv_norm >= tl.div_rn(1.0, eps), 0.0, radial)
    dz = (g - radial[:, None] * direction) * (inv_norm * factor)[:, None]
    row = local.to(tl.int64)[:, None]
    tl.store(dz0_ptr + offsets, dz.to(dz0_ptr.dtype.element_ty), mask=mask & (row < n))
    tl.store(dz1_ptr + offsets - n.to(tl.int64) * D, dz.to(dz1_ptr.dtype.element_ty), mask=mask & (row >= n))

    # 4. dt = -(W / t) sum of the partials of dt.
    if tl.program_id(0) == 0:
        dt = tl.zeros((BLOCK_DT,), tl.float32)
        if NEED_DT:
            for start in range(0, dt_parts, BLOCK_DT):
                i = start + tl.arange(0, BLOCK_DT)
                dt += tl.load(dt_part_ptr + i, mask=i < dt_parts, other=0.0)
        tl.store(dt_ptr, -tl.sum(dt, axis=0) * factor)
