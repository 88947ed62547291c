"""The real torchrun: two processes train together; one that fails or is killed ends the job, with its error shown."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from simclr_fast.checkpoint import checkpoints
from simclr_fast.run_files import METRICS_FILE, read_metrics
from tests.data.conftest import write_image
from tests.training.processes import SMALL, free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds


@contextlib.contextmanager
def torchrun(*arguments: str) -> Iterator[subprocess.Popen]:
    """Training on two gloo processes of this host, which do not outlive the test."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()))
    job = subprocess.Popen(
        [sys.executable, *launcher, "-m", "simclr_fast", "pretrain", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield job
    finally:
        if job.poll() is None:
            job.terminate()
            job.communicate()


def children(pid: int) -> dict[int, int]:
    """Process ids of torchrun's workers by rank."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(child)
    return found


def exit_codes(said: str) -> dict[int, int]:
    """Exit codes by rank of the processes that torchrun's last words name.

    Which of them it takes for the root cause depends on who was first to write down an error: the process that waited
    for one that was killed may be.
    """
    summary = said[said.index("ChildFailedError") :]
    return {int(rank): int(code) for rank, code in re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+) ", summary)}


def test_two_processes_train_together_and_one_of_them_reports(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with torchrun(*SMALL, "--epochs", "1", "--output", str(folder)) as job:
        said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, said
    assert said.count("8 steps of 500 on 2 x cpu") == 1, said
    assert "warning:" not in said, said
    assert [line["step"] for line in read_metrics(folder / METRICS_FILE)] == list(range(1, 9))
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-000000008.pt"]


def test_a_process_that_fails_ends_the_job_with_its_error(tmp_path: Path) -> None:
    # One broken image among 16 in one step: only the process that meets it fails, while the other waits for it.
    for i in range(16):
        write_image(tmp_path / "data" / f"{i:02d}.jpg", 20, 20, seed=i)
    (tmp_path / "data" / "03.jpg").write_bytes(b"broken")
    data = ("imagenet", "--data", str(tmp_path / "data"), "--workers", "0", "--max-bad-images", "0")
    small = ("--model", "resnet18", "--size", "16", "--batch-size", "16", "--warmup-epochs", "0", "--no-eval")
    with torchrun(*data, *small, "--output", str(tmp_path / "run")) as job:
        said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 1
    assert "simclr-fast pretrain: error: 1 unreadable images, more than --max-bad-images allows" in said
    assert 1 in exit_codes(said).values(), said


def test_a_process_that_is_killed_ends_the_job(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with torchrun(*SMALL, "--epochs", "10000", "--output", str(folder)) as job:
        end = time.monotonic() + PATIENCE
        while not (folder / METRICS_FILE).exists() or not read_metrics(folder / METRICS_FILE):
            assert time.monotonic() < end
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.05)
        os.kill(children(job.pid)[1], signal.SIGKILL)
        said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 1
    assert exit_codes(said)[1] == -9, said
    assert "Signal 9 (SIGKILL)" in said
