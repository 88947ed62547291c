"""What happens to resized pixels in the Triton augmentation: colour in the drawn order, and the separable blur.

Device functions over red, green, blue [ROWS, COLUMNS], float32; the rules are csrc/augment_color.h's. Which operation
comes next is a scalar, so that a program branches, and computes only what its view drew.
"""

import triton
import triton.language as tl

from simclr_fast.ops.augment.triton_view import BRIGHTNESS, CONTRAST, GRAY, HUE, SATURATION

# What `jitter` does about contrast: take the mean of its own pixels, be given it, or stop just before.
OWN_MEAN, GIVEN_MEAN, BEFORE_CONTRAST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _clamp01(x):
    """x in [0, 1]; NaN stays NaN."""
    at_most_one = tl.minimum(x, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(at_most_one, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def gray(red, green, blue, CHANNELS: tl.constexpr):
    """torchvision's luma; the one channel where there is one."""
    if CHANNELS == 1:
        return red
    return red * 0.2989 + green * 0.587 + blue * 0.114


@triton.jit
def _adjust_hue(red, green, blue, turns):
    """Rotates the hue: the derivation stands at adjust_hue in csrc/augment_color.h."""
    largest = tl.maximum(red, tl.maximum(green, blue))
    smallest = tl.minimum(red, tl.minimum(green, blue))
    d = largest - smallest
    is_r, is_g = largest == red, largest == green
    difference = tl.where(is_r, green - blue, tl.where(is_g, blue - red, red - green))
    sector = tl.where(is_r, 0.0, tl.where(is_g, 2.0, 4.0))
    h = sector + difference / tl.maximum(d, 1e-30) + 6.0 * turns  # -4 .. 8
    h = tl.where(h < 0.0, h + 6.0, h)
    h = tl.where(h >= 6.0, h - 6.0, h)
    w_r = _clamp01(tl.abs(h - 3.0) - 1.0)
    w_g = _clamp01(2.0 - tl.abs(h - 2.0))
    w_b = _clamp01(2.0 - tl.abs(h - 4.0))
    return smallest + d * w_r, smallest + d * w_g, smallest + d * w_b


@triton.jit
def jitter(red, green, blue, view, mean, valid, pixels, CHANNELS: tl.constexpr, MEAN: tl.constexpr):
    """The drawn operations in their order, without those that change nothing.

    With OWN_MEAN, contrast's mean is taken over the `pixels` output pixels where `valid`.
    """
    if MEAN == BEFORE_CONTRAST:
        count = view.contrast_at
    else:
        count = view.contrast_at * 0 + 4
    for k in range(count):
        op = view.ops >> (4 * k) & 15
        if op == BRIGHTNESS:
            red = _clamp01(red * view.brightness)
            green = _clamp01(green * view.brightness)
            blue = _clamp01(blue * view.brightness)
        if MEAN != BEFORE_CONTRAST:  # noqa: SIM102  (known when compiling, unlike the next)
            if op == CONTRAST:
                if MEAN == OWN_MEAN:
                    of_all = tl.sum(tl.where(valid, gray(red, green, blue, CHANNELS), 0.0)) / pixels
                else:
                    of_all = mean
                rest = (1.0 - view.contrast) * of_all
                red = _clamp01(red * view.contrast + rest)
                green = _clamp01(green * view.contrast + rest)
                blue = _clamp01(blue * view.contrast + rest)
        if CHANNELS == 3:
            if op == SATURATION:
                towards = gray(red, green, blue, CHANNELS) * (1.0 - view.saturation)
                red = _clamp01(red * view.saturation + towards)
                green = _clamp01(green * view.saturation + towards)
                blue = _clamp01(blue * view.saturation + towards)
            if op == HUE:
                red, green, blue = _adjust_hue(red, green, blue, view.hue)
    return red, green, blue


@triton.jit
def color(red, green, blue, view, mean, valid, pixels, CHANNELS: tl.constexpr, MEAN: tl.constexpr):
    """The jitter and the grey conversion."""
    red, green, blue = jitter(red, green, blue, view, mean, valid, pixels, CHANNELS, MEAN)
    if CHANNELS == 3:  # noqa: SIM102
        if (view.flags & GRAY) != 0:
            red = gray(red, green, blue, CHANNELS)
            green, blue = red, red
    return red, green, blue


@triton.jit
def _blur_weight(distance, sigma):
    x = distance / sigma
    return tl.exp(-0.5 * x * x)


@triton.jit
def blur_norm(view):
    """1 / (sum of the weights)^2: of both axes."""
    total = view.sigma * 0.0
    for d in range(-view.radius, view.radius + 1):
        total += _blur_weight(d, view.sigma)
    return 1.0 / (total * total)


@triton.jit
def _reflected(i, n):
    """Reflection without repeating the edge, for -n < i < 2n - 1."""
    i = tl.abs(i)
    return tl.where(i < n, i, 2 * n - 2 - i)


@triton.jit
def _blur_axis(x, centre, origin, length, view, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr):
    """The unnormalised blur of a region along AXIS, as far as its pixels contribute to the outputs at `centre`.

    centre: output coordinates along AXIS, broadcastable; origin: that of the region's first; length: of the output.
    """
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    size: tl.constexpr = ROWS if AXIS == 0 else COLUMNS
    for d in range(-view.radius, view.radius + 1):
        at = _reflected(centre + d, length) - origin
        weight = tl.where((at >= 0) & (at < size), _blur_weight(d, view.sigma), 0.0)
        at = tl.minimum(tl.maximum(at, 0), size - 1)
        result += weight * tl.gather(x, tl.broadcast_to(at, (ROWS, COLUMNS)), AXIS)
    return result


@triton.jit
def blur(x, row, column, top, left, height, width, view, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What the region at (top, left) contributes to the unnormalised blur at row [ROWS, 1], column [1, COLUMNS].

    Outputs outside of the image repeat its last row or column.
    """
    row, column = tl.minimum(row, height - 1), tl.minimum(column, width - 1)
    x = _blur_axis(x, column, left, width, view, ROWS, COLUMNS, 1)
    return _blur_axis(x, row, top, height, view, ROWS, COLUMNS, 0)
