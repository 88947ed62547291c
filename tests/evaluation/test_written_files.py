"""Every file that a command writes is named in what it prints: by its name, by a pattern, or by the folder it is in."""

import contextlib
import io
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from simclr_fast.cli import main
from tests.data.conftest import write_image

TINY = ["--model", "resnet_mini", "--size", "16", "--head-hidden", "8", "--head-dim", "8", "--batch-size", "8"]
TINY += ["--epochs", "1", "--warmup-epochs", "0", "--workers", "0", "--threads", "1"]
COMMANDS = {
    "knn": ["--knn-k", "1"],
    "linear": ["--epochs", "1", "--lr-base", "0.1", "--penalty-c", "0.1"],
    "few-label": ["--per-class", "1", "--draws", "1"],
    "finetune": ["--fractions", "1", "--draws", "1", "--epochs", "1", "--batch-size", "4", "--lr-base", "0.1"],
    "embed": ["--shard-size", "5"],
    "export": [],
    "report": [],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Labelled images for training and testing, with a file that is ignored, and a run of one step on them."""
    root = tmp_path_factory.mktemp("written")
    photos, run = root / "photos", root / "run"
    for seed in range(16):
        part, name = "val" if seed % 8 > 5 else "train", "cat" if seed % 2 else "dog"
        write_image(photos / part / name / f"{seed}.png", 20, 24, seed)
    (photos / "train" / "cat" / "notes.txt").write_text("no image")
    assert unnamed(["pretrain", "photos", "--data", str(photos), "--output", str(run), *TINY], run) == {}
    return photos, run


def unnamed(arguments: list[str], folder: Path) -> dict[str, str]:
    """The files that a command writes below a folder without naming them, with its lines that say what was written.

    Locks are no results.
    """
    before = state(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(arguments) == 0
    written = [path for path, changed in state(folder).items() if before.get(path) != changed]
    assert written
    (line,) = (line for line in printed.getvalue().splitlines() if "Written" in line)
    names = line.split(": ", 1)[1].split(", ")
    places = {path: (path, str(folder / path)) for path in written}
    is_named = lambda path: any(
        fnmatchcase(place, name + "*" * name.endswith("/")) for place in places[path] for name in names
    )
    return {path: line for path in written if not is_named(path)}


def state(folder: Path) -> dict[str, int]:
    """The files below a folder, each with the time of its last change (ns)."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("command", COMMANDS)
def test_of_a_run(command: str, folders: tuple[Path, Path]) -> None:
    _, run = folders
    assert unnamed([command, str(run), *COMMANDS[command]], run) == {}


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_of_packing(form: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["pack", "--data", str(folders[0]), "--output", str(tmp_path / "out"), "--format", form]
    assert unnamed([*arguments, "--size", "16", "--workers", "0"], tmp_path / "out") == {}


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_of_features_in_other_forms(form: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["embed", str(folders[1]), "--output", str(tmp_path), "--format", form, "--shard-size", "5"]
    assert unnamed([*arguments, "--threads", "1"], tmp_path) == {}
