"""The sum of a program's grey image straight from the crop, where contrast is the first of the jitter's operations.

Resizing and grey are linear, and nothing has clamped yet, so that the sum over output pixels (y, x) is

    sum_y sum_x sum_i sum_j a_yi b_xj gray(i, j) = sum_i A_i sum_j B_j gray(i, j),   A_i = sum_y a_yi, B_j = sum_x b_xj

with the normalised tap weights a, b of triton_resize.py: every source pixel is read once, and no output pixel is made.
"""

import triton
import triton.language as tl

from simclr_fast.ops.augment.triton_color import gray
from simclr_fast.ops.augment.triton_resize import Taps, chunk_mask, find_taps


@triton.jit
def _taps_of(length, full, shift, first, count, SIDE: tl.constexpr):
    """Taps of outputs first .. first + SIDE, [SIDE]; those from `count` on, which do not exist, weigh nothing."""
    position = first + tl.arange(0, SIDE)
    taps = find_taps(length, full, tl.minimum(position, count - 1) + shift)
    scale = tl.where(position < count, taps.scale, 0.0)
    return Taps(taps.first, taps.end, taps.centre, taps.most, taps.inv_support, scale)


@triton.jit
def _weights(taps, k, length):
    """What each pixel k [N] of a crop of `length` weighs in the sum over the outputs.  # [N]"""
    # Outputs along axis 0: threads add up their own, and lanes need not.
    offset = (k.to(tl.float32) + 0.5)[None, :] - taps.centre[:, None]
    of_outputs = tl.maximum(1.0 - tl.abs(offset) * taps.inv_support, 0.0) * taps.scale[:, None]
    return tl.where((k >= 0) & (k < length), tl.sum(of_outputs, 0), 0.0)


@triton.jit
def _sum_of_run(crop_row, stride_h, stride, view, y, x, row_length, STEP: tl.constexpr, ROWS: tl.constexpr,
                K: tl.constexpr, SECTOR: tl.constexpr):  # fmt: skip
    """The sum over the outputs of one channel (STEP 1), or of the grey of three that alternate (STEP 3).

    crop_row: pointer to the row of the crop's first pixel; stride: from element to element of a row. y, x: the taps.
    """
    total = 0.0
    begin, stop = STEP * (view.left + tl.min(x.first)) // SECTOR * SECTOR, STEP * (view.left + tl.max(x.end))
    end_row = tl.max(y.end)
    for first_row in range(tl.min(y.first), end_row, ROWS):
        row = first_row + tl.arange(0, ROWS)
        row_pointers = crop_row + row.to(tl.int64)[:, None] * stride_h
        of_row = tl.zeros((ROWS, K), tl.float32)
        for start in range(begin, stop, K):
            element = start + tl.arange(0, K)
            inside = chunk_mask(element, stop, row_length, SECTOR)[None, :] & (row < end_row)[:, None]
            values = tl.load(row_pointers + (element.to(tl.int64) * stride)[None, :], mask=inside, other=0)
            weight = _weights(x, element // STEP - view.left, view.width)
            if STEP == 3:
                red, green, blue = element % 3 == 0, element % 3 == 1, element % 3 == 2
                weight *= gray(red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32), 3)
            # Elements beside the crop, of sectors that reach beyond it, weigh nothing, whatever they hold.
            weight = weight[None, :]
            of_row += tl.where(weight > 0.0, values.to(tl.float32) * weight, 0.0)
        total += tl.sum(of_row * _weights(y, row, view.height)[:, None])
    return total


@triton.jit
def _sum_of_planes(crop_row, image, view, y, x, row_length, ROWS: tl.constexpr, K: tl.constexpr,
                   SECTOR: tl.constexpr):  # fmt: skip
    """The same of three channels in rows of their own."""
    red = _sum_of_run(crop_row, image.stride_h, image.stride_w, view, y, x, row_length, 1, ROWS, K, SECTOR)
    crop_row += image.stride_c
    green = _sum_of_run(crop_row, image.stride_h, image.stride_w, view, y, x, row_length, 1, ROWS, K, SECTOR)
    crop_row += image.stride_c
    blue = _sum_of_run(crop_row, image.stride_h, image.stride_w, view, y, x, row_length, 1, ROWS, K, SECTOR)
    return gray(red, green, blue, 3)


@triton.jit
def sum_of_crop(image, view, top, left, out_height, out_width, row_length, unit, CHANNELS: tl.constexpr,
                INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr,
                SECTOR: tl.constexpr):  # fmt: skip
    """The sum of the grey image over outputs (top .. top + ROWS, left .. left + COLUMNS); arguments as of resize.

    The flip is left out: it moves outputs between programs, and the sums of all programs are added up.
    """
    y = _taps_of(view.height, view.full_height, view.shift_y, top, out_height, ROWS)
    x = _taps_of(view.width, view.full_width, view.shift_x, left, out_width, COLUMNS)
    crop_row = image.pointer + view.top.to(tl.int64) * image.stride_h
    stride_h = image.stride_h
    if CHANNELS == 1:
        total = _sum_of_run(crop_row, stride_h, image.stride_w, view, y, x, row_length, 1, ROWS, K, SECTOR)
    elif INTERLEAVED is None:
        if (image.stride_c == 1) & (image.stride_w == 3):
            total = _sum_of_run(crop_row, stride_h, 1, view, y, x, 3 * row_length, 3, ROWS, K, SECTOR)
        else:
            total = _sum_of_planes(crop_row, image, view, y, x, row_length, ROWS, K, SECTOR)
    elif INTERLEAVED:
        total = _sum_of_run(crop_row, stride_h, 1, view, y, x, 3 * row_length, 3, ROWS, K, SECTOR)
    else:
        total = _sum_of_planes(crop_row, image, view, y, x, row_length, ROWS, K, SECTOR)
    return total * unit
