"""The folder of a run: one run at a time, nothing of another run overwritten, clear words where it cannot be used."""

import contextlib
import dataclasses
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from simclr_fast.checkpoint import checkpoints, save
from simclr_fast.config import Config
from simclr_fast.errors import ConfigError
from simclr_fast.process import Process
from simclr_fast.recipes import RECIPES
from simclr_fast.run_files import METRICS_FILE
from simclr_fast.training.folder import RunFolder
from tests.forked import CONTEXT
from tests.training.processes import PATIENCE

ALONE = Process(0, 1, torch.device("cpu"))


def config(folder: Path, **run) -> Config:
    demo = RECIPES["demo"]
    return dataclasses.replace(demo, run=dataclasses.replace(demo.run, output=folder, **run))


def other_run(folder: Path, *steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).write_text('{"step": 1, "loss": 2.0}\n')
    for step in steps:
        save(folder, step, {"step": step}, keep=9)


def prepare(options: Config, resumed: Path | None = None, step: int = 0) -> None:
    with RunFolder(options, ALONE) as folder:
        folder.prepare(resumed, step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_fresh_run_keeps_the_one_before_under_another_name(tmp_path: Path, caplog) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        other_run(folder, 3)
        prepare(config(folder))
    assert names(folder) == []
    for kept in ("run.old-1", "run.old-2"):
        assert names(tmp_path / kept) == ["checkpoint-000000003.pt", METRICS_FILE]
        assert f"{folder} held another run; it is now {tmp_path / kept} (--resume auto goes on" in caplog.text


def test_of_a_link_the_link_is_renamed(tmp_path: Path) -> None:
    other_run(tmp_path / "disk", 3)
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    prepare(config(tmp_path / "run"))
    assert names(tmp_path / "run") == []
    assert (tmp_path / "run.old-1").is_symlink()
    assert names(tmp_path / "disk") == ["checkpoint-000000003.pt", METRICS_FILE]


def test_going_on_keeps_the_folder_and_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other_run(folder, 3, 4)
    prepare(config(folder, resume="auto"), folder / "checkpoint-000000003.pt", step=3)
    assert names(folder) == ["checkpoint-000000003.pt", "checkpoint-000000004.pt.old-1", METRICS_FILE]


def test_going_on_from_elsewhere_does_not_mix_two_runs(tmp_path: Path) -> None:
    other_run(tmp_path / "run", 3)
    other_run(tmp_path / "source", 5)
    start = tmp_path / "source" / "checkpoint-000000005.pt"
    prepare(config(tmp_path / "run", resume=str(start)), start, step=5)
    assert names(tmp_path / "run") == []
    assert names(tmp_path / "run.old-1") == ["checkpoint-000000003.pt", METRICS_FILE]
    assert [path.name for path in checkpoints(tmp_path / "source")] == [start.name]


@pytest.mark.parametrize(("steps", "kept"), [((), False), ((3,), True)], ids=["no checkpoint", "damaged checkpoints"])
def test_auto_without_anything_to_go_on_from(steps: tuple[int, ...], kept: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other_run(folder, *steps)
    prepare(config(folder, resume="auto"))
    assert (tmp_path / "run.old-1").exists() == kept
    assert (folder / METRICS_FILE).exists() != kept


def test_a_profile_leaves_the_run_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other_run(folder, 3)
    prepare(config(folder, profile=2))
    assert names(folder) == ["checkpoint-000000003.pt", METRICS_FILE]
    other_run(folder, 4)
    prepare(config(folder, profile=2, resume="x"), folder / "checkpoint-000000003.pt", step=3)
    assert names(folder) == ["checkpoint-000000003.pt", "checkpoint-000000004.pt", METRICS_FILE]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other_run(folder, 3)
    (folder / "checkpoint-000000004.partial").write_bytes(b"half")
    prepare(config(folder, resume="auto"), folder / "checkpoint-000000003.pt", step=3)
    assert names(folder) == ["checkpoint-000000003.pt", METRICS_FILE]


def hold(folder: Path, connection: Connection) -> None:
    with RunFolder(config(folder), ALONE) as run:
        run.prepare(None, 0)
        connection.send("held")
        connection.poll(PATIENCE)  # until the other end is closed


@contextlib.contextmanager
def held(folder: Path):
    """Another process that runs in the folder meanwhile; gives its process id."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(folder, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(PATIENCE)
        yield process
    finally:
        ours.close()
        process.join(PATIENCE)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_two_runs_at_once_are_refused(resume: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as process:
        said = rf"--output {folder}: another run is writing there \(process {process.pid} on .*\); wait for its end"
        with pytest.raises(ConfigError, match=said):
            prepare(config(folder, resume=resume))
        assert not (tmp_path / "run.old-1").exists()
    prepare(config(folder))


def test_two_runs_of_one_process_are_refused_and_the_first_keeps_its_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused: list[str] = []

    def second() -> None:
        try:
            prepare(config(folder))
        except ConfigError as error:
            refused.append(str(error))

    with RunFolder(config(folder), ALONE) as first:
        first.prepare(None, 0)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert f"another run is writing there (process {os.getpid()}, this one)" in refused[0]
        # A descriptor that the second one had closed would have given up the first one's lock.
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=try_to_hold, args=(folder, theirs), daemon=True)
        process.start()
        assert ours.poll(PATIENCE)
        assert f"another run is writing there (process {os.getpid()} on" in ours.recv()
        process.join(PATIENCE)
    prepare(config(folder))


def try_to_hold(folder: Path, connection: Connection) -> None:
    try:
        hold(folder, connection)
    except ConfigError as error:
        connection.send(str(error))


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as process:
        process.kill()
        process.join(PATIENCE)
        prepare(config(folder))


def test_the_current_folder_serves_a_run_but_is_not_renamed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(config(Path()))
    other_run(Path(), 3)
    with pytest.raises(ConfigError, match=r"--output \.: it holds another run and cannot be renamed, .*--resume auto"):
        prepare(config(Path()))
    assert names(tmp_path) == ["checkpoint-000000003.pt", METRICS_FILE]
    prepare(config(Path(), resume="auto"), Path("checkpoint-000000003.pt"), step=3)


def test_a_mount_point_is_not_renamed(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run"
    other_run(folder, 3)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    with pytest.raises(ConfigError, match=r"cannot be renamed, since it is a mount point; .*or another folder such as"):
        prepare(config(folder))
    assert names(folder) == ["checkpoint-000000003.pt", METRICS_FILE]


def test_what_cannot_be_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=rf"--output {path}: .*; pass a folder that can be written"):
            prepare(config(path))


def test_other_processes_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(Process, "barrier", lambda self: done.append("wait"))
    monkeypatch.setattr(RunFolder, "_prepare", lambda self, resumed, step: done.append("prepare"))
    for rank, expected in ((0, ["wait", "prepare", "wait"]), (1, ["wait", "wait"])):
        done.clear()
        RunFolder(config(tmp_path / "run"), Process(rank, 2, ALONE.device)).prepare(None, 0)
        assert done == expected, "after all have read what they start from, and before any goes on"
    monkeypatch.undo()
    second = Process(1, 1, torch.device("cpu"))  # of a world of one, so that it waits for nobody
    with RunFolder(config(tmp_path / "run"), second) as folder:
        folder.prepare(None, 0)
    assert not (tmp_path / "run").exists()
