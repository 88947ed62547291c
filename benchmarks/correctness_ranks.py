"""What each loss gives under DistributedDataParallel: two processes with half of the batch against one with all."""

import tempfile
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.correctness_cases import LOSSES, Case, inputs, truth
from benchmarks.correctness_implementations import of_loss
from benchmarks.harness import in_a_line

WORLD = 2
CASE = Case("random", "float32", 0.1)
SAMPLES = 36  # of the case's, so that ranks have equally many
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Scale:
    """DDP's gradient (the mean of the ranks') over that of the whole batch's loss, and the same of the values.

    direction: distance of the gradient from `gradient` times the true one, in lengths of the true one. reason: why
    there are no figures.
    """

    gradient: float = 0.0
    value: float = 0.0
    direction: float = 0.0
    reason: str = ""


def whole(name: str) -> tuple[Tensor, ...]:
    """The whole batch."""
    z0, z1, *extra = inputs(LOSSES[name], CASE)
    if name == "sup_con":
        extra = [extra[0].view(2, -1)[:, :SAMPLES].reshape(-1)]
    return z0[:SAMPLES].contiguous(), z1[:SAMPLES].contiguous(), *extra


def part(name: str, made: tuple[Tensor, ...], rank: int) -> tuple[Tensor, ...]:
    """A rank's rows of both views, and its labels; the bank is everybody's."""
    z0, z1, *extra = made
    if name == "sup_con":
        extra = [extra[0].view(2, -1).chunk(WORLD, dim=1)[rank].reshape(-1)]
    return z0.chunk(WORLD)[rank].contiguous(), z1.chunk(WORLD)[rank].contiguous(), *extra


def _step(name: str, implementation, rank: int, device: torch.device) -> tuple[float, Tensor] | str:
    """Value and gradient [2n, D] on this rank, or how it failed."""
    z0, z1, *extra = (x.to(device) for x in part(name, whole(name), rank))
    leaves = [z0.requires_grad_(), z1.requires_grad_()]
    try:
        loss = implementation.gathered(CASE.temperature)(*leaves, *extra)
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
    except Exception as error:
        return f"raises {in_a_line(error)}"
    return loss.item(), torch.cat(gradients).cpu()


def _worker(rank: int, names: tuple[str, ...], device_type: str, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo", f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    try:
        found = {
            (name, made.name): _step(name, made, rank, device)
            for name in names
            for made in of_loss(name)
            if made.gathered and made.absent(device) is None
        }
        torch.save(found, Path(folder) / f"{rank}.pt")
    except Exception:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def scale_of(name: str, ranks: list[tuple[float, Tensor] | str]) -> Scale:
    """What the ranks' values and gradients, in rank order, are of the whole batch's."""
    if failed := [found for found in ranks if isinstance(found, str)]:
        return Scale(reason=failed[0])
    made = whole(name)
    value, gradient = truth(LOSSES[name], made, CASE.temperature)
    shards = [part(name, (*gradient.chunk(2), *made[2:]), rank)[:2] for rank in range(WORLD)]
    true = torch.cat([torch.cat(shard) for shard in shards])
    mean = torch.cat([found[1] for found in ranks]).double() / WORLD
    scale = ((mean * true).sum() / true.square().sum()).item()
    direction = ((mean - scale * true).norm() / true.norm()).item()
    return Scale(scale, sum(found[0] for found in ranks) / WORLD / value, direction)


def scales(names: tuple[str, ...], device: torch.device) -> dict[tuple[str, str], Scale]:
    """By loss and implementation: every one that has a form for several processes."""
    if device.type == "cuda" and torch.cuda.device_count() < WORLD:
        reason = Scale(reason=f"needs {WORLD} GPUs")
        return {(name, made.name): reason for name in names for made in of_loss(name) if made.gathered}
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (names, device.type, folder), nprocs=WORLD)
        ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    return {key: scale_of(key[0], [rank[key] for rank in ranks]) for key in ranks[0]}
