"""Triton kernels of the NT-Xent forward pass: normalise rows; sum exponentials by tiles; finish the sums to losses.

L_i = row_loss(lse_neg_i, s_ip), lse_neg_i = log sum of exp(s_ij) over all columns j but i and its positive p
(docs/ntxent.md). triton_sums.py has the sums.
"""

import triton
import triton.language as tl

from simclr_fast.ops.ntxent.triton_common import (
    SPLIT_SCALE,
    load_views,
    load_whole,
    read_temperature,
    row_loss,
    split,
)
from simclr_fast.ops.ntxent.triton_sums import add_band_sums, add_slots, log_of_sum


@triton.jit(do_not_specialize=["n", "rows", "stride0", "stride1"])
def ntxent_normalize_kernel(
    z0_ptr,  # [n, D], row stride stride0 * UNIT
    z1_ptr,  # [rows - n, D], row stride stride1 * UNIT
    u_ptr,  # [rows, D] out; [rows, 2, D] if SPLIT
    inv_norm_ptr,  # [rows] out
    eps,
    n,
    rows,
    D,
    stride0,
    stride1,
    SPLIT: tl.constexpr,
    UNIT: tl.constexpr,  # of the strides; see load_views
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= D
):
    """u = z / max(|z|, eps), inv_norm = 1 / max(|z|, eps), of BLOCK_M whole rows; SPLIT: u in two parts, hi and lo."""
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
    mask = inside[:, None] & (d < D)[None, :]
    if SPLIT:
        offsets = local.to(tl.int64)[:, None] * (2 * D) + d[None, :]
        hi, lo = split(u * SPLIT_SCALE, "ieee")
        tl.store(u_ptr + offsets, hi, mask=mask)
        tl.store(u_ptr + offsets + D, lo, mask=mask)
    else:
        tl.store(u_ptr + local.to(tl.int64)[:, None] * D + d[None, :], u.to(tl.float16), mask=mask)
    tl.store(inv_norm_ptr + local, inv_norm, mask=inside)


@triton.jit(
    do_not_specialize=["n", "row_offset", "columns", "band_m", "band_n", "column_slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def ntxent_fwd_kernel(
    u_ptr,  # [columns, D] of "fp16", else [columns, 2, D]
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
    OPERAND: tl.constexpr,
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
    add_band_sums(
        u_ptr, u_ptr, sum_ptr, max_ptr, sum_ptr, max_ptr, temperature, temperature_ptr, row_offset, columns, 2 * n, n,
        row_offset, columns, band_m, band_n, column_slots, D, SYMMETRIC, SYMMETRIC, ONLINE_MAX, OPERAND, BLOCK_M,
        BLOCK_D, SLICES, HOLD_ROWS, EVEN, EVEN_D,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["n", "row_offset", "band_m", "band_n", "column_slots", "slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def ntxent_fwd_finish_kernel(
    sum_ptr,  # [slots, 2n]
    max_ptr,  # [slots, 2n], with ONLINE_MAX
    u_ptr,  # [columns, D]; [columns, 2, D] if SPLIT
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
    SPLIT: tl.constexpr,
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

    # 1. lse_neg_i = log sum_j exp(s_ij); a row without negatives has -inf.
    row_sum, row_max = add_slots(
        sum_ptr, max_ptr, local, 2 * n, band_m, band_n, column_slots, slots, SYMMETRIC, ONLINE_MAX, TILE_M, BLOCK_M,
        BLOCK_SLOTS,
    )  # fmt: skip
    lse_neg = log_of_sum(row_sum, row_max, temperature, ONLINE_MAX)

    # 2. s_ip = u_i . u_p / t, on the ordinary cores: between aligned pairs this one logit decides the loss, and tensor
    #    cores would round it.
    partner = tl.where(local < n, local + n, local - n)
    product = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (d < D)[None, :]
        u = load_whole(u_ptr, row_offset + local, d, mask, D, SPLIT)
        product += tl.sum(u * load_whole(u_ptr, row_offset + partner, d, mask, D, SPLIT), axis=1)
    s_pos = tl.div_rn(product, temperature)

    # 3. Row losses, and the statistics that the backward needs.
    loss = row_loss(lse_neg, s_pos)
    tl.store(lse_neg_ptr + local, lse_neg, mask=inside)
    tl.store(s_pos_ptr + local, s_pos, mask=inside)

    # 4. The loss: scale * sum_i L_i, or all L_i. Whoever finds that all others are done adds up the programs' parts,
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
