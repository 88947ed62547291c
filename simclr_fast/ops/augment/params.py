"""The drawn parameters of a batch of views, and the constants of the distributions they are drawn from.

Both mirror C++ structs: AugmentParams that of csrc/augment_params.h, AugmentRecipe that of csrc/augment_sample.h.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# The jitter operations in the order of ORDERS' digits: AugmentParams.order indexes ORDERS.
JITTER_OPS = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(itertools.permutations(range(4)))

FLAGS = ("hflip", "jitter", "gray", "blur", "solarize")  # bit k of the flags word
PACKED_WORDS = 16
# The word of each field in a packed row.
_INT_WORDS = {"top": 0, "left": 1, "height": 2, "width": 3, "order": 5}
_FLAGS_WORD = 4
_FLOAT_WORDS = {"brightness": 6, "contrast": 7, "saturation": 8, "hue": 9, "sigma": 10, "solarize_threshold": 11}
_WINDOW_WORDS = {"resize_height": 12, "resize_width": 13, "shift_y": 14, "shift_x": 15}


@dataclass(frozen=True)
class AugmentParams:
    """What was drawn for each view of each sample; every field is a tensor [views, B] on one device.

    Save it with `torch.save(vars(params))`, change it with `dataclasses.replace`, replay it with `SimCLRAugment.apply`.
    """

    top: Tensor  # int32, crop box in source pixels
    left: Tensor
    height: Tensor
    width: Tensor
    hflip: Tensor  # bool, and so on: which operations this view gets
    jitter: Tensor
    gray: Tensor
    blur: Tensor
    solarize: Tensor
    order: Tensor  # int32 0..23, index into itertools.permutations of (brightness, contrast, saturation, hue)
    brightness: Tensor  # float32 factors; 1 leaves the image as it is
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # float32, shift in turns, -0.5..0.5
    sigma: Tensor  # float32, of the blur, in output pixels
    solarize_threshold: Tensor  # float32 in [0, 1]
    # int32: the box is resized to this (0: the output size), and the output is the window of it that starts at the
    # shift. Only the test-time transform sets them.
    resize_height: Tensor
    resize_width: Tensor
    shift_y: Tensor
    shift_x: Tensor

    @property
    def views(self) -> int:
        """Views per sample."""
        return self.top.shape[0]

    @property
    def batch_size(self) -> int:
        """Samples."""
        return self.top.shape[1]

    def to(self, device: torch.device | str) -> "AugmentParams":
        """The same parameters on another device."""
        return AugmentParams(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def pack(self) -> Tensor:
        """The words the kernels read: int32 [views, B, 16], floats stored by their bits."""
        shape = self.top.shape
        for field in fields(self):
            value = getattr(self, field.name)
            if value.shape != shape or value.dim() != 2:
                raise ValueError(
                    f"params.{field.name} has shape {tuple(value.shape)}, params.top has {tuple(shape)}; "
                    "every field must be [views, B]"
                )
        words: list[Tensor | None] = [None] * PACKED_WORDS
        for name, word in (_INT_WORDS | _WINDOW_WORDS).items():
            words[word] = getattr(self, name).to(torch.int32)
        words[_FLAGS_WORD] = sum(getattr(self, name).to(torch.int32) << bit for bit, name in enumerate(FLAGS))
        for name, word in _FLOAT_WORDS.items():
            words[word] = getattr(self, name).to(torch.float32).view(torch.int32)
        return torch.stack(words, dim=-1)

    @staticmethod
    def unpack(packed: Tensor) -> "AugmentParams":
        """The fields of a packed tensor [views, B, 16], each with its own storage (torch.save needs that)."""
        values = {name: packed[..., word].clone() for name, word in (_INT_WORDS | _WINDOW_WORDS).items()}
        values |= {name: packed[..., word].clone().view(torch.float32) for name, word in _FLOAT_WORDS.items()}
        values |= {name: (packed[..., _FLAGS_WORD] >> bit & 1).bool() for bit, name in enumerate(FLAGS)}
        return AugmentParams(**values)

    def check(self, image_height: Tensor | int, image_width: Tensor | int, out_height: int, out_width: int) -> None:
        """Raises ValueError for the first field that is out of range for images of these sizes ([B] or numbers).

        Reads the values, so on a GPU it would wait for it: the kernels clamp boxes and indices there instead.
        """
        full_height = torch.where(self.resize_height > 0, self.resize_height, out_height)
        full_width = torch.where(self.resize_width > 0, self.resize_width, out_width)
        rules = {
            "height": (
                (self.height >= 1) & (self.top >= 0) & (self.top + self.height <= image_height),
                "leaves the image",
            ),
            "width": (
                (self.width >= 1) & (self.left >= 0) & (self.left + self.width <= image_width),
                "leaves the image",
            ),
            "order": ((self.order >= 0) & (self.order < len(ORDERS)), "must be in 0..23"),
            "brightness": (torch.isfinite(self.brightness) & (self.brightness >= 0), "must be finite and >= 0"),
            "contrast": (torch.isfinite(self.contrast) & (self.contrast >= 0), "must be finite and >= 0"),
            "saturation": (torch.isfinite(self.saturation) & (self.saturation >= 0), "must be finite and >= 0"),
            "hue": (self.hue.abs() <= 0.5, "must be in [-0.5, 0.5]"),
            "sigma": (~self.blur | (torch.isfinite(self.sigma) & (self.sigma > 0)), "must be finite and > 0"),
            "solarize_threshold": (self.solarize_threshold <= 1, "must be at most 1"),
            "shift_y": ((self.shift_y >= 0) & (self.shift_y + out_height <= full_height), "leaves the resized image"),
            "shift_x": ((self.shift_x >= 0) & (self.shift_x + out_width <= full_width), "leaves the resized image"),
        }
        for name, (good, rule) in rules.items():
            if not bool(good.all()):
                view, sample = (~good).nonzero()[0].tolist()
                value = getattr(self, name)[view, sample].item()
                raise ValueError(
                    f"params.{name}[{view}, {sample}] = {value} {rule}; "
                    "use parameters that were drawn for these images (SimCLRAugment.sample)"
                )


def pack_window(height: int, width: int, resized: Sequence[int], shift: Sequence[int]) -> list[int]:
    """The packed words of no augmentation: the whole image, resized, and the output's window of it."""
    words = [0] * PACKED_WORDS
    words[_INT_WORDS["height"]], words[_INT_WORDS["width"]] = height, width
    words[_WINDOW_WORDS["resize_height"]], words[_WINDOW_WORDS["resize_width"]] = resized
    words[_WINDOW_WORDS["shift_y"]], words[_WINDOW_WORDS["shift_x"]] = shift
    return words


@dataclass(frozen=True)
class AugmentRecipe:
    """The distributions; see SimCLRAugment for what each bound means. (low, high) pairs are uniform ranges."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip_p: float
    jitter_p: float
    gray_p: float
    blur_p: float
    solarize_p: float
    brightness: tuple[float, float]
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: tuple[float, float]
    sigma: tuple[float, float]
    solarize_threshold: float

    def numbers(self) -> list[float]:
        """The doubles of the C++ struct, in its order."""
        return [
            *_low_and_span(self.scale),
            math.sqrt(self.ratio[0]),
            (math.log(self.ratio[1]) - math.log(self.ratio[0])) / 2,
            *self.ratio,
            *(self.hflip_p, self.jitter_p, self.gray_p, self.blur_p, self.solarize_p),
            *_low_and_span(self.brightness),
            *_low_and_span(self.contrast),
            *_low_and_span(self.saturation),
            *_low_and_span(self.hue),
            *_low_and_span(self.sigma),
            self.solarize_threshold,
        ]


def _low_and_span(bounds: tuple[float, float]) -> tuple[float, float]:
    return bounds[0], bounds[1] - bounds[0]
