"""`python -m simclr_fast.info` says what was built and why a backend is missing."""

import subprocess
import sys

import torch


def test_info_prints_versions_build_and_backends() -> None:
    run = subprocess.run([sys.executable, "-m", "simclr_fast.info"], capture_output=True, text=True, check=True)
    assert f"torch        {torch.__version__}" in run.stdout
    assert "extension    built with gcc" in run.stdout or "extension    built with clang" in run.stdout
    assert "CPU instruction set in use: " in run.stdout
    assert "l2_normalize  cpp        serves" in run.stdout
    assert "l2_normalize  triton     no: Triton kernels run on CUDA tensors, these are on cpu" in run.stdout
