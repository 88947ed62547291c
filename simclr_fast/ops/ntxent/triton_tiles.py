"""Tile configurations of the Triton NT-Xent kernels, by architecture, operand and D, and how work is split over a GPU.

How the tables were chosen: every entry compiles without spills in all its variants and fits the shared memory
(docs/tables). Of those, the entries for sm_90 with microseconds beside them were the fastest of about a dozen on an
H200 (M = 8192, Triton 3.6; `python tools/gpu_check.py --tune`); then comes what the next best took. The sm_80 entries
of fp16 for D <= 128 are those that ptxlab's roofline model puts first: shared memory is the limit
there, and a warp that owns 32 rows reads half as many bytes per product as one that owns 16.

Elsewhere, for the larger a tile, the fewer bytes a product reads, tiles are about as large as compile without spills.
Beside each stands what the next size breaks (bytes that spill, or shared memory), or how many of the 255 registers of a
thread its most demanding variant takes; "fit, untimed" is a larger tile that compiled without spills, too, for whoever
can time it: nothing was timed on sm_80 and sm_100. A forward program holds block_m x block_n sums, a backward one as
many and block_m x owned_d besides, so that to double block_m about doubles a thread's registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

# Partial sums per row that the forward kernel keeps for each of rows and columns: at most 1 KiB a row, and 2 KiB with
# the online maximum.
MAX_SLOTS = 128
_ANY = 1 << 30


@dataclass(frozen=True)
class Target:
    """What the choice of tiles depends on: architecture in the tables (80, 90 or 100), number of multiprocessors."""

    arch: int
    multiprocessors: int


@dataclass(frozen=True)
class Tiles:
    """Tile of the logits (block_m x block_n), step through D (block_d), warps per program, software-pipeline stages.

    holds_rows: a program keeps its tile of rows (all D columns) on chip while column tiles go by; a backward program
    that does must own all columns of the gradient. owned_d: columns of the gradient that a program of the backward
    kernel owns. A larger D is shared out among programs, each of which computes the logits again: M^2 D multiply-adds
    more for every further part. special_first: tiles that need a mask before all others, where ptxas spills otherwise.
    """

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    holds_rows: bool = False
    owned_d: int = 256
    special_first: bool = False

    def slices(self, dim: int) -> int:
        """Steps of block_d columns that a program of the backward kernel owns."""
        return -(-min(dim, self.owned_d) // self.block_d)

    def even(self, dim: int) -> bool:
        """Whether the columns that the programs of the backward kernel own add up to D."""
        return dim % (self.slices(dim) * self.block_d) == 0


# {(architecture, operand): {largest D: tiles}}. 80 stands for every device with mma.sync only (also 86, 89 and 120,
# where a program has 99 KiB of shared memory). Forward tiles are square. "ieee" has both parts of its rows on chip, and
# beside its sums a tile's own product, which starts from zero (the forward where D > 128).
_FORWARD = {
    (80, "fp16"): {
        64: Tiles(128, 128, 64, 4, 2, holds_rows=True),  # 255 registers
        128: Tiles(128, 128, 128, 4, 2, holds_rows=True),  # 255 registers
        _ANY: Tiles(128, 128, 64, 8, 2),  # 240 registers
    },
    (80, "ieee"): {
        128: Tiles(128, 128, 32, 8, 2),  # 252 registers
        _ANY: Tiles(64, 64, 32, 8, 2),  # 4 warps spill 16 bytes, as does twice the side
    },
    # With 8 warps a multiprocessor holds one program, with 4 two of them: one computes while the other waits.
    (90, "fp16"): {
        64: Tiles(128, 128, 64, 4, 2, holds_rows=True),  # 31 us; 64 rows 39, 8 warps 57
        128: Tiles(128, 128, 128, 4, 2, holds_rows=True),  # 38 us; 64 rows 46, 8 warps 64
        _ANY: Tiles(128, 128, 64, 4, 2),  # D = 256: 54 us, 512: 86; of 3 stages 52 and 76, but they spill
    },
    (90, "ieee"): {
        128: Tiles(128, 128, 32, 4, 2),  # slices of 64 columns spill 48 bytes with the online maximum
        _ANY: Tiles(128, 128, 32, 8, 3),  # 248 registers
    },
    (100, "fp16"): {_ANY: Tiles(64, 64, 64, 4, 2)},  # twice the side spills 168 bytes with the online maximum
    (100, "ieee"): {
        128: Tiles(64, 64, 32, 4, 2),  # 173 registers; twice the side is untried
        _ANY: Tiles(64, 64, 64, 8, 2),  # slices of 32 columns spill 8 bytes where D = 384, 4 warps 16
    },
}
# Instead, where rows have maxima of their own: these need registers, too.
_FORWARD_ONLINE = {
    (90, "fp16"): {
        64: Tiles(128, 128, 64, 8, 2, holds_rows=True),  # 182 registers; with 4 warps 255 without the maxima
        128: Tiles(128, 128, 128, 8, 2, holds_rows=True),  # 180 registers; likewise
        _ANY: Tiles(128, 128, 64, 4, 2),  # 255 registers
    },
}
_BACKWARD = {
    (80, "fp16"): {
        64: Tiles(128, 64, 64, 4, 2, holds_rows=True),  # 128 columns spill 416 bytes
        128: Tiles(128, 32, 64, 4, 3, holds_rows=True),  # 64 columns spill 224 bytes
        256: Tiles(64, 32, 128, 4, 2, holds_rows=True),  # 64 columns spill 8 bytes
        _ANY: Tiles(64, 32, 128, 8, 2),  # 64 columns fit, untimed
    },
    (80, "ieee"): {
        64: Tiles(64, 64, 64, 4, 2, holds_rows=True),  # 255 registers
        128: Tiles(64, 32, 64, 4, 2, holds_rows=True),  # slices of 128 columns of D spill 8 bytes
        _ANY: Tiles(64, 32, 64, 8, 2),  # rows on chip spill 8 bytes where D = 256
    },
    (90, "fp16"): {
        64: Tiles(128, 64, 64, 8, 3, holds_rows=True),  # 55 us; 4 warps 63
        128: Tiles(128, 64, 128, 8, 3, holds_rows=True),  # 71 us; 128 columns 74, 2 stages 80, 4 warps 87
        256: Tiles(128, 64, 128, 8, 3, holds_rows=True),  # 120 us; 2 stages 127
        _ANY: Tiles(64, 64, 128, 8, 2, owned_d=512),  # D = 512: 571 us, 1024: 1744; with 256 columns owned 930 and 3015
    },
    (90, "ieee"): {
        64: Tiles(128, 64, 64, 8, 3, holds_rows=True),  # 164 registers; 128 columns are untried
        128: Tiles(128, 64, 128, 8, 3, holds_rows=True),  # 255 registers
        # Slices of 128 columns of D spill 16 bytes with the online maximum, rows on chip 568, 128 rows 144.
        _ANY: Tiles(64, 32, 64, 8, 2, special_first=True),
    },
    (100, "fp16"): {
        64: Tiles(128, 64, 64, 8, 2, holds_rows=True, special_first=True),  # 128 columns fit, untimed
        128: Tiles(128, 64, 128, 8, 2, holds_rows=True),  # 128 columns spill 40 bytes where D = 100, 256 rows 368
        256: Tiles(64, 32, 128, 8, 2, holds_rows=True),  # 64 columns fit, untimed
        _ANY: Tiles(64, 64, 64, 8, 2, special_first=True),  # 128 columns fit, untimed
    },
    (100, "ieee"): {
        64: Tiles(64, 32, 64, 8, 2, holds_rows=True, special_first=True),  # 94 registers; 64 columns are untried
        128: Tiles(64, 32, 64, 8, 2),  # 116 registers; 64 columns are untried
        _ANY: Tiles(64, 32, 64, 8, 2, owned_d=128),  # 256 columns owned spill 80 bytes with the online maximum
    },
}
# Instead, where rows have maxima of their own.
_BACKWARD_ONLINE = {(80, "fp16"): {256: Tiles(64, 32, 128, 8, 2, holds_rows=True)}}
# Instead of the last entry where some of the columns that programs own are none: their masks need registers.
_BACKWARD_MASKED = {(90, "fp16"): Tiles(64, 64, 128, 8, 2)}
# Up to the D named, where none are and one maximum serves all rows: a second exponential needs registers, too.
_BACKWARD_PLAIN = {
    (90, "fp16"): (512, Tiles(64, 64, 128, 8, 2, holds_rows=True, owned_d=512, special_first=True))  # D = 512: 427 us
}


def _key(target: Target, operand: str) -> tuple[int, str]:
    """Where the tables have an operand: "tf32" multiplies one part of its split rows, which is what "fp16" does."""
    return target.arch, "fp16" if operand == "tf32" else operand


def _choose(by_dim: dict[int, Tiles], dim: int) -> Tiles:
    return by_dim[min(limit for limit in by_dim if dim <= limit)]


def forward_tiles(target: Target, operand: str, dim: int, online_max: bool) -> Tiles:
    """operand: "fp16", "tf32" or "ieee" (triton_common.py); online_max: rows have maxima of their own."""
    table = _FORWARD | _FORWARD_ONLINE if online_max else _FORWARD
    return _choose(table[_key(target, operand)], dim)


def backward_tiles(target: Target, operand: str, dim: int, online_max: bool) -> Tiles:
    """The arguments of forward_tiles."""
    key = _key(target, operand)
    by_dim = _BACKWARD[key] | (_BACKWARD_ONLINE.get(key, {}) if online_max else {})
    tiles = _choose(by_dim, dim)
    if tiles != by_dim[_ANY]:
        return tiles
    if not tiles.even(dim):
        return _BACKWARD_MASKED.get(key, tiles)
    limit, plain = _BACKWARD_PLAIN.get(key, (0, tiles))
    return plain if dim <= limit and not online_max else tiles


def forward_bands(
    target: Target, symmetric: bool, row_tiles: int, column_tiles: int, column_sums: bool = False
) -> tuple[int, int]:
    """(row tiles, column tiles) of one program; column_sums: of a rectangle, too.

    At most 8 column tiles, for which a row tile is then read once, fewer where that would leave less than 4 programs a
    multiprocessor, of which the slowest is then a small part; more of either where partial sums would exceed MAX_SLOTS.
    """
    band_m = -(-row_tiles // MAX_SLOTS) if symmetric or column_sums else 1
    tiles = row_tiles * column_tiles // (2 if symmetric else 1)
    band_n = min(8, max(1, tiles // (4 * target.multiprocessors * band_m)))
    return band_m, max(band_n, -(-column_tiles // MAX_SLOTS))


def backward_splits(target: Target, row_programs: int, column_tiles: int) -> int:
    """Parts into which each row tile's loop over the columns is cut.

    The fewest that keep the busiest multiprocessor shortest, counted in column tiles; a program is taken to cost 2
    more, for its start and its result.
    """

    def busiest(splits: int) -> int:
        programs = -(-row_programs * splits // target.multiprocessors)
        return programs * (-(-column_tiles // splits) + 2)

    return min(range(1, min(column_tiles, target.multiprocessors) + 1), key=busiest)


@cache
def target_of(device: torch.device) -> Target:
    """The target that tensors on the device run on; a CPU (Triton's interpreter) counts as a small sm_80."""
    if device.type != "cuda":
        return Target(80, 4)
    properties = torch.cuda.get_device_properties(device)
    return Target({9: 90, 10: 100}.get(properties.major, 80), properties.multi_processor_count)
