"""Settings every test runs under."""

import os

# Idle OpenMP threads sleep instead of spinning: tests share few cores. Read when torch is loaded, hence first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from tests import triton_interpreter


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this when a kernel is defined, so it must be set before any test module is imported.
    if config.option.markexpr == "interpret":
        triton_interpreter.start()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
