"""The Triton kernels of the fused augmentation; triton_backend.py launches them.

Outputs of up to 64 x 64 take one launch of augment_whole_kernel, a program per view. Larger ones are cut into tiles and
take two: augment_mean_kernel leaves every tile's sum of the grey image that contrast needs (and does nothing for a view
without contrast), augment_tile_kernel does everything, resizing and colouring the tile again. Nothing in between goes
through device memory. A program holds its pixels in registers, and branches on the drawn flags, which are scalars.

The steps of a program, where they stand, and what they compute; u is a channel of a pixel, in [0, 1]:

    1. read_image, read_view  triton_view.py    the source image; the drawn parameters, made safe; the jitter's list
    2. resize                 triton_resize.py  u(y, x) = sum_i sum_j a_i b_j source(i, j) / (sum_i a_i sum_j b_j)
    3. contrast's mean        triton_color.py   m = the mean of gray(u) over the view, after the operations before it;
                              triton_mean.py    in augment_mean_kernel, where there are none, by source pixels' weights
    4. color                  triton_color.py   in the drawn order, each clamped to [0, 1]: brightness f u, contrast
                                                f u + (1 - f) m, saturation f u + (1 - f) gray(u), hue; then gray(u)
    5. blur                   triton_color.py   v(x) = sum_d w_d u(reflected(x + d)) / sum_d w_d, then the same along y,
                                                w_d = exp(-d^2 / 2 sigma^2)
    6. _store                 here              solarize: 1 - u where u >= threshold; u scale + shift, rounded

A program computes a region of ROWS x COLUMNS pixels. Of a blurred view it owns the inner part of the region, and the
rest is its halo; where the halo is too wide for that (MANY), it owns as much as a region and goes over several regions,
each adding what it contributes. Results do not depend on scheduling.
"""

import triton
import triton.language as tl

from simclr_fast.ops.augment.triton_color import (
    BEFORE_CONTRAST,
    GIVEN_MEAN,
    OWN_MEAN,
    blur,
    blur_norm,
    color,
    gray,
    jitter,
)
from simclr_fast.ops.augment.triton_mean import sum_of_crop
from simclr_fast.ops.augment.triton_resize import resize
from simclr_fast.ops.augment.triton_view import SOLARIZE, read_image, read_view


@triton.jit
def _owner(pid, programs, views, batch):
    """(program of the view, sample, image of the output); programs of one sample's views are neighbours."""
    owner = pid // programs
    view, sample = owner % views, owner // views
    return pid % programs, sample, view * batch + sample


@triton.jit
def _owned(length, radius, REGION: tl.constexpr):
    """How many outputs along an axis a program owns; triton_backend.py counts programs by the same rule."""
    inner = (REGION - 2 * radius) // 8 * 8
    return tl.where((radius == 0) | (length <= REGION) | (radius > REGION // 4), REGION, inner)


@triton.jit
def _store(red, green, blue, view, out, image, row, column, bottom, right, first_column, out_height, out_width, scale0,
           scale1, scale2, shift0, shift1, shift2, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
           ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Solarizes, normalises and writes output pixels [first row .. bottom) x [first_column .. right)."""
    if (view.flags & SOLARIZE) != 0:
        red = tl.where(red >= view.threshold, 1.0 - red, red)
        green = tl.where(green >= view.threshold, 1.0 - green, green)
        blue = tl.where(blue >= view.threshold, 1.0 - blue, blue)
    red = red * scale0 + shift0
    green = green * scale1 + shift1
    blue = blue * scale2 + shift2
    first = out + image.to(tl.int64) * CHANNELS * out_height * out_width
    inside = (row < bottom) & (column < right)
    if CHANNELS == 1:
        tl.store(first + row * out_width + column, red.to(out.dtype.element_ty), mask=inside)
    elif CHANNELS_LAST:
        # COLUMNS pixels are three runs of COLUMNS elements; each is picked together, so that lanes write neighbours.
        for run in tl.static_range(3):
            element = run * COLUMNS + tl.arange(0, COLUMNS)[None, :]
            pixel = tl.broadcast_to(element // 3, (ROWS, COLUMNS))
            channel = element % 3
            value = tl.where(
                channel == 0,
                tl.gather(red, pixel, 1),
                tl.where(channel == 1, tl.gather(green, pixel, 1), tl.gather(blue, pixel, 1)),
            )
            element += 3 * first_column
            inside = (row < bottom) & (element < 3 * right)
            tl.store(first + row * (3 * out_width) + element, value.to(out.dtype.element_ty), mask=inside)
    else:
        plane = out_height * out_width
        pointers = first + row * out_width + column
        tl.store(pointers, red.to(out.dtype.element_ty), mask=inside)
        tl.store(pointers + plane, green.to(out.dtype.element_ty), mask=inside)
        tl.store(pointers + 2 * plane, blue.to(out.dtype.element_ty), mask=inside)


# A number whose divisibility helps no address is not specialised on: each variant takes seconds to compile.
_PLAIN = ["offset", "height", "views", "batch", "out_height", "blur_half", "programs", "mean_programs", "tiles_x"]


@triton.jit(do_not_specialize=_PLAIN, do_not_specialize_on_alignment=["table"])
def augment_whole_kernel(
    images, offset, table, packed, out, height, width, stride_b, stride_c, stride_h, stride_w, views, batch, out_height,
    out_width, blur_half, unit, scale0, scale1, scale2, shift0, shift1, shift2, CHANNELS: tl.constexpr,
    INTERLEAVED: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    K: tl.constexpr, SECTOR: tl.constexpr,
):  # fmt: skip
    """One view, whole. Arguments that the kernels share:

    images, table, and the strides of an image in elements: an ImageBatch, which begins at images + offset
    (offset is None: at images). packed: int32 [views, batch, 16].
    out: [views * batch, CHANNELS, out_height, out_width], NCHW or channels-last. blur_half: taps on each side at most.
    unit: what brings a pixel to [0, 1]. out = x * scale + shift, by channel. K: elements of a source row loaded at
    once. SECTOR: elements in 32 bytes.
    """
    # 1. What the view is.
    _, sample, index = _owner(tl.program_id(0), 1, views, batch)
    image = read_image(images, offset, table, sample, height, width, stride_b, stride_c, stride_h, stride_w)
    view = read_view(packed, index, image.height, image.width, out_height, out_width, blur_half, CHANNELS)
    # 2. Its crop, resized.
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    red, green, blue = resize(image, view, row, column, out_height, out_width, image.width, unit, CHANNELS,
                              INTERLEAVED, ROWS, COLUMNS, K, SECTOR)  # fmt: skip
    # 3. and 4. The mean is the program's own: it holds the whole view.
    valid = (row < out_height) & (column < out_width)
    red, green, blue = color(red, green, blue, view, 0.0, valid, out_height * out_width, CHANNELS, OWN_MEAN)
    # 5.
    red, green, blue = _blurred(red, green, blue, view, row, column, 0, 0, out_height, out_width, CHANNELS, ROWS,
                                COLUMNS)  # fmt: skip
    # 6.
    _store(red, green, blue, view, out, index, row, column, out_height, out_width, 0, out_height, out_width, scale0,
           scale1, scale2, shift0, shift1, shift2, CHANNELS, CHANNELS_LAST, ROWS, COLUMNS)  # fmt: skip


@triton.jit(do_not_specialize=_PLAIN, do_not_specialize_on_alignment=["table"])
def augment_mean_kernel(
    images, offset, table, packed, sums, height, width, stride_b, stride_c, stride_h, stride_w, views, batch,
    out_height, out_width, unit, programs, tiles_x, CHANNELS: tl.constexpr, INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, SECTOR: tl.constexpr,
):  # fmt: skip
    """sums [views * batch, programs]: the sum of each tile's grey image just before contrast."""
    # 1.
    tile, sample, index = _owner(tl.program_id(0), programs, views, batch)
    image = read_image(images, offset, table, sample, height, width, stride_b, stride_c, stride_h, stride_w)
    view = read_view(packed, index, image.height, image.width, out_height, out_width, 0, CHANNELS)
    if view.contrast_at < 4:
        top, left = tile // tiles_x * ROWS, tile % tiles_x * COLUMNS
        if view.contrast_at == 0:
            # 3. From the source pixels.
            total = sum_of_crop(image, view, top, left, out_height, out_width, image.width, unit, CHANNELS,
                                INTERLEAVED, ROWS, COLUMNS, K, SECTOR)  # fmt: skip
        else:
            # 2.
            row, column = top + tl.arange(0, ROWS)[:, None], left + tl.arange(0, COLUMNS)[None, :]
            red, green, blue = resize(image, view, row, column, out_height, out_width, image.width, unit, CHANNELS,
                                      INTERLEAVED, ROWS, COLUMNS, K, SECTOR)  # fmt: skip
            # 3. The operations before contrast, and the tile's part of the mean.
            valid = (row < out_height) & (column < out_width)
            red, green, blue = jitter(red, green, blue, view, 0.0, valid, 1, CHANNELS, BEFORE_CONTRAST)
            total = tl.sum(tl.where(valid, gray(red, green, blue, CHANNELS), 0.0))
        tl.store(sums + index.to(tl.int64) * programs + tile, total)


@triton.jit
def _contrast_mean(sums, index, count, pixels, BLOCK: tl.constexpr):
    """The mean of view `index` from the sums of its tiles."""
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        total += tl.load(sums + index.to(tl.int64) * count + tile, mask=tile < count, other=0.0)
    return tl.sum(total) / pixels


@triton.jit(do_not_specialize=_PLAIN, do_not_specialize_on_alignment=["table"])
def augment_tile_kernel(
    images, offset, table, packed, sums, out, height, width, stride_b, stride_c, stride_h, stride_w, views, batch,
    out_height, out_width, blur_half, unit, scale0, scale1, scale2, shift0, shift1, shift2, programs, mean_programs,
    CHANNELS: tl.constexpr, INTERLEAVED: tl.constexpr, CHANNELS_LAST: tl.constexpr, MANY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, SECTOR: tl.constexpr, BLOCK_SUMS: tl.constexpr,
):  # fmt: skip
    """One tile of a view; surplus programs of a view (a blurred one needs most) return at once.

    mean_programs: tiles of augment_mean_kernel per view.
    """
    # 1. What the view is, and which part of it is the program's.
    tile, sample, index = _owner(tl.program_id(0), programs, views, batch)
    image = read_image(images, offset, table, sample, height, width, stride_b, stride_c, stride_h, stride_w)
    view = read_view(packed, index, image.height, image.width, out_height, out_width, blur_half, CHANNELS)
    own_rows, own_columns = _owned(out_height, view.radius, ROWS), _owned(out_width, view.radius, COLUMNS)
    tiles_x = tl.cdiv(out_width, own_columns)
    if tile < tiles_x * tl.cdiv(out_height, own_rows):
        top, left = tile // tiles_x * own_rows, tile % tiles_x * own_columns
        bottom, right = tl.minimum(top + own_rows, out_height), tl.minimum(left + own_columns, out_width)
        # 3. From the parts that augment_mean_kernel left.
        mean = 0.0
        if view.contrast_at < 4:
            mean = _contrast_mean(sums, index, mean_programs, out_height * out_width, BLOCK_SUMS)
        row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        # 2., 4. and 5. Of what the blur reaches: regions from (first_row, first_column), one unless MANY.
        first_row, first_column = tl.maximum(top - view.radius, 0), tl.maximum(left - view.radius, 0)
        red = tl.zeros((ROWS, COLUMNS), tl.float32)
        green, blue = red, red
        if MANY:
            last_row = tl.minimum(bottom + view.radius, out_height)
            last_column = tl.minimum(right + view.radius, out_width)
            for region_row in range(first_row, last_row, ROWS):
                for region_column in range(first_column, last_column, COLUMNS):
                    r, g, b = _colored(image, view, region_row + row, region_column + column, mean, out_height,
                                        out_width, unit, CHANNELS, INTERLEAVED, ROWS, COLUMNS, K, SECTOR)  # fmt: skip
                    r, g, b = _blurred(r, g, b, view, top + row, left + column, region_row, region_column, out_height,
                                       out_width, CHANNELS, ROWS, COLUMNS)  # fmt: skip
                    red += r
                    green += g
                    blue += b
        else:
            red, green, blue = _colored(image, view, first_row + row, first_column + column, mean, out_height,
                                         out_width, unit, CHANNELS, INTERLEAVED, ROWS, COLUMNS, K, SECTOR)  # fmt: skip
            red, green, blue = _blurred(red, green, blue, view, top + row, left + column, first_row, first_column,
                                        out_height, out_width, CHANNELS, ROWS, COLUMNS)  # fmt: skip
        # 6.
        _store(red, green, blue, view, out, index, top + row, left + column, bottom, right, left, out_height,
               out_width, scale0, scale1, scale2, shift0, shift1, shift2, CHANNELS, CHANNELS_LAST, ROWS,
               COLUMNS)  # fmt: skip


@triton.jit
def _colored(image, view, row, column, mean, out_height, out_width, unit, CHANNELS: tl.constexpr,
              INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr,
              SECTOR: tl.constexpr):  # fmt: skip
    red, green, blue = resize(image, view, row, column, out_height, out_width, image.width, unit, CHANNELS,
                              INTERLEAVED, ROWS, COLUMNS, K, SECTOR)  # fmt: skip
    return color(red, green, blue, view, mean, row >= 0, 1, CHANNELS, GIVEN_MEAN)


@triton.jit
def _blurred(red, green, blue, view, row, column, top, left, out_height, out_width, CHANNELS: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The region's contribution to the blur at row, column; the region itself where the view has no blur."""
    if view.radius > 0:
        norm = blur_norm(view)
        red = blur(red, row, column, top, left, out_height, out_width, view, ROWS, COLUMNS) * norm
        if CHANNELS == 3:
            green = blur(green, row, column, top, left, out_height, out_width, view, ROWS, COLUMNS) * norm
            blue = blur(blue, row, column, top, left, out_height, out_width, view, ROWS, COLUMNS) * norm
    return red, green, blue
