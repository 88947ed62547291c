"""The draws of csrc/augment_sample.h in plain PyTorch, the reference: the same bits, on any device, without a compiler.

Counter-based: the draws of a view depend on (seed, sample number, view) alone. Every step is exact in integers, or one
float64 operation that IEEE 754 rounds in one way, so that no device's math library can change a parameter.
"""

import torch
from torch import Tensor

from simclr_fast.ops.augment.params import (
    CROP_TRIES,
    FLAGS,
    JITTER_OPS,
    ORDERS,
    RAGGED_COLUMNS,
    AugmentParams,
    AugmentRecipe,
)

_WORD = 0xFFFFFFFF
_ROUND_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def _multiply_words(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product of 32-bit words held in int64, without passing 2^63."""
    high = (a >> 16) * b
    low = (a & 0xFFFF) * b
    middle = high + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | (low & 0xFFFF)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four 32-bit words, held in int64, per counter."""
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(10):
        a_high, a_low = _multiply_words(c0, _ROUND_MULTIPLIERS[0])
        b_high, b_low = _multiply_words(c2, _ROUND_MULTIPLIERS[1])
        c0, c1, c2, c3 = b_high ^ c1 ^ key0, b_low, a_high ^ c3 ^ key1, a_low
        key0, key1 = (key0 + _KEY_STEPS[0]) & _WORD, (key1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def _unit_interval(word: Tensor) -> Tensor:
    return word.to(torch.float64) * 2.0**-32


def _divide(x: Tensor, y: float) -> Tensor:
    """x / y, rounded once: by a Python number CUDA divides with its rounded reciprocal."""
    return x / torch.full_like(x, y)


def _reproducible_exp(x: Tensor) -> Tensor:
    """exp(x) to 1e-12 for 0 <= x < 8, by additions and multiplications alone."""
    y = x * 0.0625
    series = torch.ones_like(y)
    for k in range(10, 0, -1):
        series = series * _divide(y, k) + 1.0
    for _ in range(4):
        series = series * series
    return series


def _uniform(recipe: AugmentRecipe, name: str, word: Tensor) -> Tensor:
    return _unit_interval(word) * getattr(recipe, f"{name}_span") + getattr(recipe, f"{name}_low")


def _crop(recipe: AugmentRecipe, words: tuple[Tensor, ...], height: Tensor, width: Tensor) -> tuple[Tensor, ...]:
    """top, left, height, width [views, B] from the words [views, B, CROP_TRIES] and image sizes [B] (float64)."""
    tall, wide = height[:, None], width[:, None]
    side = torch.sqrt(_uniform(recipe, "area", words[0]) * (tall * wide))
    stretch = _reproducible_exp(_unit_interval(words[1]) * recipe.half_log_span) * recipe.sqrt_ratio_low
    w, h = torch.round(side * stretch), torch.round(side / stretch)
    fits = (w >= 1) & (w <= wide) & (h >= 1) & (h <= tall)
    top = words[2] * (tall - h + 1).to(torch.int64) >> 32
    left = words[3] * (wide - w + 1).to(torch.int64) >> 32
    first = fits.to(torch.int8).argmax(dim=-1, keepdim=True)  # argmax takes the first of equals
    tries = [value.gather(-1, first)[..., 0] for value in (top, left, h.to(torch.int64), w.to(torch.int64))]

    # torchvision's fallback: the centre, as much of it as the bounds of the ratio allow.
    ratio = width / height
    box_h = torch.where(ratio < recipe.ratio_low, torch.round(_divide(width, recipe.ratio_low)), height)
    box_w = torch.where(ratio > recipe.ratio_high, torch.round(height * recipe.ratio_high), width)
    box_h = torch.minimum(box_h.clamp_min(1), height).to(torch.int64)
    box_w = torch.minimum(box_w.clamp_min(1), width).to(torch.int64)
    fallback = ((height.to(torch.int64) - box_h) // 2, (width.to(torch.int64) - box_w) // 2, box_h, box_w)
    fitted = fits.any(dim=-1)
    return tuple(torch.where(fitted, drawn, otherwise) for drawn, otherwise in zip(tries, fallback))


def sample_reference(
    seed: Tensor,
    indices: Tensor | None,
    table: Tensor | None,
    height: int,
    width: int,
    batch: int,
    views: int,
    recipe: list[float],
) -> Tensor:
    """Packed parameters int32 [views, batch, 16]; the arguments are those of simclr_fast::augment_sample."""
    numbers, device = AugmentRecipe(*recipe), seed.device
    if indices is None:
        indices = torch.arange(batch, device=device)
    if table is None:
        heights = torch.full((batch,), height, dtype=torch.float64, device=device)
        widths = torch.full((batch,), width, dtype=torch.float64, device=device)
    else:
        heights, widths = (table[:, RAGGED_COLUMNS.index(name)].to(torch.float64) for name in ("height", "width"))

    shape = (views, batch, CROP_TRIES + 3)
    block = torch.arange(CROP_TRIES + 3, device=device).expand(shape)
    view = torch.arange(views, device=device)[:, None, None].expand(shape)
    sample = indices.to(torch.int64)[None, :, None].expand(shape)
    key = (seed & _WORD, seed >> 32 & _WORD)
    words = philox4x32((block, view, sample & _WORD, sample >> 32 & _WORD), key)

    box = _crop(numbers, tuple(word[..., :CROP_TRIES] for word in words), heights, widths)
    choices, factors, filters = ([word[..., CROP_TRIES + k] for word in words] for k in range(3))
    of_flag = zip(FLAGS, (*choices[1:], filters[0], filters[2]))
    flags = [_unit_interval(word) < getattr(numbers, f"{flag}_p") for flag, word in of_flag]
    floats = [_uniform(numbers, name, word) for name, word in zip((*JITTER_OPS, "sigma"), (*factors, filters[1]))]
    zero = torch.zeros((views, batch), dtype=torch.int32, device=device)
    threshold = torch.full((views, batch), numbers.solarize_threshold, dtype=torch.float32, device=device)
    order = choices[0] * len(ORDERS) >> 32
    return AugmentParams(*box, *flags, order, *floats, threshold, zero, zero, zero, zero).pack()
