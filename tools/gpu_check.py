"""`make gpu-check`: settles on a machine with a GPU what the proofs on CPUs leave open, and writes one report.

Runs every test with a device, compute-sanitizer (memcheck, racecheck) over the CUDA kernels' device tests, and the
benchmarks, whose tables hold a roofline column. Exits 0 if all of them passed, 1 if one failed, 2 without a GPU.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "gpu-check.md"
CUDA_TESTS = "tests/ops/ntxent/test_cuda_gpu.py"
SHOWN_LINES = 60


@dataclass(frozen=True)
class Step:
    """A command of the check; `missing` says why it cannot run here."""

    title: str
    command: list[str]
    missing: str = ""


def pytest_command(*arguments: str) -> list[str]:
    """pytest with this interpreter, telling why tests were skipped."""
    return [sys.executable, "-m", "pytest", "-q", "-rs", *arguments]


def sanitizer() -> str | None:
    """compute-sanitizer on PATH or in the toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")


def steps(benchmarks: bool) -> list[Step]:
    """Everything that is run, in order."""
    tool = sanitizer()
    missing = "" if tool else "compute-sanitizer was not found: install the CUDA toolkit and set CUDA_HOME"
    small = pytest_command("-m", "gpu", "-x", "-k", "float64 and 33-123 or strided", CUDA_TESTS)
    plan = [
        Step("Tests that need the device", pytest_command("-m", "gpu")),
        Step("All other tests", pytest_command("-m", "not gpu and not proof")),
        *(
            Step(f"compute-sanitizer {check}", [tool or "", "--tool", check, "--error-exitcode", "9", *small], missing)
            for check in ("memcheck", "racecheck")
        ),
    ]
    return [*plan, Step("Benchmarks", [sys.executable, "-m", "benchmarks.run"])] if benchmarks else plan


def machine() -> list[str]:
    """What the report was made on."""
    from simclr_fast import info

    described = subprocess.run([sys.executable, "-m", info.__name__], capture_output=True, text=True, cwd=ROOT).stdout
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{d.name}, {d.total_memory >> 20} MiB, sm_{d.major}{d.minor}" for d in devices]
    return [*(f"- GPU {i}: {name}" for i, name in enumerate(names)), "", "```", described.strip(), "```"]


def run(step: Step) -> tuple[bool, list[str]]:
    """Whether the step passed, and its section of the report."""
    print(f"gpu-check: {step.title} ...", flush=True)
    if step.missing:
        print(f"gpu-check: {step.missing}", flush=True)
        return False, [f"## {step.title}: NOT RUN", "", step.missing]
    begin = time.monotonic()
    done = subprocess.run(step.command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    verdict = "passed" if done.returncode == 0 else f"FAILED (exit status {done.returncode})"
    print(f"gpu-check: {step.title}: {verdict}", flush=True)
    tail = done.stdout.strip().split("\n")[-SHOWN_LINES:]
    seconds = time.monotonic() - begin
    return done.returncode == 0, [f"## {step.title}: {verdict}, {seconds:.0f} s", "", "```", *tail, "```"]


def main() -> int:
    """Runs all steps and writes the report; the exit status says how it went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-benchmarks", action="store_true", help="tests and sanitizers only")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu-check: this machine has no CUDA device that torch can use; nothing was checked", file=sys.stderr)
        return 2
    results = [run(step) for step in steps(not options.no_benchmarks)]
    sections = [line for _, section in results for line in ["", *section]]
    REPORT.write_text("\n".join(["# GPU check", "", *machine(), *sections, ""]))
    print(f"gpu-check: wrote {REPORT.name}")
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
