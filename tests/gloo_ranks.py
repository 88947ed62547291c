"""Work of several gloo processes in tests: what each rank returns, and what it is told of calls that are refused."""

import datetime
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from tests.forked import CONTEXT


def _run(rank: int, world: int, folder: Path, work: Callable[[int, int], Any]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=600))
    try:
        torch.save(work(rank, world), folder / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_ranks(work: Callable[[int, int], Any], world: int, folder: Path) -> list:
    """What work(rank, world), a function of a module, returns on each rank; the folder, an empty one, holds files."""
    start_processes(_run, (world, folder, work), nprocs=world, start_method=CONTEXT.get_start_method())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def refusals_of(calls: Iterable[Callable[[], object]]) -> list[str]:
    """The messages of the ValueErrors that the calls raise; one that raises none has none."""
    messages = []
    for call in calls:
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    return messages
