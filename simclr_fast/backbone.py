"""Pretrained backbones for use elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load_backbone(path: str | Path, model: str | None = None) -> "nn.Module":
    """The backbone that SimCLR trained, mapping normalised images [B, C, H, W] to features [B, D].

    path: a run's folder (its newest checkpoint), a checkpoint file, an exported folder, or a backbone.safetensors.
    model: the name of its backbone; needed for one that a function of yours makes (`package.module:function`), because
    nothing that a file names is imported, and nothing in it executed. In eval mode, float32, on the CPU, without a
    classifier, for images of the size that it was trained on where the backbone is built for one (ViT). Raises
    CheckpointError for what is missing, damaged or foreign.

    Example:
        >>> backbone = load_backbone("runs/demo")
        >>> features = backbone(images)
    """
    # Imported here: the package itself needs only torch, this needs the `train` extra.
    from simclr_fast.caller import plain_torch
    from simclr_fast.evaluation.run import Run

    with plain_torch():
        return Run.open_any(Path(path), model).encoder()
