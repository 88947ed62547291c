"""Hopper's kernels, as nvcc compiles them for compute_90a, executed: right, free of races and of misused products.

Every case runs with three seeds and three timings: asynchronous work that takes effect at its wait, at once, and at
random. A device of few multiprocessors gives each the tiles of many.
"""

import pytest

from proof.generated import mutants_sm90
from proof.generated.ptx import NEEDS_SIMULATOR, Program
from proof.generated.sm90 import BFLOAT, FLOAT, HALF, Case, planned_otherwise, program, similarity_errors, worst
from proof.simt.similarity_cases import Case as SimilarityCase
from tests.ntxent_launchers import Device

pytestmark = [pytest.mark.proof, *NEEDS_SIMULATOR]
SCHEDULES = ((0, "lazy"), (1, "eager"), (2, "random"))
# Bands of several tiles, which begin at M = 16384, come with fewer slots at sizes that can be executed here.
FEW_SLOTS = (("ntxent_plan.h", "kFwdMaxSlots = 64", "kFwdMaxSlots = 2"),)
# The forward: both sizes of tiles; columns held and streamed; one strip, several, several of a CTA.
FORWARD = (
    Case(1, 1, only_fwd=True),
    Case(33, 123, multiprocessors=1, only_fwd=True),
    Case(256, 64, multiprocessors=1, only_fwd=True),
    Case(256, 128, multiprocessors=1, only_fwd=True),  # a plan that the compiler knows: also 66 x 123,
    Case(200, 100, BFLOAT, on_device=True, world=2, rank=1, multiprocessors=1, only_fwd=True),
    Case(150, 500, multiprocessors=1, only_fwd=True),  # and these
    Case(300, 200, only_fwd=True),
    Case(150, 40, temperature=0.01, only_fwd=True),
    Case(70, 300, BFLOAT, on_device=True, only_fwd=True),
    Case(200, 520, multiprocessors=3, only_fwd=True),
    Case(140, 1024, multiprocessors=1, only_fwd=True),
    Case(90, 40, world=2, rank=1, only_fwd=True),
    Case(256, 64, FLOAT, multiprocessors=1, only_fwd=True),
    Case(200, 32, FLOAT, on_device=True, multiprocessors=1, only_fwd=True),
    Case(256, 128, FLOAT, multiprocessors=1, only_fwd=True),
    Case(70, 100, FLOAT, temperature=0.01, only_fwd=True),
    Case(140, 200, FLOAT, multiprocessors=1, only_fwd=True),
    Case(100, 300, FLOAT, on_device=True, only_fwd=True),
    Case(140, 200, FLOAT, "tf32", only_fwd=True),
)
SIMILARITY = (
    SimilarityCase(300, 270, 72, HALF, "self", both=True, device=Device(2, 0)),
    SimilarityCase(150, None, 90, BFLOAT, "pair", need_max=True, device=Device(1, 0)),
    SimilarityCase(40, 530, 20, HALF, both=True, on_device=True, device=Device(1, 0)),
    SimilarityCase(150, 270, 72, FLOAT, both=True, device=Device(2, 0)),
)


@pytest.fixture(scope="module")
def kernels() -> Program:
    return program()


def check(errors, kernels: Program, launched: str, schedules=SCHEDULES) -> None:
    for seed, timing in schedules:
        found, reports = worst(errors, kernels, seed, timing, "perturb" if seed == 2 else "accurate")
        assert any(launched in report.kernel for report in reports), f"{launched} was not launched"
        for report in reports:
            assert report.ok, report.issues
            assert report.spill_bytes == 0
        wrong = {name: error for name, error in found.items() if not error <= 1}
        assert not wrong, f"error over tolerance: {wrong}"


@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_forward(kernels: Program, case: Case) -> None:
    check(case.errors, kernels, "ntxent_fwd_sm90_kernel")


@pytest.mark.parametrize("case", SIMILARITY, ids=str)
def test_forward_of_the_primitive(kernels: Program, case: SimilarityCase) -> None:
    check(lambda *args, **options: similarity_errors(case, *args, **options), kernels, "ntxent_fwd_sm90_kernel")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(300, 24, multiprocessors=1, only_fwd=True), id="one process"),
        pytest.param(
            Case(150, 24, world=2, rank=1, temperature=0.02, multiprocessors=1, only_fwd=True), id="two processes"
        ),
    ],
)
def test_bands_of_several_tiles(case: Case) -> None:
    check(case.errors, planned_otherwise(FEW_SLOTS, "ntxent_fwd.cu"), "ntxent_fwd_sm90_kernel", SCHEDULES[:1])


@pytest.mark.parametrize("mutant", mutants_sm90.MUTANTS, ids=str)
def test_mutant_is_noticed(mutant: mutants_sm90.Mutant) -> None:
    assert mutant.noticed(), f"{mutant} passes for right"
