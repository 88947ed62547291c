"""What NT-Xent kernels are compared with: float64 autograd of the reference, for the rows of one process of several."""

from dataclasses import dataclass

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import normalize_rows, row_losses


@dataclass(frozen=True)
class Truth:
    """Row losses [2n], and the gradients of sum_i w_i L_i over all rows of all processes, for one process's inputs."""

    losses: Tensor
    dz0: Tensor
    dz1: Tensor
    dt: Tensor  # of this process's rows only


def shards_of(views: Tensor, world: int) -> list[tuple[Tensor, Tensor]]:
    """views [2, N, D] -> the (z0, z1) of each process."""
    return [(z0.contiguous(), z1.contiguous()) for z0, z1 in zip(views[0].chunk(world), views[1].chunk(world))]


def truth(shards: list[tuple[Tensor, Tensor]], rank: int, temperature: float, weights: Tensor, eps: float) -> Truth:
    """Float64 truth for process `rank`; weights [M] are dL/dL_i of all rows, in rank order."""
    inputs = [[z.detach().double().requires_grad_() for z in shard] for shard in shards]
    own_t, other_t = (torch.tensor(temperature, dtype=torch.float64, requires_grad=True) for _ in range(2))
    u = [normalize_rows(torch.cat(shard), eps) for shard in inputs]
    rows = u[0].shape[0]
    losses = [
        row_losses(of_rank, torch.cat(u), own_t if k == rank else other_t, row_offset=k * rows)
        for k, of_rank in enumerate(u)
    ]
    (torch.cat(losses) * weights.double()).sum().backward()
    z0, z1 = inputs[rank]
    return Truth(losses[rank].detach(), z0.grad, z1.grad, own_t.grad)


def embeddings(kind: str, n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Views [2, n, d] that are random, aligned (positives nearly equal), opposed (positives negated), or random with
    rows that are zero, tiny and huge (extreme)."""
    z = torch.randn(2, n, d, dtype=torch.float64)
    if kind == "aligned":
        z[1] = z[0] + 0.3 * z[1]
    elif kind == "opposed":
        z[1] = -z[0]
    elif kind == "extreme":
        huge = 1e30 if dtype in (torch.float32, torch.bfloat16) else 6e4 if dtype == torch.float16 else 1e200
        z[0, 0] = 0
        z[1, 0] *= 1e-9
        z[1, -1] = huge * z[1, -1].sign()
    elif kind != "random":
        raise ValueError(f"kind must be random, aligned, opposed or extreme, got {kind!r}")
    return z.to(dtype)
