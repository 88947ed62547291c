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
# What compute-sanitizer watches: it slows kernels down a hundredfold, so small cases of every op on the device.
SANITIZED = {
    "tests/ops/ntxent/test_cuda_gpu.py": "float64 and 33-123 or strided",
    "tests/ops/l2_normalize/test_l2_normalize.py": "on_a_gpu and cpp",
    "tests/ops/augment/test_parity.py": "cpp-cuda and alone",
}
BENCHMARK_REPORT = ROOT / "runs" / "bench" / "report.md"
SHOWN_LINES = 60


@dataclass(frozen=True)
class Step:
    """A command of the check; `missing` says why it cannot run here, `result` is a file it writes for the report."""

    title: str
    command: list[str]
    missing: str = ""
    result: Path | None = None


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
    plan = [
        Step("Tests that need the device", pytest_command("-m", "gpu")),
        Step("All other tests", pytest_command()),
        Step("Triton's interpreter", pytest_command("-m", "interpret")),
    ]
    for check in ("memcheck", "racecheck"):
        for path, cases in SANITIZED.items():
            tests = pytest_command("-m", "gpu", "-x", "-k", cases, path)
            command = [tool or "", "--tool", check, "--error-exitcode", "9", *tests]
            plan.append(Step(f"compute-sanitizer {check}, {path}", command, missing))
    if benchmarks:
        plan.append(Step("Benchmarks", ["make", "bench"], result=BENCHMARK_REPORT))
    return plan


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
    section = [f"## {step.title}: {verdict}, {seconds:.0f} s", "", "```", *tail, "```"]
    if done.returncode == 0 and step.result:
        section += ["", step.result.read_text()]
    return done.returncode == 0, section


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
