"""The parts of tools/gpu_check.py: jobs under limits, tests recorded as they end, measuring that survives a crash."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.environment import ROOT
from tools.gpu import TESTS_FILE, bench, plan, record_tests, results, tune
from tools.gpu import scratch as scratch_module
from tools.gpu.jobs import Job, Outcome, Runner
from tools.gpu.scratch import Scratch

PYTHON = [sys.executable, "-c"]


def environment(**more: str) -> dict[str, str]:
    """Without a device, wherever the tests run."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more}


# ------------------------------------------------------------------------------------------------ jobs


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path, tmp_path, dict(os.environ), seconds=60)


def test_jobs_run_beside_each_other_in_order_and_alone(runner: Runner, tmp_path: Path) -> None:
    note = "import sys, time; a = time.monotonic(); time.sleep(0.3); print(a, time.monotonic())"
    jobs = [
        *(Job(name, [*PYTHON, note]) for name in ("a", "b")),
        Job("late", [*PYTHON, note], after=("a",)),
        Job("bad", [*PYTHON, "raise SystemExit(3)"]),
        Job("hopeless", [*PYTHON, note], needs=("bad",)),
        Job("absent", [], missing="no such tool"),
        Job("alone", [*PYTHON, note], alone=True),
        Job("last", [*PYTHON, note], alone=True),
    ]
    calls = []
    assert runner.run(jobs, lambda: calls.append({name: o.status for name, o in runner.outcomes.items()}))
    statuses = {name: outcome.status for name, outcome in runner.outcomes.items()}
    assert statuses == dict.fromkeys(("a", "b", "late", "alone", "last"), "passed") | {
        **{"bad": "failed", "hopeless": "not run", "absent": "not run"}
    }
    assert runner.outcomes["bad"].reason == "exit status 3"
    assert runner.outcomes["hopeless"].reason == "bad did not pass"
    assert runner.outcomes["absent"].reason == "no such tool"
    assert calls[-1] == statuses
    when = {
        name: list(map(float, runner.log(name).read_text().split())) for name, s in statuses.items() if s == "passed"
    }
    assert when["late"][0] >= when["a"][1]
    assert when["alone"][0] >= max(when[name][1] for name in ("a", "b", "late"))
    assert when["last"][0] >= when["alone"][1]


def test_a_limit_ends_a_job_with_its_children(runner: Runner, tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(mark)!r}).touch(); time.sleep(0.05)"
    stubborn = (
        f"import signal, subprocess, sys; signal.signal(15, signal.SIG_IGN); subprocess.run({[*PYTHON, child]!r})"
    )
    assert runner.run(
        [Job("slow", [*PYTHON, stubborn], limit=5.0), Job("late", [*PYTHON, ""], until=-1.0)], lambda: None
    )
    assert runner.outcomes["slow"].status == "cut off"
    assert "took more than the 5 s that it had" in runner.outcomes["slow"].reason
    assert runner.outcomes["late"] == Outcome("not run", reason="its time was up before it began")
    assert mark.exists()
    mark.unlink()
    time.sleep(0.3)
    assert not mark.exists(), "its child goes on"


def test_the_end_of_the_time_ends_all_jobs(tmp_path: Path) -> None:
    runner = Runner(tmp_path, tmp_path, dict(os.environ), seconds=5.0)
    forever = [*PYTHON, "print('{seconds}', flush=True); import time; time.sleep(100)"]
    assert not runner.run([Job("first", forever), Job("second", forever, alone=True)], lambda: None)
    assert runner.outcomes["first"].status == "cut off"
    assert runner.outcomes["second"] == Outcome("not run", reason="the check's time was up")
    assert runner.log("first").read_text() == "1\n", "at least a second is promised"


# ------------------------------------------------------------------------------------------------ tests


RECORDED = {
    "test_good.py": """
import pytest
from tests.helpers import within

@pytest.mark.parametrize("error", [1e-3, 2e-3, float("nan")])
def test_margin(error):
    assert within("loss", 1e-9, 1e-3)
    assert within("loss", error, 3e-3)

def test_asks_for_an_absent_package():
    import package_that_nobody_has.part

def test_skips():
    pytest.skip("no reason")

def test_asks_for_a_missing_part_of_the_project():
    import simclr_fast.part_that_is_missing
""",
    "test_needs.py": "import package_that_nobody_has\n\ndef test_never(): ...\n",
    "test_broken.py": "import tests.part_that_is_missing\n\ndef test_never(): ...\n",
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict:
    tmp_path = tmp_path_factory.mktemp("recorded")
    for name, text in RECORDED.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    command = [*plan.pytest_command(workers=1), str(tmp_path)]
    more = {"PYTHONPATH": str(ROOT), TESTS_FILE: str(tmp_path / "tests.jsonl")}
    run = subprocess.run(command, cwd=tmp_path, env=environment(**more), capture_output=True, text=True)
    assert "2 failed, 2 passed, 3 skipped, 1 error" in run.stdout, run.stdout
    return results.read_tests(tmp_path / "tests.jsonl")


def test_tests_are_recorded_with_their_margins(recorded: dict) -> None:
    assert len(recorded["collected"]) == 6
    outcomes = {name.split("::")[1]: entry["outcome"] for name, entry in recorded["tests"].items()}
    assert outcomes == {
        "test_margin[0.001]": "passed",
        "test_margin[0.002]": "passed",
        "test_margin[nan]": "failed",
        "test_asks_for_an_absent_package": "skipped",
        "test_skips": "skipped",
        "test_asks_for_a_missing_part_of_the_project": "failed",
    }
    of = summary_of = results.summarise_tests(recorded)
    assert (of["passed"], of["failed"], of["skipped"], of["cut off"]) == (2, 2, 2, 0)
    assert recorded["tests"]["test_good.py::test_margin[0.002]"]["margins"] == {"loss": [2e-3, 3e-3]}
    nearest = summary_of["nearest to their bounds"]["test_good.py::test_margin, loss"]
    assert nearest["test"] == "test_good.py::test_margin[nan]"


def test_an_absent_package_is_no_failure_and_is_named(recorded: dict) -> None:
    reason = "not run: needs package_that_nobody_has"
    assert recorded["not run"]["test_needs.py"] == {"failed": False, "reason": reason}
    assert recorded["tests"]["test_good.py::test_asks_for_an_absent_package"]["message"] == reason
    assert recorded["not run"]["test_broken.py"]["failed"]
    assert "part_that_is_missing" in recorded["not run"]["test_broken.py"]["reason"]


def test_tests_that_never_ended_are_counted(tmp_path: Path) -> None:
    entry = {"test": "a", "outcome": "failed", "seconds": 1.0, "margins": {"loss": [1.0, 0.0]}, "message": "illegal"}
    died = {"test": "a", "outcome": "failed", "seconds": 0.0, "margins": {}, "message": "worker crashed"}
    lines = [json.dumps(line) for line in ({"collected": ["a", "b", "c"]}, entry, died)]
    (tmp_path / "tests.jsonl").write_text("\n".join(lines) + '\n{"test": "b", "outc')
    found = results.read_tests(tmp_path / "tests.jsonl")
    assert found["tests"]["a"]["outcome"] == "failed"
    assert found["tests"]["a"]["message"] == "illegal; worker crashed"
    assert found["tests"]["a"]["margins"] == {"loss": [1.0, 0.0]}
    assert results.summarise_tests(found)["cut off"] == 2


def test_absence_is_found_behind_other_exceptions() -> None:
    error = RuntimeError("install it")
    error.__cause__ = ModuleNotFoundError("no", name="package_that_nobody_has.part")
    assert record_tests.absent_package(error) == "package_that_nobody_has"
    assert record_tests.absent_package(ModuleNotFoundError("no", name="simclr_fast.x")) is None
    assert record_tests.absent_package(ValueError()) is None


# ------------------------------------------------------------------------------------------------ measuring


def test_a_section_that_kills_its_process_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, started = tmp_path / "bench.json", []

    def run(command: list[str], timeout: float) -> subprocess.CompletedProcess:
        names = command[command.index("--dry-run") + 1 :]
        started.append(names)
        found = bench.read(out)
        for name in names:
            deadly = name == "augment"
            found["sections"][name] = {"state": "running"} if deadly else {"state": "done"}
            if deadly:
                break
        bench.write(out, found)
        return subprocess.CompletedProcess(command, -11 if "augment" in names else 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "__spec__", type("Spec", (), {"name": "tools.gpu.bench"}))
    assert bench.supervise(out, 60.0, ["ceilings", "augment", "peers"], ["--dry-run"]) == 1
    assert started == [["ceilings", "augment", "peers"], ["peers"]]
    sections = bench.read(out)["sections"]
    assert sections["augment"] == {"state": "failed", "failed": "its process died (exit status -11)"}
    assert sections["ceilings"]["state"] == sections["peers"]["state"] == "done"


def test_a_process_that_never_begins_ends_the_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = lambda command, timeout: subprocess.CompletedProcess(command, 1)
    monkeypatch.setattr(bench.subprocess, "run", dead)
    monkeypatch.setattr(bench, "__spec__", type("Spec", (), {"name": "tools.gpu.bench"}))
    assert bench.supervise(tmp_path / "bench.json", 60.0, ["ceilings", "peers"], []) == 1
    states = bench.read(tmp_path / "bench.json")["sections"]
    assert {state["failed"] for state in states.values()} == {"not begun (exit status 1)"}


@pytest.mark.parametrize("shape", tune.SHAPES, ids=str)
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_tiles_to_try_are_many_and_fit(shape: tune.Shape, way: str) -> None:
    found = tune.candidates(shape, way, dry=False)
    assert 8 <= len(found) <= 150
    assert len(set(found)) == len(found)
    assert all(tiles.block_d <= max(128, shape.d) for tiles in found)
    if way == "forward":
        assert all(tiles.block_m == tiles.block_n for tiles in found), "forward tiles are square"


def test_an_installed_package_called_tests_does_not_hide_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "tests").mkdir(parents=True)
    (tmp_path / "site" / "tests" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    scratch = Scratch(tmp_path / "scratch")
    scratch.prepare()
    assert scratch.ask("import tests; print(*tests.__path__)") == str(scratch.source / "tests")
    monkeypatch.delenv("PYTHONPATH")
    scratch.prepare()
    assert not (scratch.source / "tests" / "__init__.py").exists(), "where nothing hides it, it stays a namespace"
    assert not list(scratch.source.rglob("*.so")), "the checkout's extension is no part of the copy"


def test_an_extension_that_was_carried_here_serves_for_the_same_sources_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    there, here, compiled = Scratch(tmp_path / "there"), Scratch(tmp_path / "here"), []
    for scratch in (there, here):
        (scratch.source / "csrc").mkdir(parents=True)
        (scratch.source / "simclr_fast").mkdir()
        (scratch.source / "csrc" / "a.cpp").write_text("int a;")
        (scratch.source / "setup.py").touch()

    def run(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
        compiled.append(env["TORCH_CUDA_ARCH_LIST"])
        (cwd / "simclr_fast" / "_C.abi3.so").write_text(f"compiled for {env['TORCH_CUDA_ARCH_LIST']}")
        return subprocess.CompletedProcess(command, 0)

    assert here.ask(scratch_module.ASK) == str(torch.version.cuda).split(".")[0]
    monkeypatch.setattr(scratch_module.subprocess, "run", run)
    monkeypatch.setattr(Scratch, "ask", lambda self, program: "13" if program == scratch_module.ASK else "{}")
    build = lambda scratch, arch="9.0": scratch_module.build(scratch, arch, None)
    assert build(there) == 0
    here.bring(there.folder / "extension")
    assert build(here) == 0
    assert compiled == ["9.0"], "nothing is compiled again"
    assert (here.source / "simclr_fast" / "_C.abi3.so").read_text() == "compiled for 9.0"
    assert build(here, "8.0") == 0
    (here.source / "csrc" / "a.cpp").write_text("int b;")
    capfd.readouterr()
    assert build(here) == 0
    assert compiled == ["9.0", "8.0", "9.0"]
    assert "what was built before is" in capfd.readouterr().out


def test_a_repository_keeps_no_single_tests_and_rounds() -> None:
    found = {
        "check": {"commit": "abc"},
        "tests": {
            "passed": 1,
            "collected": ["a", "b"],
            "tests": {"a": {"outcome": "passed"}, "b": {"outcome": "failed", "message": "off"}},
        },
        "bench": {"ntxent": {"case": {"both ms": 0.123456789, "right": True, "timings": {"low": 1.0}}}},
    }
    assert results.short(found) == {
        "check": {"commit": "abc"},
        "tests": {"passed": 1, "not passed": {"b": {"outcome": "failed", "message": "off"}}},
        "bench": {"ntxent": {"case": {"both ms": 0.12346, "right": True}}},
    }
    assert results.short({"check": {}}) == {"check": {}}
