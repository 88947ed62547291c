"""Which images an evaluation looks at: the run's, or those that its options name; and nothing is downloaded for it."""

import dataclasses
from pathlib import Path

from rich.console import Console

from simclr_fast.cli import parse
from simclr_fast.config import DataOptions
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.process import start_process
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
