"""What a run records: waiting time, metric files."""

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simclr_fast.config import Config, RunOptions
from simclr_fast.recipes import RECIPES
from simclr_fast.run_files import METRICS_FILE, read_metrics
from simclr_fast.training.metrics import MetricsLog, StepClock, log_interval_of, print_summary
from simclr_fast.training.warnings import EarlyWarning
from simclr_fast.visualize import learning_curves


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (39, 1), (40, 2), (199, 9), (200, 10), (100_000, 10)])
def test_a_short_run_has_points_enough_for_a_curve(steps: int, interval: int) -> None:
    assert log_interval_of(steps) == interval
    assert RunOptions().log_interval is None, "where none is named"


def test_step_clock_tells_waiting_from_working(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def batches():
        for k in range(3):
            now[0] += 1.0  # a second of loading
            yield k

    clock = StepClock()
    for _ in clock.waiting_for(batches()):
        now[0] += 3.0  # and three of work
    assert clock.read() == pytest.approx((4.0, 0.25))
    for _ in clock.waiting_for(batches()):
        now[0] += 1.0
    now[0] += 2.0  # after them, without any
    assert clock.read() == pytest.approx((8 / 3, 3 / 8)), "of the steps since the last reading alone"


def options(folder: Path) -> Config:
    return Config(run=RunOptions(output=folder))


def test_metrics_reach_the_files(tmp_path: Path) -> None:
    with MetricsLog(options(tmp_path), enabled=True, step=0, total_steps=2) as log:
        for step in (1, 2):
            log.write(step, {"loss": 1.5 / step, "lr": 0.1})
            log.advance()
        assert (log.bar.n, log.bar.postfix) == (2, "loss=0.750")
        log.last |= {"contrastive_accuracy": 0.256, "images_per_second": 1234.5, "knn": 0.5}
        log.write(2, {})
        assert log.bar.postfix == "loss=0.750, contrastive acc=25.6%, images/s=1234, kNN=50.0%"
    assert read_metrics(tmp_path / METRICS_FILE) == [
        {"step": 1, "loss": 1.5, "lr": 0.1},
        {"step": 2, "loss": 0.75, "lr": 0.1},
        {"step": 2},
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.5), (2, 0.75)]


def test_a_warning_is_one_line_of_the_console_and_is_kept(tmp_path: Path) -> None:
    said, text = io.StringIO(), f"nothing is learnt [yet]: {'long ' * 40}"
    with MetricsLog(options(tmp_path), enabled=True, step=0, total_steps=2) as log:
        log.write(1, {"loss": 1.5})
        log.warn(1, EarlyWarning("chance", text), Console(file=said, width=40))
    assert said.getvalue() == f"warning: {text}\n"
    assert read_metrics(tmp_path / METRICS_FILE)[1:] == [{"step": 1, "warning": "chance", "message": text}]
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("warning/chance/text_summary")
    assert (event.step, event.tensor_proto.string_val) == (1, [text.encode()])


def test_resumed_run_drops_the_lines_it_does_again(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"step": k, "loss": 0.0}) + "\n" for k in (1, 2, 3))
    (tmp_path / METRICS_FILE).write_text(lines + '{"step": 4, "lo')  # killed while writing
    with MetricsLog(options(tmp_path), enabled=True, step=2, total_steps=9) as log:
        log.write(3, {"loss": 1.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / METRICS_FILE)] == [(1, 0), (2, 0), (3, 1)]


def test_tensorboard_shows_what_a_resumed_run_does_again_once(tmp_path: Path) -> None:
    for begin, value in ((0, 1.0), (2, 5.0)):
        with MetricsLog(options(tmp_path), enabled=True, step=begin, total_steps=9) as log:
            for step in range(begin + 1, 5):
                log.write(step, {"loss": value})
    # Files of one second are read in the order of their names, which end in a number of the process's writers.
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 5), (4, 5)]


def test_lines_that_a_power_failure_spoilt_are_skipped_with_a_warning(tmp_path: Path, caplog) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(
        b'{"step": 1, "loss": 2.0}\n' + bytes(20) + b'\n[3]\n{"loss": 1.0}\n{"step": 2, "loss": 1.0}\n{"st'
    )
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert f"{path}: skipping 3 lines that are no metrics" in caplog.text


def test_dropping_lines_replaces_the_file_in_one_move(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / METRICS_FILE
    before = "".join(json.dumps({"step": k, "loss": 0.0}) + "\n" for k in (1, 2, 3))
    path.write_text(before)

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, crash)
        monkeypatch.setattr(os, name, crash)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(options(tmp_path), enabled=True, step=2, total_steps=9)
    assert path.read_text() == before


def test_summary_of_a_run_whose_metrics_were_removed(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text("")
    said = io.StringIO()
    config = dataclasses.replace(RECIPES["demo"], run=RunOptions(output=tmp_path))
    print_summary(config, 10, 2.0, Console(file=said, width=200))
    rate = 5 * config.optimization.batch_size
    assert said.getvalue() == f"Trained 10 steps in 2 s ({rate} images/s). metrics.jsonl holds no metrics of them\n"
    line = {"chance": 4.85, "contrastive_accuracy": 0.256, "peak_memory_mib": 300.4}
    lines = [{"step": 1, "loss": 4.0, **line}, {"step": 2, "loss": 3.5, **line}, {"step": 2, "knn": 0.5}]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(one) + "\n" for one in lines))
    print_summary(config, 10, 2.0, Console(file=said, width=200))
    assert said.getvalue().splitlines()[1] == (
        f"Trained 10 steps in 2 s ({rate} images/s). Loss 3.500 (chance 4.850), contrastive accuracy 25.6%, peak "
        "memory 300 MiB"
    )
    learning_curves(tmp_path / "curves.png", [], chance=5.0)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    said = io.StringIO()
    with MetricsLog(options(tmp_path / "run"), enabled=False, step=0, total_steps=2) as log:
        log.write(1, {"loss": 1.0})
        log.warn(1, EarlyWarning("chance", "nothing is learnt"), Console(file=said))
        log.advance()
    assert said.getvalue() == ""
    assert not (tmp_path / "run").exists()
    assert log.last == {"loss": 1.0}


def test_every_recipe_writes_to_a_folder_of_its_own() -> None:
    assert len({config.run.output for config in RECIPES.values()}) == len(RECIPES)
