"""Runs, results and features that lie below --data are no part of the data set: named, and left out."""

import types
from pathlib import Path

import pytest

from simclr_fast.cli import COMMANDS, main
from simclr_fast.config import DataOptions
from simclr_fast.data import load_dataset
from simclr_fast.data.auto import found_in
from simclr_fast.data.own_files import mark_among, require_apart
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.options import KnnOptions
from simclr_fast.evaluation.session import Session
from tests.data.conftest import write_image

MARKS = {
    "metrics.jsonl": b"{}\n",
    "checkpoint-000000003.pt": b"",
    ".lock": b"process 12 on host\n",
    "embedded.json": b"{}",
    "embedding.json": b"{}",
    "packed.json": b"{}",
    "packing.json": b"{}",
    "backbone.safetensors": b"",
    "few-label.json": b'{\n  "command": "few-label",\n',
    "ignored.txt": b"photos/notes.txt\tno image (.txt)\n",
}
# What strangers call so, or what only looks alike.
OTHERS = {".lock": b"", "report.json": b'{"pages": 3}', "ignored.txt": b"thumbs", "model.pt": b"", "a.json": b"{}"}


def photos(root: Path) -> Path:
    for seed, name in enumerate(("a/1.png", "a/2.png", "b/1.png")):
        write_image(root / name, 6, 8, seed)
    return root


def written(folder: Path, name: str, content: bytes) -> Path:
    """A folder with a picture beside this file."""
    write_image(folder / "views.png", 6, 8, seed=9)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("mark", MARKS)
def test_a_folder_that_this_program_wrote_is_left_out_and_named(mark: str, tmp_path: Path, caplog) -> None:
    root = photos(tmp_path / "photos")
    run = written(root / "runs" / "photos", mark, MARKS[mark])
    data = load_dataset(DataOptions(data=root))
    assert data.classes == ("a", "b")
    assert len(data.train) == 3
    assert data.ignored == ((str(run), f"folder that simclr-fast wrote ({mark} is in it)"),)
    assert f"ignored 1 (1 folder that simclr-fast wrote ({mark} is in it): runs/photos)" in caplog.text
    assert "no image of" not in caplog.text, "runs is no class"


def test_the_results_of_every_command_are_known(tmp_path: Path) -> None:
    on_checkpoints = [name for name, command in COMMANDS.items() if "evaluation" in command.options]
    assert len(on_checkpoints) > 8
    for name in on_checkpoints:
        (tmp_path / f"{name}.json").write_bytes(b'{\n  "command": "')
        assert mark_among(str(tmp_path), [f"{name}.json"]), name


def test_what_only_has_the_name_and_cannot_be_read_marks_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "ignored.txt").mkdir()
    (tmp_path / "knn.json").write_bytes(b'{\n  "command": "')
    assert mark_among(str(tmp_path), ["ignored.txt"]) is None
    assert mark_among(str(tmp_path), ["ignored.txt", "knn.json"]) == "knn.json"

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    assert mark_among(str(tmp_path), ["knn.json"]) is None


@pytest.mark.parametrize("name", OTHERS)
def test_folders_of_others_are_classes(name: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    written(root / "c", name, OTHERS[name])
    assert load_dataset(DataOptions(data=root)).classes == ("a", "b", "c")


def test_a_class_with_a_run_in_it_stays_one_and_so_does_the_kind_of_the_set(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    written(root / "a" / "run", "metrics.jsonl", b"")
    assert load_dataset(DataOptions(data=root)).classes == ("a", "b")
    shards = written(root / "packed", "packed.json", b"{}")
    (shards / "data.arrow").write_bytes(b"x")
    assert found_in(DataOptions(data=root))[0].dataset == "imagefolder"


def test_rows_may_still_name_images_anywhere_and_only_those_below_are_looked_for(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    written(root / "run", "metrics.jsonl", b"")
    (root / "t.csv").write_text("path,label\n1,x\n2,y\nviews,x\n")
    (root / "b" / "1.png").rename(root / "b" / "3.png")
    data = load_dataset(DataOptions(dataset="table", data=root / "t.csv"))
    assert len(data.train) == 2
    (root / "t.csv").write_text("path,label\na/1.png,x\na/2.png,y\nrun/views.png,x\n")
    assert len(load_dataset(DataOptions(dataset="table", data=root / "t.csv")).train) == 3


@pytest.mark.parametrize(
    ("output", "is_renamed", "is_refused"),
    [
        ("photos", False, True),
        ("photos", True, True),
        ("photos/../photos", False, True),
        (".", False, False),
        (".", True, True),
        ("photos/runs/1", True, False),
        ("other", True, False),
    ],
)
def test_results_do_not_lie_among_the_images(output: str, is_renamed: bool, is_refused: bool, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    if not is_refused:
        return require_apart(tmp_path / output, root, is_renamed)
    with pytest.raises(ConfigError, match=rf"^--output .*: the images of --data {root} lie in it; pass a folder of"):
        require_apart(tmp_path / output, root, is_renamed)


def test_commands_refuse_output_among_the_images(tmp_path: Path, capsys) -> None:
    root = photos(tmp_path / "photos")
    assert main(["pretrain", "--data", str(root), "--output", str(tmp_path)]) == 2
    assert f"--output {tmp_path}: the images of --data {root} lie in it" in capsys.readouterr().err
    options = KnnOptions(checkpoint=tmp_path, output=root, data=root)
    with pytest.raises(ConfigError, match="lie in it"):
        Session.start("knn", options, None, types.SimpleNamespace(is_main=True))
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"], "nothing was written"
