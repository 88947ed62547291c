"""Nearest-neighbour classification of features, in memory that does not grow with their number."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of queries and of the bank whose similarities are held at a time: 256 MiB of float32, whatever their number.
QUERY_ROWS = 1024
BANK_ROWS = 65536


def nearest(
    bank: Tensor, queries: Tensor | None, knn_k: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine similarity float32 [Q, k] and bank index int64 [Q, k] of the most similar rows, best first.

    bank [M, D], queries [Q, D]: rows are L2-normalised here. queries None takes the rows of the bank, each without
    itself (leave one out). knn_k is cut to what there is. device: where to compute (default: where the bank lies).
    """
    if knn_k < 1:
        raise ValueError(f"knn_k={knn_k}: pass an integer >= 1")
    leave_one_out = queries is None
    queries = bank if leave_one_out else queries
    device = bank.device if device is None else device
    k = min(knn_k, len(bank) - leave_one_out)
    parts = [
        _nearest_of_rows(bank, rows, k, device, first if leave_one_out else None)
        for first, rows in zip(range(0, len(queries), QUERY_ROWS), queries.split(QUERY_ROWS))
    ]
    similarity, index = (torch.cat(column) for column in zip(*parts))
    return similarity, index


def vote(similarity: Tensor, neighbours: Tensor, knn_t: float, classes: int) -> Tensor:
    """Class by a vote of neighbours with weight exp(similarity / knn_t) (Wu et al. 2018, arXiv:1805.01978), int64 [Q].

    similarity [Q, k], best first; neighbours: their classes, int64 [Q, k].
    """
    if knn_t <= 0:
        raise ValueError(f"knn_t={knn_t}: pass a number > 0")
    weight = torch.exp((similarity - similarity[:, :1]) / knn_t)  # relative to the nearest: no overflow at small knn_t
    votes = weight.new_zeros(len(similarity), classes).scatter_add_(1, neighbours, weight)
    return votes.argmax(dim=1)


def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor | None,
    *,
    knn_k: int = 200,
    knn_t: float = 0.1,
    classes: int | None = None,
) -> Tensor:
    """Class of each query by its knn_k nearest neighbours in the bank, int64 [Q].

    bank [M, D] with labels int64 [M]; queries [Q, D], or None for the bank's own rows, each without itself.
    """
    if len(bank) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries for the {len(bank)} rows of bank")
    similarity, index = nearest(bank, queries, knn_k)
    return vote(similarity, labels[index], knn_t, classes if classes is not None else int(labels.max()) + 1)


def knn_accuracy(bank: Tensor, labels: Tensor, queries: Tensor | None, truth: Tensor, **options) -> float:
    """Share of the queries whose predicted class is the true one, int64 [Q]; options as for `knn_predict`."""
    return (knn_predict(bank, labels, queries, **options) == truth).float().mean().item()


def _nearest_of_rows(
    bank: Tensor, queries: Tensor, k: int, device: torch.device, first: int | None
) -> tuple[Tensor, Tensor]:
    """As `nearest`, for few queries; first: their row in the bank, where each is to be left out."""
    queries = F.normalize(queries.to(device).float(), dim=1)
    similarity = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for begin in range(0, len(bank), BANK_ROWS):  # running top-k over tiles of the bank
        tile = F.normalize(bank[begin : begin + BANK_ROWS].to(device).float(), dim=1)  # [tile, D]
        scores = queries @ tile.T  # [Q, tile]
        if first is not None:
            own = torch.arange(first - begin, first - begin + len(queries), device=device)
            here = (own >= 0) & (own < len(tile))
            scores[here.nonzero().flatten(), own[here]] = -torch.inf
        scores, column = scores.topk(min(k, scores.shape[1]), dim=1)
        similarity, index = torch.cat([similarity, scores], dim=1), torch.cat([index, begin + column], dim=1)
        similarity, kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
        index = index.gather(1, kept)
    return similarity.to(bank.device), index.to(bank.device)
