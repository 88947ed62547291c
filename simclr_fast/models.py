"""The model that SimCLR trains: a backbone h = f(x), and the projection z = g(h) that only the loss sees.

Backbones come from `backbones/`; the head is that of Chen et al. 2020, section 4.2.
"""

from torch import Tensor, nn

from simclr_fast.backbones.registry import build, build_backbone, build_without_memory, feature_count, spec_of
from simclr_fast.config import ModelOptions
from simclr_fast.norms import normalise_by

__all__ = ["SimCLR", "build_backbone", "build_encoder", "build_model", "describe_encoder"]


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


def build_model(options: ModelOptions, channels: int, size: int | None = None) -> SimCLR:
    """Backbone and head as the options say, for images of 1 or 3 channels, in float32 on the CPU.

    size: side of the images (pixels), which a backbone may be built for. Raises ConfigError for what cannot work.
    """
    spec = spec_of(options, channels, size)
    backbone = build(spec)
    features = feature_count(spec, backbone)
    normalise_by(backbone, options.norm, options.model)
    model = SimCLR(backbone, features, options.head_hidden, options.head_dim)
    normalise_by(model.head, options.norm, "the projection head")
    return model


def build_encoder(options: ModelOptions, channels: int, size: int | None = None) -> nn.Module:
    """The backbone of `build_model` without its head: equal weights at an equal seed."""
    return normalise_by(build(spec_of(options, channels, size)), options.norm, options.model)


def describe_encoder(
    options: ModelOptions, channels: int, size: int | None = None, most: int | None = None
) -> nn.Module:
    """As `build_encoder`, on the meta device: names and shapes of the weights, without memory for them.

    most: how many tensors it may make before a ConfigError ends it; None for as many as it will.
    """
    return normalise_by(build_without_memory(spec_of(options, channels, size), most), options.norm, options.model)
