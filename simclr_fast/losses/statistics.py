"""What NT-Xent's rows tell beside their loss: `NTXentStatistics`, from numbers that the loss has at hand anyway."""

from typing import NamedTuple

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.ops.ntxent.ops import operand_dtype
from simclr_fast.ops.ntxent.reference import compute_dtype


class NTXentStatistics(NamedTuple):
    """Means over the rows of the whole batch, 0-dim tensors without gradient on the views' device.

    With a group every rank has those of all ranks' rows. Weights of the loss do not count here.

    accuracy: the share of rows whose positive has a larger logit than each of the row's negatives. A tie counts as
        wrong, so that embeddings that collapsed to one point score 0, and a tie is what rounding cannot tell from one:
        cosines closer than `cosine_error` (2e-6 in float32, 1e-3 of halves on CUDA). A row without negatives is right.
    positive_logit: s_ip, which is the cosine of a pair divided by the temperature.
    positive_probability: exp(s_ip) / (exp(s_ip) + sum of exp(s_ij) over the negatives j), which is exp(-L_i) of NT-Xent
        (also where the loss is decoupled).
    """

    accuracy: Tensor
    positive_logit: Tensor
    positive_probability: Tensor


def cosine_error(z: Tensor, precision: str, backend: str) -> float:
    """How far rounding may move the cosine of two rows like z [n, D] that a backend multiplies at this precision."""
    # Entries of unit rows are off by half an eps of what they are rounded to, so their product by one eps (tf32 has
    # float16's ten bits). Norm, sum and scale are the other part: at most 8 eps of the sums' dtype for D up to 8192.
    operands = compute_dtype(z.dtype) if backend == "reference" else operand_dtype(z)
    if precision == "tf32" and operands == torch.float32 and z.device.type == "cuda":
        operands = torch.float16
    return torch.finfo(operands).eps + 16 * torch.finfo(compute_dtype(z.dtype)).eps


@torch.no_grad()
def ntxent_statistics(
    lse_neg: Tensor,
    s_pos: Tensor,
    largest: Tensor,
    tie: float | Tensor,
    group: "torch.distributed.ProcessGroup | None",
) -> NTXentStatistics:
    """The means of rows whose negatives have these log-sum-exps and largest logits [n], and positives these logits.

    Logits that differ by no more than `tie` are equal.
    """
    found = s_pos - largest.to(s_pos.dtype) > tie
    rows = torch.stack([found.to(s_pos.dtype), s_pos, torch.sigmoid(s_pos - lse_neg.to(s_pos.dtype))])  # [3, n]
    means = rows.mean(dim=1)
    if distributed.rank_and_size(group)[1] > 1:
        means = distributed.all_gather_shards(means[None], group).mean(dim=0)  # the ranks have equally many rows
    return NTXentStatistics(*means.to(lse_neg.dtype).unbind())
