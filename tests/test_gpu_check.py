"""tools/gpu_check.py: a dry run of all of it, its plan and its verdict, what it says without a GPU or when cut off."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from tools import gpu_check
from tools.gpu import bench, device, plan, results
from tools.gpu.device import Timing
from tools.gpu.jobs import Job, Outcome
from tools.gpu.page import page, summary
from tools.gpu.scratch import Scratch

CHECK = [sys.executable, "tools/gpu_check.py"]
PYTHON = [sys.executable, "-c"]


def environment(**more: str) -> dict[str, str]:
    """Without a device, wherever the tests run."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more}


def stray_files() -> set[Path]:
    """What a build would leave in the checkout."""
    folders = (ROOT / "csrc", ROOT / "simclr_fast", ROOT / "tools")
    return {path for folder in folders for path in folder.rglob("*") if path.suffix in (".so", ".o", ".json")}


# ------------------------------------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, str]:
    """gpu_check.json, gpu_check.md and the output of a dry run."""
    folder = tmp_path_factory.mktemp("gpu_check")
    before = stray_files()
    arguments = ["--dry-run", "--minutes", "20", "--out", str(folder / "out"), "--scratch", str(folder / "scratch")]
    run = subprocess.run([*CHECK, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert stray_files() == before, "the checkout stays as it is"
    written = {"gpu_check.json", "gpu_check.short.json", "gpu_check.md", "logs.tar.gz"}
    assert {path.name for path in (folder / "out").iterdir()} == written
    found = json.loads((folder / "out" / "gpu_check.json").read_text())
    return found, (folder / "out" / "gpu_check.md").read_text(), run.stdout


def test_a_dry_run_walks_through_every_step(dry: tuple[dict, str, str]) -> None:
    found, _, output = dry
    assert found["check"]["state"] == "finished"
    assert {job["status"] for job in found["jobs"].values()} == {"passed"}
    assert {name: state["state"] for name, state in found["bench"]["sections"].items()} == dict.fromkeys(
        bench.SECTIONS, "done"
    )
    assert results.failures(found) == []
    assert "Nothing failed." in output


def test_a_dry_run_collects_every_gpu_test_and_runs_stand_ins(dry: tuple[dict, str, str]) -> None:
    found = dry[0]
    collected = found["tests collected"]
    assert len(collected["collected"]) > 400
    assert {entry["outcome"] for entry in collected["tests"].values()} == {"passed", "skipped"}, "set up and torn down"
    for part in ("test_cuda_gpu", "test_triton_gpu", "test_wide_on_a_gpu", "cpp-cuda", "triton-cuda"):
        assert any(part in name for name in collected["collected"]), part
    assert found["tests"]["passed"] > 20
    assert found["tests"]["failed"] == found["tests"]["cut off"] == 0
    margins = [entry["margins"] for entry in found["tests"]["tests"].values()]
    assert all({"u", "inv_norm"} == set(of) for of in margins)


def test_a_dry_run_fills_in_all_figures(dry: tuple[dict, str, str]) -> None:
    measured = dry[0]["bench"]
    assert set(measured["ceilings"]["product TFLOP/s"]) == {"fp16", "bf16", "tf32", "ieee"}
    for case in measured["ntxent"].values():
        for name in ("cpp", "triton", "plain"):
            figures = case["contestants"][name]
            assert {"forward ms", "backward ms", "both ms", "host us", "peak MiB", "over limit"} <= set(figures)
            assert figures.get("right", name == "plain")
    assert any("both ms" in case["contestants"].get("compiled", {}) for case in measured["ntxent"].values())
    for case in measured["augment"].values():
        assert all(case["contestants"][name]["views/s"] > 0 for name in ("cpp", "triton"))
    for name in ("resnet50", "resnet18"):
        assert {"images/s", "views ms", "loss ms", "share of views and loss"} <= set(measured["steps"][name])
    assert {"images/s, graph", "images/s, eager"} <= set(measured["steps"]["resnet18"])
    assert set(measured["peers"]) == {"ntxent", "augment"}
    assert len(measured["tune"]) == 2


def test_ratios_are_of_the_figures_beside_them(dry: tuple[dict, str, str]) -> None:
    measured = dry[0]["bench"]
    near = lambda value: pytest.approx(value, rel=1e-6)
    rates = measured["ceilings"]["product TFLOP/s"]
    for case in measured["ntxent"].values():
        product, times = {"ieee": ("tf32", 3)}.get(case["kind"], (case["kind"], 1))
        multiply_adds = 2.5 * (2 * case["n"]) ** 2 * case["d"] * times
        assert case["limit ms"] == near(2e3 * multiply_adds / (1e12 * rates[product]))
        for figures in case["contestants"].values():
            assert figures["over limit"] == near(figures["both ms"] / case["limit ms"])
            for part, timing in figures["timings"].items():
                assert timing["low"] <= timing["ms"] == figures[f"{part} ms"] <= timing["high"]
    for case in measured["augment"].values():
        pixels = 3 * case["size"] ** 2 * (2 if case["kind"] in ("fp16", "bf16") else 4)
        assert case["least bytes"] > 2 * case["batch"] * pixels
        for name, figures in case["contestants"].items():
            assert figures["views/s"] == near(2 * case["batch"] / figures["ms"] * 1e3)
            assert name not in ("cpp", "triton") or figures["over the copy"] == near(figures["ms"] / case["copy ms"])
    for step in measured["steps"].values():
        batch, whole = step["setting"]["batch"], step["step ms"]
        assert step["images/s"] == near(batch / whole * 1e3)
        assert step["share of views and loss"] == near((step["views ms"] + step["loss ms"]) / whole)
        assert step["share of views, by difference"] == near((whole - step["step ms without views"]) / whole)


def test_a_timing_is_the_median_with_its_quartiles() -> None:
    timing = Timing.of([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "events")
    assert (timing.low, timing.ms, timing.high, timing.rounds) == (2.0, 4.0, 6.0, 7)
    assert Timing.of([2.0], "events").ms == 2.0
    rounds = [device._rounds(pilot, 0.05, 30) for pilot in (0.0, 1.0, 2.5, 5.0, 100.0)]
    assert rounds == [30, 30, 20, 10, 5], "for 50 ms, but 5 at least and 30 at most"


def test_the_page_has_every_part(dry: tuple[dict, str, str]) -> None:
    found, text, _ = dry
    parts = ("Verdict", "Steps", "Tests that need the device", "Margins", "compute-sanitizer", "Ceilings")
    parts += ("NT-Xent, t = 0.1", "Augmentation", "Training steps", "Peers", "Tiles of the Triton kernels")
    for part in parts:
        assert f"## {part}" in text, part
    assert found["check"]["sources"] in text
    assert f"torch {found['check']['machine']['versions']['torch']}" in text
    assert len(summary(found)) < 10_000, "it is to be read at the end of a log"


def test_says_so_where_there_is_no_gpu(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tools.gpu_check",
        "--out",
        str(tmp_path / "out"),
        "--scratch",
        str(tmp_path / "s"),
    ]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 2
    assert "no CUDA device that torch can use; nothing was checked" in run.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_step_is_refused() -> None:
    run = subprocess.run([*CHECK, "--only", "test,nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "--only nonsense: no such step; choose of build, tests" in run.stderr
    run = subprocess.run([*CHECK, "--extension", "tools"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "--extension tools: holds no KEY/_C*.so" in run.stderr


def test_a_check_that_is_cut_off_has_written_what_it_knows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--dry-run", "--only", "tests", "--out", str(out), "--scratch", str(tmp_path / "scratch")]
    check = subprocess.Popen([*CHECK, *arguments], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    for line in check.stdout:
        if "tests: running" in line:
            break
    check.send_signal(signal.SIGTERM)
    output = check.communicate(timeout=600)[0]
    found = json.loads((out / "gpu_check.json").read_text())
    assert check.returncode == 1
    assert found["check"]["state"] == "cut off by SIGTERM"
    assert found["jobs"]["build"]["status"] == "passed"
    assert found["jobs"]["tests"] | {"tail": []} | {"seconds": 0, "began": 0} == {
        **{"status": "cut off", "reason": "cut off by SIGTERM", "tail": [], "seconds": 0, "began": 0},
    }
    assert "This check is not complete: cut off by SIGTERM" in output


# ------------------------------------------------------------------------------------------------ the plan


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Job]:
    """The jobs of a machine with a GPU."""
    monkeypatch.setattr(plan, "tool_of_cuda", lambda name: f"/cuda/bin/{name}")
    scratch = Scratch(tmp_path)
    (scratch.source).mkdir()
    (scratch.source / "tests").symlink_to(ROOT / "tests")
    found = plan.plan(scratch, plan.chosen_steps(None), "9.0", 540.0, 16, False)
    return {job.name: job for job in found}


def test_the_plan_builds_first_and_measures_last_and_alone(jobs: dict[str, Job]) -> None:
    names = list(jobs)
    assert names[0] == "build"
    assert jobs["build"].command[-1] == "9.0", "for the device's own architecture, never the checkout's extension"
    assert names[-1] == "bench"
    assert [name for name in names if jobs[name].alone] == ["bench"]
    sections = [name for name in bench.SECTIONS if name not in plan.ONLY_ON_REQUEST]
    assert jobs["bench"].command[-len(sections) :] == sections
    assert sections[-1] == "tune"
    assert all(job.until <= 0.5 * 540 for name, job in jobs.items() if name not in ("build", "bench"))
    assert "gpu" in jobs["tests"].command
    assert jobs["tests"].environment["TORCHINDUCTOR_COMPILE_THREADS"] == "4", "12 workers, and no pool of 16 for each"
    names_of = lambda *steps: [job.name for job in plan.plan(Scratch(Path()), [*steps], "9.0", 180.0, 16, False)]
    assert names_of("resnet50") == ["build", "bench"], "alone, a section waits for nothing that is compiled before"
    assert names_of("resnet50", "resnet18") == ["build", "warm-resnet50-0", "warm-resnet18-0", "bench"]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_both_tools_watch_every_op_of_both_backends(jobs: dict[str, Job], tool: str) -> None:
    watched = set()
    for name, job in jobs.items():
        if name.startswith(tool):
            assert job.command[:3] == ["/cuda/bin/compute-sanitizer", "--tool", tool]
            backend, *ops = job.command[job.command.index("tools.gpu.sanitized") + 1 :]
            watched |= {(backend, op) for op in ops or ("ntxent", "augment")}
    ops = ("ntxent", "augment")
    assert watched == {(backend, op) for backend in ("cpp", "triton") for op in ops}


def test_sanitized_calls_get_an_allocation_each() -> None:
    program = "import tools.gpu.sanitized, os; print(os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'])"
    run = subprocess.run([*PYTHON, program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "1\n"


def test_without_the_tool_the_sanitizers_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "tool_of_cuda", lambda name: None)
    found = plan.plan(Scratch(tmp_path), ["memcheck"], "9.0", 540.0, 16, False)
    assert "compute-sanitizer was not found" in next(job for job in found if job.name == "memcheck-cpp").missing


def test_gpu_tests_come_by_importance_from_files_that_mark_them() -> None:
    files = plan.gpu_tests(ROOT / "tests")
    assert [file.split("/test_")[0] for file in files[:4]] == ["tests/ops/ntxent"] * 4
    assert files.index("tests/ops/augment") < files.index("tests/training/test_cuda.py")
    assert files[-2:] == ["tests/training/test_cuda.py", "tests/training/test_step_graph_gpu.py"]
    assert "tests/test_gpu_check.py" not in files


def test_only_takes_steps_by_their_beginnings() -> None:
    ntxent = ["ntxent-first", "ntxent-compiled", "ntxent-sizes", "ntxent-all", "ntxent-compiled-all"]
    assert plan.chosen_steps("ntxent,tests") == ["tests", *ntxent]
    assert plan.chosen_steps(None) == [step for step in plan.STEPS if step not in ("ncu", "ntxent-compiled-all")]
    assert plan.chosen_steps(None, dry=True) == list(plan.STEPS)
    lines = [line.split() for line in re.findall(r"`check (--only .*?)`", (ROOT / "docs/gpu.md").read_text())]
    steps = [gpu_check.parse(line).steps for line in lines]
    assert steps[:2] == [["resnet50"], ["tests"]], "what a machine that is lent for minutes is to show first"
    assert {"memcheck", "racecheck", "kernels", "ncu", "ntxent-first", "augment", "resnet18"} <= {
        step for of in steps for step in of
    }


PROFILE = """==PROF== Connected
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"
"0","7","void simclr::cuda::ntxent_fwd_kernel<float>(int)","Speed Of Light","Duration","ns","12,345",""
"0","7","void simclr::cuda::ntxent_fwd_kernel<float>(int)","Occupancy","Achieved Occupancy","%","24.1",""
"0","7","void simclr::cuda::ntxent_fwd_kernel<float>(int)","Occupancy","","","","a rule"
"1","7","ntxent_bwd_kernel","Speed Of Light","Duration","ns","99",""
"""


def test_a_profile_is_asked_for_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "tool_of_cuda", lambda name: f"/cuda/bin/{name}")
    jobs = plan.plan(Scratch(tmp_path), plan.chosen_steps("ncu"), "9.0", 540.0, 16, False)
    assert [job.name for job in jobs] == ["build", "ncu-cpp", "ncu-triton"]
    assert jobs[1].command[0] == "/cuda/bin/ncu"
    assert "none" in jobs[1].command, "clocks are left alone"
    (tmp_path / "ncu.log").write_text(PROFILE)
    assert results.read_profile(tmp_path / "ncu.log") == [
        {"kernel": "void simclr::cuda::ntxent_fwd_kernel", "Duration": "12,345 ns", "Achieved Occupancy": "24.1 %"},
        {"kernel": "ntxent_bwd_kernel", "Duration": "99 ns"},
    ]


# ------------------------------------------------------------------------------------------------ results


MEMCHECK = """========= COMPUTE-SANITIZER
sanitized:    1.0 s  cpp: loss a
========= Invalid __global__ read of size 4 bytes
=========     at ntxent_fwd_kernel(int)+0x10 in ntxent_fwd.cu:12
sanitized:    2.0 s  cpp: loss b
========= ERROR SUMMARY: 1 error
"""


def test_a_sanitizers_findings_are_read(tmp_path: Path) -> None:
    log = tmp_path / "memcheck-cpp.log"
    log.write_text(MEMCHECK)
    assert results.read_sanitizer(log) == {
        "calls": 2,
        "complete": False,
        "summary": "ERROR SUMMARY: 1 error",
        "findings": ["Invalid __global__ read of size 4 bytes"],
        "last call": "sanitized:    2.0 s  cpp: loss b",
    }
    log.write_text(MEMCHECK + "sanitized: cpp: all 2 calls in 3 s\n")
    assert results.read_sanitizer(log)["complete"]


@pytest.mark.parametrize(("backend", "count"), [("cpp", 11), ("triton", 10)])
def test_kernels_that_no_call_reaches_are_named(tmp_path: Path, backend: str, count: int) -> None:
    names, on_hopper = (results.kernels_of_project(ROOT, backend, hopper) for hopper in (False, True))
    assert len(names) >= count
    assert {"ntxent_fwd_kernel", "ntxent_bwd_kernel", "augment_tile_kernel", "ntxent_normalize_kernel"} <= names
    of_hopper = {f"ntxent_{name}_sm90_kernel" for name in ("fwd", "bwd", "bwd_wide")} if backend == "cpp" else set()
    assert on_hopper - names == of_hopper
    assert names - on_hopper == ({"ntxent_fwd_kernel", "ntxent_bwd_kernel"} if of_hopper else set())
    log = tmp_path / "kernels.log"
    log.write_text("\n".join(f"void simclr::cuda::{name}<float>(int)" for name in sorted(names)[1:]))
    assert results.kernels_not_reached(ROOT, backend, log, False) == sorted(names)[:1]
    assert results.kernels_not_reached(ROOT, backend, log, True) == sorted({sorted(names)[0], *of_hopper})


def test_failures_are_all_named() -> None:
    figures = {"right": False, "loss error": 0.1, "gradient error": 0.2}
    found = {
        "jobs": {
            "build": vars(Outcome("failed", reason="exit status 1")),
            **{name: vars(Outcome("cut off")) for name in ("warm-augment-0", "bench")},
        },
        "tests": {"cut off": 3, "not run": {"m": {"failed": True, "reason": "ImportError"}}},
        "sanitizer": {"memcheck-cpp": {"complete": False, "last call": "x"}},
        "kernels not reached": {"cpp": ["lost_kernel"]},
        "bench": {
            "sections": {"augment": {"state": "failed", "failed": "died"}, "tune": {"state": "left out"}},
            "ntxent": {
                "N=1": {"contestants": {"cpp": figures, "triton": {"failed": "oom"}, "plain": {"failed": "oom"}}}
            },
            "augment errors": {"32": {"cpp": {"error": 1e-7, "same draws": False}}},
        },
    }
    said = results.failures(found)
    assert len(said) == 9, said
    for part in (
        "build",
        "3 tests",
        "ImportError",
        "memcheck-cpp",
        "lost_kernel",
        "died",
        "N=1 cpp",
        "N=1 triton",
        "32 px",
    ):
        assert any(part in text for text in said), part


def test_the_demands_are_compared_with_what_was_measured(dry: tuple[dict, str, str]) -> None:
    times = {
        "cpp": {"both ms": 0.2},
        "triton": {"both ms": 0.1},
        "plain": {"both ms": 0.9},
        "compiled": {"both ms": 0.1},
    }
    measured = {
        "sections": {},
        "ntxent": {"N=4096 D=128 fp16": {"n": 4096, "d": 128, "kind": "fp16", "limit ms": 0.05, "contestants": times}},
        "augment": {
            "256 x 256 px to 224 px, bf16": {"batch": 1, "copy ms": 1, "contestants": {"cpp": {"views/s": 3e5}}}
        },
        "steps": {"resnet50": {"setting": {"batch": 1}, "share of views and loss": 0.04}},
    }
    verdicts = [(round(value, 2), held) for _, value, held in _held(measured)]
    assert verdicts == [(9.0, True), (1.0, False), (2.0, True), (300_000.0, True), (0.04, False)]
    text = page({**dry[0], "bench": measured})
    assert text.count("| yes |") == 3
    assert text.count("| NO |") == 2


def _held(measured: dict) -> list[tuple[str, float, bool]]:
    return [
        (what, value, (value >= bound) == (sense == "at least"))
        for what, value, sense, bound in results.targets(measured)
    ]
