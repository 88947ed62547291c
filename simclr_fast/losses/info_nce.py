"""InfoNCE: `info_nce_loss` and the module `InfoNCELoss`, a query against its positive key and negative keys."""

import torch
from torch import Tensor, nn

from simclr_fast.backends import check_backend
from simclr_fast.losses.arguments import (
    Backend,
    Precision,
    Reduction,
    check_choice,
    check_flags,
    check_options,
    check_rows,
    check_together,
    common_dtype,
    ready_temperature,
    widened_half,
)
from simclr_fast.losses.module import ContrastiveLoss
from simclr_fast.losses.pairs import pair_logits
from simclr_fast.losses.ranks import ALIKE, Shared, check_same_call, choice, flag
from simclr_fast.losses.rows import reduce_rows
from simclr_fast.losses.similarity import agreed_logsumexp
from simclr_fast.ops.ntxent.reference import compute_dtype, log_sum_exp, row_loss
from simclr_fast.ops.ntxent.similarity_rows import wants_rows_alone

NEGATIVE_MODES = ("unpaired", "paired")


def info_nce_loss(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    negative_mode: str = "unpaired",
    symmetric: bool = False,
    reduction: Reduction = "mean",
    group: "torch.distributed.ProcessGroup | None" = None,
    eps: float = 1e-8,
    precision: Precision | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The InfoNCE loss (van den Oord et al. 2018, eq. 4), exact, in memory linear in its arguments.

    With unit rows and s(q, k) = q . k / temperature, the loss of query i is
    -log(exp(s(q_i, k_i)) / (exp(s(q_i, k_i)) + sum_n exp(s(q_i, n)))), k_i being its positive key and n its negatives.

    Args:
        query, positive_key: [N, D], N >= 1, D >= 1; float16, bfloat16, float32 or float64. Row i of both is a pair.
        negative_keys: None: the negatives of a query are the other queries' positive keys. [M, D], "unpaired": these
            keys, for every query. [N, M, D], "paired": keys of its own for each query. M >= 0.
        temperature: a positive float, or a 0-dim tensor on the rows' device, which may require grad.
        negative_mode: "unpaired" or "paired", what `negative_keys` are.
        symmetric: also the other way round, each key against all queries, and the mean of both; without negative_keys.
        reduction: "mean" or "sum" over the N queries, or "none" for their losses [N].
        group: processes whose keys (and, where symmetric, queries) are also negatives; paired negatives remain a
            query's own. All of them must call with equal shapes and options. "mean" and "sum" then return the whole
            batch's loss on every rank, and the mean of the ranks' gradients is that loss's gradient.
        eps, precision, backend: those of `ntxent_loss`.

    Returns:
        float32 (float64 for float64 rows), never negative; 0 where there are no negatives. Differentiable once in the
        rows and the temperature (as often as wanted with backend="reference").

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype, device or value.
        RuntimeError: the named backend cannot serve the rows.
    """
    _check_arguments(query, positive_key, negative_keys, negative_mode, symmetric)
    check_flags(symmetric=symmetric)
    check_options(reduction, eps, precision)
    check_backend(backend)
    query, positive_key = common_dtype(query, positive_key)
    if negative_keys is not None:
        query, negative_keys = common_dtype(query, negative_keys)
        query, positive_key = common_dtype(query, positive_key)
        negative_keys = widened_half(negative_keys)
    query, positive_key = widened_half(query), widened_half(positive_key)
    temperature = ready_temperature(temperature, query, "query")
    options = {"group": group, "eps": eps, "precision": precision, "backend": backend}
    keys = positive_key if negative_keys is None else negative_keys
    negatives = -1 if negative_keys is None else negative_keys.shape[-2]
    own = (
        Shared("number of negative_keys (-1 for None)", negatives, ALIKE),
        choice("negative_mode", negative_mode, NEGATIVE_MODES),
        flag("symmetric", symmetric),
        flag("gradient of the query alone (requires_grad)", wants_rows_alone(query, keys, symmetric)),
    )
    called = "info_nce_loss"
    check_same_call(called, "query", query, temperature, reduction=reduction, own=own, **options)

    options["called"] = called
    s_pos = pair_logits(query, positive_key, temperature, eps=eps, backend=backend, called=called)  # [N]
    if symmetric:
        lse_rows, lse_columns = agreed_logsumexp(query, positive_key, temperature, exclude="self", both=True, **options)
        losses = (row_loss(lse_rows, s_pos) + row_loss(lse_columns, s_pos)) / 2
    elif negative_keys is None:
        losses = row_loss(agreed_logsumexp(query, positive_key, temperature, exclude="self", **options), s_pos)
    elif negative_mode == "unpaired":
        losses = row_loss(agreed_logsumexp(query, negative_keys, temperature, **options), s_pos)
    else:
        queries = query[:, None].expand_as(negative_keys)  # [N, M, D]
        s_neg = pair_logits(queries, negative_keys, temperature, eps=eps, backend=backend, called=called)  # [N, M]
        losses = row_loss(log_sum_exp(s_neg), s_pos)
    return reduce_rows(losses, reduction, group, dtype=compute_dtype(query.dtype))


class InfoNCELoss(ContrastiveLoss):
    """`info_nce_loss` as a module, call-compatible with `InfoNCE` of info-nce-pytorch: the same numbers.

    `loss = InfoNCELoss(temperature=0.1)(query, positive_key, negative_keys)`.

    Args:
        temperature, gather_distributed: as for `NTXentLoss`.
        reduction, negative_mode, symmetric, eps, precision, backend: those of `info_nce_loss`.

    Raises:
        TypeError, ValueError: an option is of the wrong type or value.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.1,
        reduction: Reduction = "mean",
        negative_mode: str = "unpaired",
        *,
        symmetric: bool = False,
        gather_distributed: bool = False,
        eps: float = 1e-8,
        precision: Precision | None = None,
        backend: Backend = "auto",
    ):
        super().__init__(
            temperature, gather_distributed, reduction=reduction, eps=eps, precision=precision, backend=backend
        )
        check_choice("negative_mode", negative_mode, NEGATIVE_MODES)
        check_flags(symmetric=symmetric)
        self.negative_mode = negative_mode
        self.symmetric = symmetric

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        """The loss of query and positive_key [N, D] against negative_keys (None, [M, D], or [N, M, D] if paired)."""
        return info_nce_loss(
            query,
            positive_key,
            negative_keys,
            negative_mode=self.negative_mode,
            symmetric=self.symmetric,
            **self.options(),
        )


def _check_arguments(
    query: Tensor, positive_key: Tensor, negative_keys: Tensor | None, negative_mode: str, symmetric: bool
) -> None:
    check_choice("negative_mode", negative_mode, NEGATIVE_MODES)
    check_rows("query", query)
    check_rows("positive_key", positive_key)
    check_together(("query", "positive_key"), query, positive_key)
    if query.shape != positive_key.shape:
        raise ValueError(
            f"query {tuple(query.shape)} and positive_key {tuple(positive_key.shape)} differ in shape: row i of both "
            "is a pair"
        )
    if negative_keys is None:
        return
    if symmetric:
        raise ValueError("symmetric=True: negative_keys are of the queries alone; pass negative_keys=None")
    if negative_mode == "unpaired":
        check_rows("negative_keys", negative_keys, empty=True)
    else:
        _check_paired(query, negative_keys)
    check_together(("query", "negative_keys"), query, negative_keys)
    if query.shape[-1] != negative_keys.shape[-1]:
        raise ValueError(f"query {tuple(query.shape)} and negative_keys {tuple(negative_keys.shape)} differ in width D")


def _check_paired(query: Tensor, negative_keys: Tensor) -> None:
    shapes = "[N, M, D], M keys for each of the N queries, or negative_mode='unpaired' for [M, D]"
    check_rows("negative_keys", negative_keys, empty=True, stack=shapes)
    if negative_keys.shape[0] != query.shape[0]:
        raise ValueError(
            f"negative_keys {tuple(negative_keys.shape)} with negative_mode='paired' and query {tuple(query.shape)} "
            f"differ in N: pass {shapes}"
        )
