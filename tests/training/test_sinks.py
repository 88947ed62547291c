"""The services that metrics also go to, for real and offline: what they hold, and going on in the same run."""

import contextlib
import io
import json
import logging
import os
import shutil
import socket
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from simclr_fast.config import LOGGERS, Config, OptimizationOptions, RunOptions, as_dict, check
from simclr_fast.errors import ConfigError
from simclr_fast.run_files import METRICS_FILE
from simclr_fast.training import sinks
from simclr_fast.training.metrics import MetricsLog
from simclr_fast.training.sinks import flat
from simclr_fast.training.warnings import EarlyWarning


def alone(patch: pytest.MonkeyPatch) -> None:
    """No service of whoever runs the tests is written to, and none is told of it."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        patch.delenv(name)
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)


def recorded(config: Config, begin: int, end: int, total: int = 4) -> None:
    """A part of a run: a step's metrics each, and at the second step another write with another name, and a warning."""
    with MetricsLog(config, enabled=True, step=begin, total_steps=total) as log:
        for step in range(begin + 1, end + 1):
            log.write(step, {"loss": 8.0 / step, "lr": 0.1})
            if step == 2:
                log.write(step, {"knn": 0.5})
                log.warn(step, EarlyWarning("chance", "nothing is learnt"), Console(file=io.StringIO()))
            log.advance()


def lines(folder: Path) -> list[tuple[str, int, float]]:
    """Name, step and value of everything in the metrics file."""
    found = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    measured = [line for line in found if "warning" not in line]
    return sorted((name, line["step"], value) for line in measured for name, value in line.items() if name != "step")


def mlflow_holds(database: Path) -> tuple[list[tuple[str, int, float]], list[str], dict[str, str]]:
    """Metrics, the status of every run, and the parameters, read by SQLite alone."""
    with sqlite3.connect(database) as store:
        metrics = store.execute("select key, step, value from metrics order by 1, 2").fetchall()
        status = [row[0] for row in store.execute("select status from runs")]
        parameters = dict(store.execute("select key, value from params").fetchall())
    return metrics, status, parameters


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after step 3 of 4; making MLflow's database takes seconds."""
    folder, elsewhere = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        alone(patch)
        patch.chdir(elsewhere)
        patch.setattr(sinks, "MLFLOW_BATCH", 7)
        recorded(Config(run=RunOptions(output=folder, log_mlflow=True)), 0, 3)
    assert not list(elsewhere.iterdir()), "nothing is written outside the run's folder"
    return folder


def test_mlflow_holds_the_same_and_a_resumed_run_goes_on_in_it(stopped_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(stopped_run, folder)
    metrics, status, parameters = mlflow_holds(folder / "mlflow.db")
    assert metrics == lines(folder)
    assert status == ["KILLED"]  # stopped before its end
    assert parameters == flat(as_dict(Config(run=RunOptions(output=stopped_run, log_mlflow=True))))
    assert (parameters["optimization.epochs"], parameters["optimization.lr"]) == ("100", "None")
    longer = OptimizationOptions(epochs=200)
    config = Config(optimization=longer, run=RunOptions(output=folder, log_mlflow=True))
    recorded(config, 1, 4)  # from a checkpoint of step 1: steps 2 and 3 are done again
    metrics, status, _ = mlflow_holds(folder / "mlflow.db")
    assert metrics == lines(folder)
    assert status == ["FINISHED"]
    with sqlite3.connect(folder / "mlflow.db") as store:
        tags = store.execute("select key, value from tags").fetchall()
    assert ("resumed.optimization.epochs", "200") in tags
    assert ("warning.chance", "step 2: nothing is learnt") in tags


def test_mlflow_goes_where_its_variable_says_and_marks_what_failed(
    stopped_run: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/all.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of mine")
    monkeypatch.chdir(tmp_path)
    shutil.copy(stopped_run / "mlflow.db", tmp_path / "all.db")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mlflow-run.txt").write_text("0" * 32)  # of another store: this one begins a run of its own
    config = Config(run=RunOptions(output=folder, log_mlflow=True))
    with contextlib.suppress(KeyError), MetricsLog(config, enabled=True, step=0, total_steps=4) as log:
        log.write(5, {"loss": 1.0})
        raise KeyError
    metrics, status, _ = mlflow_holds(tmp_path / "all.db")
    assert ("loss", 5, 1.0) in metrics
    assert status == ["KILLED", "FAILED"]
    assert not (folder / "mlflow.db").exists()
    with sqlite3.connect(tmp_path / "all.db") as store:
        assert ("of mine",) in store.execute("select name from experiments").fetchall()


def test_a_store_that_fails_meanwhile_stops_no_training_and_gets_everything_later(
    stopped_run: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    folder = tmp_path / "run"
    shutil.copytree(stopped_run, folder)
    log_batch, fails = MlflowClient.log_batch, [False]

    def unsteady(self, *arguments, **options):
        if fails[0]:
            raise MlflowException("no answer\nfrom there")
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", unsteady)
    config = Config(run=RunOptions(output=folder, log_mlflow=True))
    with caplog.at_level(logging.WARNING), MetricsLog(config, enabled=True, step=3, total_steps=5) as log:
        fails[0] = True
        log.write(4, {"loss": 2.0})
        log.write(5, {"loss": 1.0})
        fails[0] = False
    assert caplog.text.count("--log-mlflow: no answer; 1 values wait to be sent") == 1  # not asked again at once
    assert mlflow_holds(folder / "mlflow.db")[0] == lines(folder)


def test_a_server_that_does_not_answer_at_the_start_is_one_line(tmp_path: Path, monkeypatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"  # nobody listens there
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=f"--log-mlflow True: MLFLOW_TRACKING_URI {address}") as refusal:
        MetricsLog(Config(run=RunOptions(output=tmp_path, log_mlflow=True)), enabled=True, step=0, total_steps=2)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / METRICS_FILE).exists()


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which W&B writes: blocks of 32 KiB, records in parts of four types."""
    place, record = 7, b""  # behind W&B's own head
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # too short for a head: the block ends in zeros
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + 7 + length > len(content):
            return  # of a file that is still being written
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_holds(folder: Path) -> tuple[list[tuple[str, int, float]], list[tuple[str, str]], list[int]]:
    """Name, step and value, title and text of alerts, and how it ended, of every offline file of Weights & Biases.

    Its process closes a file a moment after the run has finished: only then is the last record there.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    found, alerts, endings = [], [], []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records, deadline = [], time.monotonic() + 600
        while not records or not records[-1].HasField("exit"):
            assert time.monotonic() < deadline, f"{path} was not finished"
            time.sleep(0.05)
            records = [Record.FromString(data) for data in log_records(path.read_bytes())]
        alerts += [(record.alert.title, record.alert.text) for record in records if record.HasField("alert")]
        for record in records:
            values = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
            }
            found += [(name, values["_step"], value) for name, value in values.items() if not name.startswith("_")]
        endings.append(records[-1].exit.exit_code)
    return sorted(found), alerts, endings


def test_weights_and_biases_holds_the_same_and_goes_on_under_one_name(tmp_path: Path) -> None:
    config = Config(run=RunOptions(output=tmp_path, log_wandb=True))
    recorded(config, 0, 3)
    alerts = [("chance, step 2", "nothing is learnt")]
    assert wandb_holds(tmp_path) == (lines(tmp_path), alerts, [1]), "stopped before its end"
    time.sleep(1.1)  # W&B names its folders by the second
    recorded(config, 3, 4)
    assert wandb_holds(tmp_path) == (lines(tmp_path), alerts, [1, 0])
    names = {path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")}
    assert names == {(tmp_path / "wandb-run.txt").read_text().strip()}


@pytest.mark.parametrize("option", LOGGERS)
def test_a_missing_package_is_one_line(option: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, LOGGERS[option][-1], None)
    extra = option.removeprefix("log_")
    with pytest.raises(
        ConfigError, match=rf"--log-{extra} True: .* not installed; pip install 'simclr_fast\[{extra}\]'"
    ):
        check(Config(run=RunOptions(**{option: True})))
