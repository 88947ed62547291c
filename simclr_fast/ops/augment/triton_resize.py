"""The crop, resized (antialiased bilinear, separable) into a program's registers: Triton device functions.

The rules are csrc/augment_resample.h's. Along each axis, with scale = crop length / full length:

    1. find_taps       centre = scale (i + 1/2) of output i, support = max(1, scale), and the weight of source pixel k
                       w_k = max(0, 1 - |k + 1/2 - centre| / support), later divided by the weights' sum
    2. _blend_rows     sum_k w_k source(k, .) of every output row
    3. _blend_columns  sum_k w_k blended(., k) of every output column
    4. resize          times 1 / (both sums of weights), and what brings a pixel to [0, 1]

A region of ROWS x COLUMNS output pixels is made from chunks of K neighbouring elements of the source rows. Vertically,
every output row loads its own few source rows and adds them up; horizontally, every output column picks its taps out of
the chunk by tl.gather, which stays within a warp. Where pixels are interleaved, an element is a channel of a pixel, and
one chunk serves all channels.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from simclr_fast.ops.augment.triton_view import HFLIP


class Taps(NamedTuple):
    """The source pixels of each output row [ROWS, 1] or column [1, COLUMNS], counted from the crop's first."""

    first: tl.tensor
    end: tl.tensor
    centre: tl.tensor
    most: tl.tensor  # scalar: the largest number of taps
    inv_support: tl.tensor  # scalar
    scale: tl.tensor  # 1 / sum of the weights


@triton.jit
def _weight(taps, k):
    """The weight of pixel k, before division by the sum; 0 outside of the taps."""
    weight = 1.0 - tl.abs(k.to(tl.float32) - taps.centre + 0.5) * taps.inv_support
    return tl.where((k >= taps.first) & (k < taps.end), tl.maximum(weight, 0.0), 0.0)


@triton.jit
def find_taps(length, full, position):
    """Taps of the outputs at `position` of a crop of `length` pixels that is resized to `full`."""
    scale = tl.div_rn(length.to(tl.float32), full.to(tl.float32))
    support = tl.maximum(scale, 1.0)
    # Rounded before use, as torch does: in float64 the product is exact, and no fused multiply-add keeps it so.
    centre = (scale.to(tl.float64) * (position.to(tl.float32) + 0.5).to(tl.float64)).to(tl.float32)
    first = (centre - support + 0.5).to(tl.int32)
    first = tl.minimum(tl.maximum(first, 0), length - 1)
    end = tl.minimum((centre + support + 0.5).to(tl.int32), length)
    most = tl.max(end - first)
    taps = Taps(first, end, centre, most, tl.div_rn(1.0, support), centre)
    total = centre * 0.0
    for tap in range(most):
        total += _weight(taps, first + tap)
    return Taps(first, end, centre, most, taps.inv_support, 1.0 / total)


@triton.jit
def _blend_rows(row_pointers, stride_h, element, inside, y, ROWS: tl.constexpr, K: tl.constexpr):
    """Vertical taps of the elements [1, K] of every output row.  # [ROWS, K]"""
    blended = tl.zeros((ROWS, K), tl.float32)
    for tap in range(y.most):
        weight = _weight(y, y.first + tap)  # [ROWS, 1]
        values = tl.load(row_pointers + element, mask=(weight > 0.0) & inside, other=0)
        blended += weight * values.to(tl.float32)
        row_pointers += stride_h
    return blended


@triton.jit
def _blend_columns(blended, x, first_pixel, offset, STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                   K: tl.constexpr):  # fmt: skip
    """Horizontal taps that lie in the chunk: pixel k of the crop is its element STEP * k + offset.  # [ROWS, COLUMNS]

    first_pixel: the first pixel of which the chunk may hold an element.
    """
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.maximum(x.first, first_pixel)
    for tap in range(tl.minimum(x.most, K // STEP + 2)):
        k = first + tap
        at = STEP * k + offset
        weight = tl.where((at >= 0) & (at < K), _weight(x, k), 0.0)  # [1, COLUMNS]
        at = tl.minimum(tl.maximum(at, 0), K - 1)
        result += weight * tl.gather(blended, tl.broadcast_to(at, (ROWS, COLUMNS)), 1)
    return result


@triton.jit
def chunk_mask(element, stop, row_length, SECTOR: tl.constexpr):
    """Elements of whole sectors that hold a part of the crop, as far as the image's row reaches."""
    return (element < (stop + SECTOR - 1) // SECTOR * SECTOR) & (element < row_length)


@triton.jit
def _resize_interleaved(image, row_pointers, left, y, x, row_length, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                        K: tl.constexpr, SECTOR: tl.constexpr):  # fmt: skip
    """Three channels from rows in which they alternate."""
    red = tl.zeros((ROWS, COLUMNS), tl.float32)
    green, blue = red, red
    stop = 3 * (left + tl.max(x.end))
    for start in range(3 * (left + tl.min(x.first)) // SECTOR * SECTOR, stop, K):
        element = start + tl.arange(0, K)[None, :]
        inside = chunk_mask(element, stop, row_length, SECTOR)
        blended = _blend_rows(row_pointers, image.stride_h, element, inside, y, ROWS, K)
        offset, first_pixel = 3 * left - start, start // 3 - left
        red += _blend_columns(blended, x, first_pixel, offset, 3, ROWS, COLUMNS, K)
        green += _blend_columns(blended, x, first_pixel, offset + 1, 3, ROWS, COLUMNS, K)
        blue += _blend_columns(blended, x, first_pixel, offset + 2, 3, ROWS, COLUMNS, K)
    return red, green, blue


@triton.jit
def _resize_channel(image, row_pointers, left, y, x, row_length, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                    K: tl.constexpr, SECTOR: tl.constexpr):  # fmt: skip
    """One channel from rows of its own, of any column stride."""
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    stop = left + tl.max(x.end)
    for start in range((left + tl.min(x.first)) // SECTOR * SECTOR, stop, K):
        element = start + tl.arange(0, K)[None, :]
        inside = chunk_mask(element, stop, row_length, SECTOR)
        offsets = element.to(tl.int64) * image.stride_w
        blended = _blend_rows(row_pointers, image.stride_h, offsets, inside, y, ROWS, K)
        result += _blend_columns(blended, x, start - left, left - start, 1, ROWS, COLUMNS, K)
    return result


@triton.jit
def resize(image, view, row, column, out_height, out_width, row_length, unit, CHANNELS: tl.constexpr,
           INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr,
           SECTOR: tl.constexpr):  # fmt: skip
    """Output pixels at row [ROWS, 1], column [1, COLUMNS] of the view's crop: red, green, blue, [ROWS, COLUMNS] each.

    Rows and columns outside of the output repeat its last. One channel comes as all three. INTERLEAVED: whether the
    channels alternate in memory; None is found out from the strides. unit: what brings a pixel to [0, 1].
    """
    row = tl.minimum(row, out_height - 1)
    column = tl.minimum(column, out_width - 1)
    column = tl.where((view.flags & HFLIP) != 0, out_width - 1 - column, column)
    y = find_taps(view.height, view.full_height, row + view.shift_y)
    x = find_taps(view.width, view.full_width, column + view.shift_x)
    row_pointers = image.pointer + (view.top + y.first).to(tl.int64) * image.stride_h  # [ROWS, 1]
    if CHANNELS == 1:
        red = _resize_channel(image, row_pointers, view.left, y, x, row_length, ROWS, COLUMNS, K, SECTOR)
        green, blue = red, red
    elif INTERLEAVED is None:
        if (image.stride_c == 1) & (image.stride_w == 3):
            red, green, blue = _resize_interleaved(
                image, row_pointers, view.left, y, x, 3 * row_length, ROWS, COLUMNS, K, SECTOR
            )
        else:
            red, green, blue = _resize_planar(
                image, row_pointers, view.left, y, x, row_length, ROWS, COLUMNS, K, SECTOR
            )
    elif INTERLEAVED:
        red, green, blue = _resize_interleaved(
            image, row_pointers, view.left, y, x, 3 * row_length, ROWS, COLUMNS, K, SECTOR
        )
    else:
        red, green, blue = _resize_planar(image, row_pointers, view.left, y, x, row_length, ROWS, COLUMNS, K, SECTOR)
    factor = (x.scale * unit) * y.scale  # [ROWS, COLUMNS]
    return red * factor, green * factor, blue * factor


@triton.jit
def _resize_planar(image, row_pointers, left, y, x, row_length, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                   K: tl.constexpr, SECTOR: tl.constexpr):  # fmt: skip
    red = _resize_channel(image, row_pointers, left, y, x, row_length, ROWS, COLUMNS, K, SECTOR)
    pointers = row_pointers + image.stride_c
    green = _resize_channel(image, pointers, left, y, x, row_length, ROWS, COLUMNS, K, SECTOR)
    pointers += image.stride_c
    blue = _resize_channel(image, pointers, left, y, x, row_length, ROWS, COLUMNS, K, SECTOR)
    return red, green, blue
