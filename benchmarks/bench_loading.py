"""Reading and decoding alone: JPEG files of ImageNet's usual size to uint8 tensors, an epoch after the other.

Ours reads by threads, torchvision's way by a DataLoader of processes; both with the same decoder, on the CPU. The same
pictures packed, as JPEGs and as pixels, are read beside them: fewer pixels, which serve the same training.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Contestant, Laps, compare, require
from benchmarks.jpeg_files import write_files
from simclr_fast.config import DataOptions, SourceOptions
from simclr_fast.data import build_loader, load_dataset
from simclr_fast.data.pack import PackOptions, pack

NAMES = ("simclr_fast", "packed jpeg", "packed raw", "DataLoader")
NOTES = {
    "packed jpeg": "what `simclr-fast pack` makes of the same files: shorter side 256, quality 90",
    "packed raw": "with --format raw: pixels, 256 x 256, from the page cache; checksums are looked at once",
    "DataLoader": "torchvision.datasets.ImageFolder in a DataLoader of as many processes that stay, same decoder",
}
SHORTER_SIDE = 256


@dataclass(frozen=True)
class Case:
    """JPEG files, their size, how many make a batch, and by how many threads or processes they are read."""

    files: int
    height: int
    width: int
    batch: int
    workers: int

    def __str__(self) -> str:
        return f"{self.files} of {self.width}x{self.height},{self.workers} workers"


CASES = {
    "smoke": [Case(8, 12, 16, 4, 1)],
    "quick": [Case(512, 375, 500, 128, 2)],
    "full": [Case(512, 375, 500, 128, 1), Case(512, 375, 500, 128, 2), Case(2048, 375, 500, 256, 8)],
}


def _ours(folder: Path, case: Case) -> Iterator[int]:
    options = DataOptions(data=folder, workers=case.workers)
    loader = build_loader(load_dataset(options).train, case.batch, 0, torch.device("cpu"), options)
    epoch = 0
    while True:
        yield sum(_pixels(batch.images) for batch in loader.epoch(epoch))
        epoch += 1


def _data_loader(folder: Path, case: Case) -> Iterator[int]:
    from torchcodec.decoders import decode_jpeg
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(
        ImageFolder(str(folder), loader=decode_jpeg),
        case.batch,
        shuffle=True,
        drop_last=True,
        num_workers=case.workers,
        persistent_workers=True,
        collate_fn=_images,
    )
    while True:
        yield sum(_pixels(images) for images in loader)


def _images(samples: list[tuple[Tensor, int]]) -> list[Tensor]:
    return [image for image, _ in samples]


def _pixels(images: Tensor | list[Tensor]) -> int:
    return images.numel() if isinstance(images, Tensor) else sum(image.numel() for image in images)


def pixels_of(name: str, case: Case) -> int:
    """The bytes of an image's pixels as a contestant reads it."""
    shorter = min(case.height, case.width)
    if not name.startswith("packed") or shorter <= SHORTER_SIDE:
        return 3 * case.height * case.width
    if name == "packed raw":
        return 3 * SHORTER_SIDE**2
    return 3 * SHORTER_SIDE * round(max(case.height, case.width) * SHORTER_SIDE / shorter)


def contestant(name: str, folder: Path, case: Case) -> Contestant:
    """The named contestant; run(lap) reads an epoch and returns the number of bytes of its pixels.

    folder: holds the files in "files"; what is packed is written beside them.
    """
    read = folder / "files"
    if name.startswith("packed"):
        read = folder / name.removeprefix("packed ")
        source = SourceOptions(data=folder / "files", workers=case.workers)
        pack(PackOptions(read, read.name, SHORTER_SIDE, data=source))
    epochs = (_data_loader if name == "DataLoader" else _ours)(read, case)
    wanted = case.files // case.batch * case.batch * pixels_of(name, case)
    check: Callable[[object], tuple[float, float]] = lambda total: (abs(total - wanted) / wanted, 0.0)

    def run(lap: Laps) -> int:
        total = next(epochs)
        lap("epoch")
        return total

    return Contestant(name, run, check, NOTES.get(name, ""))


def test_loading(benchmark, case: Case, tmp_path: Path, budget: float) -> None:
    write_files(tmp_path / "files", case.files, case.height, case.width)
    found = compare(
        benchmark,
        [contestant(name, tmp_path, case) for name in NAMES],
        None,
        torch.device("cpu"),  # also beside a GPU, whose work is the copy alone
        2 * budget,
        suite="loading",
        case=vars(case),
        images=case.files // case.batch * case.batch,
        cores=min(case.workers, len(os.sched_getaffinity(0))),
    )
    require(found, NAMES[:3])
