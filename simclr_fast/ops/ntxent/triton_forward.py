"""Triton kernels of the NT-Xent forward pass: row normalisation, tiles of exponentials, reduction of their sums.

L_i = softplus(lse_neg_i - s_ip), lse_neg_i = log sum of exp(s_ij) over all columns j but i and its positive p(i)
(docs/ntxent.md).  E = exp(S) is symmetric: where rows and columns are the same set, only tiles on and above the
diagonal are computed, and each serves both its rows and its columns.

Every partial sum has one writer and a fixed order; their number per row (slots) is bounded, so memory is linear in the
number of rows.
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


@triton.jit(do_not_specialize=["n", "stride0", "stride1"])
def ntxent_normalize_kernel(
    z0_ptr,  # [n, D], row stride stride0 * UNIT
    z1_ptr,  # [n, D], row stride stride1 * UNIT
    u_ptr,  # [2n, D] out
    inv_norm_ptr,  # [2n] out
    eps,
    n,
    D,
    stride0,
    stride1,
    UNIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= D
):
    """u = z / max(|z|, eps), inv_norm = 1 / max(|z|, eps).

    Squares are summed of z times an exact power of two near 1 / max |z|, so that no finite row overflows or vanishes.
    """
    local = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    d = tl.arange(0, BLOCK_D)
    z = load_views(z0_ptr, z1_ptr, stride0, stride1, local, d, n, D, UNIT)  # [BLOCK_R, BLOCK_D]

    peak = tl.max(tl.abs(z), axis=1)
    exponent = peak.to(tl.int32, bitcast=True) & 0x7F800000
    down_bits = tl.maximum(0x7F000000 - exponent, 0x00800000)  # 2^-e, kept a normal number
    down = down_bits.to(tl.float32, bitcast=True)
    up = (0x7F000000 - down_bits).to(tl.float32, bitcast=True)  # 1 / down, exactly
    scaled = z * down[:, None]
    root = tl.sqrt_rn(tl.sum(scaled * scaled, axis=1))

    clamped = root * up <= eps
    inv_eps = tl.div_rn(1.0, eps)
    inv_root = tl.div_rn(1.0, root)
    u = tl.where(clamped[:, None], z * inv_eps, scaled * inv_root[:, None])
    inv_norm = tl.where(clamped, inv_eps, inv_root * down)
    inside = local < 2 * n
    offsets = local.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(u_ptr + offsets, u.to(u_ptr.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
    tl.store(inv_norm_ptr + local, inv_norm, mask=inside)


@triton.jit
def _merge(total, peak, more, more_peak, ONLINE_MAX: tl.constexpr):
    """total * 2^peak + more * 2^more_peak in the same form; without ONLINE_MAX all peaks are the constant bound."""
    if ONLINE_MAX:
        new_peak = tl.maximum(peak, more_peak)
        base = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        return total * tl.math.exp2(peak - base) + more * tl.math.exp2(more_peak - base), new_peak
    else:
        return total + more, peak


@triton.jit
def _sum_of_exp2(s2, bound2, axis: tl.constexpr, ONLINE_MAX: tl.constexpr):
    """(sum of 2^(s2 - peak), peak) along an axis; the peak is the maximum, or the constant bound on all logits."""
    if ONLINE_MAX:
        peak = tl.max(s2, axis=axis)
        base = tl.where(peak == -float("inf"), 0.0, peak)  # nothing but masked entries
        return tl.sum(tl.math.exp2(s2 - tl.expand_dims(base, axis)), axis=axis), peak
    else:
        total = tl.sum(tl.math.exp2(s2 - bound2), axis=axis)
        return total, tl.zeros_like(total)


@triton.jit(
    do_not_specialize=["n", "row_offset", "columns", "group_m", "group_n", "column_slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def ntxent_fwd_kernel(
    u_ptr,  # [columns, D]
    sum_ptr,  # [column_slots + strips, 2n] out
    peak_ptr,  # [column_slots + strips, 2n] out, with ONLINE_MAX
    done_ptr,  # [1] out: zeroed for the launch that follows
    temperature,
    temperature_ptr,
    n,
    row_offset,
    columns,
    group_m,
    group_n,
    column_slots,
    D: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,  # of BLOCK_D columns, with HOLD_ROWS
    HOLD_ROWS: tl.constexpr,  # u of the row tile stays on chip while a strip of column tiles goes by
    EVEN: tl.constexpr,  # BLOCK divides the rows and the columns
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
):
    """Sums of exp(s_ij) over the negatives.  Program (a, b): group_m row tiles against a strip of group_n column tiles.

    The row sums go to slot column_slots + b.  SYMMETRIC (one process): only tiles on and above the diagonal, and the
    column sums of those above go to slot a of the rows that the columns are.
    """
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(done_ptr, 0)
    rows = 2 * n
    column_tiles = tl.cdiv(columns, BLOCK)
    to_log2 = tl.div_rn(LOG2_E, read_temperature(temperature, temperature_ptr))
    row_slot = (column_slots + tl.program_id(1)).to(tl.int64) * rows
    column_slot = tl.program_id(0).to(tl.int64) * rows

    for r in range(group_m):
        tile_m = tl.program_id(0) * group_m + r
        first = tl.program_id(1) * group_n
        last = tl.minimum(first + group_n, column_tiles)
        if SYMMETRIC:
            first = tl.maximum(first, tile_m)
        if (first < last) & (tile_m * BLOCK < rows):
            local = tile_m * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
            first_row = row_offset + tile_m * BLOCK
            u_rows = ()  # CHUNKS x [BLOCK, BLOCK_D]
            if HOLD_ROWS:
                for c in tl.static_range(CHUNKS):
                    d = c * BLOCK_D + tl.arange(0, BLOCK_D)
                    u_rows += (load_rows(u_ptr, first_row, columns, d, D, BLOCK, EVEN, EVEN_D),)
            row_total = tl.zeros((BLOCK,), tl.float32)
            row_peak = tl.full((BLOCK,), -float("inf"), tl.float32)
            for tile_n in range(first, last):
                first_col = tile_n * BLOCK
                cols = first_col + tl.arange(0, BLOCK)  # [BLOCK]
                s2 = tl.zeros((BLOCK, BLOCK), tl.float32)
                if HOLD_ROWS:
                    for c in tl.static_range(CHUNKS):
                        d = c * BLOCK_D + tl.arange(0, BLOCK_D)
                        u_cols = load_rows(u_ptr, first_col, columns, d, D, BLOCK, EVEN, EVEN_D)
                        s2 = dot(u_rows[c], tl.trans(u_cols), s2, PRECISION)
                else:
                    for start in range(0, D, BLOCK_D):
                        d = start + tl.arange(0, BLOCK_D)
                        u_part = load_rows(u_ptr, first_row, columns, d, D, BLOCK, EVEN, EVEN_D)
                        u_cols = load_rows(u_ptr, first_col, columns, d, D, BLOCK, EVEN, EVEN_D)
                        s2 = dot(u_part, tl.trans(u_cols), s2, PRECISION)
                s2 = s2 * to_log2  # s_ij log2(e)
                if not is_plain_tile(tile_m * BLOCK, first_col - row_offset, n, columns - row_offset, BLOCK, BLOCK):
                    s2 = tl.where(is_negative(local, cols - row_offset, n, columns - row_offset), s2, -float("inf"))
                total, peak = _sum_of_exp2(s2, to_log2, 1, ONLINE_MAX)
                row_total, row_peak = _merge(row_total, row_peak, total, peak, ONLINE_MAX)
                if SYMMETRIC:
                    total, peak = _sum_of_exp2(s2, to_log2, 0, ONLINE_MAX)
                    inside = (cols < columns) & (tile_m != tile_n)
                    again = inside & (r > 0)
                    old = tl.load(sum_ptr + column_slot + cols, mask=again, other=0.0)
                    if ONLINE_MAX:
                        old_peak = tl.load(peak_ptr + column_slot + cols, mask=again, other=-float("inf"))
                        total, peak = _merge(total, peak, old, old_peak, ONLINE_MAX)
                        tl.store(peak_ptr + column_slot + cols, peak, mask=inside)
                    else:
                        total += old
                    tl.store(sum_ptr + column_slot + cols, total, mask=inside)
            tl.store(sum_ptr + row_slot + local, row_total, mask=local < rows)
            if ONLINE_MAX:
                tl.store(peak_ptr + row_slot + local, row_peak, mask=local < rows)
        tl.debug_barrier()  # the next row tile adds to column sums that other threads have written


@triton.jit(
    do_not_specialize=["n", "row_offset", "group_m", "group_n", "column_slots", "slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def ntxent_fwd_reduce_kernel(
    sum_ptr,  # [slots, 2n]
    peak_ptr,  # [slots, 2n]
    u_ptr,  # [columns, D]
    lse_neg_ptr,  # [2n] out
    s_pos_ptr,  # [2n] out
    loss_ptr,  # [] out if REDUCE else [2n] out
    part_ptr,  # [programs] scratch
    done_ptr,  # [1] count of the programs that have finished
    temperature,
    temperature_ptr,
    scale,
    n,
    row_offset,
    group_m,
    group_n,
    column_slots,
    slots,
    D: tl.constexpr,
    REDUCE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    BLOCK: tl.constexpr,  # rows of a tile of the launch before
    BLOCK_R: tl.constexpr,  # divides BLOCK
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Row statistics and losses from the partial sums; the last program to finish adds up the loss, in their order."""
    pid = tl.program_id(0)
    local = pid * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    inside = local < 2 * n
    temperature = read_temperature(temperature, temperature_ptr)

    tile = pid * BLOCK_R // BLOCK
    column_end = tl.cdiv(tile, group_m) if SYMMETRIC else 0  # slots of row tiles above this one
    row_begin = column_slots + (tile // group_n if SYMMETRIC else 0)  # slots of strips that reach the diagonal
    total = tl.zeros((BLOCK_R,), tl.float32)
    peak = tl.full((BLOCK_R,), -float("inf"), tl.float32)
    for start in range(0, slots, BLOCK_SLOTS):
        slot = start + tl.arange(0, BLOCK_SLOTS)
        offsets = slot.to(tl.int64)[:, None] * (2 * n) + local[None, :]
        written = (slot < column_end) | ((slot >= row_begin) & (slot < slots))
        mask = written[:, None] & inside[None, :]
        sums = tl.load(sum_ptr + offsets, mask=mask, other=0.0)  # [BLOCK_SLOTS, BLOCK_R]
        if ONLINE_MAX:
            peaks = tl.load(peak_ptr + offsets, mask=mask, other=-float("inf"))
            block_peak = tl.max(peaks, axis=0)
            base = tl.where(block_peak == -float("inf"), 0.0, block_peak)
            block_total = tl.sum(sums * tl.math.exp2(peaks - base[None, :]), axis=0)
            total, peak = _merge(total, peak, block_total, block_peak, True)
        else:
            total += tl.sum(sums, axis=0)
    if ONLINE_MAX:
        bound = tl.div_rn(peak, LOG2_E)
    else:
        bound = tl.div_rn(1.0, temperature)
    lse_neg = tl.where(total == 0.0, -float("inf"), tl.log(total) + bound)

    partner = tl.where(local < n, local + n, local - n)
    product = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (d < D)[None, :]
        u = tl.load(u_ptr + (row_offset + local).to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
        u_partner = tl.load(u_ptr + (row_offset + partner).to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
        product += tl.sum(u.to(tl.float32) * u_partner.to(tl.float32), axis=1)  # [BLOCK_R, BLOCK_D] summed
    s_pos = tl.div_rn(product, temperature)
    loss = row_loss(lse_neg, s_pos)
    tl.store(lse_neg_ptr + local, lse_neg, mask=inside)
    tl.store(s_pos_ptr + local, s_pos, mask=inside)
    if REDUCE:
        tl.store(part_ptr + pid, tl.sum(tl.where(inside, loss, 0.0), axis=0))
        programs = tl.num_programs(0)
        tl.debug_barrier()
        if tl.atomic_add(done_ptr, 1, sem="acq_rel") == programs - 1:
            loss_sum = tl.zeros((BLOCK_R,), tl.float32)
            for start in range(0, programs, BLOCK_R):
                part = start + tl.arange(0, BLOCK_R)
                loss_sum += tl.load(part_ptr + part, mask=part < programs, other=0.0, volatile=True)
            tl.store(loss_ptr, tl.sum(loss_sum, axis=0) * scale)
    else:
        tl.store(loss_ptr + local, loss, mask=inside)
