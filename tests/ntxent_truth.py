"""NT-Xent in tests: the embeddings it is tried on, its float64 truth, errors of its gradient, and its three steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import normalize_rows, row_loss, row_statistics

EPS = 1e-8
KINDS = ("random", "aligned", "opposed", "equal", "zero rows", "huge row")
TEMPERATURES = (0.5, 0.1, 0.05, 0.03, 0.01)
# The first rows of both views, which the kind makes special: their gradients have another scale than the others'.
SPECIAL_ROWS = {"zero rows": 3, "huge row": 1}


def embeddings(kind: str, n: int, d: int, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    """Views [2, n, d] of a kind of KINDS, or "extreme": random but for rows that are zero, tiny and huge."""
    z = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    if kind == "aligned":
        z[1] = z[0] + 0.3 * z[1]
    elif kind == "opposed":
        z[1] = -z[0]
    elif kind == "equal":
        z[:] = z[0, 0].clone()
    elif kind == "zero rows":  # in one view, in the other, in both
        z[0, 0] = z[1, 1 % n] = z[:, 2 % n] = 0
    elif kind == "huge row":
        z[0, 0] *= 60000 / z[0, 0].abs().max() if dtype == torch.float16 else 1e30
    elif kind == "extreme":
        huge = 1e30 if dtype in (torch.float32, torch.bfloat16) else 6e4 if dtype == torch.float16 else 1e200
        z[0, 0] = 0
        z[1, 0] *= 1e-9  # up to 100 columns shorter than EPS, yet of a length that matters
        z[1, -1] = huge * z[1, -1].sign()
    elif kind != "random":
        raise ValueError(f"kind must be one of {KINDS} or extreme, got {kind!r}")
    return z.to(dtype)


def shards_of(views: Tensor, world: int) -> list[tuple[Tensor, Tensor]]:
    """views [2, N, D] -> the (z0, z1) of each process."""
    return [(z0.contiguous(), z1.contiguous()) for z0, z1 in zip(views[0].chunk(world), views[1].chunk(world))]


@dataclass(frozen=True)
class Truth:
    """For one process of several: its row losses [2n], the statistics [M] of all rows, and the gradients of
    sum_i w_i L_i over all rows of all processes."""

    losses: Tensor
    lse_neg: Tensor
    s_pos: Tensor
    dz0: Tensor
    dz1: Tensor
    dt: Tensor  # of this process's rows only


def truth(
    shards: list[tuple[Tensor, Tensor]], rank: int, temperature: float, weights: Tensor, eps: float = EPS
) -> Truth:
    """Float64 autograd of the reference for process `rank`; weights [M] are dL/dL_i of all rows, in rank order."""
    inputs = [[z.detach().double().requires_grad_() for z in shard] for shard in shards]
    own_t, other_t = (torch.tensor(temperature, dtype=torch.float64, requires_grad=True) for _ in range(2))
    u = [normalize_rows(torch.cat(shard), eps) for shard in inputs]
    rows = u[0].shape[0]
    statistics = [
        row_statistics(of_rank, torch.cat(u), own_t if k == rank else other_t, row_offset=k * rows)
        for k, of_rank in enumerate(u)
    ]
    lse_neg, s_pos = (torch.cat(of_ranks) for of_ranks in zip(*statistics))
    losses = row_loss(lse_neg, s_pos)
    (losses * weights.double()).sum().backward()
    z0, z1 = inputs[rank]
    own = losses[rank * rows : (rank + 1) * rows]
    return Truth(own.detach(), lse_neg.detach(), s_pos.detach(), z0.grad, z1.grad, own_t.grad)


def mean_truth(z0: Tensor, z1: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, its gradient [2n, d] and its derivative by the temperature, in float64 of the same rounded inputs."""
    rows = 2 * z0.shape[0]
    exact = truth([(z0, z1)], 0, temperature, torch.full((rows,), 1 / rows, dtype=torch.float64))
    return exact.losses.mean(), torch.cat([exact.dz0, exact.dz1]), exact.dt


def gradient_error(dz: Tensor, dz_true: Tensor, z: Tensor, temperature: float, kind: str) -> float:
    """Relative error of the gradient [2n, d]; of special rows apart, lest they hide the others.

    Where the true gradient is zero by symmetry (equal rows, one column, one sample), against its natural scale
    2 / (t M |z_i|).
    """
    rows = dz_true.shape[0]
    error = dz.double() - dz_true
    if kind == "equal" or z.shape[1] == 1 or rows == 2:
        natural = 2 / (temperature * rows * z.double().norm(dim=1, keepdim=True).clamp_min(EPS))
        return (error / natural).norm(dim=1).max().item()
    special = torch.arange(rows) % (rows // 2) < SPECIAL_ROWS.get(kind, 0)
    errors = [error[group].norm() / dz_true[group].norm() for group in (special, ~special) if group.any()]
    return torch.stack(errors).nan_to_num(float("inf")).max().item()


def half_scale(dz_true: Tensor, kind: str) -> float:
    """The power of two that brings an ordinary row of the gradient near 1, as a GradScaler would."""
    if kind == "equal":  # the true gradient is 0
        return 1024.0
    return 2.0 ** -dz_true.norm(dim=1).median().log2().round().item()


def half_error(dz: Tensor, dz_true: Tensor, z: Tensor, temperature: float, kind: str) -> float:
    """gradient_error of a gradient of a half type against the true one rounded to that type, all that it can hold.

    Overflow (rows of length 0: 1 / eps) must be where the rounded one has it.
    """
    rounded = dz_true.to(dz.dtype).double()
    if not torch.equal(dz.isinf(), rounded.isinf()):
        return float("inf")
    return gradient_error(dz.masked_fill(dz.isinf(), 0), rounded.masked_fill(rounded.isinf(), 0), z, temperature, kind)


def error_beside_rounding(dz: Tensor, dz_true: Tensor) -> float:
    """Relative error of a gradient of a half type, without what rounding it to that type adds, which is independent.

    Small errors make some entries round the other way, so that a distance from the rounded gradient exaggerates them.
    """
    rounding = (dz_true.to(dz.dtype).double() - dz_true).square().sum()
    return ((dz.double() - dz_true).square().sum() - rounding).clamp_min(0).sqrt().item() / dz_true.norm().item()


class Steps(Protocol):
    """The three operators of a backend: ops.Ops or TritonNtxent."""

    normalize: Callable[..., tuple[Tensor, Tensor]]
    fwd: Callable[..., tuple[Tensor, Tensor, Tensor]]
    bwd: Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Values:
    """What the three steps return."""

    u: Tensor
    loss: Tensor
    lse_neg: Tensor
    s_pos: Tensor
    dz0: Tensor
    dz1: Tensor
    dt: Tensor


def run_steps(
    steps: Steps,
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor,
    dloss: Tensor | float = 1.0,
    *,
    reduction: str = "mean",
    precision: str = "ieee",
    need_dt: bool = True,
    dz_dtype: torch.dtype | None = None,
) -> Values:
    """The three operators on the views of one process. dloss: a number stands for a tensor of the loss's shape.

    dz_dtype: of the z that bwd is given, and so of the gradient, where it is not that of the views.
    """
    value, tensor = (0.0, temperature) if isinstance(temperature, Tensor) else (temperature, None)
    u, inv_norm = steps.normalize(z0, z1, EPS)
    loss, lse_neg, s_pos = steps.fwd(u, z0.shape[0], 0, value, tensor, reduction, precision)
    if not isinstance(dloss, Tensor):
        dloss = torch.full_like(loss, dloss)
    z0, z1 = (z.to(dz_dtype or z.dtype) for z in (z0, z1))
    gradients = steps.bwd(
        dloss, z0, z1, u, inv_norm, lse_neg, s_pos, 0, reduction, EPS, value, tensor, precision, need_dt
    )
    return Values(u, loss, lse_neg, s_pos, *gradients)
