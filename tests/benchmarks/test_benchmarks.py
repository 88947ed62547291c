"""Every suite runs at its smallest size and the report is made of it, so that the benchmarks cannot rot."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.harness import Absent, Contestant, compare
from benchmarks.ntxent_truth import loss_and_sampled_gradients
from simclr_fast import ntxent_loss

ROOT = Path(__file__).parent.parent.parent
SUITES = {"ntxent", "augment", "train_step", "scaling"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "results.json"
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", "--scale", "smoke", f"--benchmark-json={path}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:]
    return path


def test_every_suite_times_ours_after_checking_it(results: Path) -> None:
    found = report.suites(json.loads(results.read_text()))
    assert set(found) == SUITES
    for suite, cases in found.items():
        for case in cases:
            timed = {name for name, figures in case["contestants"].items() if "seconds" in figures}
            assert timed & {"cpp", "simclr_fast", "2 processes"}, f"{suite}: ours was not timed: {case['contestants']}"
            for figures in case["contestants"].values():
                assert ("seconds" in figures) == (figures.get("error", 1) <= figures.get("tolerance", 0))


def test_report_shows_every_contestant_and_the_machine(results: Path) -> None:
    text = report.write(results, against=results).read_text()
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "figures compared; 0 changed" in text
    for cases in report.suites(json.loads(results.read_text())).values():
        for case in cases:
            assert all(f"| {name} |" in text for name in case["contestants"])
    page = (results.parent / "report.html").read_text()
    assert page.count("<table>") >= len(SUITES)
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (results.parent / name).stat().st_size > 5000
    assert "http" not in page.replace("http-equiv", "")


def test_report_refuses_a_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match="is no results file of this project"):
        report.write(tmp_path / "other.json", None)
    with pytest.raises(SystemExit, match="does not exist; make it with `make bench`"):
        report.write(tmp_path / "missing.json", None)


def test_a_wrong_contestant_is_reported_and_not_timed(benchmark) -> None:
    runs = {"right": 0, "wrong": 0}

    def contestant(name: str, value: float) -> Contestant:
        def run(lap) -> float:
            runs[name] += 1
            lap("work")
            return value

        return Contestant(name, run)

    field = [contestant("right", 1.0), contestant("wrong", 2.0), Absent("away", "not installed")]
    check = lambda value: (abs(value - 1.0), 1e-3)
    found = compare(benchmark, field, check, torch.device("cpu"), budget=0.001, suite="test")
    assert found["wrong"] == {"error": 1.0, "tolerance": 1e-3}
    assert found["away"] == {"absent": "not installed"}
    assert runs["wrong"] == 2  # warm-up and check
    assert found["right"]["seconds"]["work"]["rounds"] == runs["right"] - 2


def test_sampled_truth_agrees_with_autograd() -> None:
    z0, z1 = (torch.randn(9, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = ntxent_loss(z0, z1, 0.2, backend="reference")
    loss.backward()
    sampled_loss, rows, gradients = loss_and_sampled_gradients(z0, z1, 0.2, samples=7)
    assert sampled_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert len(rows) == 7
    torch.testing.assert_close(gradients, torch.cat([z0.grad, z1.grad])[rows], rtol=1e-10, atol=1e-14)
