"""The command `pretrain`: from options to a training run, on this process or on those that torchrun started."""

import torch
from rich.console import Console

from simclr_fast.config import Config, check
from simclr_fast.process import start_process
from simclr_fast.training.folder import RunFolder
from simclr_fast.training.loop import train


def pretrain(config: Config) -> int:
    """Train; returns the exit status. Raises the errors of `errors.EXIT_STATUS`."""
    process = start_process(config.speed.device, config.speed.threads)
    check(config, process.world_size)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.speed.tf32
    with RunFolder(config, process) as folder:
        return train(config, process, Console(), folder)
