"""Kernels that are wrong on purpose give wrong results under some schedule, even without a sanitizer."""

import pytest
import torch

from proof.simt.library import SCHEDULES, Kernels, Schedule, unwritten
from proof.simt.test_runtime_sync import ring

LAZY, EAGER = SCHEDULES[::2], SCHEDULES[1::2]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    # Under a sanitizer these would end the process: test_sanitizers.py has them for that.
    return Kernels(("proof/simt/kernels/sync.cu", "proof/simt/kernels/memory.cu"), flavour="plain")


def is_right(kernels: Kernels, launcher: str, schedule: Schedule) -> bool:
    """Whether the launcher gives the right result under the schedule."""
    if launcher.startswith("reverse"):
        x, y = torch.randn(4, 128), unwritten(4, 128, dtype=torch.float32)
        kernels.call(launcher, x, y, 4, schedule=schedule)
        return torch.equal(y, x.flip(1))
    if launcher.startswith("warp_neighbour"):
        x, y = torch.randn(32), unwritten(32, dtype=torch.float32)
        kernels.call(launcher, x, y, schedule=schedule)
        return torch.equal(y, x.roll(-1))
    if launcher.startswith("ring"):
        return ring(kernels, launcher, schedule)
    x, y = torch.randn(9, 64, 4), unwritten(64, dtype=torch.float32)
    kernels.call(launcher, x, y, 9, schedule=schedule)
    return torch.allclose(y, x.sum((0, 2)).flip(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("launcher", ["reverse_without_barrier", "warp_neighbour_without_sync", "ring_without_barrier"])
def test_a_missing_barrier_shows(kernels: Kernels, launcher: str) -> None:
    assert not all(is_right(kernels, launcher, schedule) for schedule in SCHEDULES)
    assert all(is_right(kernels, launcher.split("_without")[0], schedule) for schedule in SCHEDULES)


@pytest.mark.parametrize("schedule", LAZY, ids=str)
def test_a_short_wait_shows_when_copies_land_late(kernels: Kernels, schedule: Schedule) -> None:
    assert not is_right(kernels, "pipeline_short_wait", schedule)


def test_an_early_refill_shows_when_copies_land_at_once(kernels: Kernels) -> None:
    assert not all(is_right(kernels, "pipeline_early_refill", schedule) for schedule in EAGER)
