"""Triton kernels of the NT-Xent backward pass: coefficients of rows; tiles of the gradient; finish it to dz and dt.

With s_ij = u_i.u_j / t, w_i the gradient that arrives for L_i, lse_i = row_lse and pull_i = row_pull of row i
(reference.py; the derivation is in docs/ntxent.md),

    t du_i = sum_{j not in {i, p}} (w_i exp(s_ij - lse_i) + w_j exp(s_ij - lse_j)) u_j - (w_i pull_i + w_p pull_p) u_p
    dz_i   = (du_i - u_i (u_i.du_i)) / |z_i|,  or du_i / eps where the norm was clamped

triton_gradient.py has the sum. W, by which it divides the weights, is here max |w_i| pull_i, rounded up to a power of
two: the exp(s_ij - lse_i) of a row add up to pull_i, so that coefficients are small where all pulls are, and have full
precision however aligned the pairs are.
"""

import triton
import triton.language as tl

from simclr_fast.ops.ntxent.triton_common import (
    LOG2_E,
    load_vector,
    load_views,
    read_temperature,
    row_lse,
    row_pull,
)
from simclr_fast.ops.ntxent.triton_gradient import (
    add_gradient,
    add_splits,
    power_of_two_above,
    store_dt,
    through_normalisation,
    weighted_dt,
)

LEAST_PULL = tl.constexpr(1e-30)  # what a pull counts in W at least: no w / W overflows


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
    lse_neg_ptr,  # [columns]
    s_pos_ptr,  # [columns]
    dloss_ptr,  # [] if REDUCED, or None for 1; else [columns]
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
        least = power_of_two_above(tl.maximum(row_pull(largest, 0.0), LEAST_PULL))
        w_max = least
        if dloss_ptr is not None:
            w_max *= tl.load(dloss_ptr).to(tl.float32)
        weight = tl.div_rn(tl.full((BLOCK_M,), 1.0, tl.float32), least)
        partner_weight = weight
    else:
        w_max = tl.where(largest == 0.0, 1.0, power_of_two_above(largest))
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


@triton.jit(do_not_specialize=["n", "row_offset", "columns"], do_not_specialize_on_alignment=["temperature_ptr"])
def ntxent_bwd_kernel(
    u_ptr,  # [columns, D] of "fp16", else [columns, 2, D]
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
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,  # of BLOCK_D of the D columns: what one program owns of the gradient
    HOLD_ROWS: tl.constexpr,  # u of the rows stays on chip, and u of the columns is read once for both products
    EVEN_D: tl.constexpr,  # SLICES * BLOCK_D divides D
    SPECIAL_FIRST: tl.constexpr,  # whether the loop over special tiles comes before that over plain ones
    SPECIAL: tl.constexpr,  # columns of a step through the special tiles; divides BLOCK_N
):
    """The gradient's sum (add_gradient), and minus t dL/dt / W of these rows and this split."""
    row_dt, row_term, row_weight = add_gradient(
        u_ptr, u_ptr, term_ptr, weight_ptr, term_ptr, weight_ptr, part_ptr, temperature, temperature_ptr, row_offset,
        columns, n, n, row_offset, columns, D, NEED_DT, ONLINE_MAX, OPERAND, BLOCK_M, BLOCK_N, BLOCK_D, SLICES,
        HOLD_ROWS, EVEN_D, SPECIAL_FIRST, SPECIAL, 2,
    )  # fmt: skip

    # sum_i w_i / W (sum_j exp(s_ij - lse_i) s_ij - pull_i s_ip). The first split has the positives' share.
    if NEED_DT and tl.program_id(2) == 0:
        row_dt = weighted_dt(row_dt, row_term, row_weight, ONLINE_MAX)
        if tl.program_id(1) == 0:
            local = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
            lse_neg = tl.load(lse_neg_ptr + row_offset + local, mask=local < 2 * n, other=0.0)
            s_pos = tl.load(s_pos_ptr + row_offset + local, mask=local < 2 * n, other=0.0)
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
    inv_norm_ptr,  # [2n]
    z0_ptr,  # [n, D], row stride stride0 * UNIT
    z1_ptr,  # [n, D], row stride stride1 * UNIT
    dz0_ptr,  # [n, D] out; [2n, D] where dz1_ptr is None
    dz1_ptr,  # [n, D] out, or None
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
    g = add_splits(part_ptr, offsets, mask, splits, n.to(tl.int64) * 2 * D, BLOCK_M, BLOCK_D)

    # 2. g_i -= (w_i pull_i + w_p pull_p) / W u_p. Between aligned pairs it nearly cancels the rest: u_i and u_p are
    #    made of z again, for operands are rounded.
    inv_norm = tl.load(inv_norm_ptr + local, mask=inside, other=0.0)
    direction = load_views(z0_ptr, z1_ptr, stride0, stride1, local, d, n, 2 * n, D, UNIT) * inv_norm[:, None]
    partner = tl.where(local < n, local + n, local - n)
    u_partner = load_views(z0_ptr, z1_ptr, stride0, stride1, partner, d, n, 2 * n, D, UNIT)  # [BLOCK_M, BLOCK_D]
    u_partner *= tl.load(inv_norm_ptr + partner, mask=inside, other=0.0)[:, None]
    positive = tl.load(positive_ptr + row_offset + local, mask=inside, other=0.0)
    g -= positive[:, None] * u_partner

    # 3. dz_i = (g_i - u_i (u_i . g_i)) / |z_i| times W / t and the reduction's scale; dt.
    dz = through_normalisation(g, direction, inv_norm, eps, factor)
    dz = dz.to(dz0_ptr.dtype.element_ty)
    if dz1_ptr is None:
        tl.store(dz0_ptr + offsets, dz, mask=mask)
    else:
        row = local.to(tl.int64)[:, None]
        tl.store(dz0_ptr + offsets, dz, mask=mask & (row < n))
        tl.store(dz1_ptr + offsets - n.to(tl.int64) * D, dz, mask=mask & (row >= n))
    store_dt(dt_part_ptr, dt_ptr, dt_parts, factor, NEED_DT, BLOCK_DT)
