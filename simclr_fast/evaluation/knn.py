"""Nearest-neighbour classification of features."""

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_ROWS = (
    1024  # rows of similarity held at a time: 1024 x 1.28 M (ImageNet) float32 is 5 GB, so the bank is tiled too
)
BANK_ROWS = 65536


def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, *, knn_k: int = 200, knn_t: float = 0.1, classes: int | None = None
) -> Tensor:
    """Class of each query by a weighted vote of its nearest neighbours in the bank, int64 [Q].

    bank [M, D] with labels int64 [M], queries [Q, D]: rows are L2-normalised here. The knn_k most similar rows vote
    with weight exp(similarity / knn_t) (Wu et al. 2018, arXiv:1805.01978); knn_k = 1 is the nearest neighbour.
    knn_k is cut to M.
    """
    if len(bank) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries for the {len(bank)} rows of bank")
    if knn_k < 1 or knn_t <= 0:
        raise ValueError(f"knn_k={knn_k}, knn_t={knn_t}: pass knn_k >= 1 and knn_t > 0")
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    classes = classes if classes is not None else int(labels.max()) + 1
    return torch.cat([_vote(bank, labels, rows, knn_k, knn_t, classes) for rows in queries.split(QUERY_ROWS)])


def knn_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, **options) -> float:
    """Share of the queries whose predicted class is the true one, int64 [Q]; options as for `knn_predict`."""
    return (knn_predict(bank, labels, queries, **options) == truth).float().mean().item()


def _vote(bank: Tensor, labels: Tensor, queries: Tensor, knn_k: int, knn_t: float, classes: int) -> Tensor:
    similarity = queries.new_empty(len(queries), 0)
    nearest = labels.new_empty(len(queries), 0)
    for begin in range(0, len(bank), BANK_ROWS):  # running top-k over tiles of the bank
        tile = queries @ bank[begin : begin + BANK_ROWS].T  # [Q, tile]
        tile, index = tile.topk(min(knn_k, tile.shape[1]), dim=1)
        similarity = torch.cat([similarity, tile], dim=1)
        nearest = torch.cat([nearest, labels[begin + index]], dim=1)
        similarity, index = similarity.topk(min(knn_k, similarity.shape[1]), dim=1)
        nearest = nearest.gather(1, index)
    weight = torch.exp((similarity - similarity[:, :1]) / knn_t)  # relative to the nearest: no overflow at small knn_t
    votes = weight.new_zeros(len(queries), classes).scatter_add_(1, nearest, weight)
    return votes.argmax(dim=1)
