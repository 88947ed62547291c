"""Encoders and the projection head of SimCLR.

The backbone h = f(x) is any torchvision ResNet (its keys stay torchvision's), or a small one for 28-pixel digits; the
projection z = g(h) is only used by the loss (Chen et al. 2020, section 4.2).
"""

import torch
import torchvision
from torch import Tensor, nn

from simclr_fast.config import ModelOptions
from simclr_fast.errors import ConfigError


class SimCLR(nn.Module):
    """A backbone [B, C, H, W] -> [B, features] followed by a projection head -> [B, head_dim]."""

    def __init__(self, backbone: nn.Module, features: int, head_hidden: int = 2048, head_dim: int = 128):
        super().__init__()
        self.backbone = backbone
        self.features = features
        # As published: batch norm after both layers, no bias where a norm follows.
        self.head = nn.Sequential(
            nn.Linear(features, head_hidden, bias=False),
            nn.BatchNorm1d(head_hidden),
            nn.ReLU(inplace=True),
            nn.Linear(head_hidden, head_dim, bias=False),
            nn.BatchNorm1d(head_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


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


class FrozenBatchNorm1d(nn.BatchNorm1d):
    """Batch norm that always uses its running statistics, so that a sample's output depends on that sample alone."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm1d":
        return super().train(False)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """As `FrozenBatchNorm1d`, for images."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


def backbone_names() -> list[str]:
    """The names that `build_backbone` knows."""
    names = torchvision.models.list_models(module=torchvision.models)
    return ["resnet_mini", *(name for name in names if name.startswith(("resnet", "resnext", "wide_resnet")))]


def build_backbone(name: str, stem: str = "imagenet", channels: int = 3) -> tuple[nn.Module, int]:
    """The backbone with randomly initialised weights, and the number of its features.

    channels: of the input images, 1 or 3. Raises ConfigError for an unknown name.
    """
    if name not in backbone_names():
        raise ConfigError(f"--model {name}: unknown backbone; choose one of {', '.join(backbone_names())}")
    if name == "resnet_mini":
        return ResNetMini(channels), 128
    backbone = torchvision.models.get_model(name, weights=None)
    if stem == "cifar":  # appendix B.9: small images would be reduced to nothing by the stride-2 stem and the pooling
        backbone.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
    elif channels != 3:
        backbone.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    features = backbone.fc.in_features
    backbone.fc = nn.Identity()
    return backbone, features


def build_model(options: ModelOptions, channels: int) -> SimCLR:
    """Backbone and head as the options say, for images of 1 or 3 channels, in float32 on the CPU."""
    backbone, features = build_backbone(options.model, options.stem, channels)
    model = SimCLR(backbone, features, options.head_hidden, options.head_dim)
    _normalise_by(model, options.norm)
    return model


def build_encoder(options: ModelOptions, channels: int) -> nn.Module:
    """The backbone of `build_model` without its head: equal weights at an equal seed."""
    backbone, _ = build_backbone(options.model, options.stem, channels)
    _normalise_by(backbone, options.norm)
    return backbone


def _normalise_by(module: nn.Module, norm: str) -> None:
    if norm == "group":
        replace_batch_norm(module, _group_norm)
    elif norm == "frozen":
        replace_batch_norm(module, _frozen_batch_norm)


def replace_batch_norm(module: nn.Module, make) -> None:
    """Replace every batch norm inside `module` by `make(batch_norm)`, in place."""
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, make(child))
        else:
            replace_batch_norm(child, make)


def _group_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.GroupNorm:
    # 32 groups (Wu and He 2018), fewer where the channels ask for it: at least 4 channels in a group.
    groups = max(
        g
        for g in (1, 2, 4, 8, 16, 32)
        if norm.num_features % g == 0 and norm.num_features // g >= min(4, norm.num_features)
    )
    return nn.GroupNorm(groups, norm.num_features)


def _frozen_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    frozen = FrozenBatchNorm1d if isinstance(norm, nn.BatchNorm1d) else FrozenBatchNorm2d
    return frozen(norm.num_features, eps=norm.eps, momentum=norm.momentum).eval()
