"""Loads the compiled kernels once, and remembers why they are missing where they are."""

import torch  # noqa: F401  (its libraries must be loaded before the extension's)

_C = None
missing_because: str | None = None

try:
    from simclr_fast import _C
except ImportError as error:
    missing_because = (
        f"{error}; reinstall with a C++17 compiler on PATH: "
        "pip install --no-build-isolation --force-reinstall --no-deps ."
    )


def build_info() -> dict[str, str | None]:
    """How the extension was built (compiler, CPU instruction set in use, CUDA, archs); empty where it is missing."""
    return {} if _C is None else _C.build_info()
