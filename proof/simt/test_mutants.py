"""Every committed mutant still applies, compiles and is caught by the tests it names."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from proof.simt.build import ROOT
from proof.simt.mutants import MUTANTS, Mutant

IDS = [mutant.name for mutant in MUTANTS]
# Each mutant has a process of its own, forked from one that has imported what its judges import.
PROCESSES = multiprocessing.get_context("forkserver")
_FILES = sorted({judge.partition(".py")[0] for mutant in MUTANTS for judge in mutant.judges})
PROCESSES.set_forkserver_preload(["proof.conftest", "pytest", *(file.replace("/", ".") for file in _FILES)])


@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_applies(mutant: Mutant) -> None:
    assert mutant.text() != (ROOT / mutant.file).read_text()
    assert len(set(IDS)) == len(IDS)


def run_judges(mutant: Mutant, output: Path) -> None:
    """In the mutant's process: runs its tests on kernels with the defect, and exits with pytest's code."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["SIMT_MUTANT"] = mutant.name
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the judges need none, and loading them takes a second
    os.chdir(ROOT)
    options = ["-q", "-x", "-rfE", "--tb=line", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    sys.exit(int(pytest.main([*options, *mutant.judges])))


@pytest.mark.proof
@pytest.mark.parametrize("mutant", MUTANTS, ids=IDS)
def test_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    process = PROCESSES.Process(target=run_judges, args=(mutant, output))
    process.start()
    process.join()
    code, text = process.exitcode, output.read_text()
    # 1: tests ran and failed. One that could not be set up (the mutant does not compile) is an error, not a catch.
    assert code == 1, f"not caught, pytest gave {code}:\n{text[-3000:]}"
    assert "\nFAILED " in text, text[-3000:]
    assert "\nERROR " not in text, text[-3000:]
