"""A short training by the step alone, in this process or in several, to compare weights."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from simclr_fast.config import Config
from simclr_fast.process import start_process, stop_process
from simclr_fast.recipes import RECIPES
from simclr_fast.training.state import TrainState
from simclr_fast.training.views import Views

BATCH = 16


def config(norm: str, micro_batch_size: int = 0, opt: str = "lars", **speed) -> Config:
    demo = RECIPES["demo"]
    return dataclasses.replace(
        demo,
        augment=dataclasses.replace(demo.augment, size=12, jitter=(0.4, 0.4, 0.0, 0.0)),
        model=dataclasses.replace(demo.model, norm=norm, head_hidden=32, head_dim=16),
        optimization=dataclasses.replace(
            demo.optimization,
            temperature=0.2,
            batch_size=BATCH,
            micro_batch_size=micro_batch_size,
            opt=opt,
            lr=0.1,
        ),
        speed=dataclasses.replace(demo.speed, **speed),
    )


def images() -> Tensor:
    return torch.randint(0, 256, (BATCH, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def weights_after(
    options: Config, steps: int = 5, *, rank: int = 0, world_size: int = 1, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The model's state after steps on this process's share of the same images.

    dtype: half types are autocast to, float64 is what the whole model is in.
    """
    # Here, since the images and options above serve also where a package that the loop needs is missing.
    from simclr_fast.training.loop import build_step

    torch.set_num_threads(1)
    process = start_process("cpu")
    autocast = None if dtype == torch.float64 else dtype
    state = TrainState.create(options, 1, process.device, autocast=autocast, several=world_size > 1)
    if dtype == torch.float64:
        state.model.double()
    views = Views(options.augment, seed=7, dtype=dtype, channels_last=options.speed.channels_last)
    step = build_step(state, views, options, process, autocast)
    share = BATCH // world_size
    indices = torch.arange(BATCH)[rank * share : (rank + 1) * share]
    for k in range(steps):
        draw = views.draw(indices, k, first=rank * share, batch_size=BATCH)
        step(images()[indices], draw, lr=options.optimization.lr, measure=k % 2 == 1)
    return {name: tensor.detach().clone() for name, tensor in state.model.state_dict().items()}


def run_rank(
    rank: int, world_size: int, options: Config, dtype: torch.dtype | None, environment: dict[str, str], output: Path
) -> None:
    """Target of a process: write what rank 0 ends with."""
    import os

    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)})
    weights = weights_after(options, rank=rank, world_size=world_size, dtype=dtype)
    if rank == world_size - 1:
        torch.save(weights, output)
    stop_process()
