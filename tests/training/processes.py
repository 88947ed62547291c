"""Trains in processes of their own, which can be killed."""

import os
import socket
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from simclr_fast.checkpoint import load_newest
from simclr_fast.run_files import METRICS_FILE, read_metrics
from tests.forked import CONTEXT

PATIENCE = 600  # seconds

# A demo that takes about a second: 8-pixel views, 8 steps per epoch.
SMALL = ("demo", "--batch-size", "500", "--size", "8", "--head-hidden", "32", "--threads", "1", "--no-eval")
SMALL += ("--knn-epochs", "0", "--log-interval", "1")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _run(arguments: Sequence[str], environment: dict[str, str], output: str) -> None:
    from simclr_fast.cli import main

    os.environ.update(environment)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    raise SystemExit(main(["pretrain", *arguments]))


def start(
    arguments: Sequence[str], log: Path, world_size: int = 1, *, by_rank: Sequence[Sequence[str]] = ()
) -> list[BaseProcess]:
    """Start the processes of a run, which write their output to `log`; by_rank: what else each is told."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    processes = []
    for rank in range(world_size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
        more = by_rank[rank] if by_rank else ()
        args = ((*arguments, *more), environment | own, str(log))
        processes.append(CONTEXT.Process(target=_run, args=args, daemon=True))
    for process in processes:
        process.start()
    return processes


def finish(processes: list[BaseProcess], patience: float = PATIENCE) -> list[int]:
    """Exit statuses, once all have ended, which may take `patience` seconds."""
    for process in processes:
        process.join(patience)
        assert process.exitcode is not None, "the run does not end"
    return [process.exitcode for process in processes]


def run(arguments: Sequence[str], log: Path, world_size: int = 1) -> None:
    """Run to the end, which must be a good one."""
    statuses = finish(start(arguments, log, world_size))
    assert statuses == [0] * world_size, log.read_text()


def wait_for_step(folder: Path, step: int, processes: list[BaseProcess]) -> None:
    """Wait until the run has logged a step."""
    end = time.monotonic() + PATIENCE
    while not (folder / METRICS_FILE).exists() or not any(
        line["step"] >= step for line in read_metrics(folder / METRICS_FILE)
    ):
        assert time.monotonic() < end, "the run does not get on"
        assert all(process.is_alive() for process in processes), "the run ended early"
        time.sleep(0.01)


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint's model, averaged model and optimizer, by name."""
    _, content = load_newest(folder)
    tensors = {f"ema.{name}": tensor for name, tensor in (content["ema"] or {}).items()}
    tensors |= {f"model.{name}": tensor for name, tensor in content["model"].items()}
    for index, state in content["optimizer"]["state"].items():
        tensors |= {f"optimizer.{index}.{name}": t for name, t in state.items() if isinstance(t, torch.Tensor)}
    return tensors | {"step": torch.tensor(content["step"])}
