"""Images as byte ranges of a few large files, each with a checksum that is looked at when it is first read.

Read by `pread`, not through a memory map: where the disk fails, that raises an error with a name in it, and a map would
kill the process; and of what was read nothing stays in the process's memory.
"""

import bisect
import contextlib
import dataclasses
import os
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simclr_fast.errors import DataError

CPU = torch.device("cpu")


class KeptMemory:
    """Memory of the host that is handed out again once no tensor refers to it.

    Given back to the system instead, it costs a page fault for every 4 KiB that are written the next time, more than to
    read them does. Threads may call it side by side.
    """

    def __init__(self) -> None:
        self.free: list[Tensor] = []

    def empty(self, size: int) -> Tensor:
        """uint8 [size], with whatever is in it."""
        try:
            memory = self.free.pop()
        except IndexError:
            memory = None
        if memory is None or len(memory) < size:
            memory = torch.empty(size, dtype=torch.uint8)
        view = memory.numpy()[:size]
        # The tensor made of it, and whatever shares its storage, keep this array, which nothing else refers to.
        weakref.finalize(view, self.free.append, memory).atexit = False
        return torch.from_numpy(view)


class Records:
    """Byte ranges of files. paths: the files; firsts: the number of each file's first record; offsets, lengths: int64
    [N], of each record in its file; checksums: uint32 [N], their CRC-32.

    Threads read side by side. Raises DataError, with the file and the range, for what is missing or damaged.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        firsts: Sequence[int],
        offsets: np.ndarray,
        lengths: np.ndarray,
        checksums: np.ndarray,
    ):
        self.paths, self.firsts = list(paths), list(firsts)
        self.offsets, self.lengths, self.checksums = offsets, lengths, checksums
        self.is_checked = np.zeros(len(offsets), dtype=bool)
        with contextlib.ExitStack() as opened:
            self.files: list[int] = []
            for path in self.paths:
                self.files.append(os.open(path, os.O_RDONLY))
                opened.callback(os.close, self.files[-1])
            # With this object; not at the program's exit, where threads may still read.
            weakref.finalize(self, opened.pop_all().close).atexit = False

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, number: int) -> bytearray:
        """The bytes of one record."""
        data = bytearray(int(self.lengths[number]))
        self.read_into(number, memoryview(data))
        return data

    def read_into(self, number: int, buffer: memoryview) -> None:
        """Fill a buffer as long as the record."""
        offset, done = int(self.offsets[number]), 0
        file = self.files[self._file(number)]
        while done < len(buffer):
            try:
                count = os.preadv(file, [buffer[done:]], offset + done)
            except OSError as error:
                raise DataError(f"{self.name(number)}: {error.strerror}") from error
            if count == 0:
                raise DataError(f"{self.name(number)}: the file ends before that")
            done += count
        # Once: the checksum takes several times as long as the copy.
        if not self.is_checked[number]:
            if zlib.crc32(buffer) != self.checksums[number]:
                raise DataError(f"{self.name(number)}: damaged, its checksum is not that of the packed set")
            self.is_checked[number] = True

    def name(self, number: int) -> str:
        """What messages call a record: its file and place there."""
        begin = int(self.offsets[number])
        return f"{self.paths[self._file(number)]}, image {number}, bytes {begin} to {begin + int(self.lengths[number])}"

    def identity(self, number: int) -> str:
        """What tells a record's content from others' without reading it."""
        return f"{self.lengths[number]} bytes, CRC-32 {self.checksums[number]}"

    def _file(self, number: int) -> int:
        return bisect.bisect_right(self.firsts, number) - 1


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """Images of one size in files: records of uint8 [H, W, C] at numbers int64 [N], labels int64 [N] or None."""

    records: Records
    shape: tuple[int, int, int]
    numbers: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def channels(self) -> int:
        return self.shape[2]

    @property
    def image_bytes(self) -> int:
        height, width, channels = self.shape
        return height * width * channels

    def read(self, index: int) -> bytes:
        """The bytes of one image, [H, W, C]. Raises DataError for damage."""
        return bytes(self.records.read(int(self.numbers[index])))

    def name(self, index: int) -> str:
        """What messages call an image: its place on the disk."""
        return self.records.name(int(self.numbers[index]))

    def identity(self, index: int) -> str:
        """What tells an image from others without reading it."""
        return self.records.identity(int(self.numbers[index]))

    def decode(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W], channels-last. Raises DataError."""
        return self.take(torch.tensor([index]))[0]

    def empty(self, count: int, pin: bool = False) -> Tensor:
        """Room for images, uint8 [count, H, W, C]."""
        return torch.empty((count, *self.shape), dtype=torch.uint8, pin_memory=pin)

    def fill(self, indices: Tensor, out: Tensor, begin: Callable[[int], int] = int) -> None:
        """Read the images at indices int64 [n] into out, uint8 [n, H, W, C] on the CPU. Raises DataError for damage.

        begin: called with each index before it is read, which it gives back.
        """
        rows = out.flatten(1).numpy()
        for row, index, number in zip(rows, indices.tolist(), self.numbers[indices].tolist()):
            begin(index)
            self.records.read_into(number, memoryview(row))

    def take(self, indices: Tensor, device: torch.device = CPU) -> Tensor:
        """The images at indices int64 [n], uint8 [n, C, H, W] on the device, channels-last. Raises DataError."""
        images = self.empty(len(indices))
        self.fill(indices, images)
        return images.to(device).permute(0, 3, 1, 2)

    def subset(self, indices: Tensor) -> "StoredImages":
        """The images at indices int64 [n] with their labels."""
        labels = None if self.labels is None else self.labels[indices]
        return dataclasses.replace(self, numbers=self.numbers[indices], labels=labels)
