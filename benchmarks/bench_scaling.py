"""How the loss scales: seconds per step against the number of processes that share one global batch."""

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.harness import FEWEST_ROUNDS, summary
from benchmarks.ntxent_contestants import views
from simclr_fast import NTXentLoss, ntxent_loss

TEMPERATURE = 0.1
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A global batch of N pairs, split over 1, 2, ... processes."""

    n: int
    d: int
    processes: tuple[int, ...]

    def __str__(self) -> str:
        return f"N={self.n},D={self.d},processes={'/'.join(map(str, self.processes))}"


CASES = {
    "smoke": [Case(24, 8, (1, 2))],
    "quick": [Case(2048, 128, (1, 2))],
    "full": [Case(n, 128, (1, 2, 4)) for n in (2048, 8192, 32768)],
}


def _worker(rank: int, world: int, case: Case, device_type: str, steps: int, store: str, results) -> None:
    torch.set_num_threads(1)
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store, rank=rank, world_size=world)
    z0, z1 = (z.detach().chunk(world)[rank].requires_grad_() for z in views(case.n, case.d, torch.float32, device))
    loss_function = NTXentLoss(TEMPERATURE, gather_distributed=True)
    seconds = []
    for _ in range(steps + 1):
        dist.barrier()
        start = time.perf_counter()
        loss = loss_function(z0, z1)
        torch.autograd.grad(loss, (z0, z1))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    mean = loss.detach() / world
    dist.all_reduce(mean)
    if rank == 0:
        results.put((statistics.median(seconds[1:]), mean.item()))
    dist.destroy_process_group()


def _run(world: int, case: Case, device: torch.device, steps: int, folder) -> tuple[float, float]:
    """Median seconds of a step and the global loss, with this many fresh processes of one thread each."""
    results = mp.get_context("spawn").SimpleQueue()
    store = f"file://{folder / f'store-{world}-{time.time_ns()}'}"
    mp.spawn(_worker, (world, case, device.type, steps, store, results), nprocs=world)
    return results.get()


def test_scaling(benchmark, case: Case, device: torch.device, budget: float, tmp_path) -> None:
    truth = ntxent_loss(*views(case.n, case.d, torch.float64, device), TEMPERATURE).item()
    seconds: dict[int, list[float]] = {world: [] for world in case.processes}
    errors = dict.fromkeys(case.processes, 0.0)

    def one_round() -> None:
        for world in case.processes:
            took, loss = _run(world, case, device, FEWEST_ROUNDS, tmp_path)
            seconds[world].append(took)
            errors[world] = max(errors[world], abs(loss - truth) / truth)

    benchmark.pedantic(one_round, rounds=1 if budget < 1 else 3, iterations=1)
    one = statistics.median(seconds[case.processes[0]])
    contestants, remarks = {}, {}
    for world in case.processes:
        name = f"{world} process{'es' if world > 1 else ''}"
        contestants[name] = {"error": errors[world], "tolerance": TOLERANCE}
        if errors[world] <= TOLERANCE:
            contestants[name]["seconds"] = {"full": summary(seconds[world])}
            remarks[name] = f"{one / statistics.median(seconds[world]):.2f}x of one process; 1 thread each"
    benchmark.extra_info.update(suite="scaling", case=vars(case), contestants=contestants, remarks=remarks)
    assert all(error <= TOLERANCE for error in errors.values()), f"the global loss is wrong: {errors}, truth {truth}"
