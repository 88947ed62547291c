"""`make gpu-check`: what it says without a GPU, and what it reports when steps pass, fail or cannot run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import gpu_check


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    monkeypatch.setattr(gpu_check, "REPORT", tmp_path / "report.md")
    return tmp_path / "report.md"


def test_says_so_where_there_is_no_gpu(
    report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not report.exists()


def test_one_failure_fails_the_check_and_is_reported(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = [sys.executable, "-c"]
    plan = [
        gpu_check.Step("good", [*python, "print('fine')"]),
        gpu_check.Step("bad", [*python, "print('broken'); raise SystemExit(9)"]),
        gpu_check.Step("absent", [], missing="no such tool"),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda: ["- a GPU"])
    monkeypatch.setattr(gpu_check, "steps", lambda benchmarks: plan[:1])
    assert gpu_check.main() == 0
    monkeypatch.setattr(gpu_check, "steps", lambda benchmarks: plan)
    assert gpu_check.main() == 1
    text = report.read_text()
    for part in ("- a GPU", "## good: passed", "fine", "## bad: FAILED (exit status 9)", "broken", "no such tool"):
        assert part in text


def test_a_result_file_becomes_part_of_the_report(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = report.with_name("result.md")
    write = f"import pathlib; pathlib.Path({str(result)!r}).write_text('a table')"
    plan = [gpu_check.Step("writes", [sys.executable, "-c", write], result=result)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda: ["- a GPU"])
    monkeypatch.setattr(gpu_check, "steps", lambda benchmarks: plan)
    assert gpu_check.main() == 0
    assert "a table" in report.read_text()


def test_the_plan_runs_the_device_tests_sanitizers_and_benchmarks() -> None:
    commands = [" ".join(step.command) for step in gpu_check.steps(benchmarks=True)]
    for part in ("pytest -q -rs -m gpu", "-m interpret", "--tool memcheck", "--tool racecheck", "make bench"):
        assert any(part in command for command in commands), part
    assert not any("bench" in " ".join(step.command) for step in gpu_check.steps(benchmarks=False))


@pytest.mark.parametrize(("path", "cases"), gpu_check.SANITIZED.items())
def test_the_sanitized_cases_exist(path: str, cases: str) -> None:
    command = gpu_check.pytest_command("-m", "gpu", "-k", cases, "--collect-only", path)
    run = subprocess.run(command, cwd=gpu_check.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
