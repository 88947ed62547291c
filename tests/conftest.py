"""Settings every test runs under."""

import os
from pathlib import Path

# Idle OpenMP threads sleep instead of spinning: tests share few cores. Read when torch is loaded, hence first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A pytest that a test starts is no worker of this one.
for _name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[_name]

import pytest
import torch

from tests import triton_interpreter


def pytest_configure(config: pytest.Config) -> None:
    # Triton reads this when a kernel is defined, so it must be set before any test module is imported.
    if config.option.markexpr == "interpret":
        triton_interpreter.start()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With -m MARK, import only what holds such tests: others take a while, and may want packages that are missing."""
    mark = config.option.markexpr
    if not mark.isidentifier():
        return None
    if collection_path.is_dir():
        sources = [*collection_path.rglob("*.py")]  # a folder without such a test has no use for its conftest.py either
    elif collection_path.suffix == ".py":
        sources = [path for path in (collection_path, collection_path.with_name("conftest.py")) if path.exists()]
    else:
        return None
    return None if any(f"pytest.mark.{mark}" in path.read_text() for path in sources) else True


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
