"""Batches on the training device: taken from a resident array, or read and decoded ahead by threads."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from simclr_fast.config import DataOptions
from simclr_fast.data.chunks import CHUNK, Chunk, ChunkReader
from simclr_fast.data.decode import DeviceDecoder
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.data.sources import EncodedImages, ImageArrays, Source
from simclr_fast.data.unreadable import BadImages
from simclr_fast.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's images of one step.

    images: uint8 [b, C, H, W], or a list of b images [C, H, W] of different sizes; indices: int64 [b] in the data set,
    which seed the draws; both on the training device.
    """

    images: Tensor | list[Tensor]
    indices: Tensor


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

    def __init__(self, source: ImageArrays, sampler: EpochSampler, device: torch.device):
        self.sampler = sampler
        self.images = source.images.to(device)
        self.bad = BadImages()  # nothing here is left to decode
        self.gpu_decode_fallbacks = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ResidentBatch]:
        """The batches of an epoch from step `start` on."""
        steps = self.sampler.steps(epoch, start)
        if not steps:
            return
        resident = torch.stack(steps).to(self.images.device)  # one copy per epoch
        for on_device in resident:
            yield ResidentBatch(self.images, rows=on_device, indices=on_device)


class EncodedLoader:
    """Batches of images of different sizes, read and decoded ahead by threads.

    On CUDA the chunks of a batch are moved from pinned memory on a side stream while the step before runs.
    """

    def __init__(
        self,
        source: EncodedImages,
        sampler: EpochSampler,
        device: torch.device,
        options: DataOptions,
    ):
        self.source = source
        self.sampler = sampler
        self.device = device
        self.decoder = DeviceDecoder(source, device) if options.decode_device == "cuda" else None
        self.bad = source.bad
        pack_for = device if device.type == "cuda" else None
        self.chunks = ChunkReader(source, options.workers, decode=self.decoder is None, pack_for=pack_for)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def gpu_decode_fallbacks(self) -> int:
        """Images that the GPU was to decode and the CPU did."""
        return 0 if self.decoder is None else self.decoder.on_cpu

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on. Raises DataError past the allowed share of bad images."""
        steps = self.sampler.steps(epoch, start)
        wanted = (chunk for indices in steps for chunk in indices.split(CHUNK))
        ahead: Batch | None = None
        with contextlib.closing(self.chunks.read(wanted)) as chunks:
            for indices in steps:
                batch = self._to_device(chunks, indices)
                if self.stream is None:  # the threads alone read ahead
                    yield batch
                    continue
                if ahead is not None:
                    yield self._ready(ahead)
                ahead = batch
        if ahead is not None:
            yield self._ready(ahead)
        # In an epoch a process meets only its part of the data set, and the allowance is for the whole of it.
        self.bad.share_with_others()

    def _to_device(self, chunks: Iterator[Chunk], indices: Tensor) -> Batch:
        images: list[Tensor] = []
        for part in indices.split(CHUNK):  # each is moved when it is there, so that no more than a chunk waits here
            chunk = next(chunks)
            self.source.note(chunk.bad)
            with torch.cuda.stream(self.stream):  # does nothing where there is no stream
                images += chunk.to(self.device) if self.decoder is None else self._decode(chunk, part.tolist())
        with torch.cuda.stream(self.stream):
            numbers = indices if self.stream is None else indices.pin_memory()  # else the host waits for all the copies
            return Batch(images, numbers.to(self.device, non_blocking=True))

    def _decode(self, chunk: Chunk, indices: list[int]) -> list[Tensor]:
        bad: dict[int, str] = {}
        images = self.decoder.decode(chunk.images, indices, bad)
        self.source.note(bad)
        return images

    def _ready(self, batch: Batch) -> Batch:
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            # Once for the images of a chunk, which share one storage.
            stores = {tensor.untyped_storage().data_ptr(): tensor for tensor in (*batch.images, batch.indices)}
            for tensor in stores.values():
                tensor.record_stream(current)  # the allocator must not hand it out again before the step has read it
        return batch


def build_loader(
    source: Source,
    batch_size: int,
    seed: int,
    device: torch.device,
    options: DataOptions,
    rank: int = 0,
    world_size: int = 1,
) -> ArrayLoader | EncodedLoader:
    """The loader for a source; batch_size is the global one. Raises ConfigError where they do not fit."""
    if batch_size > len(source):
        raise ConfigError(f"--batch-size {batch_size}: the data set has only {len(source)} training images")
    sampler = EpochSampler(len(source), batch_size, seed, rank, world_size)
    if isinstance(source, ImageArrays):
        return ArrayLoader(source, sampler, device)
    if options.decode_device != "cpu" and device.type != options.decode_device:
        raise ConfigError(f"--decode-device {options.decode_device}: training runs on {device.type}; use cpu")
    return EncodedLoader(source, sampler, device, options)
