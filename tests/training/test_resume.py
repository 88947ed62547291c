"""Runs that were killed, stopped or damaged, and go on exactly."""

import dataclasses
import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from simclr_fast.checkpoint import checkpoints, save
from simclr_fast.config import Config, as_dict
from simclr_fast.recipes import RECIPES
from simclr_fast.run_files import METRICS_FILE, read_metrics
from simclr_fast.training.pretrain import with_fitting_warmup
from tests.data.conftest import write_image
from tests.training.processes import SMALL, final_state, finish, run, start, wait_for_step

AFTER_EVERY_STEP = ("--checkpoint-minutes", "1e-9")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, "bit-identical"


@pytest.mark.parametrize(
    ("extra", "world_size"),
    [
        pytest.param(("--model-ema",), 1, id="one process"),
        pytest.param(("--micro-batch-size", "125"), 1, id="micro-batches"),
        pytest.param(("--micro-batch-size", "125", "--opt", "lars", "--lr", "1"), 2, id="two processes"),
    ],
)
def test_killed_run_resumes_bit_exactly(extra: tuple[str, ...], world_size: int, tmp_path: Path) -> None:
    arguments = (*SMALL, "--epochs", "2", *extra, "--output")
    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log"
    run((*arguments, str(whole)), log, world_size)

    processes = start((*arguments, str(cut), *AFTER_EVERY_STEP), log, world_size)
    wait_for_step(cut, 11, processes)  # in the middle of the second epoch
    for process in processes:
        process.kill()
    assert -signal.SIGKILL in finish(processes)
    newest = int(checkpoints(cut)[-1].stem.split("-")[1])
    assert 10 <= newest < 16

    run((*arguments, str(cut), "--resume", "auto"), log, world_size)
    assert_same(final_state(cut), final_state(whole))
    steps = [line["step"] for line in read_metrics(cut / METRICS_FILE)]
    assert steps == list(range(1, 17)), "each step is recorded once"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_leaves_a_checkpoint_of_that_step(number: signal.Signals, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = start((*SMALL, "--epochs", "50", "--output", str(folder)), log)
    wait_for_step(folder, 3, processes)
    os.kill(processes[0].pid, number)
    assert finish(processes) == [128 + number]
    assert_stopped_with_a_checkpoint(folder, log)


def test_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    processes = start((*SMALL, "--epochs", "50", "--output", str(folder)), log, world_size=2)
    wait_for_step(folder, 2, processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert finish(processes) == [128 + signal.SIGTERM] * 2
    assert_stopped_with_a_checkpoint(folder, log)


def assert_stopped_with_a_checkpoint(folder: Path, log: Path) -> None:
    assert "with a checkpoint; go on with --resume auto" in log.read_text()
    assert re.search(rf"Written to {folder}: .*metrics\.jsonl.*, checkpoint-\*\.pt", log.read_text())
    assert "Traceback" not in log.read_text()
    last = read_metrics(folder / METRICS_FILE)[-1]["step"]
    assert checkpoints(folder)[-1].name == f"checkpoint-{last:09d}.pt"


def test_a_run_that_reads_files_stops_and_resumes_bit_exactly(tmp_path: Path) -> None:
    """With threads that decode: a signal leaves a checkpoint, and the rest of an epoch begins where it stopped."""
    for i in range(40):
        write_image(tmp_path / "data" / f"{i}.jpg", 8 + i % 9, 16, seed=i)
    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log"
    files = ("imagenet", "--data", str(tmp_path / "data"), "--workers", "2", "--model", "resnet_mini")
    small = (
        "--size",
        "8",
        "--batch-size",
        "4",
        "--epochs",
        "3",
        "--warmup-epochs",
        "0",
        "--head-hidden",
        "32",
        "--log-interval",
        "1",
    )
    arguments = (*files, *small, "--threads", "1", "--output")
    run((*arguments, str(whole)), log)
    processes = start((*arguments, str(cut)), log)
    wait_for_step(cut, 3, processes)
    os.kill(processes[0].pid, signal.SIGTERM)
    assert finish(processes) == [128 + signal.SIGTERM], log.read_text()
    assert_stopped_with_a_checkpoint(cut, log)
    run((*arguments, str(cut), "--resume", "auto"), log)
    assert_same(final_state(cut), final_state(whole))


def test_resume_from_a_truncated_checkpoint_takes_the_one_before(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = (*SMALL, "--epochs", "2", "--output", str(folder))
    run(arguments, log)
    expected = final_state(folder)
    newest = checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    run((*arguments, "--resume", "auto"), log)
    assert f"skipping a checkpoint: {newest}" in log.read_text()
    assert_same(final_state(folder), expected)


def test_other_options_or_another_model_are_told(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    run((*SMALL, "--epochs", "1", "--output", str(folder)), log)
    resume = (*SMALL, "--output", str(folder), "--resume", "auto", "--epochs", "1")
    assert finish(start((*resume, "--temperature", "0.3"), log)) == [2]
    assert f"--temperature: now 0.3, in the checkpoint {RECIPES['demo'].optimization.temperature}" in log.read_text()
    assert finish(start((*resume, "--head-dim", "64"), log)) == [2]
    assert "another shape: head.3.weight is [64, 32], in the checkpoint [128, 32]" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_more_epochs_follow_the_schedule_of_the_longer_run(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = (*SMALL, "--lr", "0.5", "--output", str(folder), "--epochs")
    run((*arguments, "1"), log)
    run((*arguments, "2", "--resume", "auto"), log)
    assert "2 epochs instead of 1: from here on, the learning rate is that of the longer run" in log.read_text()
    warm_up = [0.5 * step / 8 for step in range(1, 9)]  # one epoch of 8 steps, whatever follows
    cosine = [0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    lines = read_metrics(folder / METRICS_FILE)
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert [line["lr"] for line in lines] == pytest.approx(warm_up + cosine)
    assert finish(start((*arguments, "1", "--resume", "auto"), log)) == [2]
    assert "--epochs: now 1, in the checkpoint 2; pass as many or more" in log.read_text()


def test_pretrained_inside_the_folder_that_is_renamed(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    run((*SMALL, "--epochs", "1", "--output", str(folder)), log)
    expected = final_state(folder)
    again = ("--pretrained", str(checkpoints(folder)[-1]), "--lr", "1e-12", "--norm", "frozen")
    run((*SMALL, "--epochs", "1", "--output", str(folder), *again), log)
    assert_same(final_state(tmp_path / "run.old-1"), expected)
    weight = "model.backbone.conv1.weight"
    torch.testing.assert_close(final_state(folder)[weight], expected[weight], rtol=1e-5, atol=1e-7)


def test_an_automatic_warm_up_stays_that_of_the_run_which_goes_on(tmp_path: Path) -> None:
    """`--epochs 1`, then `--epochs 2 --resume auto`: the warm-up of a tenth of the run is that of the first."""

    def fitting(epochs: int, resume: str | None = None) -> Config:
        config = RECIPES["photos"]
        return with_fitting_warmup(
            dataclasses.replace(
                config,
                optimization=dataclasses.replace(config.optimization, epochs=epochs),
                run=dataclasses.replace(config.run, output=tmp_path, resume=resume),
            )
        )

    begun = fitting(1)
    assert begun.optimization.warmup_epochs == 0.1
    path = save(tmp_path, 3, {"config": as_dict(begun)}, keep=2)
    for epochs in (1, 2, 30):
        for resume in ("auto", str(path)):
            assert fitting(epochs, resume).optimization.warmup_epochs == 0.1
        assert fitting(epochs).optimization.warmup_epochs == (10 if epochs == 30 else epochs / 10)
    (tmp_path / "checkpoint-000000009.pt").write_bytes(b"damaged")
    assert fitting(2, "auto").optimization.warmup_epochs == 0.1, "of the newest whole one"
    assert fitting(2, str(tmp_path / "checkpoint-000000009.pt")).optimization.warmup_epochs == 0.2, (
        "and is refused later"
    )
    save(tmp_path, 12, {"config": as_dict(fitting(100))}, keep=5)
    assert fitting(5, "auto").optimization.warmup_epochs == 0.5, (
        "fewer epochs than before are refused for what they are"
    )
