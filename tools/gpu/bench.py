"""Measures on the device, most important first, within a time; what is known so far is always in one JSON file.

    python -m tools.gpu.bench --out FILE --seconds S SECTION...     [--dry-run] [--warm K/P]

Sections run in the order given, in a process of their own that is started again after one that killed it: a lost CUDA
context or a hang ends its section and no other. --warm only compiles what the sections compile, into caches on disk.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SECTIONS = {  # name: seconds below which it is not begun
    "ceilings": 5,
    "ntxent-first": 15,
    "augment": 15,
    "resnet50": 40,
    "ntxent-compiled": 20,
    "resnet18": 30,
    "ntxent-sizes": 10,
    "peers": 15,
    "ntxent-all": 10,
    "ntxent-compiled-all": 15,
    "tune": 30,
}
RESERVE = 3.0  # seconds before the end at which nothing new is begun


def read(path: Path) -> dict:
    """The figures so far."""
    return json.loads(path.read_text()) if path.exists() else {"sections": {}}


def write(path: Path, found: dict) -> None:
    """Replaces the file at once, so that a reader never sees a part of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, path)


class Bench:
    """The worker's state: the device, the time left, and the figures, which `save` writes.

    part: (k, p) where p processes share the work and this is the k-th.
    """

    def __init__(self, out: Path, seconds: float, dry: bool, part: tuple[int, int] = (0, 1)):
        from tools.gpu.device import Device, DryDevice

        self.out = out
        self.end = time.monotonic() + seconds
        self.begin = time.monotonic()
        self.found = read(out)
        self.device = DryDevice() if dry else Device()
        self.dry = dry
        self.part, self.parts = part

    def left(self) -> float:
        """Seconds in which something new may be begun."""
        return self.end - RESERVE - time.monotonic()

    def say(self, text: str) -> None:
        """One line of the log."""
        print(f"[{time.monotonic() - self.begin:6.1f}] {text}", flush=True)

    def save(self) -> None:
        """Write the figures."""
        write(self.out, self.found)

    @contextlib.contextmanager
    def guarded(self, figures: dict, what: str) -> Iterator[None]:
        """Notes an exception as `figures["failed"]`; only one that leaves the device unusable goes on up."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError:
            figures["failed"] = "out of memory"
        except Exception as error:
            figures["failed"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
            self.say(f"{what}: {figures['failed']}")
            self.device.synchronize()  # raises again where the context is lost, which ends this process
        finally:
            self.save()
        self.device.clean()


# Where a section's work is done, and what compiles for it beforehand. Modules are imported when they are needed: one
# that asks for a package that is not installed fails its own sections.
WORK = {
    "ceilings": "bench_ceilings:run",
    "ntxent-first": "bench_ntxent:first",
    "ntxent-compiled": "bench_ntxent:compiled",
    "ntxent-sizes": "bench_ntxent:sizes",
    "ntxent-all": "bench_ntxent:all_kinds",
    "ntxent-compiled-all": "bench_ntxent:all_kinds_compiled",
    "augment": "bench_augment:run",
    "resnet50": "bench_steps:resnet50",
    "resnet18": "bench_steps:resnet18",
    "peers": "bench_peers:run",
    "tune": "tune:run",
}
WARMERS = {
    "ntxent-sizes": "bench_ntxent:warm_triton",
    "ntxent-compiled": "bench_ntxent:warm_compiled",
    "augment": "bench_augment:warm_triton",
    "resnet50": "bench_steps:warm_resnet50",
    "resnet18": "bench_steps:warm_resnet18",
}


def run_sections(bench: Bench, names: list[str], work: dict[str, str]) -> None:
    """The worker: each section in turn, its state in found["sections"]."""
    for name in names:
        state = bench.found["sections"].setdefault(name, {})
        if bench.left() < (0 if bench.dry else SECTIONS[name]):
            state |= {"state": "left out", "reason": f"{bench.left():.0f} s were left"}
            bench.save()
            continue
        begin = time.monotonic()
        state["state"] = "running"
        bench.save()
        with bench.guarded(state, name):
            module, function = work[name].split(":")
            run = getattr(importlib.import_module(f"{__package__}.{module}"), function)
            gc.collect()
            gc.freeze()  # what is imported is not to be looked through at every collection
            run(bench)
        state["state"] = "failed" if "failed" in state else "done"
        state["seconds"] = round(time.monotonic() - begin, 1)
        bench.say(f"{name}: {state}")
        bench.save()


def supervise(out: Path, seconds: float, names: list[str], flags: list[str]) -> int:
    """Runs workers until every section was tried or the time is up; 1 where one failed."""
    end = time.monotonic() + seconds
    waiting = list(names)
    while waiting and (left := end - time.monotonic()) > RESERVE:
        command = [sys.executable, "-m", __spec__.name, "--worker", "--out", str(out), f"--seconds={left}"]
        try:
            status = str(subprocess.run([*command, *flags, *waiting], timeout=left + 10).returncode)
        except subprocess.TimeoutExpired:
            status = "none: it hung"
        found = read(out)
        for name in names:
            state = found["sections"].setdefault(name, {})
            if state.get("state") == "running":
                before = f"{state['failed']}; " if "failed" in state else ""
                state |= {"state": "failed", "failed": f"{before}its process died (exit status {status})"}
        untouched = [name for name in waiting if not found["sections"][name]]
        if len(untouched) == len(waiting):  # it died before its first section
            for name in untouched:
                found["sections"][name] = {"state": "failed", "failed": f"not begun (exit status {status})"}
            untouched = []
        waiting = untouched
        write(out, found)
    sections = read(out)["sections"]
    return int(any(sections.get(name, {}).get("state") != "done" for name in names))


def main() -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--warm", metavar="K/P", help="only compile: the K-th of P parts of it")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    part = tuple(map(int, options.warm.split("/"))) if options.warm else (0, 1)
    if options.worker or options.warm:
        bench = Bench(options.out, options.seconds, options.dry_run, part)
        run_sections(bench, options.sections, WARMERS if options.warm else WORK)
        return int(any(bench.found["sections"][name]["state"] == "failed" for name in options.sections))
    return supervise(options.out, options.seconds, options.sections, ["--dry-run"] if options.dry_run else [])


if __name__ == "__main__":
    sys.exit(main())
