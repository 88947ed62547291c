"""Device functions of the Triton augmentation that read what a view is: its parameters, its image, and its crop.

The layout of the parameters is csrc/augment_params.h's, and so is every rule here; names are the same.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from simclr_fast.ops.augment.params import FLAGS, JITTER_OPS, ORDERS, PACKED_WORDS, RAGGED_COLUMNS, WORDS

_WORD_OF = {name: word for word, name in enumerate(WORDS)}
_COLUMN_OF = {name: column for column, name in enumerate(RAGGED_COLUMNS)}
PARAM_WORDS = tl.constexpr(PACKED_WORDS)
TABLE_COLUMNS = tl.constexpr(len(RAGGED_COLUMNS))
LAST_ORDER = tl.constexpr(len(ORDERS) - 1)

HFLIP, JITTER, GRAY, BLUR, SOLARIZE = (tl.constexpr(1 << bit) for bit in range(len(FLAGS)))
BRIGHTNESS, CONTRAST, SATURATION, HUE = (tl.constexpr(op) for op in range(len(JITTER_OPS)))
NOTHING = tl.constexpr(15)  # in the list of jitter operations: one that changes nothing


class Image(NamedTuple):
    """One source image: pointer to pixel (0, 0) of channel 0, size, strides in elements."""

    pointer: tl.tensor
    height: tl.tensor
    width: tl.tensor
    stride_c: tl.tensor
    stride_h: tl.tensor
    stride_w: tl.tensor


class View(NamedTuple):
    """The drawn parameters, made safe to index with; all scalars."""

    top: tl.tensor
    left: tl.tensor
    height: tl.tensor
    width: tl.tensor
    flags: tl.tensor
    ops: tl.tensor  # jitter operations in order, four bits each, the first in the lowest; NOTHING where neutral
    contrast_at: tl.tensor  # the position of contrast among them, 4 where it was not drawn or is neutral
    brightness: tl.tensor
    contrast: tl.tensor
    saturation: tl.tensor
    hue: tl.tensor
    sigma: tl.tensor
    radius: tl.tensor  # of the blur, 0 without
    threshold: tl.tensor
    full_height: tl.tensor  # of the resized crop, of which the output is a window
    full_width: tl.tensor
    shift_y: tl.tensor
    shift_x: tl.tensor


@triton.constexpr_function
def word_of(name):
    """Which word of a packed row holds the parameter."""
    return _WORD_OF[name]


@triton.constexpr_function
def column_of(name):
    """Which column of a ragged batch's table holds it."""
    return _COLUMN_OF[name]


@triton.jit
def read_image(images, offset, table, sample, height, width, stride_b, stride_c, stride_h, stride_w):
    """Sample's image of a batch of one size, or (table is not None) of a ragged one."""
    if offset is not None:
        images += offset
    if table is not None:
        row = table + sample.to(tl.int64) * TABLE_COLUMNS
        height = tl.load(row + column_of("height")).to(tl.int32)
        width = tl.load(row + column_of("width")).to(tl.int32)
        image = Image(
            images + tl.load(row + column_of("offset")), height, width, tl.load(row + column_of("stride_c")),
            tl.load(row + column_of("stride_h")), tl.load(row + column_of("stride_w")),
        )  # fmt: skip
    else:
        image = Image(images + sample.to(tl.int64) * stride_b, height, width, stride_c, stride_h, stride_w)
    return image


@triton.jit
def _word(words, name: tl.constexpr):
    """One word of a view's parameters, as a scalar."""
    return tl.sum(tl.where(tl.arange(0, PARAM_WORDS) == word_of(name), words, 0))


@triton.jit
def _number(words, name: tl.constexpr):
    return _word(words, name).to(tl.float32, bitcast=True)


@triton.jit
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _take(left, shift):
    """The entry at bit `shift` of a list of four-bit entries, and the list without it."""
    rest = (left & ((1 << shift) - 1)) | (left >> (shift + 4) << shift)
    return left >> shift & 15, rest


@triton.jit
def _jitter_ops(order, flags, brightness, contrast, saturation, hue, CHANNELS: tl.constexpr):
    """The operations of the order (a Lehmer code), the neutral ones replaced, and the position of contrast."""
    a, left = _take(order * 0 + 0x3210, order // 6 * 4)
    b, left = _take(left, order % 6 // 2 * 4)
    c, d = _take(left, order % 2 * 4)
    neutral = (brightness == 1.0).to(tl.int32) | ((contrast == 1.0).to(tl.int32) << 1)
    if CHANNELS == 1:
        neutral |= 12  # saturation and hue
    else:
        neutral |= ((saturation == 1.0).to(tl.int32) << 2) | ((hue == 0.0).to(tl.int32) << 3)
    if (flags & JITTER) == 0:
        neutral = neutral * 0 + 15
    sequence = a | (b << 4) | (c << 8) | (d << 12)
    ops = sequence * 0
    contrast_at = sequence * 0 + 4
    for k in tl.static_range(4):
        op = sequence >> (4 * k) & 15
        counts = (neutral >> op & 1) == 0
        ops |= tl.where(counts, op, NOTHING) << (4 * k)
        contrast_at = tl.where((op == CONTRAST) & counts, k, contrast_at)
    return ops, contrast_at


@triton.jit
def blur_radius(sigma, flags, half):
    """Taps on each side: csrc/augment_resample.h's rule. A NaN or non-positive sigma blurs nothing."""
    reach = tl.ceil(4.75 * sigma)
    radius = tl.where(reach < half, reach, half).to(tl.int32)
    return tl.where((reach > 0.0) & ((flags & BLUR) != 0), radius, 0)


@triton.jit
def read_view(packed, index, height, width, out_height, out_width, blur_half, CHANNELS: tl.constexpr):
    """The parameters of view `index` for an image of this size, with every integer made safe to index with."""
    words = tl.load(packed + index.to(tl.int64) * PARAM_WORDS + tl.arange(0, PARAM_WORDS))
    box_height = _clamp(_word(words, "height"), 1, height)
    box_width = _clamp(_word(words, "width"), 1, width)
    top = _clamp(_word(words, "top"), 0, height - box_height)
    left = _clamp(_word(words, "left"), 0, width - box_width)
    flags = _word(words, "flags")
    order = _clamp(_word(words, "order"), 0, LAST_ORDER)
    brightness, contrast = _number(words, "brightness"), _number(words, "contrast")
    saturation, hue, sigma = _number(words, "saturation"), _number(words, "hue"), _number(words, "sigma")
    full_height = tl.maximum(_word(words, "resize_height"), out_height)
    full_width = tl.maximum(_word(words, "resize_width"), out_width)
    shift_y = _clamp(_word(words, "shift_y"), 0, full_height - out_height)
    shift_x = _clamp(_word(words, "shift_x"), 0, full_width - out_width)
    ops, contrast_at = _jitter_ops(order, flags, brightness, contrast, saturation, hue, CHANNELS)
    radius = blur_radius(sigma, flags, blur_half)
    return View(
        top, left, box_height, box_width, flags, ops, contrast_at, brightness, contrast, saturation, hue, sigma,
        radius, _number(words, "solarize_threshold"), full_height, full_width, shift_y, shift_x,
    )  # fmt: skip
