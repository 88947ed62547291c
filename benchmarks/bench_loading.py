"""Reading and decoding alone: JPEG files of ImageNet's usual size to uint8 tensors, an epoch after the other.

Ours reads by threads, torchvision's way by a DataLoader of processes; both with the same decoder, on the CPU.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Contestant, Laps, compare, require
from benchmarks.jpeg_files import write_files
from simclr_fast.config import DataOptions
from simclr_fast.data import build_loader, load_dataset

NAMES = ("simclr_fast", "DataLoader")
NOTE = "torchvision.datasets.ImageFolder in a DataLoader of as many processes, kept from epoch to epoch, same decoder"


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
    options = DataOptions(dataset="imagefolder", data_dir=folder, workers=case.workers)
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


def _pixels(images: list[Tensor]) -> int:
    return sum(image.numel() for image in images)


def contestant(name: str, folder: Path, case: Case) -> Contestant:
    """The named contestant; run(lap) reads an epoch and returns the number of bytes of its pixels."""
    epochs = (_ours if name == "simclr_fast" else _data_loader)(folder, case)

    def run(lap: Laps) -> int:
        total = next(epochs)
        lap("epoch")
        return total

    return Contestant(name, run, note="" if name == "simclr_fast" else NOTE)


def test_loading(benchmark, case: Case, tmp_path: Path, budget: float) -> None:
    write_files(tmp_path, case.files, case.height, case.width)
    read = case.files // case.batch * case.batch
    wanted = read * 3 * case.height * case.width
    check: Callable[[object], tuple[float, float]] = lambda total: (abs(total - wanted) / wanted, 0.0)
    found = compare(
        benchmark,
        [contestant(name, tmp_path, case) for name in NAMES],
        check,
        torch.device("cpu"),  # also beside a GPU, whose work is the copy alone
        2 * budget,
        suite="loading",
        case=vars(case),
        images=read,
        cores=min(case.workers, len(os.sched_getaffinity(0))),
    )
    require(found, NAMES[:1])
