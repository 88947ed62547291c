"""Batches on the training device: taken from a resident array, or read and decoded ahead by threads."""

import abc
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from simclr_fast.config import DataOptions
from simclr_fast.data.chunks import CHUNK, DECODED_CHUNK, Chunk, ChunkReader, read_stored
from simclr_fast.data.decode import DeviceDecoder
from simclr_fast.data.resident import ArrayLoader, ShareLoader, lies_on_device
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.data.sources import EncodedImages, ImageArrays, Source, shrunk_to
from simclr_fast.data.stored import KeptMemory, StoredImages
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


class ReadingLoader(abc.ABC):
    """Batches that threads read ahead.

    On CUDA the chunks of a batch are moved from pinned memory on a side stream while the step before runs. A kind of
    source says how its chunks are read (`_reading`) and what becomes of those of a batch (`_to_device`).
    """

    def __init__(self, sampler: EpochSampler, device: torch.device, bad: BadImages):
        self.sampler = sampler
        self.device = device
        self.bad = bad
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @abc.abstractmethod
    def _reading(self, steps: list[Tensor]) -> Iterator[Any]:
        """The chunks of the steps' images, int64 [b] each."""

    @abc.abstractmethod
    def _to_device(self, chunks: Iterator[Any], indices: Tensor) -> Batch:
        """The batch of these images, taken from the next chunks."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on. Raises DataError past the allowed share of bad images."""
        steps = self.sampler.steps(epoch, start)
        ahead: tuple[Batch, torch.cuda.Event] | None = None
        with contextlib.closing(self._reading(steps)) as chunks:
            for indices in steps:
                batch = self._to_device(chunks, indices)
                if self.stream is None:  # the threads alone read ahead
                    yield batch
                    continue
                moved = self.stream.record_event()
                if ahead is not None:
                    yield self._ready(*ahead)
                ahead = batch, moved
        if ahead is not None:
            yield self._ready(*ahead)
        # In an epoch a process meets only its part of the data set, and the allowance is for the whole of it.
        self.bad.share_with_others()

    def _indices(self, indices: Tensor) -> Tensor:
        """The indices on the device; call it on the side stream."""
        here = indices if self.stream is None else indices.pin_memory()  # else the host waits for all the copies
        return here.to(self.device, non_blocking=True)

    def _ready(self, batch: Batch, moved: torch.cuda.Event) -> Batch:
        """The batch for the step's stream, which waits until its own copies are over, not for those queued since."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(moved)
        # Once for the images of a chunk, which share one storage.
        images = batch.images if isinstance(batch.images, list) else [batch.images]
        stores = {tensor.untyped_storage().data_ptr(): tensor for tensor in (*images, batch.indices)}
        for tensor in stores.values():
            tensor.record_stream(current)  # the allocator must not hand it out again before the step has read it
        return batch


class EncodedLoader(ReadingLoader):
    """Batches of images of different sizes, decoded as they are read, or by the GPU."""

    def __init__(
        self,
        source: EncodedImages,
        sampler: EpochSampler,
        device: torch.device,
        options: DataOptions,
    ):
        super().__init__(sampler, device, source.bad)
        self.source = source
        self.decoder = DeviceDecoder(source, device) if options.decode_device == "cuda" else None
        self.chunk = DECODED_CHUNK if self.decoder is None else CHUNK  # images
        pin_for = device if device.type == "cuda" else None
        self.chunks = ChunkReader(source, options.workers, decode=self.decoder is None, pin_for=pin_for)

    @property
    def gpu_decode_fallbacks(self) -> int:
        """Images that the GPU was to decode and the CPU did."""
        return 0 if self.decoder is None else self.decoder.on_cpu

    def _reading(self, steps: list[Tensor]) -> Iterator[Chunk]:
        with self.source.noting_unreadable():
            yield from self.chunks.read(chunk for indices in steps for chunk in indices.split(self.chunk))

    def _to_device(self, chunks: Iterator[Chunk], indices: Tensor) -> Batch:
        images: list[Tensor] = []
        for part in indices.split(self.chunk):  # each is moved when it is there: no more than a chunk waits here
            chunk = next(chunks)
            self.source.note(chunk.bad)
            with torch.cuda.stream(self.stream):  # does nothing where there is no stream
                images += chunk.to(self.device) if self.decoder is None else self._decode(chunk, part.tolist())
        with torch.cuda.stream(self.stream):
            return Batch(images, self._indices(indices))

    def _decode(self, chunk: Chunk, indices: list[int]) -> list[Tensor]:
        bad: dict[int, str] = {}
        with self.source.noting_unreadable():
            images = self.decoder.decode(chunk.images, indices, bad)
        self.source.note(bad)
        return images


class StoredLoader(ReadingLoader):
    """Batches of images of one size, read from a raw packed set."""

    gpu_decode_fallbacks = 0

    def __init__(self, source: StoredImages, sampler: EpochSampler, device: torch.device, threads: int):
        super().__init__(sampler, device, BadImages())  # damage ends the run
        self.source, self.threads = source, threads
        self.memory = KeptMemory()

    def _reading(self, steps: list[Tensor]) -> Iterator[Tensor]:
        return read_stored(self.source, self._parts(steps), self.threads)

    def _parts(self, steps: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images with the memory that they are read into: parts of the batch, or pinned and on their way to it."""
        for indices in steps:
            parts = indices.split(CHUNK)
            if self.stream is None:
                batch = self.memory.empty(len(indices) * self.source.image_bytes)
                yield from zip(parts, batch.view(len(indices), *self.source.shape).split(CHUNK))
            else:
                yield from ((part, self.source.empty(len(part), pin=True)) for part in parts)

    def _to_device(self, chunks: Iterator[Tensor], indices: Tensor) -> Batch:
        count = len(indices)
        if self.stream is None:
            parts = [next(chunks) for _ in indices.split(CHUNK)]
            images = parts[0].as_strided((count, *self.source.shape), parts[0].stride())  # the batch that they are of
            return Batch(images.permute(0, 3, 1, 2), indices)
        with torch.cuda.stream(self.stream):
            images = torch.empty((count, *self.source.shape), dtype=torch.uint8, device=self.device)
            for part in images.split(CHUNK):
                part.copy_(next(chunks), non_blocking=True)
            return Batch(images.permute(0, 3, 1, 2), self._indices(indices))


def build_loader(
    source: Source,
    batch_size: int,
    seed: int,
    device: torch.device,
    options: DataOptions,
    rank: int = 0,
    world_size: int = 1,
    shrink_to: int = 0,
) -> ArrayLoader | ReadingLoader:
    """The loader for a source; batch_size is the global one. Raises ConfigError where these do not fit.

    shrink_to: the side that large encoded images are brought down to as they are decoded (`shrink`); 0 never.
    """
    if batch_size > len(source):
        raise ConfigError(
            f"--batch-size {batch_size}: the data set has only {len(source)} training images; pass "
            f"--batch-size {len(source)} or less"
        )
    sampler = EpochSampler(len(source), batch_size, seed, rank, world_size)
    if isinstance(source, ImageArrays):
        return ArrayLoader(source, sampler, device)
    if isinstance(source, StoredImages):
        kind = ShareLoader if lies_on_device(source, sampler, device, options) else StoredLoader
        return kind(source, sampler, device, options.workers)
    if options.resident == "on":
        raise ConfigError(
            "--resident on: only a raw packed set can lie on the devices; pack with --format raw, or pass auto"
        )
    if options.decode_device != "cpu" and device.type != options.decode_device:
        raise ConfigError(f"--decode-device {options.decode_device}: training runs on {device.type}; use cpu")
    return EncodedLoader(shrunk_to(source, shrink_to), sampler, device, options)
