"""`simclr-fast info` says what was built and why a backend is missing."""

import os
import subprocess
import sys

import torch


def test_info_prints_versions_build_and_backends() -> None:
    run = subprocess.run([sys.executable, "-m", "simclr_fast", "info"], capture_output=True, text=True, check=True)
    assert f"torch        {torch.__version__}" in run.stdout
    assert "extension    built with gcc" in run.stdout or "extension    built with clang" in run.stdout
    assert "CPU instruction set in use: " in run.stdout
    assert "ntxent_loss           cpp        serves" in run.stdout
    assert "similarity_logsumexp  triton     no: Triton kernels run on CUDA tensors, these are on cpu" in run.stdout


def test_unknown_instruction_set_is_refused() -> None:
    program = "from simclr_fast._extension import build_info; build_info()"
    environment = os.environ | {"SIMCLR_FAST_ISA": "sse9"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "SIMCLR_FAST_ISA=sse9: choose portable, avx2 or avx512" in run.stderr
