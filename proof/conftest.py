"""The proofs run under the settings of the tests: importing these sets the environment before torch is loaded."""

from tests.conftest import _seed, pytest_ignore_collect

__all__ = ["_seed", "pytest_ignore_collect"]
