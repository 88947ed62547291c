"""Triton kernels of the NT-Xent forward pass: normalise rows; sum exponentials by tiles; finish the sums to losses.

L_i = row_loss(lse_neg_i, s_ip), lse_neg_i = log sum of exp(s_ij) over all columns j but i and its positive p
(docs/ntxent.md). E = exp(S) is symmetric: where rows and columns are the same set, only tiles on and above the diagonal
are computed, and each serves both its rows and its columns.

Logits are taken to base 2, s_ij log2(e), so that exp is exp2 without a multiplication. A partial sum is a pair: the
sum of 2^(s_ij log2(e) - m), and m, either the online maximum of its logits or the constant one, which is not stored
(triton_common.py). Each has a slot and a writer of its own, and is added in a fixed order. A row has at most as many
slots as MAX_SLOTS allows: memory is linear in the rows.
"""

import triton
import triton.language as tl

from simclr_fast.ops.ntxent.triton_common import (
    LOG2_E,
    dot,
    is_negative,
    is_plain_tile,
    load_rows,
    load_views,
    read_temperature,
    row_loss,
)


@triton.jit(do_not_specialize=["n", "rows", "stride0", "stride1"])
def ntxent_normalize_kernel(
    z0_ptr,  # [n, D], row stride stride0 * UNIT
    z1_ptr,  # [rows - n, D], row stride stride1 * UNIT
    u_ptr,  # [rows, D] out
    inv_norm_ptr,  # [rows] out
    eps,
    n,
    rows,
    D,
    stride0,
    stride1,
    UNIT: tl.constexpr,  # of the strides; see load_views
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= D
):
    """u = z / max(|z|, eps), inv_norm = 1 / max(|z|, eps), of BLOCK_M whole rows."""
    # 1. Rows of both views, view 0 first.
    local = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    d = tl.arange(0, BLOCK_D)
    z = load_views(z0_ptr, z1_ptr, stride0, stride1, local, d, n, rows, D, UNIT)  # [BLOCK_M, BLOCK_D]

    # 2. down = 2^-e, e the exponent of the largest entry, and up = 1 / down, both exact: of rows so scaled, no square
    #    overflows or vanishes. down is kept a normal number.
    peak = tl.max(tl.abs(z), axis=1)
    exponent = peak.to(tl.int32, bitcast=True) & 0x7F800000
    down_bits = tl.maximum(0x7F000000 - exponent, 0x00800000)
    down = down_bits.to(tl.float32, bitcast=True)
    up = (0x7F000000 - down_bits).to(tl.float32, bitcast=True)

    # 3. root = |z| down
    scaled = z * down[:, None]
    root = tl.sqrt_rn(tl.sum(scaled * scaled, axis=1))

    # 4. Where |z| <= eps the norm is clamped, and u = z / eps; else u = scaled / root, and 1 / |z| = down / root.
    clamped = root * up <= eps
    inv_eps = tl.div_rn(1.0, eps)
    inv_root = tl.div_rn(1.0, root)
    u = tl.where(clamped[:, None], z * inv_eps, scaled * inv_root[:, None])
    inv_norm = tl.where(clamped, inv_eps, inv_root * down)

    # 5. Store; offsets may exceed 32 bits.
    inside = local < rows
    offsets = local.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(u_ptr + offsets, u.to(u_ptr.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
    tl.store(inv_norm_ptr + local, inv_norm, mask=inside)


@triton.jit
def _merge(sum_a, max_a, sum_b, max_b, ONLINE_MAX: tl.constexpr):
    """sum_a 2^max_a + sum_b 2^max_b in the same form; with the constant maximum both have that one."""
    if ONLINE_MAX:
        new_max = tl.maximum(max_a, max_b)
        base = tl.where(new_max == -float("inf"), 0.0, new_max)  # -inf: both sums are empty, and -inf + inf is NaN
        return sum_a * tl.math.exp2(max_a - base) + sum_b * tl.math.exp2(max_b - base), new_max
    else:
        return sum_a + sum_b, max_a


@triton.jit
def _sum_of_exp2(s2, constant_max2, axis: tl.constexpr, ONLINE_MAX: tl.constexpr):
    """(sum of 2^(s2 - m), m) along an axis; m is the online maximum, or 0 in the place of the constant one."""
    if ONLINE_MAX:
        axis_max = tl.max(s2, axis=axis)
        base = tl.where(axis_max == -float("inf"), 0.0, axis_max)  # nothing but masked entries
        return tl.sum(tl.math.exp2(s2 - tl.expand_dims(base, axis)), axis=axis), axis_max
    else:
        axis_sum = tl.sum(tl.math.exp2(s2 - constant_max2), axis=axis)
        return axis_sum, tl.zeros_like(axis_sum)


@triton.jit(
    do_not_specialize=["n", "row_offset", "columns", "band_m", "band_n", "column_slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def ntxent_fwd_kernel(
    u_ptr,  # [columns, D]
    sum_ptr,  # [column_slots + column bands, 2n] out
    max_ptr,  # [column_slots + column bands, 2n] out, with ONLINE_MAX
    done_ptr,  # [1] out: zeroed for the launch that follows
    temperature,
    temperature_ptr,
    n,
    row_offset,
    columns,
    band_m,  # tiles of a row band
    band_n,  # tiles of a column band
    column_slots,
    D: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows and columns of a tile
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,  # number of slices of BLOCK_D columns that D has; used with HOLD_ROWS
    HOLD_ROWS: tl.constexpr,  # u of the row tile stays on chip while a band of column tiles goes by
    EVEN: tl.constexpr,  # BLOCK_M divides the rows and the columns
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
):
    """Sums of exp(s_ij) over the negatives. Program (a, b): row band a against column band b.

    The row sums go to slot column_slots + b. SYMMETRIC (one process): only tiles on and above the diagonal, and the
    column sums of those above go to slot a of the rows that the columns are.
    """
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(done_ptr, 0)
    rows = 2 * n
    column_tiles = tl.cdiv(columns, BLOCK_M)
    # log2(e) / t, which is also the constant maximum to base 2.
    to_log2 = tl.div_rn(LOG2_E, read_temperature(temperature, temperature_ptr))
    row_slot = (column_slots + tl.program_id(1)).to(tl.int64) * rows
    column_slot = tl.program_id(0).to(tl.int64) * rows

    for r in range(band_m):
        # 1. One row tile, and the column tiles [first, last) that it meets.
        tile_m = tl.program_id(0) * band_m + r
        first = tl.program_id(1) * band_n
        last = tl.minimum(first + band_n, column_tiles)
        if SYMMETRIC:
            first = tl.maximum(first, tile_m)
        if (first < last) & (tile_m * BLOCK_M < rows):
            local = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
            first_row = row_offset + tile_m * BLOCK_M
            u_rows = ()  # SLICES x [BLOCK_M, BLOCK_D]
            if HOLD_ROWS:
                for c in tl.static_range(SLICES):
                    d = c * BLOCK_D + tl.arange(0, BLOCK_D)
                    u_rows += (load_rows(u_ptr, first_row, columns, d, D, BLOCK_M, EVEN, EVEN_D),)
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
                        u_cols = load_rows(u_ptr, first_col, columns, d, D, BLOCK_M, EVEN, EVEN_D)
                        s2 = dot(u_rows[c], tl.trans(u_cols), s2, PRECISION)
                else:
                    for start in range(0, D, BLOCK_D):
                        d = start + tl.arange(0, BLOCK_D)
                        u_slice = load_rows(u_ptr, first_row, columns, d, D, BLOCK_M, EVEN, EVEN_D)
                        u_cols = load_rows(u_ptr, first_col, columns, d, D, BLOCK_M, EVEN, EVEN_D)
                        s2 = dot(u_slice, tl.trans(u_cols), s2, PRECISION)
                s2 = s2 * to_log2

                # 3. s2_ij = -inf where j is i, its positive, or no column. Most tiles hold none of these.
                if not is_plain_tile(
                    tile_m * BLOCK_M, first_col - row_offset, n, columns - row_offset, BLOCK_M, BLOCK_M
                ):
                    s2 = tl.where(is_negative(local, cols - row_offset, n, columns - row_offset), s2, -float("inf"))

                # 4. Row sums: sum_j 2^(s2_ij - m_i) of the tile, added to those of the band's tiles before it.
                tile_sum, tile_max = _sum_of_exp2(s2, to_log2, 1, ONLINE_MAX)
                row_sum, row_max = _merge(row_sum, row_max, tile_sum, tile_max, ONLINE_MAX)

                # 5. Column sums: sum_i 2^(s2_ij - m_j), for s_ij = s_ji. Those of the band's further row tiles (r > 0)
                #    are added to what stands in the slot. On the diagonal the row sums have counted both already.
                if SYMMETRIC:
                    col_sum, col_max = _sum_of_exp2(s2, to_log2, 0, ONLINE_MAX)
                    inside = (cols < columns) & (tile_m != tile_n)
                    again = inside & (r > 0)
                    old_sum = tl.load(sum_ptr + column_slot + cols, mask=again, other=0.0)
                    if ONLINE_MAX:
                        old_max = tl.load(max_ptr + column_slot + cols, mask=again, other=-float("inf"))
                        col_sum, col_max = _merge(col_sum, col_max, old_sum, old_max, ONLINE_MAX)
                        tl.store(max_ptr + column_slot + cols, col_max, mask=inside)
                    else:
                        col_sum += old_sum
                    tl.store(sum_ptr + column_slot + cols, col_sum, mask=inside)

            # 6. The row tile's sums over the column band.
            tl.store(sum_ptr + row_slot + local, row_sum, mask=local < rows)
            if ONLINE_MAX:
                tl.store(max_ptr + row_slot + local, row_max, mask=local < rows)
        tl.debug_barrier()  # the next row tile adds to column sums that other threads have written


@triton.jit(
    do_not_specialize=["n", "row_offset", "band_m", "band_n", "column_slots", "slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def ntxent_fwd_finish_kernel(
    sum_ptr,  # [slots, 2n]
    max_ptr,  # [slots, 2n], with ONLINE_MAX
    u_ptr,  # [columns, D]
    lse_neg_ptr,  # [2n] out
    s_pos_ptr,  # [2n] out
    loss_ptr,  # [] out if REDUCED else [2n] out
    part_ptr,  # [programs] scratch
    done_ptr,  # [1] count of the programs that are done
    temperature,
    temperature_ptr,
    scale,
    n,
    row_offset,
    band_m,
    band_n,
    column_slots,
    slots,
    D: tl.constexpr,
    REDUCED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    TILE_M: tl.constexpr,  # rows of a tile of the launch before
    BLOCK_M: tl.constexpr,  # divides TILE_M
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Statistics and losses of BLOCK_M rows; the last program that is done adds up all losses, in the rows' order."""
    pid = tl.program_id(0)
    local = pid * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    inside = local < 2 * n
    temperature = read_temperature(temperature, temperature_ptr)

    # 1. Add up the slots that were written for these rows: column sums by the row bands that lie above their tile, row
    #    sums by the column bands that reach the diagonal or lie beyond it.
    tile = pid * BLOCK_M // TILE_M
    column_end = tl.cdiv(tile, band_m) if SYMMETRIC else 0
    row_begin = column_slots + (tile // band_n if SYMMETRIC else 0)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    for start in range(0, slots, BLOCK_SLOTS):
        slot = start + tl.arange(0, BLOCK_SLOTS)
        offsets = slot.to(tl.int64)[:, None] * (2 * n) + local[None, :]
        written = (slot < column_end) | ((slot >= row_begin) & (slot < slots))
        mask = written[:, None] & inside[None, :]
        sums = tl.load(sum_ptr + offsets, mask=mask, other=0.0)  # [BLOCK_SLOTS, BLOCK_M]
        if ONLINE_MAX:
            maxima = tl.load(max_ptr + offsets, mask=mask, other=-float("inf"))
            block_max = tl.max(maxima, axis=0)
            base = tl.where(block_max == -float("inf"), 0.0, block_max)
            block_sum = tl.sum(sums * tl.math.exp2(maxima - base[None, :]), axis=0)
            row_sum, row_max = _merge(row_sum, row_max, block_sum, block_max, True)
        else:
            row_sum += tl.sum(sums, axis=0)

    # 2. lse_neg_i = log(sum_j exp(s_ij - m_i)) + m_i; a row without negatives has -inf. The rounding of to_log2, 6e-8
    #    of a logit, stays in the online maximum; CUDA's kernel takes it out (csrc/cuda/ntxent_statistics.cuh).
    if ONLINE_MAX:
        natural_max = tl.div_rn(row_max, LOG2_E)
    else:
        natural_max = tl.div_rn(1.0, temperature)
    lse_neg = tl.where(row_sum == 0.0, -float("inf"), tl.log(row_sum) + natural_max)

    # 3. s_ip = u_i . u_p / t, on the ordinary cores: between aligned pairs this one logit decides the loss, and tensor
    #    cores would round it.
    partner = tl.where(local < n, local + n, local - n)
    product = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (d < D)[None, :]
        u = tl.load(u_ptr + (row_offset + local).to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
        u_partner = tl.load(u_ptr + (row_offset + partner).to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
        product += tl.sum(u.to(tl.float32) * u_partner.to(tl.float32), axis=1)  # [BLOCK_M, BLOCK_D] summed
    s_pos = tl.div_rn(product, temperature)

    # 4. Row losses, and the statistics that the backward needs.
    loss = row_loss(lse_neg, s_pos)
    tl.store(lse_neg_ptr + local, lse_neg, mask=inside)
    tl.store(s_pos_ptr + local, s_pos, mask=inside)

    # 5. The loss: scale * sum_i L_i, or all L_i. Whoever finds that all others are done adds up the programs' parts,
    #    which others wrote meanwhile: volatile, so that none comes from this multiprocessor's cache.
    if REDUCED:
        tl.store(part_ptr + pid, tl.sum(tl.where(inside, loss, 0.0), axis=0))
        programs = tl.num_programs(0)
        tl.debug_barrier()
        if tl.atomic_add(done_ptr, 1, sem="acq_rel") == programs - 1:
            loss_sum = tl.zeros((BLOCK_M,), tl.float32)
            for start in range(0, programs, BLOCK_M):
                part = start + tl.arange(0, BLOCK_M)
                loss_sum += tl.load(part_ptr + part, mask=part < programs, other=0.0, volatile=True)
            tl.store(loss_ptr, tl.sum(loss_sum, axis=0) * scale)
    else:
        tl.store(loss_ptr + local, loss, mask=inside)
