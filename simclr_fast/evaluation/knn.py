"""Nearest-neighbour classification of features, in memory that does not grow with their number."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.evaluation.classes import accuracy
from simclr_fast.evaluation.splits import fixed_part

# Rows of queries and of the bank whose similarities are held at a time: 256 MiB of float32, whatever their number.
QUERY_ROWS = 1024
BANK_ROWS = 65536
KNN_K = (1, 5, 10, 20, 50, 100, 200)  # numbers of neighbours between which the training images choose
KNN_T = 0.1
CHOICE_ROWS = 10_000  # training images that choose; of a larger set a fixed random part does


def nearest(
    bank: Tensor,
    queries: Tensor | None,
    knn_k: int,
    device: torch.device | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine similarity float32 [Q, k] and bank index int64 [Q, k] of the most similar rows, best first.

    bank [M, D], queries [Q, D]: rows are L2-normalised here. queries None takes the bank's own rows, all or those at
    `rows` int64 [Q], each without itself (leave one out). knn_k is cut to what there is. device: where to compute
    (default: where the bank lies). Raises ValueError for knn_k < 1 and for a bank that has no neighbour to offer.
    """
    if knn_k < 1:
        raise ValueError(f"knn_k={knn_k}: pass an integer >= 1")
    leave_one_out = queries is None
    k = min(knn_k, len(bank) - leave_one_out)
    if k < 1:
        raise ValueError(f"bank has {len(bank)} row(s): no neighbour is left to look at")
    device = bank.device if device is None else device
    if leave_one_out:
        own = torch.arange(len(bank)) if rows is None else rows.cpu()
        parts = [_nearest_of_rows(bank, bank[part], k, device, part) for part in own.split(QUERY_ROWS)]
    else:
        parts = [_nearest_of_rows(bank, part, k, device, None) for part in queries.split(QUERY_ROWS)]
    similarity, index = (torch.cat(column) for column in zip(*parts))
    return similarity, index


def vote(similarity: Tensor, neighbours: Tensor, knn_t: float, classes: int) -> Tensor:
    """Score of each class by a vote of neighbours with weight exp(similarity / knn_t) (Wu et al. 2018,
    arXiv:1805.01978), float32 [Q, classes]; -inf for a class that no neighbour has.

    similarity [Q, k], best first; neighbours: their classes, int64 [Q, k].
    """
    if not knn_t > 0:
        raise ValueError(f"knn_t={knn_t}: pass a number > 0")
    weight = torch.exp((similarity - similarity[:, :1]) / knn_t)  # relative to the nearest: no overflow at small knn_t
    votes = weight.new_zeros(len(similarity), classes).scatter_add_(1, neighbours, weight)
    voted = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, neighbours, True)
    return votes.masked_fill_(~voted, -torch.inf)


def choose_k(
    bank: Tensor,
    labels: Tensor,
    candidates: tuple[int, ...],
    *,
    knn_t: float,
    classes: int,
    device: torch.device | None = None,
) -> tuple[int, dict[int, float]]:
    """The number of neighbours that serves best on the training images themselves, and the accuracy of each candidate.

    Each of at most CHOICE_ROWS rows of the bank [M, D] is classified by the others (leave one out); labels int64 [M].
    Of equals the first wins. Only candidates with as many neighbours to look at count, or else the smallest.
    """
    possible = tuple(k for k in candidates if k < len(bank)) or (min(candidates),)
    rows = fixed_part(len(bank), CHOICE_ROWS)
    similarity, index = nearest(bank, None, max(possible), device, rows)
    scores = {
        k: accuracy(vote(similarity[:, :k], labels[index[:, :k]], knn_t, classes), labels[rows]) for k in possible
    }
    return max(scores, key=scores.get), scores


def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor | None,
    *,
    knn_k: int,
    knn_t: float = KNN_T,
    classes: int | None = None,
) -> Tensor:
    """Class of each query by its knn_k nearest neighbours in the bank, int64 [Q].

    bank [M, D] with labels int64 [M]; queries [Q, D], or None for the bank's own rows, each without itself.
    """
    if len(bank) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries for the {len(bank)} rows of bank")
    similarity, index = nearest(bank, queries, knn_k)
    classes = classes if classes is not None else int(labels.max()) + 1
    return vote(similarity, labels[index], knn_t, classes).argmax(dim=1)


def knn_accuracy(bank: Tensor, labels: Tensor, queries: Tensor | None, truth: Tensor, **options) -> float:
    """Share of the queries whose predicted class is the true one, int64 [Q]; options as for `knn_predict`."""
    return (knn_predict(bank, labels, queries, **options) == truth).float().mean().item()


def _nearest_of_rows(
    bank: Tensor, queries: Tensor, k: int, device: torch.device, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `nearest`, for few queries; own: the row of the bank that each is and that is left out, int64 [Q]."""
    queries = F.normalize(queries.to(device).float(), dim=1)
    similarity = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    own = None if own is None else own.to(device)
    for begin in range(0, len(bank), BANK_ROWS):  # running top-k over tiles of the bank
        tile = F.normalize(bank[begin : begin + BANK_ROWS].to(device).float(), dim=1)  # [tile, D]
        scores = queries @ tile.T  # [Q, tile]
        if own is not None:
            here = (own >= begin) & (own < begin + len(tile))
            scores[here.nonzero().flatten(), own[here] - begin] = -torch.inf
        scores, column = scores.topk(min(k, scores.shape[1]), dim=1)
        similarity, index = torch.cat([similarity, scores], dim=1), torch.cat([index, begin + column], dim=1)
        similarity, kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
        index = index.gather(1, kept)
    return similarity.to(bank.device), index.to(bank.device)
