"""The backbone of the recipes for small images: a small ResNet, for minutes on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_fast.backbones import model_kwargs
from simclr_fast.backbones.family import Family, Spec, Stage
from simclr_fast.errors import ConfigError

NAME = "resnet_mini"
LARGEST_GRID = 16
STRIDE = 8  # pixels a side of an image for one of the last map


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNetMini(nn.Module):
    """A 3x3 stem and one basic block per stage of 16, 32, 64 and 128 channels: [B, C, H, W] -> [B, 128 * grid**2].

    grid: cells a side that the last map, an eighth of the image a side (rounded up), is averaged to; 1 forgets where
    things are.
    """

    def __init__(self, channels_in: int = 1, width: int = 16, grid: int = 1):
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(channels_in, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(BasicBlock(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(4))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return x.mean((2, 3)) if self.grid == 1 else F.adaptive_avg_pool2d(x, self.grid).flatten(1)


class MiniFamily(Family):
    """The one backbone of this project's own."""

    def build(self, spec: Spec) -> nn.Module:
        kwargs = dict(spec.kwargs)
        grid = kwargs.pop("grid", 1)
        told = model_kwargs.shown(" ".join(model_kwargs.pairs(spec.kwargs)))
        if kwargs:
            raise ConfigError(f"--model-kwargs {told}: {NAME} has one argument, grid; leave {next(iter(kwargs))} out")
        if type(grid) is not int or not 1 <= grid <= LARGEST_GRID:
            raise ConfigError(f"--model-kwargs {told}: pass a grid of 1 to {LARGEST_GRID} cells a side")
        cells = LARGEST_GRID if spec.size is None else -(-spec.size // STRIDE)
        if grid > cells:  # the pool would only repeat them
            raise ConfigError(
                f"--model-kwargs {told}: at --size {spec.size} the last map has {cells} x {cells} cells; pass "
                f"--model-kwargs grid={cells}, or a larger --size"
            )
        return ResNetMini(spec.channels, grid=grid)

    def stages(self, spec: Spec, module: nn.Module) -> tuple[Stage, ...]:
        return Stage("blocks.2"), Stage("blocks.3")  # its two coarsest, of strides 4 and 8
