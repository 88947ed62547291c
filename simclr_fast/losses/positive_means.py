"""`positive_means`: the mean logit of each row with the other rows of its class, from sums over classes.

With unit rows u and class sums S_y = sum_{j of class y} u_j, the mean over the positives P(i) of row i needs no pair:

    mean_i = 1/|P(i)| sum_{p in P(i)} u_i . u_p / t = u_i . (S_y(i) - u_i) / (t |P(i)|),    O(M D).

Its gradient, with c_i = dmean_i / (t |P(i)|) and G_y = sum_{j of class y} c_j u_j, has the same shape:

    du_i = c_i S_y(i) + G_y(i) - 2 c_i u_i.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.losses.arguments import for_backward
from simclr_fast.losses.pairs import in_parts, through_normalization, wide_rows
from simclr_fast.ops.ntxent import function
from simclr_fast.ops.ntxent.reference import compute_dtype, unit_rows, wide_dtype, without_autocast


def positive_means(
    rows: Tensor,
    number: Tensor,
    limit: int,
    size: Tensor,
    temperature: float | Tensor,
    eps: float,
    backend: str,
    group: "torch.distributed.ProcessGroup | None",
    called: str,
) -> Tensor:
    """The mean logit of the positives of each row, in float64 where the device has it; 0 without a positive.

    rows [M, D]; number [W M], 0 to limit - 1: the class of all ranks' rows; size [M]: how many rows each own row's
    class has.
    backend: "reference" is plain PyTorch, also for second derivatives; any other is differentiable once, and keeps
    nothing of the rows' size for the backward pass but the unit rows. Its backward gathers [M] numbers.
    called: what users call, for messages.
    """
    positives = (size - 1).clamp_min(1)
    (rows,) = for_backward(rows)
    with without_autocast(rows.device):
        if backend == "reference":
            rank, world = distributed.rank_and_size(group)
            u = unit_rows(rows, eps)
            u_all = u if world == 1 else distributed.all_gather_with_gradient(u, group)
            sums = u.new_zeros((limit, u.shape[1])).index_add(0, number, u_all)
            own = number[rank * rows.shape[0] : (rank + 1) * rows.shape[0]]
            return (u * (sums[own] - u)).sum(dim=1) / positives / temperature
        value, tensor = (0.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)
        inputs = rows, number, limit, positives, tensor, value, float(eps), group, called
        return function.apply(_PositiveMeans, called, *inputs)[0]


class _PositiveMeans(torch.autograd.Function):
    """(means [M], u of all ranks [W M, D]). The log-sum-exp of every such loss refuses a second derivative."""

    @staticmethod
    def forward(rows, number, limit: int, positives, temperature_tensor, temperature: float, eps: float, group, called):
        rank, world = distributed.rank_and_size(group)
        t = temperature if temperature_tensor is None else temperature_tensor
        u = in_parts(lambda z: (wide_rows(z, eps)[0].to(compute_dtype(z.dtype)),), rows)[0]
        u_all = u if world == 1 else distributed.all_gather_shards(u, group)
        sums = _class_sums(u_all, number, limit)

        def means(u: Tensor, number: Tensor) -> tuple[Tensor]:
            wide = u.to(sums.dtype)
            return ((wide * (sums[number] - wide)).sum(dim=1),)

        return in_parts(means, u, _own(number, rank, u))[0] / positives / t, u_all

    @staticmethod
    def setup_context(ctx, inputs, output):
        rows, number, ctx.limit, positives, temperature_tensor, ctx.temperature, ctx.eps, ctx.group, _ = inputs
        means, u_all = output
        ctx.mark_non_differentiable(u_all)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, number, positives, temperature_tensor, means, u_all)

    @staticmethod
    def backward(ctx, dmeans, _):
        if dmeans is None:
            return (None,) * 9
        rows, number, positives, temperature_tensor, means, u_all = ctx.saved_tensors
        rank, world = distributed.rank_and_size(ctx.group)
        t = ctx.temperature if temperature_tensor is None else temperature_tensor
        drows = dt = None
        with without_autocast(rows.device):
            c = dmeans / positives / t  # [M]
            c_all = c if world == 1 else distributed.all_gather_shards(c, ctx.group)
            if ctx.needs_input_grad[0]:
                sums = _class_sums(u_all, number, ctx.limit)
                weighted_sums = _class_sums(u_all, number, ctx.limit, c_all)

                def gradient(z: Tensor, number: Tensor, c: Tensor) -> tuple[Tensor]:
                    u, norm = wide_rows(z, ctx.eps)
                    c = c[:, None]
                    du = c * sums[number] + weighted_sums[number] - 2 * c * u
                    radial = (u * du).sum(dim=1, keepdim=True)
                    return (through_normalization(du, u, norm, ctx.eps, 1, radial).to(z.dtype),)

                drows = in_parts(gradient, rows, _own(number, rank, rows), c)[0]
            if ctx.needs_input_grad[4]:
                dt = (-(dmeans * means).sum() / t).to(temperature_tensor.dtype)
        return drows, None, None, None, dt, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *inputs):
        function.refuse_vmap(inputs[-1])


def _own(number: Tensor, rank: int, rows: Tensor) -> Tensor:
    return number[rank * rows.shape[0] : (rank + 1) * rows.shape[0]]


def _class_sums(u: Tensor, number: Tensor, limit: int, weights: Tensor | None = None) -> Tensor:
    """sum of (weighted) rows u [.., D] by class, [limit, D], in float64 where the device has it.

    Each class is a bag of rows, added up by one thread: always in the same order, unlike index_add on CUDA.
    """
    ordered, order = number.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(limit, device=u.device))
    wide = u.to(wide_dtype(u))
    weights = None if weights is None else weights[order]
    return F.embedding_bag(order, wide, starts, mode="sum", per_sample_weights=weights)
