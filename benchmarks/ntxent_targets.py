"""The CPU figures that docs/ntxent.md states, measured here: python -m benchmarks.ntxent_targets

Speed: forward + backward in float32, D = 128, t = 0.1, against plain PyTorch, and against 2 M^2 D multiply-adds at the
rate of a large torch.mm; interleaved, medians. Memory: peak of forward + backward in a fresh process.
"""

import argparse
import statistics

import torch

from benchmarks.harness import Laps
from benchmarks.limits import multiply_adds_per_second
from benchmarks.memory import peak_bytes
from benchmarks.ntxent_contestants import contestant

CPU = torch.device("cpu")
LEAST_SPEEDUP = {256: 1.5, 2048: 2.4, 4096: 2.7}
MOST_OF_LIMIT = {4096: 1.35}
MOST_MIB = {4096: 32, 32768: 512}
DIM, TEMPERATURE = 128, 0.1


def seconds(name: str, n: int):
    """A function that runs one contestant once and returns the seconds it took."""
    runner = contestant(name, n, DIM, torch.float32, TEMPERATURE, CPU, float("inf"))

    def once() -> float:
        lap = Laps(CPU)
        runner.run(lap)
        return lap.seconds()["full"]

    once()
    return once


def speed(n: int, rounds: int) -> None:
    fused, plain = seconds("cpp", n), seconds("plain", n)
    # Small problems: several calls a round, as a training loop would find caches and threads.
    calls = max(1, (1024 // n) ** 2)
    found: dict[str, list[float]] = {"cpp": [], "plain": [], "rate": []}
    for _ in range(rounds):
        found["cpp"].append(statistics.median(fused() for _ in range(calls)))
        found["plain"].append(statistics.median(plain() for _ in range(calls)))
        found["rate"].append(multiply_adds_per_second(torch.float32, CPU))
    cpp, plain, rate = (statistics.median(found[name]) for name in ("cpp", "plain", "rate"))
    limit = 2 * (2 * n) ** 2 * DIM / rate
    wanted = f"(wanted: >= {LEAST_SPEEDUP[n]}x" + (f", <= {MOST_OF_LIMIT[n]})" if n in MOST_OF_LIMIT else ")")
    print(
        f"N={n}: cpp {cpp * 1e3:.2f} ms, plain {plain * 1e3:.2f} ms, {plain / cpp:.2f}x; {cpp / limit:.2f} times the "
        f"limit of {limit * 1e3:.2f} ms {wanted}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for n in LEAST_SPEEDUP:
        speed(n, arguments.rounds)
    for n, most in MOST_MIB.items():
        probe = {"name": "cpp", "n": n, "d": DIM, "dtype": "float32", "temperature": TEMPERATURE, "device": "cpu"}
        peak = peak_bytes("benchmarks.ntxent_contestants:memory_probe", probe) / 2**20
        print(f"N={n}: peak {peak:.0f} MiB (wanted: <= {most})", flush=True)


if __name__ == "__main__":
    main()
