"""torchvision's Faster R-CNN and RetinaNet on a feature pyramid over any of the project's backbones."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from simclr_fast.backbones.family import Stage
from simclr_fast.errors import ConfigError, first_line

# How many of the backbone's stages the pyramid is built on, from the coarsest, as published: C2 to C5, and C3 to C5.
STAGES = {"faster-rcnn": 4, "retinanet": 3}
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
ANCHOR_STRIDES = 4  # side of an anchor in strides of its level, in both publications


class StageMaps(nn.Module):
    """A backbone's maps at some stages: images [B, C, H, W] -> {"0": [B, C0, H0, W0], ...}, finest first."""

    def __init__(self, backbone: nn.Module, stages: tuple[Stage, ...]):
        super().__init__()
        self.backbone = backbone
        self.kept: dict[str, Tensor] = {}
        for level, stage in enumerate(stages):
            backbone.get_submodule(stage.module).register_forward_hook(self._keep(str(level), stage))

    def _keep(self, level: str, stage: Stage) -> Callable:
        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self.kept[level] = output if stage.layout == "NCHW" else output.permute(0, 3, 1, 2)

        return keep

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.kept = {}
        self.backbone(images)  # what it makes of the coarsest stage, a mean, costs nothing beside the stages
        kept, self.kept = self.kept, {}
        return dict(sorted(kept.items()))


class PyramidBackbone(nn.Module):
    """Stages of a backbone merged top-down (Lin et al. 2017, arXiv:1612.03144), and coarser levels on top.

    images [B, C, H, W] -> {"0": [B, out_channels, H/s0, W/s0], "1": ..., ...}, finest first; `strides` are s0, s1, ...
    of the merged levels. Raises ConfigError for a backbone that cannot take images of any size, or gives no maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: tuple[Stage, ...],
        channels_in: int,
        out_channels: int,
        coarser: ExtraFPNBlock,
    ):
        super().__init__()
        self.body = StageMaps(backbone, stages)
        side = 128
        try:
            with torch.no_grad():
                probe = self.body.eval()(torch.zeros(1, channels_in, side, side))
            self.strides = [side // level.shape[-1] for level in probe.values()]
            channels = [level.shape[1] for level in probe.values()]
        except Exception as error:  # whatever a network does with images that it was not built for
            reason = first_line(error)[:100]
            raise ConfigError(
                f"detect: this backbone gives no maps of images of any size ({reason}); evaluate it otherwise, "
                "or train another --model"
            ) from error
        self.pyramid = FeaturePyramidNetwork(channels, out_channels, coarser)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.pyramid(self.body(images))


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a detector is.

    image_size: (shorter, longer) side that images are resized to (pixels); width: channels of the pyramid, a quarter of
    the box head's. For Faster R-CNN, per image: anchors and boxes that train its first and second stage, and proposals
    that pass from one to the other in (training, testing).
    """

    image_size: tuple[int, int] = (800, 1333)
    width: int = 256
    anchors: int = 256
    boxes: int = 512
    proposals: tuple[int, int] = (2000, 1000)


def build_detector(
    architecture: str,
    backbone: nn.Module,
    stages: tuple[Stage, ...],
    *,
    channels: int,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: Scale,
) -> nn.Module:
    """A detector that trains `backbone` and everything above it.

    stages: of the backbone, finest first, of which the coarsest are taken; channels: of the images, which are floats
    [C, H, W] in [0, 1], normalised by mean and std inside; classes: with the background as class 0. Raises
    ValueError for an unknown architecture.
    """
    if architecture not in STAGES:
        raise ValueError(f"architecture={architecture!r}: choose one of {', '.join(STAGES)}")
    stages = stages[-STAGES[architecture] :]
    shared = {
        "min_size": scale.image_size[0],
        "max_size": scale.image_size[1],
        "image_mean": list(mean) * (channels // len(mean)),
        "image_std": list(std) * (channels // len(std)),
    }
    if architecture == "retinanet":
        pyramid = PyramidBackbone(backbone, stages, channels, scale.width, LastLevelP6P7(scale.width, scale.width))
        last = pyramid.strides[-1]
        strides = [*pyramid.strides, 2 * last, 4 * last]
        # Three sizes per octave (Lin et al. 2017, arXiv:1708.02002).
        sizes = tuple(tuple(int(ANCHOR_STRIDES * s * 2 ** (third / 3)) for third in range(3)) for s in strides)
        anchors = AnchorGenerator(sizes, (ANCHOR_RATIOS,) * len(strides))
        return RetinaNet(pyramid, classes, anchor_generator=anchors, **shared)
    pyramid = PyramidBackbone(backbone, stages, channels, scale.width, LastLevelMaxPool())
    strides = [*pyramid.strides, 2 * pyramid.strides[-1]]
    anchors = AnchorGenerator(tuple((ANCHOR_STRIDES * s,) for s in strides), (ANCHOR_RATIOS,) * len(strides))
    merged = [str(level) for level in range(len(pyramid.strides))]
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(merged, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(scale.width * 7**2, 4 * scale.width),
        box_predictor=FastRCNNPredictor(4 * scale.width, classes),
        rpn_batch_size_per_image=scale.anchors,
        rpn_pre_nms_top_n_train=scale.proposals[0],
        rpn_pre_nms_top_n_test=scale.proposals[1],
        rpn_post_nms_top_n_train=scale.proposals[0],
        rpn_post_nms_top_n_test=scale.proposals[1],
        box_batch_size_per_image=scale.boxes,
        **shared,
    )
