"""The runtime's shared memory, asynchronous copies, atomics and launch limits: kernels that are right."""

import pytest
import torch

from proof.simt.library import SCHEDULES, Kernels, Schedule, SimtError, unwritten

SOURCES = ("proof/simt/kernels/memory.cu",)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


@pytest.mark.parametrize("name", ["float", "half", "double"])
def test_unwritten_shared_memory_is_nan_in_every_block(kernels: Kernels, name: str) -> None:
    y = torch.zeros(6, dtype=getattr(torch, name))
    kernels.call(f"unwritten_{name}", y)
    assert y.isnan().all()


def test_shared_variables_belong_to_their_instantiation(kernels: Kernels) -> None:
    y, aligned = unwritten(64, dtype=torch.int32), torch.zeros(1, dtype=torch.bool)
    kernels.call("instances", y, aligned)
    assert y.view(32, 2).unique(dim=0).tolist() == [[3, 30]]
    assert aligned.item()


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_pipeline_of_asynchronous_copies(kernels: Kernels, schedule: Schedule, steps: int) -> None:
    x, y = torch.randn(steps, 64, 4), unwritten(64, dtype=torch.float32)
    kernels.call("pipeline", x, y, steps, schedule=schedule)
    torch.testing.assert_close(y, x.sum((0, 2)).flip(0), rtol=0, atol=1e-4)


@every_schedule
@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_fill_with_zeros(kernels: Kernels, schedule: Schedule, size: int) -> None:
    n = 37 * size + 3
    x = torch.randint(1, 255, (64 * size,), dtype=torch.uint8)
    y = unwritten(64 * size, dtype=torch.uint8)
    kernels.call(f"zero_fill_{size}", x[:n].clone(), y, n, schedule=schedule)
    assert torch.equal(y[:n], x[:n])
    assert y[n:].eq(0).all()


def test_bad_copies_are_reported(kernels: Kernels) -> None:
    x, y = torch.randn(16), torch.randn(16)
    with pytest.raises(SimtError, match=r"not aligned to the copy's 16 bytes \[kernel misaligned_copy_kernel"):
        kernels.call("misaligned_copy", x)
    with pytest.raises(SimtError, match=r"target is not in shared memory \[kernel copy_to_global_kernel"):
        kernels.call("copy_to_global", x, y)


@pytest.mark.parametrize("host_threads", [1, 2])
def test_atomics(kernels: Kernels, host_threads: int) -> None:
    x = torch.randint(-1000, 1000, (20, 64), dtype=torch.int32)
    total, wide = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    highest, ticket = torch.full((1,), -5000, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    kernels.call("atomics", x, total, highest, wide, ticket, 20, schedule=Schedule(1, host_threads=host_threads))
    assert total.item() == x.sum().item()
    assert highest.item() == x.max().item()
    assert wide.item() == 0.5 * x.sum().item()
    assert ticket.item() == 1280 % 100


# ---- Limits


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((1, 1, 1), (33, 32, 1), "block of 33 x 32 x 1 threads"),
        ((1, 1, 1), (1, 1, 65), "block of 1 x 1 x 65 threads"),
        ((0, 1, 1), (1, 1, 1), "grid of 0 x 1 x 1 blocks"),
        ((1, 65536, 1), (1, 1, 1), "grid of 1 x 65536 x 1 blocks"),
    ],
)
def test_impossible_launches_are_refused(kernels: Kernels, grid: tuple, block: tuple, message: str) -> None:
    count = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(SimtError, match=f"returned 9: launch of any_kernel refused: {message}"):
        kernels.call("count_threads", count, *grid, *block)
    assert count.item() == 0


def test_every_thread_of_every_block_runs_once(kernels: Kernels) -> None:
    count = torch.zeros(1, dtype=torch.int32)
    kernels.call("count_threads", count, 3, 2, 2, 5, 7, 3, schedule=Schedule(2, host_threads=2))
    assert count.item() == 12 * 105


def test_dynamic_shared_memory_needs_consent_and_room(kernels: Kernels) -> None:
    y = torch.zeros(1)
    kernels.call("dynamic", y, 80 * 256)
    assert y.item() == 80 * 256 - 1
    with pytest.raises(SimtError, match="81920 bytes of dynamic shared memory, the kernel may take 49152"):
        kernels.call("dynamic_without_opt_in", y, 80 * 256)
    with pytest.raises(SimtError, match="102400 bytes of shared memory, the device has 101376 per block"):
        kernels.call("dynamic", y, 100 * 256)
    kernels.call("dynamic", y, 100 * 256, schedule=Schedule(shared_bytes=227 * 1024))
    with pytest.raises(SimtError, match="more than 48 KiB"):
        kernels.call("large_static", y)
