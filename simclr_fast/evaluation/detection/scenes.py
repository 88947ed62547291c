"""Detection scenes composed of real digits on textured canvases; the boxes are exact because we placed the ink."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.data import ImageArrays
from simclr_fast.evaluation.detection.data import Target

CLASSES = tuple(str(digit) for digit in range(10))
DIGITS_PER_SCENE = (2, 5)  # both included
SCALE = (0.7, 1.5)  # side of a pasted digit over that of the original (28 pixels)
INK = (0.75, 1.0)  # brightness of the digits, [0, 1]
TEXTURE_LEVEL = (0.0, 0.35)  # mean brightness of the canvas
TEXTURE_CONTRAST = (0.05, 0.30)  # its largest deviation from the mean
INK_THRESHOLD = 0.25  # coverage from which a pixel counts as part of the digit
PLACE_TRIES = 30
MAX_OVERLAP = 0.05  # of the smaller box, between two digits


@dataclasses.dataclass(frozen=True)
class DigitScenes:
    """`count` scenes of `size` x `size` pixels; scene i depends on (seed, i) and the digits alone.

    digits: white on black, uint8 [N, 1, H, W] with labels. Item i: image uint8 [1, size, size] and its target, with
    labels 1 to 10 (0 is the background class of torchvision's detectors).
    """

    digits: ImageArrays
    count: int
    seed: int
    size: int = 96

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        canvas = texture(self.size, generator)
        boxes: list[list[int]] = []
        labels: list[int] = []
        for _ in range(_integer(*DIGITS_PER_SCENE, generator)):
            chosen = _integer(0, len(self.digits) - 1, generator)
            ink = self._ink(chosen, generator)  # [h, w], cut to its exact extent
            box = self._free_place(ink.shape, boxes, generator)
            if box is None:
                continue
            left, top, right, bottom = box
            patch = canvas[top:bottom, left:right]
            patch.copy_(torch.lerp(patch, torch.tensor(_uniform(*INK, generator)), ink))
            boxes.append(box)
            labels.append(int(self.digits.labels[chosen]) + 1)
        image = (255 * canvas).round().to(torch.uint8)[None]
        return image, {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels).long()}

    def _ink(self, chosen: int, generator: torch.Generator) -> Tensor:
        digit = self.digits.images[chosen].float() / 255
        side = round(digit.shape[-1] * _uniform(*SCALE, generator))
        ink = F.interpolate(digit[None], (side, side), mode="bilinear", antialias=True)[0, 0]
        covered = ink > INK_THRESHOLD
        rows, columns = covered.any(dim=1).nonzero().flatten(), covered.any(dim=0).nonzero().flatten()
        return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def _free_place(self, shape: torch.Size, taken: list[list[int]], generator: torch.Generator) -> list[int] | None:
        """A box [left, top, right, bottom] inside the scene and clear of the others; None where none was found."""
        height, width = shape
        for _ in range(PLACE_TRIES):
            left, top = _integer(0, self.size - width, generator), _integer(0, self.size - height, generator)
            box = [left, top, left + width, top + height]
            if all(_overlap(box, other) <= MAX_OVERLAP for other in taken):
                return box
        return None


def texture(size: int, generator: torch.Generator) -> Tensor:
    """A grey texture [size, size] in [0, 1]: smooth noise of several octaves, and stripes at a random angle."""
    noise = torch.zeros(size, size)
    for cells in (3, 6, 12, 24, 48):
        coarse = torch.rand(1, 1, cells, cells, generator=generator) - 0.5
        noise += F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)[0, 0] / cells**0.5
    angle, period = _uniform(0, torch.pi, generator), _uniform(5, 25, generator)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    direction = torch.tensor(angle)
    stripes = torch.sin(2 * torch.pi / period * (x * direction.cos() + y * direction.sin()))
    noise += _uniform(0, 0.5, generator) * noise.abs().max() * stripes
    level, contrast = _uniform(*TEXTURE_LEVEL, generator), _uniform(*TEXTURE_CONTRAST, generator)
    return (level + contrast * noise / noise.abs().max()).clamp(0, 1)


def _overlap(a: list[int], b: list[int]) -> float:
    """Area that two boxes share, over the area of the smaller."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return max(0, width) * max(0, height) / min(area(a), area(b))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


class InMemory(torch.utils.data.Dataset):
    """The items of a small data set, made once and kept."""

    def __init__(self, data: torch.utils.data.Dataset):
        self.items = [data[index] for index in range(len(data))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.items[index]
