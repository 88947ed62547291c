"""The drawn parameters of a batch of views, and the constants of the distributions they are drawn from.

Both mirror C++ structs: AugmentParams that of csrc/augment_params.h, AugmentRecipe that of csrc/augment_sample.h.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

# The jitter operations in the order of ORDERS' digits: AugmentParams.order indexes ORDERS.
JITTER_OPS = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(itertools.permutations(range(4)))
CROP_TRIES = 10

FLAGS = ("hflip", "jitter", "gray", "blur", "solarize")  # bit k of the flags word
# The words of a packed row; the C++ struct says what one more would take. Every backend finds a word by its name here.
WORDS = (
    *("top", "left", "height", "width", "flags", "order", "brightness", "contrast", "saturation", "hue", "sigma"),
    *("solarize_threshold", "resize_height", "resize_width", "shift_y", "shift_x"),
)
PACKED_WORDS = len(WORDS)
_FLOATS = (*JITTER_OPS, "sigma", "solarize_threshold")
# The columns of the table of a ragged batch (ImageBatch).
RAGGED_COLUMNS = ("offset", "height", "width", "stride_c", "stride_h", "stride_w")


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
        return torch.stack([self._word(name) for name in WORDS], dim=-1)

    def _word(self, name: str) -> Tensor:
        if name == "flags":
            return sum(getattr(self, flag).to(torch.int32) << bit for bit, flag in enumerate(FLAGS))
        value = getattr(self, name)
        return value.to(torch.float32).view(torch.int32) if name in _FLOATS else value.to(torch.int32)

    @staticmethod
    def unpack(packed: Tensor) -> "AugmentParams":
        """The fields of a packed tensor [views, B, 16], each with its own storage (torch.save needs that)."""
        words = {name: word.clone() for name, word in zip(WORDS, packed.unbind(-1))}
        values = {flag: (words["flags"] >> bit & 1).bool() for bit, flag in enumerate(FLAGS)}
        values |= {name: word.view(torch.float32) if name in _FLOATS else word for name, word in words.items()}
        del values["flags"]
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
    sizes = {"height": height, "width": width, "resize_height": resized[0], "resize_width": resized[1]}
    words = dict.fromkeys(WORDS, 0) | sizes | {"shift_y": shift[0], "shift_x": shift[1]}
    return list(words.values())


class AugmentRecipe(NamedTuple):
    """The distributions, as the ops take them: the doubles of the C++ struct AugmentRecipe, in its order."""

    area_low: float  # of the crop, as a fraction of the image's; like every pair, uniform on [low, low + span)
    area_span: float
    sqrt_ratio_low: float  # sqrt(lowest width / height)
    half_log_span: float  # log(highest / lowest ratio) / 2
    ratio_low: float
    ratio_high: float
    hflip_p: float  # a probability for each of FLAGS
    jitter_p: float
    gray_p: float
    blur_p: float
    solarize_p: float
    brightness_low: float
    brightness_span: float
    contrast_low: float
    contrast_span: float
    saturation_low: float
    saturation_span: float
    hue_low: float
    hue_span: float
    sigma_low: float
    sigma_span: float
    solarize_threshold: float

    @staticmethod
    def of(
        ranges: dict[str, tuple[float, float]],
        ratio: tuple[float, float],
        probabilities: dict[str, float],
        solarize_threshold: float,
    ) -> "AugmentRecipe":
        """ranges: (low, high) of the area, of each of JITTER_OPS and of sigma; probabilities: of each of FLAGS."""
        low, high = ratio
        numbers = {f"{name}_low": bounds[0] for name, bounds in ranges.items()}
        numbers |= {f"{name}_span": bounds[1] - bounds[0] for name, bounds in ranges.items()}
        numbers |= {f"{flag}_p": float(p) for flag, p in probabilities.items()}
        return AugmentRecipe(
            sqrt_ratio_low=math.sqrt(low),
            half_log_span=(math.log(high) - math.log(low)) / 2,
            ratio_low=low,
            ratio_high=high,
            solarize_threshold=float(solarize_threshold),
            **numbers,
        )
