"""SupCon: `sup_con_loss` and the module `SupConLoss`, rows of one class against all others."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simclr_fast import distributed
from simclr_fast.losses.arguments import (
    Backend,
    Precision,
    Reduction,
    check_options,
    check_rows,
    ready_temperature,
    widened_half,
)
from simclr_fast.losses.module import ContrastiveLoss
from simclr_fast.losses.ntxent_rows import weights_of_rows
from simclr_fast.losses.pairs import pair_logits
from simclr_fast.losses.positive_means import positive_means
from simclr_fast.losses.ranks import ALIKE, Shared, check_same_call, presence
from simclr_fast.losses.rows import reduce_rows
from simclr_fast.losses.similarity import agreed_logsumexp
from simclr_fast.ops.ntxent.reference import compute_dtype, log_add_exp, row_loss
from simclr_fast.temperature import is_symbolic


def sup_con_loss(
    features: Tensor,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    group: "torch.distributed.ProcessGroup | None" = None,
    eps: float = 1e-8,
    precision: Precision | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out), exact, in memory linear in the rows.

    With unit rows, s_ij = u_i . u_j / temperature and P(i) the other rows of i's class, the loss of row i is
    -1/|P(i)| sum_{p in P(i)} log(exp(s_ip) / sum_{j != i} exp(s_ij)). Rows without a positive have loss 0, and "mean"
    does not count them; of no row at all it is 0.

    Args:
        features: [M, D], or [N, V, D], V views of each sample; M, N, D >= 1; float16, bfloat16, float32 or float64.
        labels: the class of each row [M], or of each sample [N]; any integers. None, for [N, V, D] with V >= 2: every
            sample is a class of its own. With V = 2 that is NT-Xent.
        temperature: a positive float, or a 0-dim tensor on the features' device, which may require grad.
        weights: [M] or [N], a factor on the losses of a row, or of all views of a sample. "mean" divides by the number
            of rows that have positives, not by the sum of the weights. Any real dtype; differentiable.
        reduction: "mean" or "sum" over the rows, or "none" for their losses [M] or [N, V].
        group: processes whose rows are also positives and negatives; all of them must call with equal shapes and
            options. "mean" and "sum" then return the whole batch's loss on every rank, and the mean of the ranks'
            gradients is that loss's gradient.
        eps, precision, backend: those of `ntxent_loss`.

    Returns:
        float32 (float64 for float64 features); differentiable once in features, temperature and weights
        (as often as wanted with backend="reference"). The loss of a row with one positive, which may come close to 0,
        is as exact as NT-Xent's; with a group, if the positive is of the same process and M (or V N) is even; but in
        what torch.export makes for any M it is off by what rounds the log-sum-exp, up to 1e-7 / temperature.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype, device or value.
        RuntimeError: the named backend cannot serve the features.
    """
    _check_arguments(features, labels)
    how = {"reduction": reduction, "group": group, "eps": eps, "precision": precision, "backend": backend}
    return loss_of_classes(features, labels, temperature, weights, **how, called="sup_con_loss", of="features")


def loss_of_classes(
    features: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    weights: Tensor | None,
    *,
    reduction: Reduction,
    group: "torch.distributed.ProcessGroup | None",
    eps: float,
    precision: Precision | None,
    backend: Backend,
    called: str,
    of: str,
) -> Tensor:
    """`sup_con_loss` of checked features and labels, where users call the loss and the features by these names."""
    check_options(reduction, eps, precision)
    views = features.shape[1] if features.ndim == 3 else 1
    rows = widened_half(features.transpose(0, 1).flatten(0, 1) if features.ndim == 3 else features)  # [M, D]
    temperature = ready_temperature(temperature, rows, of)
    options = {"group": group, "eps": eps, "precision": precision, "backend": backend}
    own = (
        presence("labels", labels),
        presence("weights", weights),
        Shared("number of views", views, ALIKE),
    )
    check_same_call(called, of, rows, temperature, reduction=reduction, own=own, **options)
    if labels is None:
        classes = _classes_of_samples(features, group)
    else:
        labels = labels.to(features.device, torch.int64).repeat(views)
        classes = _classes_of_labels(labels, group)

    losses = _row_losses(rows, classes, temperature, called=called, **options)
    if weights is not None:
        losses = losses * weights_of_rows(weights, features, views, of)
    if reduction == "none" and features.ndim == 3:
        losses = losses.unflatten(0, (views, -1)).T
    dtype = compute_dtype(features.dtype)
    return reduce_rows(losses, reduction, group, dtype=dtype, counted=classes.size > 1)


class SupConLoss(ContrastiveLoss):
    """`sup_con_loss` as a module, called as pytorch-metric-learning's and Khosla et al.'s are.

    `SupConLoss(0.1)(features, labels)`, features [M, D] or [N, V, D]. Khosla et al.'s code multiplies by temperature /
    base_temperature, which is 1 by default.

    Args:
        temperature, gather_distributed: as for `NTXentLoss`.
        reduction, eps, precision, backend: those of `sup_con_loss`.

    Raises:
        TypeError, ValueError: an option is of the wrong type or value.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.1,
        gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
        eps: float = 1e-8,
        precision: Precision | None = None,
        backend: Backend = "auto",
    ):
        super().__init__(
            temperature, gather_distributed, reduction=reduction, eps=eps, precision=precision, backend=backend
        )

    def forward(self, features: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """The loss of features [M, D] with labels [M], or [N, V, D] with labels [N] or None."""
        return sup_con_loss(features, labels, weights=weights, **self.options())


class _Classes(NamedTuple):
    """Who is of one class. M rows of each of the W processes, K <= W M numbers for classes."""

    number: Tensor  # [W M], 0 to K - 1: of each process's rows
    limit: int  # K
    size: Tensor  # [M]: rows, of all processes, of the class of each of this process's rows
    is_pair: Tensor  # [M] bool: the row's class are it and one other row of this process
    # [M]: an order in which rows i and i + M / 2 are a class of two wherever is_pair; None where they come in it, or
    # have no partners.
    pairs: Tensor | None


def _classes_of_samples(features: Tensor, group) -> _Classes:
    """Of V views of N samples, view by view: each sample is a class."""
    (n, views), world = features.shape[:2], distributed.rank_and_size(group)[1]
    samples = torch.arange(world * n, device=features.device)
    size = samples.new_full((n * views,), views)
    return _Classes(samples.view(world, 1, n).expand(world, views, n).flatten(), world * n, size, size == 2, None)


def _classes_of_labels(labels: Tensor, group) -> _Classes:
    """Of the labels [M] of this process's rows."""
    rank, world = distributed.rank_and_size(group)
    m = labels.shape[0]
    labels_all = labels if world == 1 else distributed.all_gather_shards(labels, group)
    ordered = labels_all.sort().values
    first = torch.searchsorted(ordered, labels_all)
    size = (torch.searchsorted(ordered, labels_all, right=True) - first)[rank * m : (rank + 1) * m]
    begins = ordered != ordered.roll(1)  # a class, but for the first
    number = (begins.cumsum(0) - begins[:1].long())[first]
    # How many classes there are is asked where that waits for no device and makes no constant of it.
    known = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    limit = int(number.max()) + 1 if known else world * m
    # Classes of two first, then the others, each class together: every second row is the partner of the one before.
    own = labels.sort(stable=True)
    size_here = torch.searchsorted(own.values, labels, right=True) - torch.searchsorted(own.values, labels)
    is_pair = (size == 2) & (size_here == 2)
    order = own.indices[(~is_pair)[own.indices].to(torch.uint8).argsort(stable=True)]
    pairs = torch.cat([order[0::2], order[1::2]]) if _has_partners(m, group) else None
    return _Classes(number, limit, size, is_pair, pairs)


def _row_losses(
    rows: Tensor, classes: _Classes, temperature: float | Tensor, *, group, eps, precision, backend, called
) -> Tensor:
    """The losses of rows [M, D], 0 without a positive; [M], in the order of the rows.

    The loss of a row with one positive is softplus(lse of the others - s_p), NT-Xent's form, which loses nothing where
    it is close to 0. With more positives it is at least log |P(i)|: the log-sum-exp minus their mean logit.
    """
    m, size, is_pair = rows.shape[0], classes.size, classes.is_pair
    options = {"group": group, "eps": eps, "precision": precision, "backend": backend, "called": called}
    means = positive_means(rows, classes.number, classes.limit, size, temperature, eps, backend, group, called)
    if not _has_partners(m, group):
        losses = agreed_logsumexp(rows, None, temperature, exclude="self", **options) - means
        return torch.where(size > 1, losses, 0)
    if classes.pairs is not None:
        rows, means, size, is_pair = (x[classes.pairs] for x in (rows, means, size, is_pair))
    first, second = rows[: m - m // 2], rows[m - m // 2 :]
    half = m // 2
    s_pairs = pair_logits(first[:half], second, temperature, eps=eps, backend=backend, called=called)
    if m % 2:
        lse_others = _lse_without_partners(first, second, temperature, options).to(s_pairs.dtype)
        s_partner = torch.cat([s_pairs, s_pairs.new_zeros(1), s_pairs])  # row `half` has no partner
        lse = log_add_exp(lse_others, s_partner)
        lse = torch.cat([lse[:half], lse_others[half : half + 1], lse[half + 1 :]])
    else:
        lse_others = agreed_logsumexp(rows, None, temperature, exclude="pair", **options).to(s_pairs.dtype)
        s_partner = s_pairs.repeat(2)
        lse = log_add_exp(lse_others, s_partner)
    losses = torch.where(is_pair, row_loss(lse_others, s_partner), lse - means)
    losses = torch.where(size > 1, losses, 0)
    return losses if classes.pairs is None else losses[classes.pairs.argsort()]


def _has_partners(m: int, group) -> bool:
    """Whether each of m rows is given a partner, of an odd number all but one."""
    if torch.compiler.is_exporting() and is_symbolic(m):
        return False  # the graph has to serve odd and even numbers alike
    return m > 1 and not (m % 2 and distributed.rank_and_size(group)[1] > 1)


def _lse_without_partners(first: Tensor, second: Tensor, temperature: float | Tensor, options: dict) -> Tensor:
    """What exclude="pair" gives of an odd number of rows, of which the last of `first` has no partner: by halves."""
    within = [agreed_logsumexp(half, None, temperature, exclude="self", **options) for half in (first, second)]
    across = agreed_logsumexp(first, second, temperature, exclude="self", both=True, **options)
    return torch.cat([log_add_exp(*parts) for parts in zip(within, across)])


def _check_arguments(features: Tensor, labels: Tensor | None) -> None:
    shapes = "[M, D] with labels, or [N, V, D], V views of each sample"
    two = isinstance(features, Tensor) and features.ndim == 2
    check_rows("features", features, stack=None if two else shapes)
    if labels is None:
        if features.ndim == 2 or features.shape[1] == 1:
            raise ValueError(
                f"features has shape {tuple(features.shape)} and labels is None: without classes no row has a "
                "positive; pass labels, or at least two views [N, V, D]"
            )
    elif not isinstance(labels, Tensor):
        raise TypeError(
            f"labels is a {type(labels).__name__}: pass a tensor of integers, one for each of {_count(features)}"
        )
    elif labels.layout != torch.strided:
        raise ValueError(f"labels has layout {labels.layout}: pass a dense tensor, e.g. labels.to_dense()")
    elif labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels has dtype {labels.dtype}: pass integers, e.g. labels.long()")
    elif labels.shape != features.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}: pass one label for each of {_count(features)}")
    elif labels.is_meta and not features.is_meta:
        raise ValueError(f"labels is on meta and features is on {features.device}: pass labels that have values")


def _count(features: Tensor) -> str:
    """For messages alone: torch.compile makes a constant of a size that is written out."""
    return f"{features.shape[0]} {'samples' if features.ndim == 3 else 'rows'}"
