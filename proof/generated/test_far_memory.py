"""The last CTA, or cluster, of Hopper's launches on tensors of more than 2^31 elements, as nvcc compiles them."""

from collections.abc import Iterator

import pytest
import torch

from proof import far_memory
from proof.generated.ptx import NEEDS_SIMULATOR
from proof.generated.sm90 import FLOAT, HALF, hopper, planned_otherwise
from tests.ntxent_launchers import NtxentLaunchers
from tests.similarity_launchers import SimilarityLaunchers

pytestmark = [pytest.mark.proof, *NEEDS_SIMULATOR]
ONE_TILE = 2**28  # multiprocessors that give every CTA of the forward one tile


@pytest.fixture
def ntxent(monkeypatch: pytest.MonkeyPatch) -> Iterator[NtxentLaunchers]:
    far_memory.make_sparse(monkeypatch)
    # These two files decide how the launches are cut.
    kernels = planned_otherwise(far_memory.FINER, "ntxent_fwd.cu", "ntxent_bwd_finish.cu")
    launchers = NtxentLaunchers(kernels, hopper(ONE_TILE))
    with kernels.simulated(lambda: launchers.tensors, last_block_only=True, stats=False) as reports:
        yield launchers
    assert "_sm90_kernel" in reports[0].kernel
    assert all(report.ok for report in reports)


# The last CTA's tile holds the diagonal: rows are the columns, 2^21 of 1024; or 16 rows at the end of the columns.
@pytest.mark.parametrize(("n", "columns", "d"), [(2**20 + 64, 2**21 + 128, 1024), (8, 2**24 + 64, 128)])
def test_the_last_tile_of_very_many_logits(ntxent: NtxentLaunchers, n: int, columns: int, d: int) -> None:
    far_memory.check_last_tile(ntxent, n, columns, d)


# 2^10 pairs at the end of the columns, or columns that are the rows; then by clusters.
@pytest.mark.parametrize(
    ("dtype", "n", "columns", "d", "multiprocessors", "strip"),
    [
        (HALF, 2**10, 2**24 + 64, 128, 2**18, 704),
        (FLOAT, 2**10, 2**24 + 64, 128, 2**18, 704),
        (HALF, 2**23 + 32, 2**24 + 64, 128, 2**26, 4160),
        (HALF, 2**10, 2**23 + 64, 264, 2**18, 960),
        (FLOAT, 2**10, 2**23 + 64, 136, 2**18, 960),
    ],
)
def test_the_last_strip_of_very_many_columns_in_the_backward(
    ntxent: NtxentLaunchers, dtype: torch.dtype, n: int, columns: int, d: int, multiprocessors: int, strip: int
) -> None:
    far_memory.check_last_strip(ntxent, dtype, n, columns, d, multiprocessors, strip)


def test_the_last_of_very_many_columns_of_the_primitive(monkeypatch: pytest.MonkeyPatch) -> None:
    far_memory.make_sparse(monkeypatch)
    kernels = planned_otherwise(far_memory.FINER, "similarity.cu")
    launchers = SimilarityLaunchers(kernels, hopper(ONE_TILE))
    with kernels.simulated(lambda: launchers.tensors, last_block_only=True, stats=False) as reports:
        far_memory.check_last_columns(launchers)
    assert "ntxent_fwd_sm90_kernel" in reports[0].kernel
    assert all(report.ok for report in reports)
