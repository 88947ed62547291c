"""The generated code of the Triton kernels of similarities: compiled ahead of time, and executed by ptxlab.

ptxlab lies outside the repository (../shared/ptxlab, or the environment variable PTXLAB); without it the executions
are skipped.
"""

from functools import partial

import pytest
import torch

from proof.generated.test_aot_triton import check
from proof.generated.triton_code import TABLES, check_digests, ptxlab, scratch_apart, simulate
from proof.generated.triton_similarity_tables import (
    TILE_KERNELS,
    aot_keys,
    aot_launches,
    aot_markdown,
    aot_table,
    committed,
)
from simclr_fast.ops.ntxent.triton_similarity import TritonSimilarity
from simclr_fast.ops.ntxent.triton_tiles import Target
from simclr_fast.triton_launch import Launch
from tests.ops.ntxent.triton_similarity_cases import Case, errors, run

HALF = {"lse": 1e-3, "max": 1e-3, "column_lse": 1e-3, "dz": 1e-3, "dt": 3e-3}
FLOAT32 = {"lse": 5e-6, "max": 5e-6, "column_lse": 5e-6, "dz": 3e-5, "dt": 3e-5}
BANK_CONFLICTS = 1.1  # shared-memory wavefronts over the fewest possible
# At t = 0.02, logits and gradients are five times as large as at 0.1, and with them what rounding makes of them.
TWO_PROCESSES = Case(70, 90, 128, 0.02, dtype=torch.float16, sides=("rows",), world=2, rank=1)
WIDER = {name: 5 * bound for name, bound in HALF.items()}
SCHEDULES = ((0, "lazy"), (1, "eager"), (2, "random"))  # seed, and when asynchronous copies and products take effect
CASES = {
    "sm_80, half, ragged, both": (80, Case(150, 70, 64, 0.1, dtype=torch.float16, exclude="self"), HALF),
    "sm_80, full float32, maxima": (80, Case(40, 70, 33, 0.1, need_max=True, sides=("rows",)), FLOAT32),
    "sm_90, half, pairs": (90, Case(140, None, 64, 0.1, dtype=torch.float16, exclude="pair"), HALF),
    "sm_90, half, ragged, both": (90, Case(150, 70, 64, 0.1, dtype=torch.float16, exclude="self"), HALF),
    "sm_90, half, wide, maxima": (90, Case(300, 270, 200, 0.1, dtype=torch.float16, need_max=True), HALF),
    "sm_90, half, two processes, online max": (90, TWO_PROCESSES, WIDER),
    "sm_90, full float32, ragged, both": (90, Case(150, 70, 33, 0.1, exclude="self"), FLOAT32),
}


def test_every_row_is_of_the_code_as_it_is() -> None:
    check_digests(aot_launches, aot_keys(), committed())


@pytest.mark.proof
def test_compiled_ahead_of_time() -> None:
    """For every architecture, with both variants among them; the others' rows are made of the same code, see above."""
    check(aot_table(aot_keys(small=True)), committed(), TILE_KERNELS)


def test_committed_table() -> None:
    table = committed()
    check(table, table, TILE_KERNELS)
    assert (TABLES / "aot_triton_similarity.md").read_text() == aot_markdown(table)


@pytest.mark.proof
@pytest.mark.skipif(ptxlab() is None, reason="ptxlab is neither at ../shared/ptxlab nor named by PTXLAB")
@pytest.mark.parametrize("name", CASES)
def test_generated_code(name: str) -> None:
    """Right against float64 with programs in random order, whenever copies land; any race or stray access raises."""
    arch, case, tolerance = CASES[name]

    def run_launch(seed: int, copies: str, launch: Launch) -> None:
        report = simulate(launch, arch=arch, strict=True, seed=seed, cp_async=copies, block_order="random")
        assert report.spill_bytes == 0, launch.kernel.__name__
        if launch.kernel.__name__ in TILE_KERNELS:
            assert report.bank_conflict_ratio <= BANK_CONFLICTS, launch.kernel.__name__

    for schedule in SCHEDULES:
        with scratch_apart():
            backend = TritonSimilarity(partial(run_launch, *schedule), lambda device: Target(arch, 2))
            found = errors(case, run(case, backend))
        assert all(found[value] <= tolerance[value] for value in found), found
