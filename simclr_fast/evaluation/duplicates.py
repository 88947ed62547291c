"""Near-duplicates: all pairs of images whose features have a cosine similarity above a threshold, and their groups.

Every pair is looked at, by products of blocks of normalised rows; memory is that of the features as float32.
"""

import contextlib
import csv
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse.csgraph
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from simclr_fast.run_files import in_one_move, write_results

BLOCK = 2048  # rows of a block: its products with another take 16 MiB
MOST_PAIRS = 1_000_000  # more are no list that anybody reads, and a sign that the threshold is too low
ROUNDING = 1e-5  # far more than float32 rounds a similarity by; what is that near to the threshold is looked at again
SAME = 1 - 1e-5  # similarity above which files are compared byte by byte

CSV_FILE, JSON_FILE = "duplicates.csv", "duplicates.json"


class TooManyPairsError(ValueError):
    """More than MOST_PAIRS pairs are above the threshold."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of rows, int64 [P] each with first < second, in ascending order, and their similarities, float64 [P]."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def unit_rows(shards: Iterable[Tensor], rows: int) -> Tensor:
    """The features, shard by shard [n, D], as rows of length 1, float32 [rows, D]."""
    units: Tensor | None = None
    done = 0
    for shard in shards:
        units = torch.empty(rows, shard.shape[1]) if units is None else units
        # In float64, so that what is stored is rounded once and no square overflows.
        units[done : done + len(shard)] = F.normalize(shard.double(), dim=1)
        done += len(shard)
    return units


def similar_pairs(units: Tensor, threshold: float, device: torch.device) -> Pairs:
    """All pairs of rows of length 1, float32 [N, D], whose cosine similarity is above the threshold.

    The products are computed on the device in float32; those within ROUNDING of the threshold, and the similarities
    that are returned, in float64. Raises TooManyPairsError.
    """
    blocks = units.split(BLOCK)
    found: list[tuple[np.ndarray, ...]] = []
    count = 0
    with tqdm(total=len(blocks) * (len(blocks) + 1) // 2, desc="duplicates", unit=" blocks", delay=5.0) as progress:
        for i, block in enumerate(blocks):
            rows = block.to(device)
            for j in range(i, len(blocks)):
                with full_precision():
                    scores = rows @ blocks[j].to(device).T
                first, second = (scores > threshold - ROUNDING).nonzero().cpu().unbind(1)
                if i == j:
                    first, second = first[first < second], second[first < second]
                count += len(first)
                if count > MOST_PAIRS:
                    raise TooManyPairsError(f"more than {MOST_PAIRS} pairs of images are above {threshold:g}")
                if len(first):
                    found.append(_exact(units, first + i * BLOCK, second + j * BLOCK, threshold))
                progress.update()
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    first, second, similarity = (np.concatenate(column) for column in zip(*found))
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], similarity[order])


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products as such: in TensorFloat-32 or bfloat16, which a caller may allow, they err by far more than
    ROUNDING, and pairs would be missed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _exact(units: Tensor, first: Tensor, second: Tensor, threshold: float) -> tuple[np.ndarray, ...]:
    """Those of the pairs that are above the threshold in float64."""
    parts = [
        F.cosine_similarity(units[a].double(), units[b].double())
        for a, b in zip(first.split(BLOCK), second.split(BLOCK))
    ]
    similarity = torch.cat(parts).clamp(-1, 1)
    kept = similarity > threshold
    return first[kept].numpy(), second[kept].numpy(), similarity[kept].numpy()


def groups_of(pairs: Pairs, rows: int) -> list[list[int]]:
    """Rows that pairs connect, directly or through others; each group ascending, in the order of their first rows."""
    ones = np.ones(len(pairs), dtype=bool)
    graph = scipy.sparse.coo_matrix((ones, (pairs.first, pairs.second)), shape=(rows, rows))
    _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for row in np.union1d(pairs.first, pairs.second).tolist():
        groups.setdefault(int(label[row]), []).append(row)
    return list(groups.values())


def identical(pairs: Pairs, read: Callable[[int], bytes]) -> np.ndarray:
    """Whether the images of each pair are the same bytes, bool [P]; read: the bytes of a row's image."""
    same = np.zeros(len(pairs), dtype=bool)
    digests: dict[int, tuple[int, int]] = {}

    def digest(row: int) -> tuple[int, int]:
        if row not in digests:
            data = read(row)
            digests[row] = (len(data), zlib.crc32(data))
        return digests[row]

    for k in np.flatnonzero(pairs.similarity > SAME).tolist():
        a, b = int(pairs.first[k]), int(pairs.second[k])
        # Equal checksums may be chance; equal bytes are not.
        same[k] = digest(a) == digest(b) and read(a) == read(b)
    return same


def write(
    folder: Path, pairs: Pairs, same: np.ndarray, groups: list[list[int]], name: Callable[[int], str], threshold: float
) -> tuple[Path, Path]:
    """Write the pairs as a table and the groups with their pairs as JSON; returns both paths.

    name: of a row's image.
    """
    group = {row: number for number, rows in enumerate(groups) for row in rows}
    names = {row: name(row) for rows in groups for row in rows}
    lines = sorted(
        (group[a], a, b, f"{similarity:.6f}", is_same)
        for a, b, similarity, is_same in zip(
            pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist(), same.tolist()
        )
    )
    table = folder / CSV_FILE
    with in_one_move(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "first", "second", "similarity", "identical"])
        writer.writerows([number, names[a], names[b], value, int(is_same)] for number, a, b, value, is_same in lines)
    by_group: list[list[dict]] = [[] for _ in groups]
    for number, a, b, value, is_same in lines:
        pair = {"first": names[a], "second": names[b], "similarity": float(value), "identical": is_same}
        by_group[number].append(pair)
    content = [{"images": [names[row] for row in rows], "pairs": of_it} for rows, of_it in zip(groups, by_group)]
    listing = folder / JSON_FILE
    write_results(listing, {"threshold": threshold, "groups": content})
    return table, listing
