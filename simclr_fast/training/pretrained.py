"""Weights that a run begins with (--pretrained): published ones by name, and files in the formats that people have."""

import logging
from pathlib import Path
from typing import Any

import torch

from simclr_fast.backbones.family import Spec
from simclr_fast.backbones.registry import family_of
from simclr_fast.checkpoint import load_weights
from simclr_fast.errors import CheckpointError, ConfigError, first_line
from simclr_fast.models import SimCLR
from simclr_fast.tensor_file import read

CLASSIFIERS = ("fc.", "classifier.", "heads.", "head.")  # of torchvision's and timm's families

log = logging.getLogger(__name__)


def load_pretrained(model: SimCLR, name_or_file: str, spec: Spec) -> None:
    """Load published weights of the backbone `spec`, or a file; unless it is a whole model, the head stays random.

    Files are checkpoints of this program and state dicts: of torchvision's and timm's models, with or without their
    classifier, of `backbone.pth` and `backbone.safetensors` that the command `export` wrote, and of programs that keep
    them under "state_dict" and prefix names by "module.". Nothing in a file is executed. Raises ConfigError for what is
    neither, CheckpointError with what differs.
    """
    family = family_of(spec.name)
    content: Any = family.weights(spec, name_or_file)
    if content is None:
        content = _read_file(name_or_file, spec, family.weight_names(spec))
    if isinstance(content, dict) and isinstance(content.get("version"), int):
        load_weights(model, content.get("model"), name_or_file)
        return
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise CheckpointError(f"{name_or_file}: neither a checkpoint of simclr_fast nor a state dict of a backbone")
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    if any(key.startswith("backbone.") for key in weights):
        load_weights(model, weights, name_or_file)
        return
    own = model.backbone.state_dict()
    left_out = [key for key in weights if key.startswith(CLASSIFIERS) and key not in own]
    weights = {key: value for key, value in weights.items() if key not in left_out}
    # Files older than torch 0.4.1 lack these counters, which nothing here reads.
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            weights.setdefault(key, torch.zeros_like(value))
    load_weights(model.backbone, weights, name_or_file)
    classifier = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in left_out))
    without = f" without its classifier {classifier}" if left_out else ""
    log.info("the backbone starts from %s%s, the projection head at random", name_or_file, without)


def _read_file(name: str, spec: Spec, published: list[str]) -> Any:
    path = Path(name)
    if not path.is_file():
        known = f" nor weights of {spec.name}: {', '.join(published)}" if published else ""
        raise ConfigError(f"--pretrained {name}: {'neither' if known else 'not'} a file that is there{known}")
    if path.suffix != ".safetensors":
        return read(path)
    import safetensors.torch  # here, since a step of training does without it

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({first_line(error)})") from error
