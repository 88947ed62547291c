"""Checkpoints: whole or absent, the last k kept, damaged ones skipped, differences told."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from simclr_fast.checkpoint import (
    CheckpointError,
    checkpoints,
    describe_differences,
    load,
    load_newest,
    load_weights,
    save,
)


def content(value: float) -> dict:
    return {"step": int(value), "model": {"w": torch.full((1000,), value)}}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 7, content(7), keep=2)
    loaded = load(path)
    assert loaded["step"] == 7
    assert torch.equal(loaded["model"]["w"], torch.full((1000,), 7.0))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 100, 20, 1000):
        save(tmp_path, step, content(step), keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-000000100.pt", "checkpoint-000001000.pt"]
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file is left"


@pytest.mark.parametrize("kept_share", [0.0, 0.5, 0.99])
def test_truncated_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, kept_share: float, caplog) -> None:
    save(tmp_path, 1, content(1), keep=3)
    newest = save(tmp_path, 2, content(2), keep=3)
    newest.write_bytes(newest.read_bytes()[: int(kept_share * newest.stat().st_size)])
    with caplog.at_level(logging.WARNING):
        path, loaded = load_newest(tmp_path)
    assert path.name == "checkpoint-000000001.pt"
    assert loaded["step"] == 1
    assert newest.name in caplog.text


def test_failure_while_writing_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 1, content(1), keep=2)

    def torn(_, file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2, content(2), keep=2)
    assert load_newest(tmp_path)[1]["step"] == 1


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "checkpoint-000000001.pt")


def test_loading_runs_no_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"version": 1, "payload": Harmful()}, tmp_path / "checkpoint-000000001.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "checkpoint-000000001.pt")
    assert not (tmp_path / "ran").exists()


def test_differences_between_architectures_are_listed() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    other = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(2, 2))
    with pytest.raises(CheckpointError) as raised:
        load_weights(model, other.state_dict(), "old.pt")
    message = str(raised.value)
    assert "old.pt: the model differs" in message
    assert "another shape: 0.weight is [3, 4], in the checkpoint [5, 4]" in message
    assert "only in the checkpoint: 2.weight [2, 2]" in message


def test_long_list_of_differences_is_cut() -> None:
    wanted = {f"w{k}": torch.zeros(1) for k in range(50)}
    lines = describe_differences(wanted, {}, limit=20)
    assert len(lines) == 21
    assert lines[-1].strip() == "and 30 more"


def test_equal_weights_load() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    load_weights(model, other.state_dict(), "x")
    assert torch.equal(model.weight, other.weight)
