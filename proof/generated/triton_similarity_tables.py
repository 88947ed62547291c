"""The table on the Triton kernels of similarities: what ahead-of-time compilation gives.

python -m proof.generated.triton_similarity_tables      writes docs/tables/aot_triton_similarity.{json,md}
"""

import itertools
from typing import Any

import torch

from proof.generated.triton_code import (
    committed_table,
    compile_in_processes,
    rewrite_tables,
)
from proof.generated.triton_tables import ARCHS, H100_MULTIPROCESSORS, OPERANDS, Key, markdown_of_aot
from simclr_fast.ops.ntxent.triton_host import new_unit_rows
from simclr_fast.ops.ntxent.triton_similarity import TritonSimilarity
from simclr_fast.ops.ntxent.triton_tiles import Target
from simclr_fast.triton_launch import Launch

DIMS = (128,)  # NT-Xent's table has the others, of the same tiles, and "tf32", which is "fp16" but for the rows' pitch
# A rectangle with the columns' sums, for the least and the most that the kernels are compiled for; rows alone compute
# what NT-Xent does. Whether the temperature allows the constant maximum, and whether its gradient is wanted.
VARIANTS = {"constant max": (0.1, False), "online max, dt": (0.01, True)}
TILE_KERNELS = ("similarity_fwd_kernel", "similarity_bwd_kernel")


def launches(key: Key, rows: int = 4096, columns: int = 2048) -> list[Launch]:
    """Every launch of forward and backward for one variant, as the backend would make them; nothing runs."""
    arch, operand, dim, variant = key
    dtype, precision = OPERANDS[operand]
    temperature, need_dt = VARIANTS[variant]
    recorded: list[Launch] = []
    backend = TritonSimilarity(recorded.append, lambda device: Target(arch, H100_MULTIPROCESSORS))
    z = torch.zeros(rows, dim, dtype=dtype)
    u, v = (new_unit_rows(z, count).zero_() for count in (rows, columns))
    lse, _, column_lse = backend.fwd(u, v, 0, "self", True, False, temperature, None, precision)
    numbers = (0, "self", 1e-8, temperature, None, precision, need_dt)
    backend.bwd(lse, column_lse, z, u, torch.zeros(rows), v, lse, column_lse, *numbers)
    return recorded


def aot_keys(small: bool = False) -> list[Key]:
    """Every architecture, operand, D and variant; small: what a test has time for."""
    if small:
        return [(arch, "fp16", 128, variant) for arch, variant in zip(ARCHS, itertools.cycle(VARIANTS))]
    return list(itertools.product(ARCHS, ("fp16", "ieee"), DIMS, VARIANTS))


def aot_launches(key: Key) -> dict[str, tuple[Launch, int]]:
    """The launches of the table, by the names of its rows: of the tile kernels; with fp16 operands of every kernel."""
    arch, operand, dim, variant = key
    found = {}
    for launch in launches(key):
        name = launch.kernel.__name__
        label = variant.removesuffix(", dt") if name == "similarity_fwd_kernel" else variant
        if name in TILE_KERNELS or (operand, dim) == ("fp16", 128):
            found[f"{name}, {operand}, D={dim}, {label}, sm_{arch}"] = launch, arch
    return found


def aot_table(keys: list[Key]) -> dict[str, Any]:
    return compile_in_processes(aot_launches, keys)


def aot_markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    title = "Triton kernels of similarities compiled ahead of time"
    return markdown_of_aot(table, title, "proof.generated.triton_similarity_tables")


def committed() -> dict[str, Any]:
    """The table as it stands in docs/tables."""
    return committed_table("aot_triton_similarity")


if __name__ == "__main__":
    rewrite_tables("triton_similarity", {"aot": (lambda: aot_table(aot_keys()), aot_markdown)})
