"""What NT-Xent's rows tell beside their loss: `NTXentStatistics`, from numbers that the loss has at hand anyway."""

from typing import NamedTuple

import torch
from torch import Tensor

from simclr_fast import distributed


class NTXentStatistics(NamedTuple):
    """Means over the rows of the whole batch, 0-dim tensors without gradient on the views' device.

    With a group every rank has those of all ranks' rows. Weights of the loss do not count here.

    accuracy: the share of rows whose positive has a larger logit than each of the row's negatives. A tie counts as
        wrong, so that embeddings that collapsed to one point do not look perfect; a row without negatives is right.
    positive_logit: s_ip, which is the cosine of a pair divided by the temperature.
    positive_probability: exp(s_ip) / (exp(s_ip) + sum of exp(s_ij) over the negatives j), which is exp(-L_i) of NT-Xent
        (also where the loss is decoupled).
    """

    accuracy: Tensor
    positive_logit: Tensor
    positive_probability: Tensor


@torch.no_grad()
def ntxent_statistics(
    lse_neg: Tensor, s_pos: Tensor, largest: Tensor, group: "torch.distributed.ProcessGroup | None"
) -> NTXentStatistics:
    """The means of rows whose negatives have these log-sum-exps and largest logits [n], and positives these logits."""
    found = s_pos.to(largest.dtype) > largest
    rows = torch.stack([found.to(s_pos.dtype), s_pos, torch.sigmoid(s_pos - lse_neg.to(s_pos.dtype))])  # [3, n]
    means = rows.mean(dim=1)
    if distributed.rank_and_size(group)[1] > 1:
        means = distributed.all_gather_shards(means[None], group).mean(dim=0)  # the ranks have equally many rows
    return NTXentStatistics(*means.to(lse_neg.dtype).unbind())
