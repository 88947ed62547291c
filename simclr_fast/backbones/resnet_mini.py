"""The backbone of the demo: a small ResNet for 28-pixel digits."""

import torch
from torch import Tensor, nn

from simclr_fast.backbones.family import Spec, Stage
from simclr_fast.errors import ConfigError

NAME = "resnet_mini"


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
    """A 3x3 stem and one basic block per stage of 16, 32, 64 and 128 channels: [B, C, H, W] -> [B, 128]."""

    def __init__(self, channels_in: int = 1, width: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(BasicBlock(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(4))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return x.mean((2, 3))


class MiniFamily:
    """The one backbone of this project's own."""

    allocates_as_told = True

    def build(self, spec: Spec) -> nn.Module:
        if spec.kwargs:
            raise ConfigError(f"--model-kwargs {next(iter(spec.kwargs))}: {NAME} takes no arguments; leave them out")
        return ResNetMini(spec.channels)

    def stages(self, spec: Spec, module: nn.Module) -> tuple[Stage, ...]:
        return Stage("blocks.2"), Stage("blocks.3")  # its two coarsest, of strides 4 and 8

    def weights(self, spec: Spec, name: str) -> None:
        return None

    def weight_names(self, spec: Spec) -> list[str]:
        return []

    def loading_code(self, spec: Spec) -> None:
        return None
