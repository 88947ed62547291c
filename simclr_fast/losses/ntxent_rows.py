"""NT-Xent's variants on the primitive: what is known of each row, by kind of negatives, and the loss made of it."""

from typing import NamedTuple

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.losses.pairs import pair_logits
from simclr_fast.losses.rows import reduce_rows
from simclr_fast.losses.statistics import NTXentStatistics, cosine_error, ntxent_statistics
from simclr_fast.ops.ntxent.reference import row_loss
from simclr_fast.ops.ntxent.similarity import similarity


class Call(NamedTuple):
    """What a call of the loss is made with beside its rows; the backend is that of the primitive."""

    temperature: float | Tensor
    decoupled: bool
    return_stats: bool
    reduction: str
    eps: float
    precision: str | None
    backend: str
    group: "torch.distributed.ProcessGroup | None"
    called: str = "ntxent_loss"  # what users call, for messages


class Rows(NamedTuple):
    """Of each row [n]: the log-sum-exp of its negatives, its positive's logit, its largest negative logit (or [0])."""

    lse_neg: Tensor
    s_pos: Tensor
    largest: Tensor
    tie: float | Tensor  # by how much logits that are equal may differ


def rows_of_pairs(z0: Tensor, z1: Tensor, call: Call) -> Rows:
    """The 2n rows of two views [n, D]; negatives are all rows of all processes but the row's own pair."""
    n, world = z0.shape[0], distributed.rank_and_size(call.group)[1]
    if call.decoupled and n * world == 1:
        raise ValueError(f"decoupled=True with z0 {tuple(z0.shape)}: one sample has no negatives; pass two or more")
    lse_neg, _, largest = _similarity(torch.cat([z0, z1]), None, "pair", call.group, call)
    return Rows(lse_neg, _pair_logits(z0, z1, call).repeat(2), largest, _tie(z0, call))


def rows_of_queries(queries: Tensor, keys: Tensor, bank: Tensor, call: Call) -> Rows:
    """The n rows of queries [n, D], whose positives are the keys [n, D] and whose negatives are the bank [K, D].

    The bank is in the dtype of the queries, has no gradient, and may be changed afterwards. Each process has one.
    """
    lse_neg, _, largest = _similarity(queries, bank, "none", None, call)
    return Rows(lse_neg, _pair_logits(queries, keys, call), largest, _tie(queries, call))


def loss_of_rows(rows: Rows, weights: Tensor | None, call: Call) -> Tensor | tuple[Tensor, NTXentStatistics]:
    """The loss, and the statistics where the call wants them; weights [n] are of the rows."""
    lse_neg = rows.lse_neg.to(rows.s_pos.dtype)
    losses = lse_neg - rows.s_pos if call.decoupled else row_loss(lse_neg, rows.s_pos)
    if weights is not None:
        losses = losses * weights
    loss = reduce_rows(losses, call.reduction, call.group, dtype=rows.lse_neg.dtype)
    return (loss, ntxent_statistics(*rows, call.group)) if call.return_stats else loss


def weights_of_rows(weights: Tensor, samples: Tensor, views: int, of: str) -> Tensor:
    """Checked weights [n] of samples [n, ...], which have this many rows each, view by view: [views * n].

    of: what users call the samples.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights is a {type(weights).__name__}: pass a torch.Tensor [N], one factor per sample")
    if weights.layout != torch.strided:
        raise ValueError(f"weights has layout {weights.layout}: pass a dense tensor, e.g. weights.to_dense()")
    if weights.is_complex():
        raise TypeError(f"weights has dtype {weights.dtype}: pass real factors, e.g. weights.real")
    if weights.shape != samples.shape[:1]:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}: pass [N], one factor for each of the {samples.shape[0]} "
            f"samples of {of}, which counts for its rows in all views"
        )
    if weights.device != samples.device:
        raise ValueError(f"weights is on {weights.device} and {of} is on {samples.device}: move one of them")
    return weights.repeat(views)


def _similarity(rows: Tensor, columns: Tensor | None, exclude: str, group, call: Call) -> tuple[Tensor, ...]:
    return similarity(
        rows,
        columns,
        call.temperature,
        exclude=exclude,
        both=False,
        need_max=call.return_stats,
        fixed_columns=columns is not None,  # a memory bank
        eps=call.eps,
        precision=call.precision,
        backend=call.backend,
        group=group,
        called=call.called,
    )


def _tie(z: Tensor, call: Call) -> float | Tensor:
    return cosine_error(z, call.precision, call.backend) / call.temperature


def _pair_logits(a: Tensor, b: Tensor, call: Call) -> Tensor:
    return pair_logits(a, b, call.temperature, eps=call.eps, backend=call.backend, called=call.called)
