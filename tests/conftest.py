"""Settings every test runs under."""

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this when a kernel is defined, so it must be set before any test module is imported.
    if config.option.markexpr == "interpret":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
