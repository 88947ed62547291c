"""Brings large images down as soon as they are decoded: photographs of many megapixels would fill the memory.

Antialiased bicubic. Of the views that training cuts out of the result, those after bicubic are nearer to the views of
the original than those after bilinear, which blurs more (docs/data.md has the figures).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.config import AugmentOptions

# An image much longer than wide keeps at most this many times the pixels of a square of the side; its smallest random
# crop, a share of its area, keeps what that of a square keeps.
MOST_SQUARES = 4


def side_of(options: AugmentOptions) -> int:
    """The side that training brings images down to: --shrink-to, or where the smallest crop has a view's pixels."""
    if options.shrink_to is not None:
        return options.shrink_to
    return math.ceil(options.size / math.sqrt(options.scale[0]))


def shrink(image: Tensor, side: int) -> Tensor:
    """An image uint8 [C, H, W] whose shorter side is at most `side`, of at most 4 side^2 pixels; 0 leaves all as is.

    The same object where it is small enough already. On a GPU a value may differ by 1 from the CPU's, which gives the
    same bits with every set of instructions.
    """
    height, width = image.shape[1:]
    shorter = min(height, width)
    if side == 0 or (shorter <= side and height * width <= MOST_SQUARES * side**2):
        return image
    factor = min(side / shorter, (MOST_SQUARES * side**2 / (height * width)) ** 0.5)
    return resize(image, max(1, round(height * factor)), max(1, round(width * factor)))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """An image uint8 [C, H, W] of any strides at another size, uint8 [C, height, width] in memory of its own."""
    if image.device.type == "cpu":  # a kernel for bytes, on the calling thread alone
        return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    # As that kernel does: first along the rows, and bytes in between.
    for size in ((image.shape[1], width), (height, width)):
        image = F.interpolate(image[None].float(), size, mode="bicubic", antialias=True)[0]
        image = image.round_().clamp_(0, 255).to(torch.uint8)
    return image
