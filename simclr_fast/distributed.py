"""What the losses need of torch.distributed: the size of a group, gathers of equal shards, a check that they are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


def default_group() -> "dist.ProcessGroup | None":
    """The group of all processes, or None where this process runs alone. ValueError where torch lacks distributed."""
    if not dist.is_available():
        raise ValueError("gather_distributed=True needs torch.distributed, which this torch was built without")
    return dist.group.WORLD if dist.is_initialized() else None


def rank_and_size(group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """(rank, number of processes) in `group`; (0, 1) for None. TypeError or ValueError for what is no group of ours."""
    if group is None:
        return 0, 1
    # While torch.compile traces, an object that stands for the group has another type.
    if not torch.compiler.is_compiling() and not (dist.is_available() and isinstance(group, (dist.ProcessGroup, int))):
        raise TypeError(
            f"group is a {type(group).__name__}: pass a torch.distributed.ProcessGroup, or None for one process"
        )
    rank = dist.get_rank(group)  # new_group gives a number to processes that are left out
    if rank < 0:
        raise ValueError("group: this process does not belong to it; pass a group that this rank is a member of")
    return rank, dist.get_world_size(group)


def all_gather_shards(shard: Tensor, group: "dist.ProcessGroup") -> Tensor:
    """The shards [n, ...] of all ranks, equal in shape, in rank order: [W n, ...]. One collective, no gradient."""
    gathered = shard.new_empty((dist.get_world_size(group) * shard.shape[0], *shard.shape[1:]))
    # One collective under two names: torch 2.13 brought the first, and torch 2.14 warns at every call of the second.
    all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    all_gather(gathered, shard.contiguous(), group=group)
    return gathered


class Shared(NamedTuple):
    """A number that all ranks must have alike."""

    name: str
    value: float | Tensor  # an index where there are `choices`; a tensor has one element, on any rank's device
    remedy: str
    choices: tuple = ()


def check_same_on_all_ranks(
    shared: Sequence[Shared], device: torch.device, group: "dist.ProcessGroup", width: int
) -> None:
    """Raises on every rank if one of these numbers, at most `width`, differs between ranks.

    A collective of unequal sizes hangs or mixes up memory, and unequal settings drift apart in silence, so this gather
    goes before: of `width` numbers a rank, however many are compared. On the CPU the values are compared here, and a
    ValueError names the first that differs. On CUDA nothing waits: an assertion in stream order stops the device.
    """
    tensors = {s.name: s.value for s in shared if isinstance(s.value, Tensor)}
    numbers = [0.0 if s.name in tensors else s.value for s in shared]
    own = torch.tensor(numbers + [0.0] * (width - len(shared)), dtype=torch.float64, device=device)
    for column, s in enumerate(shared):
        if s.name in tensors:
            own[column] = tensors[s.name].detach()
    gathered = all_gather_shards(own[None], group)  # [W, width]
    equal = (gathered.view(torch.int64) == own.view(torch.int64)).all(dim=0)  # bits: NaN is NaN
    if device.type == "cpu" and not torch.compiler.is_compiling():
        for same, column, s in zip(equal.tolist(), gathered.T.tolist(), shared):
            if not same:
                values = [s.choices[int(value)] if s.choices else value for value in column]
                raise ValueError(f"{s.name} must be the same on all ranks of the group; by rank: {values}; {s.remedy}")
    else:
        names = ", ".join(s.name for s in shared)
        torch._assert_async(equal.all(), f"all ranks of the group must have the same {names}")


class _AllGatherWithGradient(torch.autograd.Function):
    """all_gather_shards whose backward sums the gradients that all ranks have for this rank's shard."""

    @staticmethod
    def forward(ctx, shard: Tensor, group: "dist.ProcessGroup") -> Tensor:
        ctx.group = group
        return all_gather_shards(shard, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _SumOfShards.apply(gradient, ctx.group), None


class _SumOfShards(torch.autograd.Function):
    """This rank's shard [n, ...] of the sum over ranks of what each has for all shards [W n, ...].

    It is the adjoint of the gather, as the gather is its: each is the other's backward, for derivatives of any order.
    """

    @staticmethod
    def forward(ctx, all_shards: Tensor, group: "dist.ProcessGroup") -> Tensor:
        ctx.group = group
        rank, size = rank_and_size(group)
        total = all_shards.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.chunk(size)[rank].clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllGatherWithGradient.apply(gradient, ctx.group), None


def all_gather_with_gradient(shard: Tensor, group: "dist.ProcessGroup") -> Tensor:
    """all_gather_shards for autograd; its backward communicates as much again, which fused losses avoid."""
    return _AllGatherWithGradient.apply(shard, group)
