"""Reads what the jobs of a check have left so far into one dictionary: what gpu_check.json holds."""

import csv
import json
import re
from dataclasses import asdict
from pathlib import Path

from tools.gpu import OURS, share
from tools.gpu.bench import read
from tools.gpu.jobs import Outcome
from tools.gpu.scratch import Scratch

TAIL_LINES = 12
FINDINGS = 12  # lines of a sanitizer's report that are kept
PROFILED = (  # of ncu's metrics
    *("Duration", "Compute (SM) Throughput", "Memory Throughput", "L2 Hit Rate", "DRAM Throughput"),
    *("Achieved Occupancy", "Theoretical Occupancy", "Registers Per Thread", "Dynamic Shared Memory Per Block"),
    *("Executed Ipc Active", "Issue Slots Busy", "Eligible Warps Per Scheduler", "Grid Size", "Block Size"),
)
KERNELS = {  # how a backend's sources define one, and where they are
    # Between __global__ and the name lie attributes with parentheses of their own.
    "cpp": (r"__global__[^;{]*?\b(\w+_kernel)\s*\(", "csrc/cuda/*.cu*"),
    "triton": (r"^def (\w+_kernel)\(", "simclr_fast/**/triton_*.py"),
}
# Of cpp's: what Hopper's kernels, compiled for sm_90a and for no other, do in the place of others.
ON_HOPPER, REPLACED_ON_HOPPER = "_sm90_kernel", {"ntxent_fwd_kernel", "ntxent_bwd_kernel"}
Verdict = tuple[str, float | None, str, float]


def read_tests(path: Path) -> dict:
    """{"collected": n, "tests": {id: entry}, "not run": {module or test: why}} of record_tests' file."""
    found: dict = {"collected": [], "tests": {}, "not run": {}}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a process that was killed while it wrote
            continue
        if "collected" in entry:
            found["collected"] = entry["collected"]
        elif "not run" in entry:
            found["not run"][entry["not run"]] = {"failed": entry["failed"], "reason": entry["reason"]}
        else:
            before = found["tests"].get(entry["test"])
            if before:  # it ended, and took its process with it
                entry["margins"] = before["margins"] | entry["margins"]
                entry["message"] = "; ".join(one["message"] for one in (before, entry) if "message" in one)
            found["tests"][entry["test"]] = entry
    return found


def summarise_tests(found: dict) -> dict:
    """Counts by outcome, the tests that never ended, and for each quantity the test that came nearest to its bound."""
    outcomes = [entry["outcome"] for entry in found["tests"].values()]
    summary: dict = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
    summary["cut off"] = len([name for name in found["collected"] if name not in found["tests"]])
    nearest: dict[str, dict] = {}
    for name, entry in found["tests"].items():
        function = name.split("[")[0]
        for what, (error, bound) in entry["margins"].items():
            key = f"{function}, {what}"
            use = share(error, bound)
            if key not in nearest or not use <= nearest[key]["share of the bound"]:
                nearest[key] = {"test": name, "error": error, "bound": bound, "share of the bound": use}
    summary["nearest to their bounds"] = nearest
    return summary


def read_sanitizer(log: Path) -> dict:
    """{"calls": n, "complete": whether all were made, "summary": its last word, "findings": lines}."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    calls = [line for line in lines if line.startswith("sanitized:")]
    marks = ("Invalid", "Race reported", "hazard", "Error:", "Uninitialized", "ERROR SUMMARY", "Internal Sanitizer")
    told = [line.removeprefix("========= ").strip() for line in lines if line.startswith("=========")]
    summaries = [line for line in told if "SUMMARY" in line]
    findings = [line for line in told if any(mark in line for mark in marks) and "SUMMARY" not in line]
    return {
        "calls": len([line for line in calls if ": all " not in line]),
        "complete": any(": all " in line for line in calls),
        "summary": summaries[-1] if summaries else "none",
        "findings": findings[:FINDINGS],
        "last call": calls[-1] if calls else "",
    }


def kernels_of_project(source: Path, backend: str, hopper: bool) -> set[str]:
    """Names of the kernels that the backend's sources define for a device, which may be a Hopper."""
    pattern, files = KERNELS[backend]
    names = {name for path in source.glob(files) for name in re.findall(pattern, path.read_text(), re.MULTILINE)}
    if backend != "cpp":
        return names
    return names - REPLACED_ON_HOPPER if hopper else {name for name in names if not name.endswith(ON_HOPPER)}


def kernels_not_reached(source: Path, backend: str, log: Path, hopper: bool) -> list[str]:
    """Kernels of the project that are not among the launched ones, which the log names."""
    launched, names = log.read_text(errors="replace"), kernels_of_project(source, backend, hopper)
    return sorted(name for name in names if not re.search(rf"\b{name}\b", launched))


def read_profile(log: Path) -> list[dict[str, str]]:
    """For every kernel that ncu watched, in its order: its name and the metrics of PROFILED."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        if row.get("Metric Name") in PROFILED:
            entry = kernels.setdefault(row["ID"], {"kernel": re.sub(r"[(<].*", "", row["Kernel Name"])})
            entry[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(kernels.values())


def gather(scratch: Scratch, outcomes: dict[str, Outcome], about: dict) -> dict:
    """Everything so far; `about` says what was checked, when, on what."""
    jobs: dict[str, dict] = {}
    for name, outcome in outcomes.items():
        jobs[name] = asdict(outcome)
        log = scratch.logs / f"{name}.log"
        if outcome.status not in ("passed", "running") and log.exists():
            lines = [line[:300] for line in log.read_text(errors="replace").splitlines() if line.strip()]
            jobs[name]["tail"] = lines[-TAIL_LINES:]
    found = {"check": about, "jobs": jobs}
    if "tests" in outcomes:
        tests = read_tests(scratch.results / "tests.jsonl")
        found["tests"] = summarise_tests(tests) | tests
    if "tests-collected" in outcomes:
        found["tests collected"] = read_tests(scratch.results / "collected.jsonl")
    sanitized = [name for name in outcomes if name.startswith(("memcheck", "racecheck"))]
    if sanitized:
        found["sanitizer"] = {name: read_sanitizer(scratch.logs / f"{name}.log") for name in sanitized}
    hopper = (about["machine"]["gpu"] or {}).get("capability") == "9.0"
    for backend in OURS:
        if outcomes.get(f"kernels-{backend}", Outcome("")).status == "passed":
            missed = kernels_not_reached(scratch.source, backend, scratch.logs / f"kernels-{backend}.log", hopper)
            found.setdefault("kernels not reached", {})[backend] = missed
        if (name := f"ncu-{backend}") in outcomes and (log := scratch.logs / f"{name}.log").exists():
            found.setdefault("profiles", {})[name] = read_profile(log)
    if "bench" in outcomes:
        found["bench"] = read(scratch.results / "bench.json")
    return found


def short(found: dict) -> dict:
    """What a repository keeps of a check, docs/tables/gpu_check.json: without its single tests and single rounds."""
    kept = dict(found)
    if "tests" in found:
        of = found["tests"]
        kept["tests"] = {name: value for name, value in of.items() if name not in ("tests", "collected")}
        kept["tests"]["not passed"] = {name: one for name, one in of["tests"].items() if one["outcome"] != "passed"}
    if "bench" in found:
        kept["bench"] = _rounded(found["bench"])
    return kept


def _rounded(figures: object) -> object:
    """Five digits of every figure; what was measured round by round is left out."""
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items() if name not in ("timings", "timing", "copy")}
    return float(f"{figures:.5g}") if isinstance(figures, float) else figures


def failures(found: dict) -> list[str]:
    """What keeps the check from having passed, in words."""
    said = [
        f"{name}: {job['status']}{': ' + job['reason'] if job['reason'] else ''}"
        for name, job in found["jobs"].items()
        if job["status"] not in ("passed", "running")
        # What was not compiled beforehand is compiled later, and what was not measured is missing from the tables.
        and not (name.startswith(("warm", "bench")) and job["status"] in ("cut off", "not run"))
    ]
    tests = found.get("tests", {})
    if tests.get("cut off"):
        said.append(f"{tests['cut off']} tests did not end")
    collected = {**tests.get("not run", {}), **found.get("tests collected", {}).get("not run", {})}
    said += [f"{name}: {entry['reason'][:200]}" for name, entry in collected.items() if entry["failed"]]
    for name, report in found.get("sanitizer", {}).items():
        if not report["complete"]:
            said.append(f"{name}: not all calls were made; the last: {report['last call']}")
    for backend, names in found.get("kernels not reached", {}).items():
        said += [f"no sanitized call reaches {backend}'s {name}" for name in names]
    for name, state in found.get("bench", {}).get("sections", {}).items():
        if state.get("state") == "failed":
            said.append(f"bench, {name}: {state['failed']}")
    for name, of in found.get("bench", {}).get("steps", {}).items():
        if "not finite" in of:
            said.append(f"first that is not finite in a step of {name}: {of['not finite'].get('first', 'unknown')}")
    said += [f"wrong: {where}" for where in wrong_results(found.get("bench", {}))]
    return said


def wrong_results(bench: dict) -> list[str]:
    """Our own contestants whose results are not right, or that failed."""
    said = []
    for key, entry in [*bench.get("ntxent", {}).items(), *bench.get("augment", {}).items()]:
        for name in OURS:
            of = entry["contestants"].get(name, {})
            if of.get("right") is False:
                off = f"loss off by {of['loss error']:.1e}, gradient by {of['gradient error']:.1e}"
                said.append(f"{key} {name}: {off}")
            elif "failed" in of:
                said.append(f"{key} {name}: {of['failed']}")
    for size, backends in bench.get("augment errors", {}).items():
        for name, figures in backends.items():
            if figures.get("failed") or figures.get("error", 0.0) > 1e-5 or figures.get("same draws") is False:
                said.append(f"augmentation, {size} px, {name}: {figures}")
    return said


def best_ms(case: dict) -> float | None:
    """Milliseconds of the faster of our own for a case of NT-Xent, forward and backward."""
    times = (case.get("contestants", {}).get(name, {}).get("both ms") for name in OURS)
    return min((ms for ms in times if ms), default=None)


def targets(bench: dict) -> list[Verdict]:
    """(what, measured or None, "at least" or "at most", bound): what is demanded of an H100."""
    case = bench.get("ntxent", {}).get("N=4096 D=128 fp16", {})
    of = lambda name: case.get("contestants", {}).get(name, {}).get("both ms")
    ours = best_ms(case)
    ratio = lambda a, b: a / b if a and b else None
    views = [
        entry["contestants"].get(name, {}).get("views/s") or 0.0
        for key, entry in bench.get("augment", {}).items()
        if key.endswith("to 224 px, bf16")
        for name in OURS
    ]
    part = bench.get("steps", {}).get("resnet50", {}).get("share of views and loss")
    return [
        ("NT-Xent fp16 N=4096 D=128: times as fast as plain eager", ratio(of("plain"), ours), "at least", 6.0),
        ("the same: times as fast as plain compiled", ratio(of("compiled"), ours), "at least", 2.0),
        ("the same: times the limit of 2.5 M^2 D multiply-adds", ratio(ours, case.get("limit ms")), "at most", 3.0),
        ("augmentation to 224 px, views/s", max(views, default=0.0) or None, "at least", 200_000.0),
        ("share of views and loss in a ResNet-50 step", part, "at most", 0.03),
    ]
