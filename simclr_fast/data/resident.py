"""Images that lie on the devices: a whole array in each process, or of a raw packed set the share that it trains on.

Process r of W holds the images that the epoch's order gives it: those of its slices of the steps, and its part of the
remainder that makes no whole step. Before the next epoch each process sends the others what they are to hold then. So
every epoch has the order that one process alone would have, a resumed run reads its share of the epoch in the middle of
which it stopped, and no image is read twice from the disk.
"""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from simclr_fast.config import DataOptions
from simclr_fast.data.chunks import CHUNK, read_stored
from simclr_fast.data.messages import size_text
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.data.sources import ImageArrays
from simclr_fast.data.stored import StoredImages
from simclr_fast.data.unreadable import BadImages
from simclr_fast.errors import ConfigError

# Of a GPU's free memory at the start, images may take this share: the model, its views and NCCL need the rest.
FREE_SHARE = 0.5
EXCHANGED_BYTES = 64 << 20  # that a process sends at a time, and about as many that it receives

# What Linux says of the host's memory, and of its limit for a container; elsewhere only the allocation itself shows
# what is too much.
MEMORY_INFO, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ResidentBatch:
    """As `Batch`, of images that lie on the device: resident, uint8 [n, C, H, W] at rows int64 [b].

    Good until the next epoch begins, when other images may take their places.
    """

    resident: Tensor
    rows: Tensor
    indices: Tensor

    @functools.cached_property
    def images(self) -> Tensor:
        """uint8 [b, C, H, W], gathered when asked for: a step that is one CUDA graph gathers by `rows` inside it."""
        return self.resident[self.rows]


class ArrayLoader:
    """Batches from images that live on the device as one uint8 tensor."""

    gpu_decode_fallbacks = 0

    def __init__(self, source: ImageArrays, sampler: EpochSampler, device: torch.device):
        self.sampler = sampler
        self.images = source.images.to(device)
        self.bad = BadImages()  # nothing here is left to decode

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ResidentBatch]:
        """The batches of an epoch from step `start` on."""
        steps = self.sampler.steps(epoch, start)
        if not steps:
            return
        resident = torch.stack(steps).to(self.images.device)  # one copy per epoch
        for on_device in resident:
            yield ResidentBatch(self.images, rows=on_device, indices=on_device)


class ShareLoader(ArrayLoader):
    """Batches from the share of a raw packed set that lies on this process's device.

    images: uint8 [n, C, H, W], channels-last, at the same address throughout; every process must begin each epoch.
    exchanged_bytes: that a process sends at a time, and about as many that it receives. Raises ConfigError where there
    is no memory for the images.
    """

    def __init__(
        self,
        source: StoredImages,
        sampler: EpochSampler,
        device: torch.device,
        threads: int,
        exchanged_bytes: int = EXCHANGED_BYTES,
    ):
        self.source, self.sampler, self.threads = source, sampler, threads
        self.exchanged_bytes = exchanged_bytes
        self.bad = BadImages()
        self.owner: Tensor | None = None  # int64 [N]: who holds each image
        self.row = torch.full((len(source),), -1)  # of each image that lies here
        rows = share_rows(len(source), sampler.world_size)
        try:
            self.held = torch.empty((rows, *source.shape), dtype=torch.uint8, device=device)  # [n, H, W, C]
        except RuntimeError as error:  # a limit on this process, or memory in parts
            size = size_text(rows * source.image_bytes)
            raise ConfigError(
                f"the images take {size} of {device}, which it does not give; pass --resident off"
            ) from error
        self.images = self.held.permute(0, 3, 1, 2)
        self.empty_rows = list(range(rows))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ResidentBatch]:
        """The batches of an epoch from step `start` on. Raises DataError for damage."""
        self._hold(owners(self.sampler, epoch))
        steps = self.sampler.steps(epoch, start)
        if not steps:
            return
        indices = torch.stack(steps)
        rows, indices = self.row[indices].to(self.held.device), indices.to(self.held.device)
        yield from (ResidentBatch(self.images, *of_step) for of_step in zip(rows, indices))

    def _hold(self, owner: Tensor) -> None:
        if self.owner is None:
            self._read((owner == self.sampler.rank).nonzero().flatten())
        elif not torch.equal(self.owner, owner):
            self._exchange(owner)
        self.owner = owner

    def _read(self, wanted: Tensor) -> None:
        """Read images int64 [n] from the files."""
        device, size = self.held.device, len(wanted) * self.source.image_bytes
        if self.sampler.rank == 0:  # the others hold as many
            log.info("holding %d of %d images (%s) on %s", len(wanted), len(self.source), size_text(size), device)
        rows = self._placed(wanted)
        pin = device.type == "cuda"
        parts = ((part, self.source.empty(len(part), pin)) for part in wanted.split(CHUNK))
        for part, images in zip(rows.split(CHUNK), read_stored(self.source, parts, self.threads)):
            self.held[part.to(device)] = images.to(device, non_blocking=True)

    def _exchange(self, owner: Tensor) -> None:
        """Send each process what it is to hold, and receive what this one is, a part of both at a time."""
        rank, count = self.sampler.rank, self.sampler.world_size
        leaving = [self._moving(owner, rank, other) for other in range(count)]
        arriving = [self._moving(owner, other, rank) for other in range(count)]
        # The same in all processes: as many rounds as the one that sends most needs.
        moved = torch.bincount(self.owner[self.owner != owner], minlength=count).max()
        rounds = max(1, -(-int(moved) * self.source.image_bytes // self.exchanged_bytes))
        for number in range(rounds):
            # Of each list the same share in every round, so that about as many arrive as have left: at most count - 1
            # more, for which there are spare rows.
            sent, received = (
                [images[len(images) * number // rounds : len(images) * (number + 1) // rounds] for images in lists]
                for lists in (leaving, arriving)
            )
            out, new = torch.cat(sent), torch.cat(received)
            sending = self.held[self.row[out].to(self.held.device)]
            receiving = sending.new_empty((len(new), *self.source.shape))
            dist.all_to_all_single(receiving, sending, list(map(len, received)), list(map(len, sent)))
            self.empty_rows += self.row[out].tolist()
            self.row[out] = -1
            self.held[self._placed(new).to(self.held.device)] = receiving

    def _moving(self, owner: Tensor, source: int, target: int) -> Tensor:
        """The images that move from one process to another, int64, in the same order for both."""
        if source == target:
            return torch.empty(0, dtype=torch.int64)
        return ((self.owner == source) & (owner == target)).nonzero().flatten()

    def _placed(self, images: Tensor) -> Tensor:
        """Rows int64 [n] for images that are new here."""
        rows, self.empty_rows = self.empty_rows[: len(images)], self.empty_rows[len(images) :]
        self.row[images] = torch.tensor(rows, dtype=torch.int64)
        return self.row[images]


def owners(sampler: EpochSampler, epoch: int) -> Tensor:
    """The process that holds each image in an epoch, int64 [N]: the one that trains on it; of the remainder, equal
    parts."""
    order, count = sampler.order(epoch), sampler.world_size
    trained = sampler.steps_per_epoch * sampler.batch_size
    owner = torch.empty(sampler.size, dtype=torch.int64)
    place = torch.arange(trained)
    owner[order[:trained]] = place % sampler.batch_size // sampler.local_batch_size
    rest = sampler.size - trained
    owner[order[trained:]] = torch.arange(rest) * count // max(1, rest)
    return owner


def share_rows(images: int, processes: int) -> int:
    """Rows for the largest share of so many images, and for what arrives before as much has left."""
    return -(-images // processes) + (processes if processes > 1 else 0)


def lies_on_device(source: StoredImages, sampler: EpochSampler, device: torch.device, options: DataOptions) -> bool:
    """Whether the processes hold a raw packed set on their devices; the same answer in all of them.

    Raises ConfigError where --resident on asks for more than there is.
    """
    if options.resident == "off" or (options.resident == "auto" and device.type != "cuda"):
        return False
    needed = share_rows(len(source), sampler.world_size) * source.image_bytes
    needed += 2 * EXCHANGED_BYTES if sampler.world_size > 1 else 0
    free = free_bytes(device)
    fits = torch.tensor(float(needed <= (FREE_SHARE if options.resident == "auto" else 1.0) * free), device=device)
    if sampler.world_size > 1:
        dist.all_reduce(fits, dist.ReduceOp.MIN)
    if options.resident == "on" and not fits:
        raise ConfigError(
            f"--resident on: the images take {size_text(needed)} of each device, and on this or another device less is "
            f"free (here {size_text(free)}); pass off"
        )
    if sampler.rank == 0:
        log.info(
            "%s of images per device, %s free on the first: %s",
            size_text(needed),
            size_text(free),
            "they are held there" if fits else "they are read for each batch",
        )
    return bool(fits)


def free_bytes(device: torch.device) -> float:
    """Memory that this process may take of a device: of the host's, an equal part for each process that is here."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = math.inf
    if MEMORY_INFO.exists():
        values = dict(line.split(":") for line in MEMORY_INFO.read_text().splitlines())
        free = 1024 * int(values["MemAvailable"].split()[0])
    limit = CONTAINER / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        values = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        used = int((CONTAINER / "memory.current").read_text()) - int(values["inactive_file"])  # files give way
        free = min(free, int(most) - used)
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
