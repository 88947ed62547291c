"""--initial-checkpoint: the weights that a run starts from, in the formats that people have them in."""

import logging
from pathlib import Path

import torch

from simclr_fast.checkpoint import load_weights
from simclr_fast.errors import CheckpointError
from simclr_fast.models import SimCLR
from simclr_fast.tensor_file import read

log = logging.getLogger(__name__)


def load_initial_weights(model: SimCLR, path: Path) -> None:
    """Load a checkpoint of train.py, or a state dict of the backbone, whose head then starts at random.

    State dicts are those of torchvision's models, with or without their classifier `fc`, of `backbone.pth` that
    `python -m simclr_fast.evaluation export` wrote, and of torchvision-like programs that keep them under
    "state_dict" and prefix names by "module.". Raises CheckpointError with what differs.
    """
    content = read(path)
    if isinstance(content, dict) and isinstance(content.get("version"), int):
        load_weights(model, content.get("model"), str(path))
        return
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise CheckpointError(f"{path}: neither a checkpoint of train.py nor a state dict of a backbone")
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    if any(key.startswith("backbone.") for key in weights):
        load_weights(model, weights, str(path))
        return
    classifier = [key for key in weights if key.startswith("fc.")]
    weights = {key: value for key, value in weights.items() if key not in classifier}
    # Files older than torch 0.4.1 lack these counters, which nothing here reads.
    for key, value in model.backbone.state_dict().items():
        if key.endswith("num_batches_tracked"):
            weights.setdefault(key, torch.zeros_like(value))
    load_weights(model.backbone, weights, str(path))
    left = " without its classifier fc" if classifier else ""
    log.info("the backbone starts from %s%s, the projection head at random", path, left)
