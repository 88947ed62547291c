"""Packs small data sets in tests, and looks at what came of it."""

from collections.abc import Callable
from pathlib import Path

import torch

from simclr_fast.config import DataOptions, SourceOptions
from simclr_fast.data import Dataset, load_dataset
from simclr_fast.data.pack import PackOptions


def packing(source: Path, output: Path, **changes) -> PackOptions:
    """Options for a folder of images, two threads."""
    data = {name: changes.pop(name) for name in ("dataset", "image_column", "max_bad_images") if name in changes}
    return PackOptions(output, data=SourceOptions(data=source, workers=2, **data), **changes)


def loaded(root: Path, **changes) -> Dataset:
    return load_dataset(DataOptions(data=root, **changes))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def error_of(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().mean().item()


class StoppedError(BaseException):
    """Ends the command where it stands, as a signal does."""


def failing(real: Callable, limit: int, error: BaseException) -> Callable:
    """As `real`, but its call number `limit` raises."""
    calls = 0

    def call(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == limit:
            raise error
        return real(*arguments, **keywords)

    return call
