"""Hopper's backward, as nvcc compiles it for compute_90a, executed: right, free of races and of misused products.

Every problem runs with three seeds and three timings: asynchronous work that takes effect at its wait, at once, and at
random. A device of few multiprocessors gives each the tiles of many.
"""

import ctypes

import pytest

from proof.generated import test_sm90
from proof.generated.mutants_sm90 import Mutant
from proof.generated.ptx import NEEDS_SIMULATOR, Program
from proof.generated.sm90 import BFLOAT, FLOAT, HALF, hopper, program, similarity_errors
from proof.generated.sm90_bwd import KERNEL, MUTANTS, Case
from proof.simt.similarity_cases import Case as SimilarityCase
from tests.ntxent_launchers import BwdArgs, Device

pytestmark = [pytest.mark.proof, *NEEDS_SIMULATOR]
# One, two and four panels of D; both maxima; one tile a CTA, and more than stages; an empty second warpgroup.
CASES = (
    Case(1, 1),
    Case(25, 8, temperature=0.5, multiprocessors=132),
    Case(33, 123, kind="aligned"),
    Case(300, 128, multiprocessors=1),
    Case(300, 40, on_device=True, multiprocessors=1),
    Case(40, 129, BFLOAT, temperature=0.02),
    Case(130, 250, multiprocessors=1, reduce=True),
    Case(70, 100, world=3, rank=1, kind="zero rows"),
    Case(50, 72, on_device=True, kind="huge row", temperature=0.03),
    Case(1, 1, FLOAT),
    Case(170, 123, FLOAT, temperature=0.05, multiprocessors=1),
    Case(120, 20, FLOAT, on_device=True, multiprocessors=1, reduce=True),
    Case(30, 70, FLOAT, on_device=True, world=2, rank=1, kind="opposed"),
    Case(60, 180, FLOAT, "tf32"),
)
SIMILARITY = (
    SimilarityCase(150, 270, 72, HALF, "self", both=True, device=Device(1, 0)),
    SimilarityCase(140, None, 90, BFLOAT, "pair", device=Device(1, 0)),
    SimilarityCase(20, 530, 200, HALF, both=True, on_device=True, device=Device(1, 0)),
    SimilarityCase(140, 90, 40, FLOAT, "self", both=True, device=Device(1, 0)),
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


@pytest.mark.parametrize(
    ("rows", "d", "splits"),
    [
        (2048, 128, 8),
        (8192, 128, 2),
        (17408, 128, 3),
        (131072, 128, 1),  # five would be faster by 0.13 %
        (1 << 20, 256, 1),  # eight by 1.1 %, with a workspace of 8.6 GB
        (4224, 1024, 2),  # of 33 clusters of four one would wait for the other 32
        (131072, 512, 1),
    ],
)
def test_the_columns_are_split_where_multiprocessors_would_wait(
    kernels: Program, rows: int, d: int, splits: int
) -> None:
    args = BwdArgs(n=rows // 2, d=d, columns=rows, u_columns=d, temperature=0.1, device=hopper(132))
    du, statistics = rows * d * 4, rows * 4
    bytes_needed = kernels.value("simclr_ntxent_bwd_workspace_bytes", ctypes.byref(args))
    assert splits * (du + statistics) <= bytes_needed <= splits * (du + statistics) + statistics + 64


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_noticed(mutant: Mutant) -> None:
    assert mutant.noticed(), f"{mutant} passes for right"
