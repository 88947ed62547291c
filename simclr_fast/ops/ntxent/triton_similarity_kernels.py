"""Triton kernels of the log-sum-exps of similarities: sums by tiles and their finish, terms, gradient and its finish.

    lse_i = log sum_j exp(s_ij)
    du_i  = 1/t sum_j (drows_i exp(s_ij - lse_i) + dcolumns_j exp(s_ij - column_lse_j)) columns_j

over the columns j that row i does not leave out. `own` is the column that row 0 leaves out, row i leaves out own + i;
OWN_OF_NONE where none is. `n` is half the number of rows where every row leaves out its partner's column, too, else 0:
a row is then its own partner. Tiles are those of NT-Xent (triton_sums.py, triton_gradient.py).
"""

import triton
import triton.language as tl

from simclr_fast.ops.ntxent.triton_common import LOG2_E, load_views, read_temperature
from simclr_fast.ops.ntxent.triton_gradient import (
    add_gradient,
    add_splits,
    power_of_two_above,
    store_dt,
    through_normalisation,
    weighted_dt,
)
from simclr_fast.ops.ntxent.triton_sums import add_band_sums, add_slots, log_of_sum

OWN_OF_NONE = -(2**30)  # left of the first column for every row, and no sum with a row or column leaves 32 bits


@triton.jit(
    do_not_specialize=["rows", "n", "own", "columns", "band_m", "band_n", "column_slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def similarity_fwd_kernel(
    rows_ptr,  # [rows, D] of "fp16", else [rows, 2, D]
    columns_ptr,  # [columns, D] of "fp16", else [columns, 2, D]
    sum_ptr,  # [column_slots + column bands, rows] out
    max_ptr,  # [column_slots + column bands, rows] out, with ONLINE_MAX
    column_sum_ptr,  # [row bands, columns] out, with COLUMN_SUMS; sum_ptr where SYMMETRIC
    column_max_ptr,  # [row bands, columns] out, with COLUMN_SUMS and ONLINE_MAX; max_ptr where SYMMETRIC
    temperature,
    temperature_ptr,
    rows,
    n,
    own,
    columns,
    band_m,  # tiles of a row band
    band_n,  # tiles of a column band
    column_slots,  # row bands where SYMMETRIC, else 0
    D: tl.constexpr,
    SYMMETRIC: tl.constexpr,  # rows and columns are one and the same
    COLUMN_SUMS: tl.constexpr,  # of a rectangle because they are asked for, and always where SYMMETRIC
    ONLINE_MAX: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICES: tl.constexpr,
    HOLD_ROWS: tl.constexpr,
    EVEN: tl.constexpr,
    EVEN_D: tl.constexpr,
):
    """Sums of exp(s_ij) (add_band_sums); ntxent_fwd_kernel has the other constants."""
    add_band_sums(
        rows_ptr, columns_ptr, sum_ptr, max_ptr, column_sum_ptr, column_max_ptr, temperature, temperature_ptr, 0, rows,
        rows, n, own, columns, band_m, band_n, column_slots, D, SYMMETRIC, COLUMN_SUMS, ONLINE_MAX, OPERAND, BLOCK_M,
        BLOCK_D, SLICES, HOLD_ROWS, EVEN, EVEN_D,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["rows", "band_m", "band_n", "column_slots", "slots"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def similarity_fwd_finish_kernel(
    sum_ptr,  # [slots, rows]
    max_ptr,  # [slots, rows], with ONLINE_MAX
    lse_ptr,  # [rows] out
    row_max_ptr,  # [rows] out, or None
    temperature,
    temperature_ptr,
    rows,
    band_m,
    band_n,
    column_slots,
    slots,
    SYMMETRIC: tl.constexpr,
    ONLINE_MAX: tl.constexpr,
    TILE_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """lse, and max if asked for, of BLOCK_M rows, or of columns in the place of rows."""
    local = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    inside = local < rows

    # 1. lse_i = log sum_j exp(s_ij).
    row_sum, row_max = add_slots(
        sum_ptr, max_ptr, local, rows, band_m, band_n, column_slots, slots, SYMMETRIC, ONLINE_MAX, TILE_M, BLOCK_M,
        BLOCK_SLOTS,
    )  # fmt: skip
    lse = log_of_sum(row_sum, row_max, read_temperature(temperature, temperature_ptr), ONLINE_MAX)
    tl.store(lse_ptr + local, lse, mask=inside)

    # 2. max_i, NaN where the sum is: a maximum would lose it.
    if row_max_ptr is not None:
        largest = tl.where(row_sum == row_sum, tl.div_rn(row_max, LOG2_E), row_sum)
        tl.store(row_max_ptr + local, largest, mask=inside)


@triton.jit
def _largest(weight_ptr, count, BLOCK_SCAN: tl.constexpr):
    """max |w| of all weights [count]."""
    largest = tl.zeros((BLOCK_SCAN,), tl.float32)
    for start in range(0, count, BLOCK_SCAN):
        i = start + tl.arange(0, BLOCK_SCAN)
        w = tl.load(weight_ptr + i, mask=i < count, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(w))
    return tl.max(largest, axis=0)


@triton.jit
def _store_terms(
    upstream_ptr,  # [count]
    lse_ptr,  # [count]
    term_ptr,  # [count] out
    weight_ptr,  # [count] out
    i,
    count,
    w_max,
    temperature,
    ONLINE_MAX: tl.constexpr,
):
    """Term and weight of the rows, or columns, i. Of nothing, lse = -inf, no term may be infinite: all is masked."""
    inside = i < count
    weight = tl.div_rn(tl.load(upstream_ptr + i, mask=inside, other=0.0).to(tl.float32), w_max)
    lse = tl.load(lse_ptr + i, mask=inside, other=0.0)
    if ONLINE_MAX:
        term = tl.where(lse == -float("inf"), 1e30, lse * LOG2_E)
    else:
        term = tl.where(lse == -float("inf"), 0.0, weight * tl.exp(tl.div_rn(1.0, temperature) - lse))
    tl.store(term_ptr + i, term, mask=inside)
    tl.store(weight_ptr + i, weight, mask=inside)


@triton.jit(
    do_not_specialize=["rows", "columns"],
    do_not_specialize_on_alignment=["drows_ptr", "dcolumns_ptr", "lse_ptr", "column_lse_ptr", "temperature_ptr"],
)
def similarity_bwd_terms_kernel(
    drows_ptr,  # [rows]
    dcolumns_ptr,  # [columns]
    lse_ptr,  # [rows]
    column_lse_ptr,  # [columns]
    row_term_ptr,  # [rows] out: lse log2(e) with ONLINE_MAX, else (w / W) exp(1/t - lse)
    row_weight_ptr,  # [rows] out: w / W
    column_term_ptr,  # [columns] out
    column_weight_ptr,  # [columns] out
    w_max_ptr,  # [1] out: W
    temperature,
    temperature_ptr,
    rows,
    columns,
    ONLINE_MAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SCAN: tl.constexpr,
):
    """What the tiles need to know of each of BLOCK_M rows, and of each of as many columns.

    Every program finds W by itself, max |w| of both sides rounded up to a power of two: the exp(s_ij - lse_i) of a row,
    and those of a column, add up to 1.
    """
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    temperature = read_temperature(temperature, temperature_ptr)
    largest = tl.maximum(_largest(drows_ptr, rows, BLOCK_SCAN), _largest(dcolumns_ptr, columns, BLOCK_SCAN))
    w_max = tl.where(largest == 0.0, 1.0, power_of_two_above(largest))
    if tl.program_id(0) == 0:
        tl.store(w_max_ptr, w_max)
    _store_terms(drows_ptr, lse_ptr, row_term_ptr, row_weight_ptr, i, rows, w_max, temperature, ONLINE_MAX)
    _store_terms(
        dcolumns_ptr, column_lse_ptr, column_term_ptr, column_weight_ptr, i, columns, w_max, temperature, ONLINE_MAX
    )


@triton.jit(
    do_not_specialize=["rows", "n", "own", "columns"],
    do_not_specialize_on_alignment=["temperature_ptr"],
)
def similarity_bwd_kernel(
    rows_ptr,  # [rows, D] of "fp16", else [rows, 2, D]
    columns_ptr,  # [columns, D] of "fp16", else [columns, 2, D]
    row_term_ptr,  # [rows]
    row_weight_ptr,  # [rows]
    column_term_ptr,  # [columns]
    column_weight_ptr,  # [columns]
    part_ptr,  # [splits, rows, D] out
    dt_part_ptr,  # [splits, row tiles] out, with NEED_DT
    temperature,
    temperature_ptr,
    rows,
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
    SPECIAL_FIRST: tl.constexpr,
    SPECIAL: tl.constexpr,
):
    """The gradient's sum (add_gradient), and sum_i w_i / W sum_j exp(s_ij - lse_i) s_ij of these rows and this split.

    ntxent_bwd_kernel has the constants.
    """
    row_dt, row_term, row_weight = add_gradient(
        rows_ptr, columns_ptr, row_term_ptr, row_weight_ptr, column_term_ptr, column_weight_ptr, part_ptr, temperature,
        temperature_ptr, 0, rows, rows, n, own, columns, D, NEED_DT, ONLINE_MAX, OPERAND, BLOCK_M, BLOCK_N, BLOCK_D,
        SLICES, HOLD_ROWS, EVEN_D, SPECIAL_FIRST, SPECIAL, 1,
    )  # fmt: skip
    if NEED_DT and tl.program_id(2) == 0:
        row_dt = weighted_dt(row_dt, row_term, row_weight, ONLINE_MAX)
        tl.store(dt_part_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(row_dt, axis=0))


@triton.jit(
    do_not_specialize=["rows", "stride", "splits", "dt_parts"],
    do_not_specialize_on_alignment=["inv_norm_ptr", "temperature_ptr"],
)
def similarity_bwd_finish_kernel(
    part_ptr,  # [splits, rows, D]
    dt_part_ptr,  # [dt_parts], with NEED_DT
    w_max_ptr,  # [1]
    inv_norm_ptr,  # [rows]
    z_ptr,  # [rows, D], row stride stride * UNIT
    dz_ptr,  # [rows, D] out
    dt_ptr,  # [] out
    temperature,
    temperature_ptr,
    eps,
    rows,
    stride,
    splits,
    dt_parts,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    NEED_DT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= D
    BLOCK_DT: tl.constexpr,
):
    """dz of BLOCK_M whole rows: their splits in order, and the Jacobian of the normalisation; dt."""
    local = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    inside = local < rows
    d = tl.arange(0, BLOCK_D)
    offsets = local.to(tl.int64)[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    factor = tl.load(w_max_ptr) * tl.div_rn(1.0, read_temperature(temperature, temperature_ptr))

    # 1. g = t du / W: the splits' partials, in order.
    g = add_splits(part_ptr, offsets, mask, splits, rows.to(tl.int64) * D, BLOCK_M, BLOCK_D)

    # 2. dz_i = (g_i - u_i (u_i . g_i)) / |z_i| times W / t. u_i is made of z again, for operands are rounded.
    inv_norm = tl.load(inv_norm_ptr + local, mask=inside, other=0.0)
    z = load_views(z_ptr, z_ptr, stride, stride, local, d, rows, rows, D, UNIT)  # all of one view
    dz = through_normalisation(g, z * inv_norm[:, None], inv_norm, eps, factor)
    tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)
    store_dt(dt_part_ptr, dt_ptr, dt_parts, factor, NEED_DT, BLOCK_DT)
