"""Which jobs a check has, in what order: what can share the machine first, then the measurements, each alone."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from benchmarks.environment import ROOT
from tools.gpu import OURS, TESTS_FILE
from tools.gpu.bench import SECTIONS
from tools.gpu.jobs import Job
from tools.gpu.scratch import Scratch

SHARED_PART = 0.5  # of the time, at most, for build, tests and sanitizers; where something is measured as well
BUILD_SECONDS = 200.0
TEST_SECONDS = 150.0  # of one test; a training run compiles for half of it while all cores are busy
NCU_SECONDS = 150.0
MOST_WORKERS = 12  # each holds a CUDA context
# Inductor would start a pool of as many processes as there are cores for each worker.
TESTS_ENVIRONMENT = {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
FIRST_TESTS = ("ops/ntxent", "losses", "ops/augment")
# The steps that --only chooses from; a section of bench is one of its own.
STEPS = ("build", "tests", "kernels", "memcheck", "racecheck", "ncu", *SECTIONS)
ONLY_ON_REQUEST = ("ncu", "ntxent-compiled-all")
SANITIZED = {  # tool: (name, arguments of tools.gpu.sanitized); racecheck is slow
    "memcheck": (("cpp", ["cpp"]), ("triton", ["triton"])),
    "racecheck": tuple((f"{backend}-{op}", [backend, op]) for backend in OURS for op in ("ntxent", "augment")),
}
WARMED = {  # section: (in how many processes it is compiled for, whether they need the extension)
    "ntxent-sizes": (3, False),
    "augment": (1, False),
    "ntxent-compiled": (1, True),
    "resnet50": (1, True),
    "resnet18": (1, True),
}
DRY_TESTS = ["-m", "not gpu", "-k", "matches_float64 and cpp", "tests/ops/ntxent/test_normalize.py"]


def tool_of_cuda(name: str) -> str | None:
    """A tool on PATH or in the toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin")


def gpu_tests(tests: Path) -> list[str]:
    """Files that hold tests marked gpu, and folders whose conftest.py marks some, most important first.

    Others are not collected: that would import, in every worker, much that may be missing.
    """
    marked = [path for path in sorted(tests.rglob("*.py")) if "mark.gpu" in path.read_text()]
    folders = [path.parent for path in marked if path.name == "conftest.py"]
    alone = [path for path in marked if path.name.startswith("test_") and not set(folders) & set(path.parents)]

    def rank(path: Path) -> int:
        name = path.relative_to(tests).as_posix()
        return next((i for i, first in enumerate(FIRST_TESTS) if name.startswith(first)), len(FIRST_TESTS))

    return [str(Path("tests") / path.relative_to(tests)) for path in sorted([*folders, *alone], key=rank)]


def pytest_command(*arguments: str, workers: int) -> list[str]:
    """pytest with the recording plugin; side by side where pytest-xdist is installed."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "tools.gpu.record_tests", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist") and workers > 1:
        command += ["-n", str(workers), "--dist", "worksteal", "--max-worker-restart", "40"]
    if importlib.util.find_spec("pytest_timeout"):
        # "thread" ends the process, which a hanging kernel needs.
        command += ["--timeout", f"{TEST_SECONDS:.0f}", "--timeout-method", "thread"]
    return [*command, *arguments]


def tool_command(name: str, dry: bool, *arguments: str) -> list[str]:
    """One of tools.gpu's own programs."""
    return [sys.executable, "-m", f"tools.gpu.{name}", *(["--dry-run"] if dry else []), *arguments]


def chosen_steps(only: str | None, dry: bool = False) -> list[str]:
    """The steps that a comma-separated --only names, by their beginnings.

    Where it is None, all of them; but those ONLY_ON_REQUEST in a dry run alone.
    """
    if only is None:
        return [step for step in STEPS if dry or step not in ONLY_ON_REQUEST]
    wanted = [word.strip() for word in only.split(",")]
    for word in wanted:
        if not any(step.startswith(word) for step in STEPS):
            raise ValueError(f"--only {word}: no such step; choose of {', '.join(STEPS)}")
    return [step for step in STEPS if step.startswith(tuple(wanted))]


def plan(scratch: Scratch, steps: list[str], arch: str | None, seconds: float, cores: int, dry: bool) -> list[Job]:
    """The jobs of these steps. arch: of the device, "9.0"; None where there is none. cores: of the machine."""
    sections = [step for step in steps if step in SECTIONS]
    until = SHARED_PART * seconds if sections and not dry else seconds
    # In a dry run kernels are not what is looked at: those of the checkout will do.
    build = tool_command("scratch", False, str(scratch.folder), arch or "cpu", *([str(ROOT / "simclr_fast")] * dry))
    limit = seconds if dry or steps == ["build"] else min(BUILD_SECONDS, 0.5 * seconds)
    jobs = [Job("build", build, limit=limit)]
    jobs += _tests(scratch, until, cores, dry) if "tests" in steps else []
    jobs += _sanitizers(steps, until, dry)
    if len(jobs) > 1 or len(sections) > 1:  # a section that is alone would only wait for it
        jobs += _warmers(scratch, sections, until, dry)
    jobs += _profiles(dry) if "ncu" in steps else []
    if sections:
        bench = tool_command("bench", dry, "--out", str(scratch.results / "bench.json"), "--seconds", "{seconds}")
        jobs.append(Job("bench", [*bench, *sections], after=tuple(job.name for job in jobs), alone=True))
    return jobs


def _tests(scratch: Scratch, until: float, cores: int, dry: bool) -> list[Job]:
    files = gpu_tests(scratch.source / "tests")
    missing = "" if importlib.util.find_spec("pytest") else "needs pytest"

    def job(name: str, file: str, command: list[str]) -> Job:
        environment = TESTS_ENVIRONMENT | {TESTS_FILE: str(scratch.results / file)}
        return Job(name, command, until=until, needs=("build",), environment=environment, missing=missing)

    if not dry:
        workers = max(1, min(MOST_WORKERS, cores - 4))
        return [job("tests", "tests.jsonl", pytest_command("-m", "gpu", *files, workers=workers))]
    # Without a GPU its tests can only be set up and torn down; others stand in for them.
    collect = pytest_command("-m", "gpu", "--setup-only", *files, workers=1)
    few = pytest_command(*DRY_TESTS, workers=2)
    return [job("tests-collected", "collected.jsonl", collect), job("tests", "tests.jsonl", few)]


def _sanitizers(steps: list[str], until: float, dry: bool) -> list[Job]:
    tools = [tool for tool in SANITIZED if tool in steps]
    found, jobs = tool_of_cuda("compute-sanitizer"), []
    missing = "" if found or dry else "compute-sanitizer was not found: install the CUDA toolkit and set CUDA_HOME"
    warm = tuple(f"warm-sanitized-{part}" for part in range(1 if dry else 5)) if tools else ()

    def add(name: str, arguments: list[str], watch: list[str], missing: str = "") -> None:
        after = warm if "triton" in arguments else ()
        command = [*watch, *tool_command("sanitized", dry, *arguments)]
        jobs.append(Job(name, command, until=until, after=after, needs=("build",), missing=missing))

    for part, name in enumerate(warm):  # Triton compiles, which is no work for a sanitizer to watch
        jobs.append(Job(name, tool_command("sanitized", dry, "triton", "--part", f"{part}/{len(warm)}"), until=until))
    for tool in tools:
        # What torch asks the driver and is denied is no finding.
        options = ["--report-api-errors", "no"] if tool == "memcheck" else []
        watch = [found or "", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *options]
        for name, arguments in SANITIZED[tool][:1] if dry else SANITIZED[tool]:
            add(f"{tool}-{name}", arguments, [] if dry else watch, missing)
    if "kernels" in steps and not dry:
        for backend in OURS:
            add(f"kernels-{backend}", [backend, "--kernels"], [])
    return jobs


def _profiles(dry: bool) -> list[Job]:
    found = tool_of_cuda("ncu")
    missing = "" if found or dry else "ncu was not found: install Nsight Compute"
    # Clocks are left alone: the card may be shared with others later.
    watch = [found or "", "--profile-from-start", "off", "--set", "full", "--clock-control", "none"]
    watch = [] if dry else [*watch, "--csv", "--page", "details", "--print-units", "base"]
    how = {"limit": NCU_SECONDS, "needs": ("build",), "alone": True, "missing": missing}
    backends = OURS[:1] if dry else OURS
    return [Job(f"ncu-{name}", [*watch, *tool_command("profiled", dry, name)], **how) for name in backends]


def _warmers(scratch: Scratch, sections: list[str], until: float, dry: bool) -> list[Job]:
    def job(name: str, part: str, compiled: bool, *warmed: str) -> Job:
        arguments = ("--out", str(scratch.results / f"{name}.json"), "--seconds", "{seconds}", "--warm", part, *warmed)
        return Job(name, tool_command("bench", dry, *arguments), until=until, needs=("build",) if compiled else ())

    loss = any("ntxent" in name for name in sections)
    chosen = {name: how for name, how in WARMED.items() if name in sections or (name == "ntxent-sizes" and loss)}
    if dry:
        short = [section for section in chosen if not section.startswith("resnet")]
        return [job("warm", "0/1", True, *short)] if short else []
    return [
        job(f"warm-{section}-{part}", f"{part}/{parts}", compiled, section)
        for section, (parts, compiled) in chosen.items()
        for part in range(parts)
    ]
