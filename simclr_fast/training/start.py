"""How a run begins: its number format, its folder, and the weights or the state it starts from."""

import logging
from pathlib import Path

import torch

from simclr_fast.checkpoint import checkpoints, load, load_newest, load_weights
from simclr_fast.config import Config, ConfigError
from simclr_fast.training.metrics import METRICS_FILE
from simclr_fast.training.process import Process
from simclr_fast.training.state import TrainState

log = logging.getLogger(__name__)


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for --amp-dtype, None for no autocast. Raises ConfigError where the GPU has no bfloat16."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("--amp-dtype bfloat16: this GPU has none; pass float16")
    return None if name == "float32" else getattr(torch, name)


def prepare_folder(config: Config, process: Process) -> None:
    """Make the run's folder. One that holds another run is renamed first, unless this run resumes: nothing is lost."""
    folder = config.run.output
    if process.is_main:
        used = (folder / METRICS_FILE).exists() or bool(checkpoints(folder))
        if used and config.run.resume is None and config.run.profile == 0:
            number = 1
            while (kept := folder.with_name(f"{folder.name}.old-{number}")).exists():
                number += 1
            folder.rename(kept)
            log.warning("%s held another run; it is now %s (--resume auto would have gone on with it)", folder, kept)
        folder.mkdir(parents=True, exist_ok=True)
    process.barrier()


def start_from(state: TrainState, config: Config) -> None:
    """Put the state where --resume or --initial-checkpoint says."""
    if config.run.resume is not None and config.model.initial_checkpoint is not None:
        raise ConfigError("--initial-checkpoint and --resume: pass one of them")
    if config.model.initial_checkpoint is not None:
        path = config.model.initial_checkpoint
        load_weights(state.model, load(path)["model"], str(path))
        if state.ema is not None:
            state.ema.module.load_state_dict(state.model.state_dict())
    elif config.run.resume == "auto":
        found = load_newest(config.run.output)
        if found is not None:
            path, content = found
            state.restore(content, config, str(path))
            log.info("going on from %s", path)
    elif config.run.resume is not None:
        path = Path(config.run.resume)
        state.restore(load(path), config, str(path))
