"""The two views of a batch: SimCLRAugment, then where asked for a rotation and a shear.

Draws are functions of (seed, step, image, view) alone: however a batch is split over processes and micro-batches, and
wherever a run was resumed, an image gets the same views. So a second pass over the same images needs no replay.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.config import AugmentOptions
from simclr_fast.data.sampler import step_seed_of
from simclr_fast.errors import ConfigError

Images = Tensor | list[Tensor]
VIEWS = 2


@dataclasses.dataclass(frozen=True)
class Draw:
    """What the views of b images are drawn from, on their device; slices like the batch.

    seed: int64 [1], of the step; indices: int64 [b], the images' numbers in the data set; warp: float32 [2, b, 2, 3],
    maps of output to input coordinates, or None.
    """

    seed: Tensor
    indices: Tensor
    warp: Tensor | None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> "Draw":
        return Draw(self.seed, self.indices[part], None if self.warp is None else self.warp[:, part])


class Views:
    """Makes views [2b, C, size, size] of b images, view-major: rows i and i + b are a positive pair."""

    def __init__(
        self, options: AugmentOptions, seed: int, *, dtype: torch.dtype | None = None, channels_last: bool = True
    ):
        self.seed = seed
        self.dtype = dtype or torch.float32
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.rotate = math.radians(options.rotate)
        self.shear = options.shear
        self.warps = options.rotate > 0 or options.shear > 0
        dtype = torch.float32 if self.warps else self.dtype
        self.augment = SimCLRAugment(**options.fused(), dtype=dtype, memory_format=self.layout)

    def draw(self, indices: Tensor, step: int, *, first: int = 0, batch_size: int | None = None) -> Draw:
        """The draw for images `indices` [b], entries first, first + 1, ... of the step's batch_size images."""
        batch_size = len(indices) if batch_size is None else batch_size
        step_seed = step_seed_of(self.seed, step)
        warp = None
        if self.warps:
            generator = torch.Generator().manual_seed(step_seed)
            uniform = torch.rand(VIEWS, batch_size, 2, generator=generator)[:, first : first + len(indices)]
            warp = self._warp_maps(2 * uniform - 1)
            if indices.is_cuda:  # from memory that is not pinned, the host would copy it before it goes on
                warp = warp.pin_memory().to(indices.device, non_blocking=True)
        seed = torch.full((1,), step_seed, dtype=torch.int64, device=indices.device)
        return Draw(seed, indices, warp)

    def apply(self, images: Images, draw: Draw) -> Tensor:
        """The views of images uint8 [b, C, H, W], or of a list of b images [C, H, W]."""
        views = self.augment(images, seed=draw.seed, indices=draw.indices)
        if draw.warp is not None:
            grid = F.affine_grid(draw.warp.flatten(0, 1), list(views.shape), align_corners=False)
            views = F.grid_sample(views, grid, padding_mode="zeros", align_corners=False)
        return views.to(self.dtype, memory_format=self.layout)

    def _warp_maps(self, uniform: Tensor) -> Tensor:
        """uniform [2, b, 2] in [-1, 1] to affine maps [2, b, 2, 3]: a rotation, and a horizontal shear added to it."""
        angle, shear = self.rotate * uniform[..., 0], self.shear * uniform[..., 1]
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rows = torch.stack([cos, -sin + shear, zero, sin, cos, zero], dim=-1)
        return rows.unflatten(-1, (2, 3))


def check_channels(options: AugmentOptions, channels: int) -> None:
    """Raise ConfigError where mean and std are for another number of channels than the images have."""
    for name, values in (("mean", options.mean), ("std", options.std)):
        if len(values) not in (1, channels):
            shown = " ".join(map(str, values))
            raise ConfigError(f"--{name} {shown}: the images have {channels} channel(s); pass 1 or {channels} numbers")
