"""The proofs run under the settings of the tests: importing these sets the environment before torch is loaded."""

import pytest

from tests.conftest import _seed, pytest_ignore_collect

__all__ = ["_seed", "pytest_ignore_collect"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes minutes begins first, so that at the end no worker is left alone with it.
    items.sort(key=lambda item: not item.name.startswith("test_suites_are_clean"))
