"""torchvision's Faster R-CNN and RetinaNet on a feature pyramid over any of the project's backbones."""

import dataclasses

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

# The stages of the backbone that the pyramid is built on. For torchvision's ResNets as published (C2 to C5 for Faster
# R-CNN, C3 to C5 for RetinaNet); for the small one its two coarsest, of strides 4 and 8.
RESNET_STAGES = {
    "faster-rcnn": ("layer1", "layer2", "layer3", "layer4"),
    "retinanet": ("layer2", "layer3", "layer4"),
}
MINI_STAGES = ("blocks.2", "blocks.3")
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
ANCHOR_STRIDES = 4  # side of an anchor in strides of its level, in both publications


class PyramidBackbone(nn.Module):
    """Stages of a backbone merged top-down (Lin et al. 2017, arXiv:1612.03144), and coarser levels on top.

    images [B, C, H, W] -> {"0": [B, out_channels, H/s0, W/s0], "1": ..., ...}, finest first; `strides` are s0, s1, ...
    of the merged levels.
    """

    def __init__(
        self, backbone: nn.Module, stages: tuple[str, ...], channels_in: int, out_channels: int, coarser: ExtraFPNBlock
    ):
        super().__init__()
        nodes = get_graph_node_names(backbone)[1]
        # The last operation of a stage computes what its last block returns.
        last = [[node for node in nodes if node.startswith(f"{stage}.")][-1] for stage in stages]
        self.body = create_feature_extractor(backbone, {node: str(level) for level, node in enumerate(last)})
        side = 128
        with torch.no_grad():
            probe = self.body.eval()(torch.zeros(1, channels_in, side, side))
        self.strides = [side // level.shape[-1] for level in probe.values()]
        self.pyramid = FeaturePyramidNetwork([level.shape[1] for level in probe.values()], out_channels, coarser)
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
    *,
    channels: int,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: Scale,
) -> nn.Module:
    """A detector that trains `backbone` and everything above it.

    channels: of the images, which are floats [C, H, W] in [0, 1], normalised by mean and std inside.
    classes: with the background as class 0. Raises ValueError for an unknown architecture.
    """
    if architecture not in RESNET_STAGES:
        raise ValueError(f"architecture={architecture!r}: choose one of {', '.join(RESNET_STAGES)}")
    stages = RESNET_STAGES[architecture] if hasattr(backbone, "layer4") else MINI_STAGES
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
