"""How the loss scales: seconds against N, and against the number of processes that share one global batch."""

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.harness import FEWEST_ROUNDS, summary
from benchmarks.ntxent_contestants import views
from benchmarks.ntxent_truth import loss_and_sampled_gradients
from benchmarks.report_tables import counted
from simclr_fast import NTXentLoss

TEMPERATURE = 0.1
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """Global batches of N pairs, each split over 1, 2, ... processes of one thread."""

    sizes: tuple[int, ...]
    d: int
    processes: tuple[int, ...]

    def __str__(self) -> str:
        return f"D={self.d},N={'/'.join(map(str, self.sizes))},processes={'/'.join(map(str, self.processes))}"


CASES = {
    "smoke": [Case((24, 48), 8, (1, 2))],
    "quick": [Case((512, 1024, 2048, 4096), 128, (1, 2))],
    "full": [Case((512, 1024, 2048, 4096, 8192, 16384, 32768), 128, (1, 2, 4))],
}


def _worker(rank: int, world: int, case: Case, device_type: str, steps: int, store: str, results) -> None:
    torch.set_num_threads(1)
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store, rank=rank, world_size=world)
    loss_function = NTXentLoss(TEMPERATURE, gather_distributed=True)
    found = {}
    for n in case.sizes:
        both = views(n, case.d, torch.float32, device)
        z0, z1 = (z.detach().chunk(world)[rank].requires_grad_() for z in both)
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
        found[n] = (statistics.median(seconds[1:]), mean.item())
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


def _run(world: int, case: Case, device: torch.device, steps: int, folder) -> dict[int, tuple[float, float]]:
    """For every N: median seconds of a step, and the global loss, with this many fresh processes of one thread each."""
    results = mp.get_context("spawn").SimpleQueue()
    store = f"file://{folder / f'store-{world}-{time.time_ns()}'}"
    mp.spawn(_worker, (world, case, device.type, steps, store, results), nprocs=world)
    return results.get()


def test_scaling(benchmark, case: Case, device: torch.device, budget: float, tmp_path) -> None:
    truth = {
        n: loss_and_sampled_gradients(*views(n, case.d, torch.float32, device), TEMPERATURE, samples=1)[0].item()
        for n in case.sizes
    }
    keys = [(n, world) for n in case.sizes for world in case.processes]
    seconds: dict[tuple[int, int], list[float]] = {key: [] for key in keys}
    errors = dict.fromkeys(keys, 0.0)
    # More processes than devices would share one; NCCL refuses that.
    present = [w for w in case.processes if device.type != "cuda" or w <= torch.cuda.device_count()]

    def one_round() -> None:
        for world in present:
            for n, (took, loss) in _run(world, case, device, FEWEST_ROUNDS, tmp_path).items():
                seconds[n, world].append(took)
                errors[n, world] = max(errors[n, world], abs(loss - truth[n]) / truth[n])

    benchmark.pedantic(one_round, rounds=1 if budget < 1 else 3, iterations=1)
    contestants = {}
    for n, world in keys:
        figures = {"n": n, "processes": world}
        if world not in present:
            figures["absent"] = f"needs {world} GPUs"
        else:
            figures |= {"error": errors[n, world], "tolerance": TOLERANCE}
            if errors[n, world] <= TOLERANCE:
                figures["seconds"] = {"full": summary(seconds[n, world])}
        contestants[f"N={n}, {counted(world, 'process')}"] = figures
    benchmark.extra_info.update(suite="scaling", case=vars(case), contestants=contestants)
    assert all(error <= TOLERANCE for error in errors.values()), f"the global loss is wrong: {errors}, truth {truth}"
