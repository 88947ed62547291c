"""Cosine nearest neighbours of a few images among the features of a data set: exact, in the memory of one shard."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_rows(
    shards: Iterable[Tensor], queries: Tensor, count: int, leave_out: Sequence[int | None] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine similarity float64 [Q, k] and row int64 [Q, k] of the most similar rows, best first; of equals the first.

    shards: the rows [n, D], part after part; one of them is in memory at a time. queries [Q, D]. leave_out: for each
    query a row that does not count, or None. k is `count`, or fewer where there are fewer rows. A row of zeros, which
    has no direction, is as far from all others as a right angle.
    """
    queries = F.normalize(queries.double(), dim=1)
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64)
    first = 0
    for shard in shards:
        scores = queries @ F.normalize(shard.double(), dim=1).T
        for query, row in enumerate(leave_out or ()):
            if row is not None and first <= row < first + len(shard):
                scores[query, row - first] = -torch.inf
        best = torch.cat([best, scores], dim=1)
        rows = torch.cat([rows, torch.arange(first, first + len(shard)).expand(len(queries), -1)], dim=1)
        # Stable, and rows come in ascending order: of equal ones the first stays in front.
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, rows = best[:, : count + 1], rows.gather(1, order)[:, : count + 1]
        first += len(shard)
    left = 0 if leave_out is None else 1
    kept = min(count, first - left)
    return best[:, :kept].clamp(-1, 1), rows[:, :kept]
