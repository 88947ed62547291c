"""Settles on a machine with a GPU what the proofs on CPUs leave open, and writes it down: gpu_check.json and .md.

    python tools/gpu_check.py [--minutes 9] [--only tests,ntxent] [--out FOLDER] [--dry-run]

Uses the interpreter that starts it and what that can import: no network, no pip, no make. The checkout is copied into a
scratch folder, where the extension is built for the device's own architecture. Then come, most important first, the
tests marked gpu, compute-sanitizer over every kernel, and the measurements, each with a limit; both files are rewritten
after every step. Exit status: 0 all passed, 1 something failed, 2 no usable GPU: then nothing was checked.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

from benchmarks.environment import commit_of_checkout  # noqa: E402
from tools.gpu.bench import replace  # noqa: E402  (the path comes first)
from tools.gpu.jobs import Runner  # noqa: E402
from tools.gpu.page import page, summary  # noqa: E402
from tools.gpu.plan import STEPS, chosen_steps, plan  # noqa: E402
from tools.gpu.results import failures, gather, short  # noqa: E402
from tools.gpu.scratch import Scratch, digest  # noqa: E402
from tools.tables import table_text  # noqa: E402

RESERVE_SECONDS = 6.0  # for ending processes and writing


class CutOffError(Exception):
    """The check was asked to end."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: %(default)s)")
    parser.add_argument("--only", metavar="STEPS", help=f"these steps, by their beginnings: {', '.join(STEPS)}")
    parser.add_argument("--tune", action="store_true", help="the same as --only tune")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_check", help="folder for the results")
    parser.add_argument("--dry-run", action="store_true", help="walk through all of it on a CPU, with tiny sizes")
    parser.add_argument("--scratch", type=Path, help="folder to build in; what it holds of an earlier run serves again")
    parser.add_argument("--extension", type=Path, help="a scratch folder's extension/, carried here: nothing is built")
    parser.add_argument("--arch", help="compute capability to build for (default: the device's), with --only build")
    parser.add_argument("--commit", help="what to call the sources where git cannot say it")
    options = parser.parse_args(arguments)
    if options.tune:
        options.only = "tune"
    try:
        options.steps = chosen_steps(options.only, options.dry_run)
    except ValueError as error:
        parser.error(str(error))
    if options.extension and not any(options.extension.glob("*/_C*.so")):
        parser.error(
            f"--extension {options.extension}: holds no KEY/_C*.so, as --only build leaves in SCRATCH/extension"
        )
    name = f"simclr_fast_gpu_check{'_dry' if options.dry_run else ''}"
    options.scratch = (options.scratch or Path(tempfile.gettempdir()) / name).resolve()
    options.out = options.out.resolve()
    return options


def machine_of(scratch: Scratch) -> dict:
    """What tools.gpu.machine prints."""
    command = [sys.executable, "-m", "tools.gpu.machine"]
    done = subprocess.run(command, cwd=scratch.source, env=scratch.environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"gpu-check: this interpreter cannot describe the machine:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Report:
    """Writes the results so far, each file replaced at once."""

    def __init__(self, out: Path, scratch: Scratch, runner: Runner, about: dict):
        self.out, self.scratch, self.runner, self.about = out, scratch, runner, about
        self.told: dict[str, str] = {}
        self.found: dict = {}
        out.mkdir(parents=True, exist_ok=True)

    def save(self, state: str = "still running") -> None:
        """gpu_check.json, what a repository keeps of it, gpu_check.md and logs.tar.gz, with what a search kept."""
        self.about |= {"seconds": round(self.runner.elapsed(), 1), "state": state}
        self.found = gather(self.scratch, self.runner.outcomes, self.about)
        replace(self.out / "gpu_check.json", table_text(self.found))
        replace(self.out / "gpu_check.short.json", table_text(short(self.found)))
        replace(self.out / "gpu_check.md", page(self.found))
        with tarfile.open(self.out / ".logs.partial", "w:gz", compresslevel=3) as archive:
            archive.add(self.scratch.logs, "logs")
            for kept in self.scratch.results.glob("not_finite*"):
                archive.add(kept, f"logs/{kept.name}")
        os.replace(self.out / ".logs.partial", self.out / "logs.tar.gz")
        for name, outcome in self.runner.outcomes.items():
            if self.told.get(name) != outcome.status:
                self.told[name] = outcome.status
                why = f" ({outcome.reason})" if outcome.reason else ""
                print(f"gpu-check: {self.runner.elapsed():4.0f} s  {name}: {outcome.status}{why}", flush=True)


def cut_off(number: int, frame: object) -> None:
    """For SIGTERM and SIGINT."""
    raise CutOffError(signal.Signals(number).name)


def main(arguments: list[str] | None = None) -> int:
    """Runs the check; the exit status says how it went."""
    options = parse(arguments)
    scratch = Scratch(options.scratch)
    began, clock = time.strftime("%Y-%m-%d %H:%M:%S %z"), time.monotonic()
    scratch.prepare()
    if options.extension:
        scratch.bring(options.extension)
    machine = machine_of(scratch)
    only_build = options.steps == ["build"]
    arch = options.arch or (machine["gpu"] or {}).get("capability")
    if machine["gpu"] is None and not options.dry_run and not (only_build and arch):
        print(
            "gpu-check: this machine has no CUDA device that torch can use; nothing was checked (--dry-run walks "
            "through all of it on a CPU)",
            file=sys.stderr,
        )
        return 2
    commit, changed = commit_of_checkout("--short=12")
    about = {
        "began": began,
        "minutes": options.minutes,
        "command": " ".join(["gpu_check", *(sys.argv[1:] if arguments is None else arguments)]),
        "commit": options.commit or (commit + "+" * changed or None),
        "sources": digest(scratch.source, ("csrc", "simclr_fast", "setup.py")),
        "dry run": options.dry_run,
        "steps": options.steps,
        "machine": machine,
    }
    seconds = 60 * options.minutes - RESERVE_SECONDS
    runner = Runner(scratch.source, scratch.logs, scratch.environment(), seconds - (time.monotonic() - clock))
    report = Report(options.out, scratch, runner, about)
    jobs = plan(scratch, options.steps, None if options.dry_run else arch, seconds, machine["cores"], options.dry_run)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, cut_off)
    try:
        state = "finished" if runner.run(jobs, report.save) else "its time was up"
    except CutOffError as error:
        state = f"cut off by {error}"
        runner.stop(state, jobs)
    report.save(state)
    print(summary(report.found))
    print(f"gpu-check: {state}; see {options.out}/gpu_check.md")
    return int(state.startswith("cut off") or bool(failures(report.found)))


if __name__ == "__main__":
    sys.exit(main())
