"""The PTX that nvcc emits for the CUDA augmentation, executed: right, free of races, close to the floor of traffic."""

import ctypes
import json

import pytest
import torch

from proof.generated import ptxlab_augment
from proof.generated.augment_counts import (
    MAX_BANK_CONFLICTS,
    MIN_COALESCING,
    WORKLOADS,
    Workload,
    by_call,
    check_bounds,
)
from proof.generated.ptx import NEEDS_SIMULATOR, Program, toolkit
from proof.generated.ptxlab_augment import SOURCES, TABLE
from proof.simt import augment as simt
from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.ops.augment.params import PACKED_WORDS

needs_simulator = [pytest.mark.proof, *NEEDS_SIMULATOR]
# Over the floor: bytes of device memory; bytes asked of L1 and L2, where tiles read their halos and seams again.
MAX_UNIQUE, MAX_SECTORS = 1.5, 1.5
SMALL = (
    Workload("33 -> 35", 2, 33, 35, torch.float32, (("blur_kernel", 5), ("solarize_p", 0.5))),
    Workload("50 -> 100", 1, 50, 100, torch.float16, (("blur_p", 1.0), ("jitter_p", 1.0))),
)


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(SOURCES)


class TestGeneratedCode:
    pytestmark = needs_simulator

    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("workload", [*SMALL, *WORKLOADS], ids=str)
    def test_is_right_and_free_of_issues(self, program: Program, workload: Workload, seed: int) -> None:
        torch.manual_seed(seed)
        approx = "perturb" if seed == 2 else "accurate"
        outcome = ptxlab_augment.execute(program, workload, seed=seed, approx=approx, threads=2)
        assert len(outcome.reports) == (1 if workload.size <= 96 else 2)
        assert outcome.error <= 1
        for report in outcome.reports:
            assert report.ok, report.issues
            assert report.spill_bytes == 0

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_sampling(self, program: Program, seed: int) -> None:
        images, key = torch.zeros(100, 3, 40, 56, dtype=torch.uint8), torch.tensor([2**62 + seed])
        aug = SimCLRAugment(32, solarize_p=0.3, backend="reference")
        params = torch.full((2, 100, PACKED_WORDS), -1, dtype=torch.int32)
        args = simt.AugmentSampleArgs(
            simt.recipe_doubles(aug), key.data_ptr(), None, None, 40, 56, 2, 100, params.data_ptr()
        )
        with program.simulated(lambda: [key, params], seed=seed) as reports:
            program.call("augment_sample", ctypes.byref(args))
        assert torch.equal(params, aug.sample(images, seed=key).pack())
        assert len(reports) == 1
        assert reports[0].ok
        assert reports[0].coalescing_store >= MIN_COALESCING
        assert reports[0].bank_conflict_ratio <= MAX_BANK_CONFLICTS

    @pytest.mark.parametrize("workload", WORKLOADS, ids=str)
    def test_does_what_the_table_says(self, program: Program, workload: Workload) -> None:
        table = json.loads(TABLE.read_text())
        if toolkit() != table["nvcc"]:
            pytest.skip(f"the table was made with nvcc {table['nvcc']}")
        committed = by_call(table)[workload.name]
        assert ptxlab_augment.count(program, workload) == committed, "python -m proof.generated.ptxlab_augment"


def test_committed_counts_are_within_bounds() -> None:
    """The gate on the committed table; the tests above hold the table to the code."""
    table = json.loads(TABLE.read_text())
    assert TABLE.with_suffix(".md").read_text() == ptxlab_augment.render(table)
    calls = by_call(table)
    assert list(calls) == [workload.name for workload in WORKLOADS]
    for name, rows in calls.items():
        check_bounds(rows, name, MAX_UNIQUE, MAX_SECTORS)
