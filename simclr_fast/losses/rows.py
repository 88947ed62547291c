"""How the losses of rows become the loss, in one process and in several: `reduce_rows`."""

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.ops.ntxent.reference import wide_dtype


def reduce_rows(
    losses: Tensor,
    reduction: str,
    group: "torch.distributed.ProcessGroup | None",
    *,
    dtype: torch.dtype,
    counted: Tensor | None = None,
) -> Tensor:
    """The row losses [n] of this process by `reduction`: the whole batch's mean or sum on every rank, or its own rows.

    The gradient is that of this rank's part times the number W of ranks, which the mean over ranks that
    DistributedDataParallel takes removes: parameters get the gradient of the whole batch's loss, given that the row
    losses' gradient is that of the sum over the ranks of what each makes of them, as `similarity_logsumexp`'s is.

    counted: [n] bool, the rows that "mean" averages over (None: all; of none the mean is 0); the losses of others must
    be zero. dtype: of the result.
    """
    if reduction == "none":
        return losses.to(dtype)
    world = distributed.rank_and_size(group)[1]
    own_sum = losses.sum(dtype=wide_dtype(losses))  # of one dtype on all ranks, whatever that of the weights
    own_count = own_sum.new_full((), losses.shape[0]) if counted is None else counted.sum().to(own_sum.dtype)
    total, count = own_sum.detach(), own_count
    if world > 1:
        total, count = distributed.all_gather_shards(torch.stack([total, count])[None], group).sum(dim=0)  # [W, 2] -> 2
    scale = 1 / count.clamp_min(1) if reduction == "mean" else torch.ones_like(count)
    value = own_sum * scale
    if world > 1:
        value = value * world + (total * scale - value.detach() * world)
    return value.to(dtype)
