"""Reading and decoding alone: JPEG files of ImageNet's usual size to uint8 tensors, an epoch after the other.

Ours reads by threads, torchvision's way by a DataLoader of processes; both with the same decoder, on the CPU.
"""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import Contestant, Laps, compare, require
from simclr_fast.config import DataOptions
from simclr_fast.data import build_loader, load_dataset

NAMES = ("simclr_fast", "DataLoader")
NOTE = "torchvision.datasets.ImageFolder in a DataLoader of as many processes, kept from epoch to epoch, same decoder"
DISTINCT = 64  # pictures that are made; the other files hold the same


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


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Noise whose spectrum falls as that of photographs, so that it compresses as they do: some 100 kB."""
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    frequency = torch.fft.fftfreq(height)[:, None].hypot(torch.fft.rfftfreq(width))
    frequency[0, 0] = 1
    image = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency**1.2, s=(height, width))
    image = (image - image.mean()) / image.std() * 45 + 128
    return Image.fromarray(image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def write_files(folder: Path, case: Case) -> None:
    """The files of a case, in one class."""
    (folder / "photographs").mkdir(parents=True)
    for number in range(case.files):
        path = folder / "photographs" / f"{number:06d}.jpg"
        if number < DISTINCT:
            encoded = io.BytesIO()
            photograph(case.height, case.width, number).save(encoded, "JPEG", quality=92)
            path.write_bytes(encoded.getvalue())
        else:
            path.write_bytes((path.parent / f"{number % DISTINCT:06d}.jpg").read_bytes())


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
    write_files(tmp_path, case)
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
