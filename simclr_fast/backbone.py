"""Pretrained backbones for use elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load_backbone(path: str | Path) -> "nn.Module":
    """The backbone that SimCLR trained, mapping normalised images [B, C, H, W] to features [B, D].

    path: a run's folder (its newest checkpoint), a checkpoint file, an exported folder, or a backbone.safetensors.
    In eval mode, float32, on the CPU; for torchvision's ResNets the classifier `fc` is the identity. Nothing in the
    files is executed. Raises CheckpointError for what is missing, damaged or foreign.

    Example:
        >>> backbone = load_backbone("runs/demo")
        >>> features = backbone(images)
    """
    # Imported here: the package itself needs only torch, this needs the `train` extra.
    from simclr_fast.evaluation.run import WEIGHTS_FILE, Run, read_exported

    path = Path(path)
    if path.suffix == ".safetensors":
        return read_exported(path)
    if (path / WEIGHTS_FILE).is_file():
        return read_exported(path / WEIGHTS_FILE)
    return Run.open(path).encoder()
