"""A whole training step from JPEG files on the CPU: loader, augmentation, model, loss, optimizer, on the same cores.

Ours, lightly's loader of processes with its transform and loss, and torchvision's with the plain loss: all train the
same model from the same weights with the same optimizer. A turn is an epoch, so that nobody reads ahead in the turns of
the others. CPU time is measured beside the clock's, because other programs on the machine do not add to it.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.augment_contestants import Recipe
from benchmarks.bench_train_step import TEMPERATURE, TOLERANCE, Verify, build_encoder, expected_loss, take_step
from benchmarks.harness import Absent, Contestant, Laps, compare, installed, require
from benchmarks.jpeg_files import write_files
from simclr_fast import NTXentLoss, SimCLRAugment
from simclr_fast.config import DataOptions
from simclr_fast.data import build_loader, load_dataset
from simclr_fast.data.threads import work_done
from simclr_fast.ops.ntxent.reference import ntxent_textbook

NAMES = ("simclr_fast", "lightly", "torchvision")
NOTES = {
    "lightly": "its SimCLRTransform on PIL images in a DataLoader of as many processes, kept from epoch to epoch",
    "torchvision": "v2 on PIL images twice, in such a DataLoader; the textbook loss",
}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """JPEG files, their size, and the model that is trained on views of `side` pixels of them, `batch` at a time."""

    files: int
    height: int
    width: int
    batch: int
    side: int
    model: str
    workers: int

    def __str__(self) -> str:
        return f"{self.model} at {self.side},{self.batch} of {self.width}x{self.height},{self.workers} workers"


CASES = {
    "smoke": [Case(8, 24, 32, 4, 16, "resnet_mini", 1)],
    # The second shows the loaders, which the arithmetic of the first hides.
    "quick": [Case(16, 375, 500, 8, 224, "resnet18", 2), Case(128, 375, 500, 32, 32, "resnet_mini", 2)],
    "full": [Case(128, 375, 500, 32, 224, "resnet18", 2), Case(1024, 375, 500, 128, 32, "resnet_mini", 2)],
}


@dataclass
class CpuTime:
    """CPU seconds of the epochs of one contestant: in all, and of them for loading and augmentation.

    Threads that decode count their own; what worker processes do is all loading and augmentation.
    """

    augment: float = 0.0
    whole: list[float] = field(default_factory=list)
    before_model: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Start an epoch."""
        self.augment = 0.0
        self._began = self._now()

    def augmenting(self, make: Callable[[], Tensor]) -> Tensor:
        """Do it, without counting what the threads decode meanwhile."""
        began, decoded = time.process_time(), work_done().cpu
        made = make()
        self.augment += max(0.0, time.process_time() - began - (work_done().cpu - decoded))
        return made

    def end(self) -> None:
        """End an epoch."""
        (process, decoded, workers), now = self._began, self._now()
        self.whole.append(now[0] - process + now[2] - workers)
        self.before_model.append(now[1] - decoded + now[2] - workers + self.augment)

    def figures(self, images: int) -> dict[str, float]:
        """Medians: seconds per image, and the share of loading and augmentation."""
        shares = [part / whole for part, whole in zip(self.before_model, self.whole) if whole > 0]
        return {
            "cpu_seconds_per_image": statistics.median(self.whole) / images,
            "cpu_share_before_model": statistics.median(shares),
        }

    @staticmethod
    def _now() -> tuple[float, float, float]:
        ticks = 0
        for child in multiprocessing.active_children():
            # utime and stime, fields 14 and 15 behind the name in brackets, which may hold spaces.
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return time.process_time(), work_done().cpu, ticks / os.sysconf("SC_CLK_TCK")


Epochs = Iterator[Iterator[Callable[[], Tensor]]]  # of batches, each a call that makes its views


def _ours(folder: Path, case: Case) -> Epochs:
    options = DataOptions(dataset="imagefolder", data=folder, workers=case.workers)
    loader = build_loader(load_dataset(options).train, case.batch, 0, CPU, options)
    augment = SimCLRAugment(case.side)
    epoch = 0
    while True:
        yield ((lambda images=batch.images: augment(images)) for batch in loader.epoch(epoch))
        epoch += 1


def _data_loader(folder: Path, case: Case, transform: Callable) -> Epochs:
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(
        ImageFolder(str(folder), transform),
        case.batch,
        shuffle=True,
        drop_last=True,
        num_workers=case.workers,
        persistent_workers=True,
    )
    while True:
        yield ((lambda views=views: torch.cat(views)) for views, _ in loader)


def _lightly(folder: Path, case: Case) -> Epochs:
    from lightly.transforms import SimCLRTransform

    return _data_loader(folder, case, SimCLRTransform(input_size=case.side))


@dataclass(frozen=True)
class TwoViews:
    """torchvision v2's recipe on a PIL image, twice."""

    transform: Callable

    def __call__(self, image: object) -> list[Tensor]:
        return [self.transform(image), self.transform(image)]


def _torchvision(folder: Path, case: Case) -> Epochs:
    from torchvision.transforms import v2

    recipe = Recipe(case.side)
    chain = [
        v2.RandomResizedCrop(recipe.size, recipe.scale, recipe.ratio),
        v2.RandomHorizontalFlip(recipe.hflip),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], recipe.jitter_p),
        v2.RandomGrayscale(recipe.gray_p),
        *([v2.RandomApply([v2.GaussianBlur(recipe.blur_kernel, (0.1, 2.0))], recipe.blur_p)] * recipe.blurred),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    return _data_loader(folder, case, TwoViews(v2.Compose(chain)))


def contestant(name: str, folder: Path, case: Case, cpu: CpuTime) -> Contestant | Absent:
    """The named contestant; run(lap) trains an epoch, adds to `cpu`, and returns verify(views) -> loss."""
    if name == "lightly" and not installed("lightly.loss"):
        return Absent(name, "not installed")
    epochs = {"simclr_fast": _ours, "lightly": _lightly, "torchvision": _torchvision}[name](folder, case)
    model = build_encoder(case.model, case.side, CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    if name == "lightly":
        from lightly.loss import NTXentLoss as LightlyLoss

        criterion = LightlyLoss(TEMPERATURE)
    else:
        textbook = lambda z0, z1: ntxent_textbook(z0, z1, TEMPERATURE)
        criterion = NTXentLoss(TEMPERATURE) if name == "simclr_fast" else textbook

    def verify(views: Tensor) -> Tensor:
        return criterion(*model(views).chunk(2)).detach()

    def run(lap: Laps) -> Verify:
        cpu.begin()
        for make_views in next(epochs):
            lap("data")
            views = cpu.augmenting(make_views).contiguous(memory_format=torch.channels_last)
            lap("augment")
            take_step(model, criterion, optimizer, views, lap)
        lap("data")
        cpu.end()
        return verify

    return Contestant(name, run, note=NOTES.get(name, ""))


@pytest.mark.usefixtures("device")  # which sets torch's threads
def test_train_step_files(benchmark, case: Case, tmp_path: Path, budget: float) -> None:
    write_files(tmp_path, case.files, case.height, case.width)
    views = torch.randn(8, 3, case.side, case.side)
    truth = expected_loss(case.model, views, CPU)
    times = {name: CpuTime() for name in NAMES}
    images = case.files // case.batch * case.batch
    found = compare(
        benchmark,
        [contestant(name, tmp_path, case, times[name]) for name in NAMES],
        lambda verify: (((verify(views) - truth).abs() / truth).item(), TOLERANCE),
        CPU,
        2 * budget,
        suite="train_step_files",
        case=vars(case),
        images=images,
    )
    for name, figures in found.items():
        if "seconds" in figures:
            figures |= times[name].figures(images)
    require(found, NAMES[:1])
