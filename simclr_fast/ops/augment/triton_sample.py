"""The Triton kernel that draws the parameters of every (view, sample): csrc/augment_sample.h's arithmetic, bit by bit.

Compiled without fusion of multiplications and additions (enable_fp_fusion=False), so that every float64 operation
rounds as IEEE 754 says, as in the other backends.
"""

import triton
import triton.language as tl

from simclr_fast.ops.augment.params import CROP_TRIES, ORDERS, AugmentRecipe
from simclr_fast.ops.augment.triton_view import (
    BLUR,
    GRAY,
    HFLIP,
    JITTER,
    PARAM_WORDS,
    SOLARIZE,
    TABLE_COLUMNS,
    column_of,
)

_ORDERS = tl.constexpr(len(ORDERS))
_CROP_TRIES = tl.constexpr(CROP_TRIES)
_NUMBER_OF = {name: number for number, name in enumerate(AugmentRecipe._fields)}


@triton.constexpr_function
def _at(name):
    """Where the number of that name stands in RECIPE."""
    return _NUMBER_OF[name]


@triton.jit
def _philox(block, view, sample_low, sample_high, key0, key1):
    """Philox4x32-10 of the counter (block, view, sample): four words of 32 bits."""
    c0, c1, c2, c3 = block, view, sample_low, sample_high
    for _ in tl.static_range(10):
        a_high, a_low = tl.umulhi(c0, tl.full((), 0xD2511F53, tl.uint32)), c0 * tl.full((), 0xD2511F53, tl.uint32)
        b_high, b_low = tl.umulhi(c2, tl.full((), 0xCD9E8D57, tl.uint32)), c2 * tl.full((), 0xCD9E8D57, tl.uint32)
        c0, c1, c2, c3 = b_high ^ c1 ^ key0, b_low, a_high ^ c3 ^ key1, a_low
        key0 += tl.full((), 0x9E3779B9, tl.uint32)
        key1 += tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _double(x: tl.constexpr):
    """A number of the recipe, as exact as it came: Triton would round a float argument to float32."""
    return tl.full((), x, tl.float64)


@triton.jit
def _unit_interval(word):
    return word.to(tl.float64) * _double(2.0**-32)


@triton.jit
def _uniform(low: tl.constexpr, span: tl.constexpr, word):
    return _unit_interval(word) * _double(span) + _double(low)


@triton.jit
def _bits(x):
    """x rounded to float32, as the word that holds it."""
    return x.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _below(n, word):
    """An integer in [0, n): the high word of a 64-bit product."""
    return tl.umulhi(word, n.to(tl.uint32)).to(tl.int32)


@triton.jit
def _bernoulli(p: tl.constexpr, word, flag: tl.constexpr):
    return tl.where(_unit_interval(word) < _double(p), flag, 0)


@triton.jit
def _exp(x):
    """exp(x) for 0 <= x < 8: reproducible_exp of csrc/augment_sample.h."""
    y = x * _double(0.0625)
    series = y * 0.0 + 1.0
    for k in tl.static_range(10, 0, -1):
        series = series * (y / _double(k * 1.0)) + 1.0
    for _ in tl.static_range(4):
        series = series * series
    return series


@triton.jit
def _rint(x):
    """The nearest integer, ties to even, of 0 <= x < 2^51: adding 2^52 leaves no bits for a fraction."""
    big = _double(4503599627370496.0)
    return (x + big) - big


@triton.jit(
    do_not_specialize=["height", "width", "batch", "count"],
    do_not_specialize_on_alignment=["seed", "indices", "table"],
)
def augment_sample_kernel(
    seed, indices, table, packed, height, width, batch, count, RECIPE: tl.constexpr, BLOCK: tl.constexpr
):
    """packed: int32 [views, batch, 16]; seed: int64 [1]; indices: int64 [batch] or None.

    count: views * batch. RECIPE: of AugmentRecipe, compile-time constants since Triton's arguments are float32.
    """
    # 1. The counter's words: (block, view, sample number), and the key, the seed.
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = mine < count
    view, sample = mine // batch, mine % batch
    if table is not None:
        row = table + sample.to(tl.int64) * TABLE_COLUMNS
        height = tl.load(row + column_of("height"), mask=inside, other=1).to(tl.int32)
        width = tl.load(row + column_of("width"), mask=inside, other=1).to(tl.int32)
    else:
        height, width = height + sample * 0, width + sample * 0
    if indices is not None:
        number = tl.load(indices + sample, mask=inside, other=0)
    else:
        number = sample.to(tl.int64)
    key = tl.load(seed)
    key0, key1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    low, high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    view_word = view.to(tl.uint32)
    zero = view_word * 0

    # 2. The crop: the first of ten tries that fits, else torchvision's centred fallback. A try draws its area A and its
    # ratio r of width to height: height = sqrt(A) / sqrt(r), width = sqrt(A) sqrt(r), rounded; then its place.
    tall, wide = height.to(tl.float64), width.to(tl.float64)
    area = tall * wide
    ratio = wide / tall
    box_height = tl.where(
        ratio < _double(RECIPE[_at("ratio_low")]), _rint(wide / _double(RECIPE[_at("ratio_low")])), tall
    )
    box_width = tl.where(
        ratio > _double(RECIPE[_at("ratio_high")]), _rint(tall * _double(RECIPE[_at("ratio_high")])), wide
    )
    box_height = tl.minimum(tl.maximum(box_height, 1.0), tall).to(tl.int32)
    box_width = tl.minimum(tl.maximum(box_width, 1.0), wide).to(tl.int32)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    missing = inside
    for attempt in range(_CROP_TRIES):
        w0, w1, w2, w3 = _philox(zero + attempt, view_word, low, high, key0, key1)
        side = tl.sqrt(area * _uniform(RECIPE[_at("area_low")], RECIPE[_at("area_span")], w0))
        stretch = _exp(_unit_interval(w1) * _double(RECIPE[_at("half_log_span")])) * _double(
            RECIPE[_at("sqrt_ratio_low")]
        )
        w, h = _rint(side * stretch), _rint(side / stretch)
        fits = (w >= 1.0) & (w <= wide) & (h >= 1.0) & (h <= tall) & missing
        wi, hi = tl.where(fits, w, 1.0).to(tl.int32), tl.where(fits, h, 1.0).to(tl.int32)
        top = tl.where(fits, _below(height - hi + 1, w2), top)
        left = tl.where(fits, _below(width - wi + 1, w3), left)
        box_height, box_width = tl.where(fits, hi, box_height), tl.where(fits, wi, box_width)
        missing = missing & (fits == 0)

    # 3. What is done, and by how much: blocks behind the tries', in csrc/augment_sample.h's order.
    order_word, hflip_word, jitter_word, gray_word = _philox(zero + _CROP_TRIES, view_word, low, high, key0, key1)
    w0, w1, w2, w3 = _philox(zero + (_CROP_TRIES + 1), view_word, low, high, key0, key1)
    blur_word, sigma_word, solarize_word, _ = _philox(zero + (_CROP_TRIES + 2), view_word, low, high, key0, key1)
    order = _below(view * 0 + _ORDERS, order_word)
    flags = (
        _bernoulli(RECIPE[_at("hflip_p")], hflip_word, HFLIP)
        | _bernoulli(RECIPE[_at("jitter_p")], jitter_word, JITTER)
        | _bernoulli(RECIPE[_at("gray_p")], gray_word, GRAY)
        | _bernoulli(RECIPE[_at("blur_p")], blur_word, BLUR)
        | _bernoulli(RECIPE[_at("solarize_p")], solarize_word, SOLARIZE)
    )
    brightness = _bits(_uniform(RECIPE[_at("brightness_low")], RECIPE[_at("brightness_span")], w0))
    contrast = _bits(_uniform(RECIPE[_at("contrast_low")], RECIPE[_at("contrast_span")], w1))
    saturation = _bits(_uniform(RECIPE[_at("saturation_low")], RECIPE[_at("saturation_span")], w2))
    hue = _bits(_uniform(RECIPE[_at("hue_low")], RECIPE[_at("hue_span")], w3))
    sigma = _bits(_uniform(RECIPE[_at("sigma_low")], RECIPE[_at("sigma_span")], sigma_word))
    threshold = _bits(_double(RECIPE[_at("solarize_threshold")]) + area * 0.0)

    # 4. Words 0..15 of a view side by side, so that lanes write neighbours: joined by the bits of the word's number.
    none = view * 0
    evens = tl.join(
        tl.join(tl.join(top, saturation), tl.join(flags, none)),  # 0 8 | 4 12
        tl.join(tl.join(box_height, sigma), tl.join(brightness, none)),  # 2 10 | 6 14
    )
    odds = tl.join(
        tl.join(tl.join(left, hue), tl.join(order, none)),  # 1 9 | 5 13
        tl.join(tl.join(box_width, threshold), tl.join(contrast, none)),  # 3 11 | 7 15
    )
    words = tl.reshape(tl.join(evens, odds), (BLOCK, PARAM_WORDS))
    pointers = packed + mine.to(tl.int64)[:, None] * PARAM_WORDS + tl.arange(0, PARAM_WORDS)[None, :]
    tl.store(pointers, words, mask=inside[:, None])
