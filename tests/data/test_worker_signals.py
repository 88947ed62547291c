"""Workers leave signals to the process that they serve, which alone can end them."""

import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from simclr_fast.config import DataOptions
from simclr_fast.data import build_loader, load_dataset
from simclr_fast.data.worker_signals import STOP, held_back

OPTIONS = {"dataset": "imagefolder", "workers": 2}


def test_workers_heed_only_the_process_that_started_them(folder_root: Path) -> None:
    options = DataOptions(data_dir=folder_root, **OPTIONS)
    loader = build_loader(load_dataset(options).train, 4, 0, torch.device("cpu"), options)
    batches = loader.epoch(0)
    seen = next(batches).indices.tolist()
    workers = loader.workers._iterator._workers
    assert len(workers) == 2
    for worker in workers:
        for name in ("TERM", "INT"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    for batch in batches:
        seen += batch.indices.tolist()
    assert len(set(seen)) == len(seen) == 16, "the epoch goes on to its end"
    for worker in workers:
        assert worker.is_alive()
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == 0


@pytest.mark.parametrize("number", sorted(STOP))
def test_a_signal_that_is_held_back_arrives_afterwards(number: signal.Signals) -> None:
    received: list[int] = []
    before = signal.signal(number, lambda got, _: received.append(got))
    try:
        with held_back():
            signal.pthread_kill(threading.get_ident(), number)
            assert received == []
        assert received == [number]
    finally:
        signal.signal(number, before)
