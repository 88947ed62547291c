"""Runs the suites and writes the report: python -m benchmarks.run [--scale quick] [pytest's options, such as -k ntxent]

Leaves results.json, report.md, report.html and the plots in the folder. Exit status: pytest's; the report is written of
whatever was measured, also where a case failed. A whole run (no options of pytest, more than smoke) also writes
docs/correctness.md.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import correctness, report
from benchmarks.conftest import SCALES

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--scale", choices=SCALES, default="quick", help="smoke: seconds, quick: minutes, full: hours")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench", help="where the results go")
    parser.add_argument("--against", type=Path, help="an earlier results file to compare with")
    options, rest = parser.parse_known_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    results, earlier = (options.folder.resolve() / name for name in ("results.json", "earlier.json"))
    if options.against:  # kept aside, since it may be the file that this run replaces
        report.load(options.against)
        shutil.copyfile(options.against, earlier)
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", "--scale", options.scale, "--benchmark-quiet"]
    status = subprocess.run([*command, f"--benchmark-json={results}", *rest], cwd=ROOT, check=False).returncode
    if results.exists() and results.stat().st_size:
        report.main([str(results), *(["--against", str(earlier)] if options.against else [])])
    elif status == 0:
        raise SystemExit(f"benchmarks: pytest left no results in {results}")
    if options.scale != "smoke" and not rest:
        correctness.main(["--write"])
    return status


if __name__ == "__main__":
    sys.exit(main())
