"""Which images an evaluation looks at: the run's, or those that its options name; and nothing is downloaded for it."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from rich.console import Console

from simclr_fast.cli import parse
from simclr_fast.config import DataOptions
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation import finetune, session
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session, measurable, run_command
from simclr_fast.evaluation.tables import ResultTable
from simclr_fast.process import Process, start_process
from tests.evaluation.conftest import demo_config, write_run


def options_of(tmp_path: Path, *arguments: str, **data: object) -> DataOptions:
    """The data options of an evaluation of a run that was trained with `data`."""
    write_run(tmp_path / "run", dataclasses.replace(demo_config(), data=DataOptions(**data)))
    _, options = parse(["knn", "--checkpoint", str(tmp_path / "run"), *arguments])
    run = Run.open(options.checkpoint)
    return Session("knn", options, run, start_process("cpu"), tmp_path, Console(quiet=True)).data_options


def test_nothing_is_downloaded_but_where_the_evaluation_is_told_to(tmp_path: Path) -> None:
    """A checkpoint may come from anywhere; and its data set may be another one here."""
    trained = {"dataset": "cifar10", "data": tmp_path / "data", "download": True}
    assert options_of(tmp_path, **trained) == DataOptions(dataset="cifar10", data=tmp_path / "data")
    assert options_of(tmp_path, "--download", **trained) == DataOptions(**trained)
    assert options_of(tmp_path, "--data", "photos", **trained) == DataOptions(data=Path("photos"))


def test_columns_are_those_that_are_named_then_those_of_the_run(tmp_path: Path) -> None:
    trained = {"dataset": "table", "data": tmp_path / "a.csv", "image_column": "path", "label_column": "kind"}
    assert options_of(tmp_path, **trained) == DataOptions(**trained)
    named = options_of(tmp_path, "--label-column", "breed", **trained)
    assert named == DataOptions(**trained | {"label_column": "breed"})
    elsewhere = options_of(tmp_path, "--data", "b.csv", "--label-column", "breed", **trained)
    assert elsewhere == DataOptions(data=Path("b.csv"), label_column="breed")


def test_accuracies_need_labels_of_two_classes_and_test_images(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    part = lambda labels, count=0: ImageArrays(
        torch.zeros(count or len(labels), 1, 28, 28, dtype=torch.uint8),
        None if labels is None else torch.tensor(labels),
    )
    both, one, none = part([0, 1, 1]), part([1, 1]), part(None, 2)
    assert measurable(Dataset(both, both, one))
    lacking = [
        (one, both),
        (None, both),
        (none, both),
        (both, None),
        (both, none),
        (both, both.subset(torch.arange(0))),
    ]
    options = parse(["knn", "--checkpoint", str(run_folder)])[1]
    started = Session("knn", options, Run.open(run_folder), start_process("cpu"), tmp_path, Console(quiet=True))
    for labelled, test in lacking:
        data = Dataset(both, labelled, test)
        monkeypatch.setattr(session, "load_dataset", lambda _, data=data: data)
        with pytest.raises(ConfigError, match="--dataset mnist5k: it has no labelled training and test images to eval"):
            started.labelled_data()


def test_fine_tuning_alone_runs_in_several_processes(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(session, "start_process", lambda *_: Process(1, 2, torch.device("cpu")))
    monkeypatch.setattr(finetune, "main", lambda started: {"rank": started.process.rank})
    options = lambda command: parse([command, "--checkpoint", str(run_folder), "--output", str(tmp_path / command)])[1]
    assert run_command(options("finetune")) == {"rank": 1}
    for command in ("knn", "linear", "detect", "embed"):
        module = importlib.import_module(f"simclr_fast.evaluation.{command}")
        monkeypatch.setattr(module, "main", lambda started: {})
        with pytest.raises(ConfigError, match="it runs in one process, not in 2: start it without torchrun"):
            run_command(options(command))
    assert not list(tmp_path.iterdir()), "the first process alone makes folders"


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_speaks_and_writes(rank: int, run_folder: Path, tmp_path: Path, capsys) -> None:
    options = parse(["finetune", "--checkpoint", str(run_folder), "--output", str(tmp_path / "out")])[1]
    started = Session.start("finetune", options, Run.open(run_folder), Process(rank, 2, torch.device("cpu")))
    started.say("[a line]")
    started.keep({"0.01": {"images": 4}})
    kept = (tmp_path / "out" / "finetune.json.unfinished").exists()
    content = started.finish(
        {"0.01": {"images": 5}}, ResultTable("accuracies", ["a column as wide"], []), protocol="; protocol simclr"
    )
    assert (content["results"], content["protocol"], content["step"]) == ({"0.01": {"images": 5}}, "protocol simclr", 3)
    assert [table["title"] for table in content["tables"]] == ["accuracies"]
    written = sorted(path.name for path in tmp_path.rglob("*.*"))
    assert (kept, written) == ((True, ["finetune.json"]) if rank == 0 else (False, []))
    said = capsys.readouterr().out
    for words in ("[a line]", "accuracies", "Results so far", f"Written: {tmp_path / 'out' / 'finetune.json'}"):
        assert (words in said.replace("\n", "")) == (rank == 0), words
