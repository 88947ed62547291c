"""Every suite runs at its smallest size and the report is made of it, so that the benchmarks cannot rot."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import harness, report, run
from benchmarks.harness import Absent, Contestant, compare, require
from benchmarks.ntxent_truth import clip_loss_and_sampled_gradients, loss_and_sampled_gradients
from simclr_fast import ntxent_loss

ROOT = Path(__file__).parent.parent.parent
SUITES = {"ntxent", "ntxent_memory", "host", "losses", "losses_memory", "augment", "loading", "train_step"}
SUITES |= {"train_step_files", "scaling"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks.run", "--scale", "smoke", "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.strip().endswith("report.md")
    return folder / "results.json"


def test_every_suite_measures_ours_after_checking_it(results: Path) -> None:
    found = report.suites(json.loads(results.read_text()))
    assert set(found) == SUITES
    for suite, cases in found.items():
        measured = "peak_bytes" if suite.endswith("_memory") else "seconds"
        for case in cases:
            ours = {name for name, figures in case["contestants"].items() if measured in figures}
            assert ours & {"cpp", "simclr_fast", "N=24, 2 processes"}, f"{suite}: ours lacks: {case['contestants']}"
            for figures in case["contestants"].values():
                assert ("seconds" in figures) == (figures.get("error", 1) <= figures.get("tolerance", 0))
                assert "failed" not in figures, figures
    main_series = [case for case in found["ntxent"] if case["case"]["d"] == 128]
    for case in main_series:
        assert case["contestants"]["cpp"]["peak_bytes"] > 0
        assert case["limits"]["multiply_adds_per_second"] > 1e8
        assert case["bytes_per_second"] > 1e8


def test_report_shows_every_contestant_and_the_machine(results: Path) -> None:
    report.main([str(results), "--against", str(results)])
    text = (results.parent / "report.md").read_text()
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "0 changed by more than" in text
    for cases in report.suites(json.loads(results.read_text())).values():
        for case in cases:
            for name in case["contestants"]:
                assert re.search(rf"^(\| |- ){re.escape(name.split(',')[0].removeprefix('N='))}[ :,]", text, re.M), name
    assert re.search(r"^\| NT-Xent, N = 4096: against plain PyTorch \| >= 2.7x \| not measured: ", text, re.M)
    page = (results.parent / "report.html").read_text()
    assert page.count("<table>") >= len(SUITES)
    plots = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert {"ntxent_time.png", "ntxent_memory.png", "augment_20.png", "train_rate_0.png", "scaling_0.png"} <= {*plots}
    for name in plots:
        assert (results.parent / name).stat().st_size > 5000
    assert "http" not in page.replace("http-equiv", "")


def test_a_part_is_run_and_compared_with_the_file_that_it_replaces(results: Path, tmp_path: Path) -> None:
    shutil.copyfile(results, tmp_path / "results.json")
    arguments = ["--scale", "smoke", "--folder", str(tmp_path), "--against", str(tmp_path / "results.json")]
    assert run.main([*arguments, "-k", "ntxent_memory", "-p", "no:cacheprovider"]) == 0
    assert set(report.suites(json.loads((tmp_path / "results.json").read_text()))) == {"ntxent_memory"}
    assert "1 figures compared" in (tmp_path / "report.md").read_text()
    with pytest.raises(SystemExit, match="does not exist"):
        run.main([*arguments[:-1], str(tmp_path / "missing.json")])


def test_report_refuses_a_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match="is no results file of this project"):
        report.write(tmp_path / "other.json", None)
    with pytest.raises(SystemExit, match="does not exist; make it with `make bench`"):
        report.write(tmp_path / "missing.json", None)


def test_a_wrong_or_failing_contestant_is_reported_and_not_timed(benchmark) -> None:
    runs = {"right": 0, "slow": 0, "wrong": 0, "one-way": 0, "broken": 0}

    def contestant(name: str, value: float, check=None) -> Contestant:
        def run(lap) -> float:
            runs[name] += 1
            if name == "broken":
                raise MemoryError("no room\nfor it")
            if name == "slow":
                torch.randn(300, 300) @ torch.randn(300, 300)
            lap("work")
            return value

        return Contestant(name, run, check, "differs" if check else "")

    own = lambda value: (abs(value - 3.0), 1e-3)
    field = [contestant("right", 1.0), contestant("slow", 1.0), contestant("wrong", 2.0), contestant("broken", 1.0)]
    field += [contestant("one-way", 3.0, own), Absent("away", "not installed")]
    check = lambda value: (abs(value - 1.0), 1e-3)
    gauges = {"rate": lambda: 7.0}
    found = compare(benchmark, field, check, torch.device("cpu"), 0.001, gauges, suite="test")
    assert found["wrong"] == {"error": 1.0, "tolerance": 1e-3}
    assert found["away"] == {"absent": "not installed"}
    assert found["broken"] == {"failed": "MemoryError: no room"}
    assert found["one-way"]["note"] == "differs"
    assert runs["wrong"] == 2  # warm-up and check
    assert runs["broken"] == 1
    assert 5 <= found["slow"]["seconds"]["work"]["rounds"] <= found["right"]["seconds"]["work"]["rounds"]
    assert benchmark.extra_info["limits"] == {"rate": 7.0}
    require(found, ("right", "away"))
    for bad in ("wrong", "broken"):
        with pytest.raises(AssertionError, match="disagrees with the reference, or fails"):
            require(found, ("right", bad))


def test_a_figure_is_the_median_of_calls_and_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert harness.summary([7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"median": 4.0, "q1": 2.0, "q3": 6.0, "rounds": 7}
    assert harness.summary([2.0]) == {"median": 2.0, "q1": 2.0, "q3": 2.0, "rounds": 1}
    ticks = iter([0.0, 1.0, 3.0, 10.0, 15.0, 16.0, 20.0, 22.0, 29.0])  # three calls of a forward and a backward
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(ticks))
    both = Contestant("both", lambda lap: [lap("forward"), lap("backward")])
    assert harness.time_call(both, torch.device("cpu"), calls=3) == {"forward": 2.0, "backward": 2.0, "full": 6.0}


def test_a_budget_is_spent_on_rounds() -> None:
    """Short calls are repeated for 20 ms, at most 16 times; the slow take part in the five fewest rounds alone."""
    plan = harness._plan
    assert plan({"a": 0.001, "b": 0.1}, 0.0, 10.0) == (60, {"a": 16, "b": 1})
    assert plan({"a": 0.01}, 0.0, 0.4) == (20, {"a": 2})
    assert plan({"a": 0.01}, 0.02, 0.4) == (10, {"a": 2}), "gauges take time, too"
    assert plan({"a": 0.01, "slow": 0.04}, 0.0, 0.4) == (10, {"a": 2, "slow": 1})
    assert plan({"slow": 5.0}, 0.0, 1.0) == (5, {"slow": 1})


def test_sampled_truth_agrees_with_autograd() -> None:
    z0, z1 = (torch.randn(9, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = ntxent_loss(z0, z1, 0.2, backend="reference")
    loss.backward()
    sampled_loss, rows, gradients = loss_and_sampled_gradients(z0, z1, 0.2, samples=7)
    assert sampled_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert len(rows) == 7
    torch.testing.assert_close(gradients, torch.cat([z0.grad, z1.grad])[rows], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("both_ways", [False, True])
def test_sampled_clip_truth_agrees_with_autograd(both_ways: bool) -> None:
    z0, z1 = (torch.randn(9, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    logits = torch.nn.functional.normalize(z0) @ torch.nn.functional.normalize(z1).T / 0.2
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(9))
    if both_ways:
        loss = (loss + torch.nn.functional.cross_entropy(logits.T, torch.arange(9))) / 2
    loss.backward()
    sampled_loss, rows, gradients = clip_loss_and_sampled_gradients(z0, z1, 0.2, both_ways, samples=7)
    assert sampled_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradients, torch.cat([z0.grad, z1.grad])[rows], rtol=1e-10, atol=1e-14)
