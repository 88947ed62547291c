"""The command `pretrain`: from options to a training run, on this process or on those that torchrun started."""

import logging
from collections.abc import Set
from pathlib import Path

import torch
from rich.console import Console

from simclr_fast.backbones.registry import family_of
from simclr_fast.checkpoint import checkpoints, load
from simclr_fast.config import Config, RunOptions, check
from simclr_fast.data import load_dataset
from simclr_fast.data.own_files import require_apart
from simclr_fast.errors import CheckpointError, ConfigError
from simclr_fast.models import describe_encoder
from simclr_fast.named_options import changed
from simclr_fast.optim import peak_lr
from simclr_fast.process import start_process
from simclr_fast.training.folder import RunFolder
from simclr_fast.training.loop import train

log = logging.getLogger(__name__)


def pretrain(config: Config, named: Set[str] = frozenset()) -> int:
    """Train; returns the exit status. named: the options that the user named, whose values are no recipe's defaults.

    Raises the errors of `errors.EXIT_STATUS`.
    """
    process = start_process(config.speed.device, config.speed.threads)
    if "warmup_epochs" not in named:
        config = with_fitting_warmup(config)
    check(config, process.world_size)
    if config.data.dataset != "mnist5k":  # which reads no folder
        require_apart(config.run.output, config.data.data, is_renamed=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.speed.tf32
    with RunFolder(config, process) as folder:
        if family_of(config.model.model).allocates_as_told:  # what cannot be built is told before data are looked at
            describe_encoder(config.model, 3, config.augment.size)
        dataset = load_dataset(config.data)
        if "batch_size" not in named:
            config = with_fitting_batch(config, len(dataset.train), process.world_size)
            check(config, process.world_size)
        return train(config, dataset, process, Console(), folder)


def with_fitting_warmup(config: Config) -> Config:
    """The options with a warm-up that the epochs leave room for, where the recipe's is longer than the whole run.

    A run that goes on for more epochs keeps the one that it began with.
    """
    options, begun = config.optimization, warmup_begun_with(config.run)
    if begun is not None and begun <= options.epochs:
        return changed(config, {"warmup_epochs": begun})
    if options.warmup_epochs <= options.epochs or options.epochs < 1:  # of which `check` will speak
        return config
    fitting = options.epochs / 10
    log.warning(
        "the recipe's warm-up of %g epochs is cut to a tenth of the run: --warmup-epochs %g",
        options.warmup_epochs,
        fitting,
    )
    return changed(config, {"warmup_epochs": fitting})


def warmup_begun_with(run: RunOptions) -> float | None:
    """The warm-up (epochs) in the checkpoint that --resume goes on from; None without one that can be used.

    What is wrong with a checkpoint is said where the run goes on from it.
    """
    newest_first = [*reversed(checkpoints(run.output))] if run.resume == "auto" else [Path(run.resume or "")]
    for path in newest_first if run.resume is not None else ():
        try:
            return float(load(path)["config"]["optimization"]["warmup_epochs"])
        except (CheckpointError, KeyError, TypeError, ValueError):
            continue
    return None


def with_fitting_batch(config: Config, images: int, world_size: int) -> Config:
    """The options with a batch of at most so many training images, of which every process takes as many."""
    size = min(config.optimization.batch_size, images // world_size * world_size)
    if size == config.optimization.batch_size:
        return config
    if size // world_size < 1 or size < 2:
        raise ConfigError(f"--data {config.data.data}: too few training images ({images}); two per step are needed")
    fitting = changed(config, {"batch_size": size})
    log.warning(
        "the recipe's batch of %d is cut to the data set: --batch-size %d, peak learning rate %.3g",
        config.optimization.batch_size,
        size,
        peak_lr(fitting.optimization),
    )
    return fitting
