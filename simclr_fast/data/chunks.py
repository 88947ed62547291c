"""Images of a batch, read and decoded ahead by threads, chunk by chunk.

Threads suffice, because a file is read, decoded and copied outside of Python's lock; and what they make is there at
once, where processes would copy it and take seconds to start.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from simclr_fast.data.sources import EncodedImages
from simclr_fast.data.stored import StoredImages
from simclr_fast.data.threads import EndedError, Place, Threads, done_at
from simclr_fast.data.unreadable import load_or_replace

# Images that a thread reads at a time: a batch is put together from such chunks, so that the memory held by reading
# ahead (threads x AHEAD chunks) does not grow with the batch.
CHUNK = 64
DECODED_CHUNK = 16  # where the thread decodes them, so that few large ones are spread over all threads
AHEAD = 2  # chunks per thread that are begun before they are asked for; with one, a thread idles until its own is taken
# Bytes of images that the chunks which are not due yet hold together: large ones end the reading ahead before AHEAD.
AHEAD_BYTES = 2 << 30
LOOK_SECONDS = 0.1  # how often a thread that waits for room looks whether it is to end
SLOW_SECONDS = 30.0  # a file that keeps the run waiting for longer is named

Item, Result = TypeVar("Item"), TypeVar("Result")

log = logging.getLogger(__name__)


class Chunk(NamedTuple):
    """Some images of a batch.

    images: uint8 [3, H, W] each, or [bytes] where they are left encoded; buffer: for the copy to a GPU, uint8 in pinned
    memory that holds the images as [H, W, 3] one after the other, else None; bad: a message for each image that could
    not be read.
    """

    images: list[Tensor]
    buffer: Tensor | None
    bad: dict[int, str]

    def to(self, device: torch.device) -> list[Tensor]:
        """The images on the device, by one copy where they lie in a buffer; it goes on while the host does."""
        if self.buffer is None:
            return [image.to(device) for image in self.images]
        return _images(self.buffer.to(device, non_blocking=True), [image.shape for image in self.images])


class ChunkBuffer:
    """Takes images one by one into one buffer, which grows where they are larger than those before.

    Copies by numpy: torch would spread one over threads of its own, a set of them for each of ours.
    """

    def __init__(self, capacity: int, pin: bool):
        self.pin = pin
        self.used = 0
        self.shapes: list[tuple[int, int, int]] = []
        self.buffer = self._empty(capacity)

    def growth(self, image: Tensor) -> int:
        """Bytes by which the buffer is going to grow for an image."""
        end = self.used + image.numel()
        return allocated(max(end, 2 * len(self.buffer)), self.pin) - len(self.buffer) if end > len(self.buffer) else 0

    def add(self, image: Tensor) -> None:
        """Copy an image, uint8 [3, H, W] of any strides."""
        end = self.used + image.numel()
        if end > len(self.buffer):
            larger = self._empty(len(self.buffer) + self.growth(image))
            np.copyto(larger.numpy()[: self.used], self.filled().numpy())
            self.buffer = larger
        channels, height, width = image.shape
        rows = self.buffer.numpy()[self.used : end].reshape(height, width, channels)
        np.copyto(rows, image.permute(1, 2, 0).numpy())
        self.shapes.append((channels, height, width))
        self.used = end

    def filled(self) -> Tensor:
        """The part that holds images, uint8 [bytes]."""
        return self.buffer[: self.used]

    def _empty(self, size: int) -> Tensor:
        # torch keeps pinned memory that is given back, and hands it out again once the copies from it are over.
        return torch.empty(allocated(size, self.pin), dtype=torch.uint8, pin_memory=self.pin)


def allocated(size: int, pin: bool) -> int:
    """The bytes of an allocation: of pinned memory torch takes the next power of 2 anyway."""
    return 1 << (size - 1).bit_length() if pin and size > 0 else size


class Room:
    """How many bytes the chunks that are not due yet hold; a thread that would go beyond the limit waits.

    The chunk that is due never waits, so that it is finished whatever the others hold. Chunks are numbered from 0 in
    the order in which they are begun and taken.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.changed = threading.Condition()
        self.due = 0
        self.held: dict[int, int] = {}

    def take(self, number: int, size: int, place: Place) -> None:
        """Count so many bytes more for a chunk, once there is room for them or the chunk is due.

        Raises EndedError where the thread is to end.
        """
        with self.changed:
            while number > self.due and sum(self.held.values()) + size > self.limit:
                place.leave()  # the file is read: the run does not wait for it
                if place.ended:
                    raise EndedError
                self.changed.wait(LOOK_SECONDS)
            self.held[number] = self.held.get(number, 0) + size

    def free(self, number: int) -> None:
        """What the chunk holds is its taker's from now on; the next one is due."""
        with self.changed:
            self.held.pop(number, None)
            self.due = number + 1
            self.changed.notify_all()


def _images(buffer: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Views of the images in a chunk's buffer, uint8 [C, H, W] each, channels-last."""
    parts = buffer.split([channels * height * width for channels, height, width in shapes])
    return [
        part.view(height, width, channels).permute(2, 0, 1) for part, (channels, height, width) in zip(parts, shapes)
    ]


class ChunkReader:
    """Reads chunks in so many threads, decoded or as encoded bytes; with 0 threads, where they are asked for.

    pin_for: a GPU for which decoded images go to one pinned buffer per chunk.
    """

    def __init__(self, source: EncodedImages, threads: int, decode: bool = True, pin_for: torch.device | None = None):
        self.source, self.threads = source, threads
        self.load = source.decode if decode else source.encoded
        self.pin_for = pin_for if decode else None
        self.capacity = 0  # bytes of the largest chunk so far

    def read(self, wanted: Iterable[Tensor]) -> Iterator[Chunk]:
        """A chunk for each of the indices, int64 [n], in their order; for the threads see `work_ahead`.

        Raises DataError as `load_or_replace` does.
        """
        room = Room(AHEAD_BYTES)

        def work(item: tuple[int, Tensor], place: Place) -> Chunk:
            number, indices = item
            return self._chunk(indices.tolist(), place, lambda size: room.take(number, size, place))

        with contextlib.closing(work_ahead(work, enumerate(wanted), self.threads, self.source.name)) as chunks:
            for number, chunk in enumerate(chunks):
                room.free(number)
                yield chunk

    def _chunk(self, indices: list[int], place: Place, take: Callable[[int], None]) -> Chunk:
        """Reads one chunk, and notes in `place` which image it is at; `take` waits until so many bytes may be held."""
        bad: dict[int, str] = {}
        images: list[Tensor] = []
        if self.pin_for is not None and torch.cuda.is_available():
            torch.cuda.set_device(self.pin_for)  # of this thread: else pinned memory wants a context on GPU 0
        buffer = None
        if self.pin_for is not None:
            pin = torch.cuda.is_available()
            capacity = min(self.capacity, AHEAD_BYTES // (AHEAD * max(1, self.threads)))
            take(allocated(capacity, pin))
            buffer = ChunkBuffer(capacity, pin)
        load = lambda index: self.load(place.enter(index))
        for index in indices:
            image = load_or_replace(load, index, len(self.source), bad, self.source.labels)
            take(image.numel() if buffer is None else buffer.growth(image))
            (images.append if buffer is None else buffer.add)(image)
        if buffer is None:
            return Chunk(images, None, bad)
        self.capacity = max(self.capacity, buffer.used)
        return Chunk(_images(buffer.filled(), buffer.shapes), buffer.filled(), bad)


def read_stored(source: StoredImages, parts: Iterable[tuple[Tensor, Tensor]], threads: int) -> Iterator[Tensor]:
    """For each (indices int64 [n], memory uint8 [n, H, W, C]) the memory, once the images are in it; see `work_ahead`.

    Raises DataError for damage.
    """

    def fill(part: tuple[Tensor, Tensor], place: Place) -> Tensor:
        source.fill(*part, place.enter)
        return part[1]

    return work_ahead(fill, parts, threads, source.name)


def work_ahead(
    work: Callable[[Item, Place], Result], items: Iterable[Item], threads: int, name: Callable[[int], str]
) -> Iterator[Result]:
    """`work(item, place)` for each item in their order, by so many threads; with 0 threads when it is asked for.

    name: what a message calls the image that a place tells. Raises what `work` raises. The threads end with the
    iterator: at its end, when it is closed or forgotten, and when the program exits.
    """
    if threads == 0:
        yield from (done_at(Place(), work, item) for item in items)
        return
    pool = Threads(work, threads)
    try:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.start(item))
            if len(ahead) == AHEAD * threads:
                yield _wait(ahead.popleft(), pool, name)
        while ahead:
            yield _wait(ahead.popleft(), pool, name)
    finally:
        pool.end()


def _wait(result: "Future[Result]", pool: Threads, name: Callable[[int], str]) -> Result:
    told: set[int] = set()
    while not wait([result], SLOW_SECONDS).done:
        for index, seconds in pool.at():
            if seconds >= SLOW_SECONDS and index not in told:
                told.add(index)
                log.warning("the run waits for %s, which takes %.0f s so far", name(index), seconds)
    return result.result()
