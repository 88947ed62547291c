"""When checkpoints are written, and how many are kept."""

import dataclasses
from pathlib import Path

import pytest
import torch

from simclr_fast.checkpoint import checkpoints, load
from simclr_fast.training.state import CheckpointSaver, TrainState
from tests.training.exactness import config


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def saver(folder: Path, *, enabled: bool = True, **run) -> CheckpointSaver:
    options = config("group")
    options = dataclasses.replace(options, run=dataclasses.replace(options.run, output=folder, **run))
    state = TrainState.create(options, 1, torch.device("cpu"), autocast=None)
    return CheckpointSaver(options, state, enabled=enabled, settle=lambda: None)


def steps(folder: Path) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in checkpoints(folder)]


def test_a_checkpoint_is_due_so_many_minutes_after_the_last(tmp_path: Path, clock: list[float]) -> None:
    made = saver(tmp_path, checkpoint_minutes=2.0)
    for seconds, step, expected in ((119, 1, []), (2, 2, [2]), (119, 3, [2]), (2, 4, [2, 4])):
        clock[0] += seconds
        made.state.step = step
        made.save_if_due()
        assert steps(tmp_path) == expected
    made.state.step = 5
    made.save()
    clock[0] += 119
    made.state.step = 6
    made.save_if_due()
    assert steps(tmp_path) == [4, 5], "one that was not due counts, too"


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_are_kept_as_asked_for(kept: int, tmp_path: Path) -> None:
    made = saver(tmp_path, checkpoint_hist=kept)
    for made.state.step in range(1, 6):
        made.save()
    assert steps(tmp_path) == list(range(1, 6))[-kept:]


def test_training_time_goes_on_from_the_checkpoint(tmp_path: Path, clock: list[float]) -> None:
    first = saver(tmp_path)
    first.state.seconds = 50.0
    made = CheckpointSaver(first.config, first.state, enabled=True, settle=lambda: None)
    clock[0] += 7
    made.save()
    assert load(checkpoints(tmp_path)[0])["seconds"] == made.state.seconds == 57.0


def test_other_processes_write_nothing_and_keep_the_time(tmp_path: Path, clock: list[float]) -> None:
    made = saver(tmp_path, enabled=False)
    clock[0] += 10_000
    made.save_if_due()
    assert made.state.seconds == 10_000
    assert list(tmp_path.iterdir()) == []
