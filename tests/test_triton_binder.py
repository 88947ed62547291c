"""Every Triton launch passes Triton's own binder and launcher, and slices share compiled kernels: no GPU is needed.

The interpreter and compilation ahead of time do without both; tests/triton_standin puts a stand-in below them.
"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

import simclr_fast.ops
from tests.triton_standin.launches import RUNS, calls

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What the launches' process prints; it is one of its own, without a GPU and without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "tests.triton_standin.launches"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "kernels"), [(name, kernels) for name, (_, kernels) in calls().items()])
def test_reaches_the_driver(report: dict[str, Any], name: str, kernels: list[str]) -> None:
    assert report["calls"][name] == {"kernels": kernels, "error": None}


def test_every_kernel_is_launched(report: dict[str, Any]) -> None:
    launched = {kernel for call in report["calls"].values() for kernel in call["kernels"]}
    found = set()
    for module in pkgutil.walk_packages(simclr_fast.ops.__path__, "simclr_fast.ops."):
        if ".triton_" in module.name:
            names = vars(importlib.import_module(module.name)).items()
            found |= {name for name, value in names if isinstance(value, triton.JITFunction) and "_kernel" in name}
    assert found == launched


@pytest.mark.parametrize("name", RUNS)
def test_one_variant_serves_a_run(report: dict[str, Any], name: str) -> None:
    """Whatever the slices: Triton's compiler takes seconds in mid-run."""
    run = report["runs"][name]
    assert run["error"] is None
    for kernel, variants in run["variants"].items():
        # The forward tiles of rows that fill them need no masks.
        assert len(variants) == (2 if kernel == "ntxent_fwd_kernel" else 1), variants
