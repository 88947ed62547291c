"""Every committed mutant still applies, compiles and is caught by the tests it names."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.simt.build import ROOT
from tests.simt.mutants import MUTANTS, Mutant

IDS = [mutant.name for mutant in MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_applies(mutant: Mutant) -> None:
    assert mutant.text() != (ROOT / mutant.file).read_text()
    assert len(set(IDS)) == len(IDS)


def judge(mutant: Mutant) -> subprocess.CompletedProcess[str]:
    """Runs the mutant's tests on the mutated kernels; collecting, building and importing are part of it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-rfE",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        *mutant.judges,
    ]
    environment = {**os.environ, "SIMT_MUTANT": mutant.name, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def judged() -> Iterator[dict[str, Future]]:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield {mutant.name: pool.submit(judge, mutant) for mutant in MUTANTS}


@pytest.mark.proof
@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_is_caught(mutant: Mutant, judged: dict[str, Future]) -> None:
    run = judged[mutant.name].result()
    # 1: tests ran and failed. A test that could not be set up (a mutant that does not compile) is an error, not a catch.
    assert run.returncode == 1, f"not caught:\n{run.stdout[-3000:]}{run.stderr[-2000:]}"
    assert "\nFAILED " in run.stdout, run.stdout[-3000:]
    assert "\nERROR " not in run.stdout, run.stdout[-3000:]
