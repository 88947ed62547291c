"""The wide backward on Hopper, as nvcc compiles it for compute_90a, executed in clusters: right, and free of issues.

As test_sm90.py; here M is several times what the stages of a CTA hold, and D one slice and a little, two, and four.
"""

import pytest

from proof.generated import mutants_sm90_wide, test_sm90
from proof.generated.ptx import NEEDS_SIMULATOR, Program
from proof.generated.sm90 import BFLOAT, FLOAT, HALF, Case, program, similarity_errors
from proof.simt.similarity_cases import Case as SimilarityCase
from tests.ntxent_launchers import Device

pytestmark = [pytest.mark.proof, *NEEDS_SIMULATOR]
KERNEL = "ntxent_bwd_wide_sm90_kernel"
CASES = (
    Case(1, 257),
    Case(70, 300, BFLOAT, on_device=True),
    Case(230, 512, multiprocessors=2),
    Case(66, 520, temperature=0.01, multiprocessors=8),
    Case(33, 1000, BFLOAT, multiprocessors=4, world=3, rank=1),
    Case(40, 1024, multiprocessors=4, temperature=0.5),
    Case(65, 300, FLOAT, "tf32", on_device=True),
    Case(1, 129, FLOAT),
    Case(100, 140, FLOAT, multiprocessors=2),
    Case(70, 512, FLOAT, temperature=0.01, multiprocessors=4),
    Case(33, 1000, FLOAT, multiprocessors=8, world=2, rank=1),
)
SIMILARITY = (
    SimilarityCase(66, 330, 300, HALF, "self", both=True, device=Device(2, 0)),
    SimilarityCase(150, None, 600, BFLOAT, "pair", device=Device(4, 0)),
    SimilarityCase(40, 130, 512, HALF, both=True, on_device=True, upstream="columns", device=Device(2, 0)),
    SimilarityCase(70, 150, 200, FLOAT, both=True, device=Device(2, 0)),
)


@pytest.fixture(scope="module")
def kernels() -> Program:
    return program()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss(kernels: Program, case: Case) -> None:
    test_sm90.check(case.errors, kernels, KERNEL)


@pytest.mark.parametrize("case", SIMILARITY, ids=str)
def test_primitive(kernels: Program, case: SimilarityCase) -> None:
    test_sm90.check(lambda *args, **options: similarity_errors(case, *args, **options), kernels, KERNEL)


@pytest.mark.parametrize("mutant", mutants_sm90_wide.MUTANTS, ids=str)
def test_mutant_is_noticed(mutant: mutants_sm90_wide.Mutant) -> None:
    assert mutant.noticed(), f"{mutant} passes for right"
