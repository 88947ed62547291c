"""Checkpoints: whole or absent, the last k kept, damaged ones skipped, differences told."""

import errno
import io
import logging
import math
import os
import random
import resource
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from simclr_fast.checkpoint import (
    checkpoints,
    describe_differences,
    load,
    load_newest,
    load_weights,
    require_finite,
    save,
    set_later_aside,
)
from simclr_fast.errors import CheckpointError
from simclr_fast.tensor_file import write_atomically


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
    for name in ("checkpoint-20.pt", "checkpoint-3.pt", "checkpoint-x.pt", "checkpoint-4.pt.old-1"):
        (tmp_path / name).touch()
    assert [p.stem for p in checkpoints(tmp_path)][:2] == ["checkpoint-3", "checkpoint-20"], "by their numbers"
    assert len(checkpoints(tmp_path)) == 4


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


def test_full_disk_is_told_and_leaves_the_old_checkpoint_alone(tmp_path: Path) -> None:
    save(tmp_path, 1, content(1), keep=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # the write fails in the middle of the file
    try:
        with pytest.raises(OSError, match=r"File too large: .*checkpoint-000000002.pt") as failure:
            save(tmp_path, 2, content(2), keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failure.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000001.pt"], "no .partial file is left"
    assert load_newest(tmp_path)[1]["step"] == 1


def test_a_checkpoint_written_anew_is_replaced_in_one_move(tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path, 1, content(1), keep=2)
    before = path.read_bytes()

    def crash(source: object, target: object) -> None:
        assert Path(target) == path
        assert path.read_bytes() == before, "the old file is whole until the new one takes its name"
        assert torch.load(source, weights_only=True)["model"]["w"][0] == 5
        raise KeyboardInterrupt

    for owner in (os, Path):
        for name in ("rename", "replace"):
            monkeypatch.setattr(owner, name, crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1, content(5) | {"step": 1}, keep=2)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_just_written_is_never_pruned(tmp_path: Path) -> None:
    for step in (50, 60, 70):
        save(tmp_path, step, content(step), keep=3)
    for step, kept in ((7, [7, 60, 70]), (8, [8, 60, 70])):
        assert save(tmp_path, step, content(step), keep=3).exists()
        assert [load(path)["step"] for path in checkpoints(tmp_path)] == kept
    save(tmp_path, 9, content(9), keep=1)
    assert [load(path)["step"] for path in checkpoints(tmp_path)] == [9]


def test_later_checkpoints_are_set_aside_and_not_lost(tmp_path: Path) -> None:
    for step in (5, 6, 7):
        save(tmp_path, step, content(step), keep=9)
    set_later_aside(tmp_path, 5)
    save(tmp_path, 7, content(8), keep=9)
    set_later_aside(tmp_path, 5)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000000005.pt"]
    aside = {path.name: load(path)["step"] for path in tmp_path.glob("*.old-*")}
    names = ("000000006.pt.old-1", "000000007.pt.old-1", "000000007.pt.old-2")
    assert aside == {f"checkpoint-{name}": step for name, step in zip(names, (6, 7, 8))}


@pytest.mark.parametrize("file_bytes", [b"", b"half", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x02K\x01.", bytes(300)])
def test_other_files_are_one_kind_of_error(file_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000000001.pt"
    path.write_bytes(file_bytes)
    with pytest.raises(CheckpointError, match=str(path)) as refusal:
        load(path)
    assert "\n" not in str(refusal.value)


def test_random_bytes_are_one_kind_of_error(tmp_path: Path) -> None:
    # Every opcode of pickle begins some of them, which makes the unpickler fail in many ways.
    rng = random.Random(0)
    path = tmp_path / "checkpoint-000000001.pt"
    for start in (b"", b"\x80\x02", b"PK\x03\x04"):
        for _ in range(300):
            path.write_bytes(start + rng.randbytes(rng.randrange(1, 60)))
            with pytest.raises(CheckpointError):
                load(path)
    save(tmp_path, 0, content(0), keep=2)
    assert load_newest(tmp_path)[1]["step"] == 0


@pytest.mark.parametrize("sealed", [True, False], ids=["written by save", "written by torch.save"])
def test_any_flipped_bit_shows(sealed: bool, tmp_path: Path) -> None:
    path = save(tmp_path, 7, content(7), keep=2)
    if not sealed:
        torch.save(load(path), path)
    whole = path.read_bytes()
    assert load(path)["step"] == 7
    rng = random.Random(1)
    unseen = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load(path)
        except CheckpointError:
            continue
        unseen += 1
        # The archive's padding between its entries has no checksum, nor meaning.
        assert torch.equal(loaded["model"]["w"], torch.full((1000,), 7.0))
    assert unseen == 0 if sealed else unseen < 30


def test_damage_is_told_by_how_it_shows(tmp_path: Path) -> None:
    path = save(tmp_path, 7, content(7), keep=2)
    whole, plain = path.read_bytes(), io.BytesIO()
    torch.save(load(path), plain)
    other = bytearray(plain.getvalue())
    other[other.index(load(path)["model"]["w"].numpy().tobytes())] ^= 1
    for written, said in (
        (whole[:-9] + b"00000000\n", "its content does not match its checksum"),
        (plain.getvalue() + b"more", "something follows its archive"),
        (bytes(other), "/data/0 does not match its checksum"),
    ):
        path.write_bytes(written)
        with pytest.raises(CheckpointError, match=rf"^{path}: damaged or no checkpoint \(.*{said}\)$"):
            load(path)


def test_plain_torch_reads_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 7, content(7), keep=2)
    assert torch.load(path, weights_only=True)["step"] == 7


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"version": 1, "step": 1, "model": {"w": torch.zeros(1 << 20)}}, plain)
    path = tmp_path / "checkpoint-000000001.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="claim more bytes than the file has"):
        load(path)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"version": 2}, "not a checkpoint of this program's format 1"),
        ({"version": torch.ones(2)}, "not a checkpoint of this program's format 1"),
        (torch.ones(2), "not a checkpoint of this program's format 1"),
    ],
)
def test_foreign_content_is_told(stored: object, said: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / "checkpoint-000000001.pt", stored)
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "checkpoint-000000001.pt")


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
    assert describe_differences(model.state_dict(), {**model.state_dict()}) == []
    lines = describe_differences({"a": torch.zeros(2, 1), "b": torch.zeros(3)}, {"b": torch.zeros(3)})
    assert lines == ["  missing in the checkpoint: a [2, 1]"]


def test_long_list_of_differences_is_cut() -> None:
    wanted = {f"w{k}": torch.zeros(1) for k in range(50)}
    lines = describe_differences(wanted, {}, limit=20)
    assert len(lines) == 21
    assert len(describe_differences(wanted, {}, limit=50)) == 50
    assert lines[-1].strip() == "and 30 more"


def test_equal_weights_load() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    load_weights(model, other.state_dict(), "x")
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "another shape: weight is [2, 2], in the checkpoint a int"),
        (torch.zeros(2, 2).to_sparse(), "a torch.float32 tensor of layout torch.sparse_coo on cpu"),
        (torch.zeros(2, 2, device="meta"), "tensor of layout torch.strided on meta"),
        (torch.zeros(2, 2, dtype=torch.complex64), "a torch.complex64 tensor"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 2.0]]), "x: weights that are not finite: weight"),
        (torch.tensor([[0.0, 1.0], [float("inf"), 2.0]]), "x: weights that are not finite: weight"),
    ],
)
def test_weights_that_cannot_be_used_are_told(value: object, said: str) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(CheckpointError) as refusal:
        load_weights(model, model.state_dict() | {"weight": value}, "x")
    assert said in str(refusal.value)


def test_of_many_weights_that_are_not_finite_the_first_are_named() -> None:
    weights = {f"w{k}": torch.full((2,), math.nan if k > 0 else 1.0) for k in range(6)}
    with pytest.raises(CheckpointError, match=r"^x: weights that are not finite: w1, w2, w3 and 2 more$"):
        require_finite(weights, "x")
    del weights["w4"], weights["w5"]
    with pytest.raises(CheckpointError, match=r"^x: weights that are not finite: w1, w2, w3$"):
        require_finite(weights, "x")


@pytest.mark.parametrize("weights", [None, 3, [torch.ones(1)]])
def test_what_is_no_state_dict_is_told(weights: object) -> None:
    with pytest.raises(CheckpointError, match="x: no weights in it"):
        load_weights(nn.Linear(2, 2), weights, "x")
