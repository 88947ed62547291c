"""Device functions that the Triton NT-Xent kernels share: the rule of a row, products, loads, and which pairs count.

Triton divides float32, and takes its square root, approximately. Where the loss or a gradient depends on the result,
the kernels call tl.div_rn and tl.sqrt_rn, which round as IEEE 754 says. Numbers of the batch are not specialised on
(do_not_specialize): a batch of another size would be compiled anew. A name that ends in 2 is to base 2.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

# The largest 2/t for which 1/t stands for the maximum of every row; beyond, and for a temperature that only the device
# knows, every row has its own, found on the way. csrc/ntxent.h says why 80.
CONSTANT_MAX_LIMIT = 80.0

# Unit rows u that are multiplied are fp16. Those of float32 views are split in two parts, hi = fp16(2^8 u) and
# lo = fp16(2^8 u - hi), so scaled that lo, too, is a normal number wherever it matters. OPERAND says what is
# multiplied, by the names of the tile tables: "fp16" rows of half views; of split rows "tf32" hi alone, "ieee" both.
SPLIT_SCALE = tl.constexpr(2.0**8)
SPLIT_UNSCALE = tl.constexpr(2.0**-8)


@triton.jit
def read_temperature(temperature, temperature_ptr):
    """The temperature passed by value, or read from a 0-dim device tensor."""
    if temperature_ptr is not None:
        return tl.load(temperature_ptr).to(tl.float32)
    return temperature


@triton.jit
def log1p(y):
    """log(1 + y) for y in [0, 1] without cancellation: 2 atanh(w), w = y / (2 + y), series to w^19 (rest < 1e-10)."""
    w = tl.div_rn(y, 2.0 + y)
    q = w * w
    p = q / 19.0 + 1.0 / 17.0
    for i in tl.static_range(8):
        p = p * q + 1.0 / (15.0 - 2.0 * i)
    return 2.0 * w * p


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)): 0 and 1 at the infinities."""
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)); NaN of NaN, which tl.maximum would lose."""
    y = tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))
    return tl.where(x == x, y, x)


@triton.jit
def log_add_exp(a, b):
    """log(exp(a) + exp(b)); a may be -inf."""
    return tl.maximum(a, b) + log1p(tl.exp(-tl.abs(a - b)))


# The rule of a row: what it makes of its lse_neg and s_pos. The same names are in reference.py, which says what they
# are, and in csrc/ntxent.h.


@triton.jit
def row_loss(lse_neg, s_pos):
    """L_i."""
    return softplus(lse_neg - s_pos)


@triton.jit
def row_lse(lse_neg, s_pos):
    """lse_i, such that dL_i/ds_ij = exp(s_ij - lse_i) for the negatives j of row i."""
    return log_add_exp(lse_neg, s_pos)


@triton.jit
def row_pull(lse_neg, s_pos):
    """-dL_i/ds_ip, which is also the sum of dL_i/ds_ij over the negatives j; it grows with lse_neg - s_pos."""
    return sigmoid(lse_neg - s_pos)


@triton.jit
def multiply(a, b, acc, OPERAND: tl.constexpr, TRANSPOSED: tl.constexpr):
    """acc + a b of operands in their parts, or acc + a b^T if TRANSPOSED; acc None: from zero.

    Of "ieee", (hi, lo) each, three of the four products: the small ones first, before the sum is so large that tensor
    cores, which truncate when they add, cut them.
    """
    hi = tl.trans(b[0]) if TRANSPOSED else b[0]
    if OPERAND == "ieee":
        lo = tl.trans(b[1]) if TRANSPOSED else b[1]
        acc = tl.dot(a[1], hi, acc)
        acc = tl.dot(a[0], lo, acc)
    return tl.dot(a[0], hi, acc)


@triton.jit
def logit_scale(to_log2, OPERAND: tl.constexpr):
    """What products of rows are multiplied by to be logits to base 2, where products of unit rows are by to_log2."""
    if OPERAND == "fp16":
        return to_log2
    else:
        return to_log2 * (SPLIT_UNSCALE * SPLIT_UNSCALE)


@triton.jit
def add_logits(s, u_rows, u_cols, D: tl.constexpr, OPERAND: tl.constexpr):
    """s + u_rows u_cols^T, of a slice of the D columns.

    Tensor cores truncate when they add. Of more than 128 columns in full float32 that would show: there, a slice's
    product starts from zero, and is added by ordinary additions.
    """
    if OPERAND == "ieee" and D > 128:
        return s + multiply(u_rows, u_cols, None, OPERAND, True)
    else:
        return multiply(u_rows, u_cols, s, OPERAND, True)


@triton.jit
def split(x, OPERAND: tl.constexpr):
    """float32 x as an operand of tensor cores: (fp16(x),), or for "ieee" (hi, lo), lo = fp16(x - hi)."""
    hi = x.to(tl.float16)
    if OPERAND == "ieee":
        return (hi, (x - hi.to(tl.float32)).to(tl.float16))
    else:
        return (hi,)


@triton.jit
def load_rows(
    base,
    first,
    limit,
    d,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
    EVEN_D: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Rows first .. first + BLOCK - 1 of unit rows at columns d, zero outside: the parts that OPERAND multiplies.

    base: [limit, D] of "fp16", else [limit, 2, D], of which "tf32" takes hi alone. Only the scalar part of the offset
    is 64 bits wide. EVEN and EVEN_D promise that no row, no column, is outside.  # 1 or 2 x [BLOCK, len(d)]
    """
    pitch: tl.constexpr = D if OPERAND == "fp16" else 2 * D
    row = tl.arange(0, BLOCK)
    pointers = base + first.to(tl.int64) * pitch + (row[:, None] * pitch + d[None, :])
    hi = _load_block(pointers, row, first, limit, d, D, EVEN, EVEN_D)
    if OPERAND == "ieee":
        return (hi, _load_block(pointers + D, row, first, limit, d, D, EVEN, EVEN_D))
    else:
        return (hi,)


@triton.jit
def _load_block(pointers, row, first, limit, d, D: tl.constexpr, EVEN: tl.constexpr, EVEN_D: tl.constexpr):
    """One part of load_rows.  # [len(row), len(d)]"""
    if EVEN:
        if EVEN_D:
            return tl.load(pointers)
        return tl.load(pointers, mask=(d < D)[None, :], other=0.0)
    if EVEN_D:
        return tl.load(pointers, mask=(row < limit - first)[:, None], other=0.0)
    return tl.load(pointers, mask=(row < limit - first)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def load_whole(base, rows, d, mask, D: tl.constexpr, SPLIT: tl.constexpr):
    """Unit rows u as float32 at columns d, zero where masked; the two parts of SPLIT ones add up exactly.

    base: [.., D], or [.., 2, D] if SPLIT.  # [len(rows), len(d)]
    """
    if SPLIT:
        pointers = base + rows.to(tl.int64)[:, None] * (2 * D) + d[None, :]
        hi = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        return (hi + tl.load(pointers + D, mask=mask, other=0.0).to(tl.float32)) * SPLIT_UNSCALE
    else:
        return tl.load(base + rows.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_vector(base, index, limit, EVEN: tl.constexpr):
    """One number for each index, zero outside; EVEN promises that none is."""
    if EVEN:
        return tl.load(base + index)
    return tl.load(base + index, mask=index < limit, other=0.0)


@triton.jit
def load_views(z0_ptr, z1_ptr, stride0, stride1, local, d, n, rows, D, UNIT: tl.constexpr):
    """Local rows of view 0 (n) stacked on view 1 (rows - n), as float32, zero outside.  # [len(local), len(d)]

    stride0, stride1: from row to row, in units of UNIT elements: what a constant multiplies, vector loads can rely on.
    """
    row = local.to(tl.int64)[:, None]
    first = (row < n) & (d < D)[None, :]
    second = (row >= n) & (row < rows) & (d < D)[None, :]
    z0 = tl.load(z0_ptr + row * (stride0 * UNIT) + d[None, :], mask=first, other=0.0)
    z1 = tl.load(z1_ptr + (row - n) * (stride1 * UNIT) + d[None, :], mask=second, other=0.0)
    return tl.where(row < n, z0.to(tl.float32), z1.to(tl.float32))


@triton.jit
def is_plain_tile(first_row, first_col, n, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether the tile lies inside the columns and holds no row's own column or positive.

    Positions are counted from the first local row, so that those lie on the diagonals 0, n and -n.
    """
    d = first_col - first_row
    own = (d < BLOCK_M) & (d > -BLOCK_N)
    right = (d - n < BLOCK_M) & (d - n > -BLOCK_N)
    left = (d + n < BLOCK_M) & (d + n > -BLOCK_N)
    return (first_col + BLOCK_N <= columns) & (not (own | right | left))


@triton.jit
def is_negative(local, cols, n, columns):
    """Mask of the pairs that count as negatives: inside, not the row itself, not its positive.

    Columns, like `columns`, are counted from the first local row.  # [len(local), len(cols)]
    """
    partner = tl.where(local < n, local + n, local - n)
    return (cols[None, :] != local[:, None]) & (cols[None, :] != partner[:, None]) & (cols < columns)[None, :]


@triton.jit
def special_tiles(first_row, local_row, n, first, last, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Two disjoint ascending ranges [lo, hi) of the tiles in [first, last) with a row's own column or its positive."""
    own_lo = first_row // BLOCK_N
    own_hi = tl.cdiv(first_row + BLOCK_M, BLOCK_N)
    partner = tl.where(local_row < n, first_row + n, first_row - n)
    pos_lo = partner // BLOCK_N
    pos_hi = tl.cdiv(partner + BLOCK_M, BLOCK_N)
    lo1 = tl.minimum(own_lo, pos_lo)
    hi1 = tl.minimum(own_hi, pos_hi)
    lo2 = tl.maximum(own_lo, pos_lo)
    hi2 = tl.maximum(own_hi, pos_hi)
    if (local_row < n) & (local_row + BLOCK_M > n):  # rows of both views: their positives lie at both ends
        lo1 = first
        hi1 = last
    lo1 = tl.minimum(tl.maximum(lo1, first), last)
    hi1 = tl.minimum(tl.maximum(hi1, first), last)
    lo2 = tl.minimum(tl.maximum(lo2, hi1), last)
    hi2 = tl.minimum(tl.maximum(hi2, lo2), last)
    return lo1, hi1, lo2, hi2
