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
import traceback
from collections.abc import Iterator
from pathlib import Path

# name: (module, seconds below which it is not begun). The module's `run` measures, its `warm`, if it has one, compiles
# beforehand. It is imported when it is needed: one that asks for an absent package fails its own sections only.
SECTIONS = {
    "ceilings": ("bench_ceilings", 5),
    "ntxent-first": ("bench_ntxent", 15),
    "augment": ("bench_augment", 15),
    "resnet50": ("bench_steps", 40),
    "ntxent-compiled": ("bench_ntxent", 20),
    "resnet18": ("bench_steps", 30),
    "ntxent-sizes": ("bench_ntxent", 10),
    "peers": ("bench_peers", 15),
    "ntxent-all": ("bench_ntxent", 10),
    "ntxent-compiled-all": ("bench_ntxent", 15),
    "tune": ("tune", 30),
}
RESERVE = 3.0  # seconds before the end at which nothing new is begun


def read(path: Path) -> dict:
    """The figures so far."""
    return json.loads(path.read_text()) if path.exists() else {"sections": {}}


def replace(path: Path, text: str) -> None:
    """Replaces the file at once, so that a reader never sees a part of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def write(path: Path, found: dict) -> None:
    """Writes the figures."""
    replace(path, json.dumps(found, indent=1) + "\n")


def backend_of(name: str, dry: bool) -> str:
    """The backend that stands for the named one: in a dry run there is no device for Triton."""
    return "reference" if dry and name == "triton" else name


class Bench:
    """The worker's state: the device, the section, the time left, and the figures, which `save` writes.

    part: (k, p) where p processes share the work and this is the k-th.
    """

    section = ""

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

        from benchmarks.harness import in_a_line

        try:
            yield
        except torch.OutOfMemoryError:
            figures["failed"] = "out of memory"
        except Exception as error:
            figures["failed"] = in_a_line(error)[:300]
            traceback.print_exc()  # for the log
            self.say(f"{what}: {figures['failed']}")
            self.device.synchronize()  # raises again where the context is lost, which ends this process
        finally:
            self.save()
        self.device.clean()


def run_sections(bench: Bench, names: list[str], function: str) -> None:
    """The worker: `run` or `warm` of each section in turn, its state in found["sections"]."""
    for name in names:
        module, least = SECTIONS[name]
        bench.section = name
        state = bench.found["sections"].setdefault(name, {})
        if bench.left() < (0 if bench.dry else least):
            state |= {"state": "left out", "reason": f"{bench.left():.0f} s were left"}
            bench.save()
            continue
        begin = time.monotonic()
        state["state"] = "running"
        bench.save()
        with bench.guarded(state, name):
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
        run_sections(bench, options.sections, "warm" if options.warm else "run")
        return int(any(bench.found["sections"][name]["state"] == "failed" for name in options.sections))
    return supervise(options.out, options.seconds, options.sections, ["--dry-run"] if options.dry_run else [])


if __name__ == "__main__":
    sys.exit(main())
