"""The runtime's barriers, warp operations and schedules: kernels that are right, under every schedule."""

import pytest
import torch

from proof.simt.build import ROOT
from proof.simt.library import SCHEDULES, Kernels, Schedule, SimtError, unwritten

SOURCES = ("proof/simt/kernels/sync.cu",)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES[::2], ids=str)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


@every_schedule
@pytest.mark.parametrize("host_threads", [1, 2])
def test_block_sum(kernels: Kernels, schedule: Schedule, host_threads: int) -> None:
    x, n = torch.randn(1000), 1000
    sums = unwritten(8, dtype=torch.float32)
    kernels.call("block_sum", x, sums, n, schedule=Schedule(schedule.seed, host_threads=host_threads))
    expected = torch.nn.functional.pad(x, (0, 24)).view(8, 128).double().sum(1)
    torch.testing.assert_close(sums.double(), expected, rtol=0, atol=1e-4)


@every_schedule
def test_barrier_separates_writers_and_readers(kernels: Kernels, schedule: Schedule) -> None:
    x, y = torch.randn(5, 128), unwritten(5, 128, dtype=torch.float32)
    kernels.call("reverse", x, y, 5, schedule=schedule)
    assert torch.equal(y, x.flip(1))


@every_schedule
@pytest.mark.parametrize("ones", [0, 1, 69, 70])
def test_votes(kernels: Kernels, schedule: Schedule, ones: int) -> None:
    predicate = torch.zeros(70, dtype=torch.int32)
    predicate[torch.randperm(70)[:ones]] = 3
    out = unwritten(70, 3, dtype=torch.int32)
    kernels.call("votes", predicate, out, 70, schedule=schedule)
    assert out.unique(dim=0).tolist() == [[ones, int(ones > 0), int(ones == 70)]]


@every_schedule
def test_named_barriers_hand_a_buffer_to_and_fro(kernels: Kernels, schedule: Schedule) -> None:
    x, y = torch.randn(3, 64), unwritten(64, dtype=torch.float32)
    kernels.call("producer", x, y, schedule=schedule)
    torch.testing.assert_close(y, x.flip(1).sum(0))


@every_schedule
@pytest.mark.parametrize("n", [1, 33, 100, 128])
def test_threads_that_returned_hold_nobody_up(kernels: Kernels, schedule: Schedule, n: int) -> None:
    x, y = torch.randn(n), unwritten(n, dtype=torch.float32)
    kernels.call("early_return", x, y, n, schedule=schedule)
    assert torch.equal(y, x.flip(0) + x[torch.arange(n) // 32 * 32])


@every_schedule
def test_warp_operations(kernels: Kernels, schedule: Schedule) -> None:
    lanes, x = torch.arange(32), torch.randint(0, 900, (32,), dtype=torch.int32)
    out = unwritten(12, 32, dtype=torch.int32)
    kernels.call("warp_operations", x, out, 32, schedule=schedule)

    def mask(chosen: torch.Tensor) -> int:
        bits = int((chosen.long() << lanes).sum())
        return bits - (1 << 32) if bits >> 31 else bits

    xor = 0
    for value in x.tolist():
        xor ^= value
    down = torch.where(lanes % 16 + 3 < 16, lanes + 3, lanes)
    expected = [
        x[5].expand(32),
        x[lanes // 8 * 8 + (lanes + 1) % 8],
        x[torch.where(lanes >= 3, lanes - 3, lanes)],
        x[down],
        x[lanes ^ 9],
        torch.full((32,), mask(x % 2 == 1)),
        torch.full((32,), 0),
        torch.full((32,), 1),
        torch.tensor([mask(x % 3 == value) for value in (x % 3).tolist()]),
        x.sum().expand(32),
        x.min().expand(32),
        torch.full((32,), xor),
    ]
    for row, (got, wanted) in enumerate(zip(out, expected)):
        assert got.tolist() == wanted.tolist(), f"operation {row}"


@every_schedule
def test_lanes_that_part_keep_their_own_masks(kernels: Kernels, schedule: Schedule) -> None:
    x, y = torch.randn(32, dtype=torch.float64), unwritten(32, dtype=torch.float64)
    kernels.call("parted_warp", x, y, schedule=schedule)
    expected = torch.empty_like(x)
    expected[0::2], expected[1::2] = x[0::2].sum(), 2 * x[31]
    torch.testing.assert_close(y, expected)


@every_schedule
def test_warp_synchronised_exchange(kernels: Kernels, schedule: Schedule) -> None:
    x, y = torch.randn(32), unwritten(32, dtype=torch.float32)
    kernels.call("warp_neighbour", x, y, schedule=schedule)
    assert torch.equal(y, x.roll(-1))


def ring(kernels: Kernels, launcher: str, schedule: Schedule, rounds: int = 5, absent: int = -1) -> bool:
    """Whether four blocks that hand numbers around come out right."""
    values = unwritten(rounds + 1, 4, dtype=torch.int32)
    values[0] = torch.arange(4)
    kernels.call(launcher, values, 4, rounds, absent, schedule=schedule)
    return torch.equal(values[-1], values[0].roll(-rounds) + rounds)


@every_schedule
def test_blocks_of_a_resident_launch_wait_for_each_other(kernels: Kernels, schedule: Schedule) -> None:
    assert ring(kernels, "ring", schedule)


# ---- What is wrong is said, with the kernel, the block, the thread and the line.


def line_of(source: str, text: str, occurrence: int = 0) -> str:
    lines = (ROOT / source).read_text().splitlines()
    return f"{source}:{[i for i, line in enumerate(lines, 1) if text in line][occurrence]}"


@every_schedule
def test_divergent_barrier_is_reported(kernels: Kernels, schedule: Schedule) -> None:
    with pytest.raises(SimtError, match="divergent barrier") as error:
        kernels.call("divergent_barrier", unwritten(64, dtype=torch.int32), schedule=schedule)
    message = str(error.value)
    assert "kernel divergent_barrier_kernel, block (0,0,0), thread (" in message
    barriers = [line_of(SOURCES[0], "    __syncthreads();", i) for i in (0, 1)]
    assert all(barrier in message for barrier in barriers), message


@every_schedule
def test_deadlock_is_reported(kernels: Kernels, schedule: Schedule) -> None:
    with pytest.raises(SimtError, match="deadlock in kernel deadlock_kernel") as error:
        kernels.call("deadlock", unwritten(128, dtype=torch.int32), schedule=schedule)
    message = str(error.value)
    assert f"wait in bar.sync at {line_of(SOURCES[0], 'named_barrier_sync(3, 64)')}" in message
    assert "threads (0,0,0) to (15,1,0) have returned" in message
    assert "threads (0,2,0) to (15,3,0) wait" in message


@every_schedule
def test_divergent_warp_operation_is_reported(kernels: Kernels, schedule: Schedule) -> None:
    with pytest.raises(SimtError, match="divergent warp: this lane is in .*, lanes that it waits for are in") as error:
        kernels.call("divergent_warp", unwritten(32, dtype=torch.int32), schedule=schedule)
    message = str(error.value)
    assert line_of(SOURCES[0], "__any_sync(0xffffffffu, 1)") in message
    assert line_of(SOURCES[0], "__shfl_xor_sync(0xffffffffu, 1, 1)") in message


@every_schedule
def test_a_grid_barrier_that_a_block_leaves_out_is_reported(kernels: Kernels, schedule: Schedule) -> None:
    with pytest.raises(SimtError, match=r"deadlock in kernel ring_kernel<true>, block \((0|1|3),0,0\)") as error:
        ring(kernels, "ring", schedule, absent=2)
    where = line_of(SOURCES[0], "this_grid().sync()")
    assert f"threads (0,0,0) to (0,0,0) wait in this_grid().sync() at {where}" in str(error.value)


def test_blocks_that_wait_for_each_other_must_be_launched_together(kernels: Kernels) -> None:
    with pytest.raises(SimtError, match="a grid's barrier in a launch whose blocks need not run at once"):
        ring(kernels, "ring_of_any_launch", Schedule())
    with pytest.raises(SimtError, match="ring_kernel<true> refused: 4 blocks at once on 3 multiprocessors"):
        ring(kernels, "ring", Schedule(multiprocessors=3))


def test_lane_outside_its_own_mask_is_reported(kernels: Kernels) -> None:
    with pytest.raises(SimtError, match=r"not in its own mask .*thread \(16,0,0\)"):
        kernels.call("foreign_mask", unwritten(32, dtype=torch.int32))


def test_an_error_does_not_outlive_its_launch(kernels: Kernels) -> None:
    with pytest.raises(SimtError):
        kernels.call("deadlock", unwritten(128, dtype=torch.int32))
    x, y = torch.randn(1, 128), unwritten(1, 128, dtype=torch.float32)
    kernels.call("reverse", x, y, 1)
    assert torch.equal(y, x.flip(1))
