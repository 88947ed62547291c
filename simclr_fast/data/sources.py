"""Where images come from: one uint8 array in memory, or encoded files that are decoded when they are asked for."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image


class BadImageError(RuntimeError):
    """An image cannot be read or decoded; the message holds its name and the reason."""


def one_line(error: Exception) -> str:
    """What went wrong, without torchvision's source line and torch's stack."""
    return re.sub(r"^.*\.cpp:\d+, ", "", str(error).splitlines()[0])


@dataclasses.dataclass(frozen=True)
class ImageArrays:
    """Images of one size in memory: images uint8 [N, C, H, W], labels int64 [N] or None."""

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def subset(self, indices: Tensor) -> "ImageArrays":
        return ImageArrays(self.images[indices], None if self.labels is None else self.labels[indices])


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Images of any sizes as JPEG, PNG, WebP or GIF bytes.

    read(i) gives the bytes of image i, name(i) what a message calls it; both run in worker processes, so they pickle.
    """

    size: int
    read: Callable[[int], bytes]
    name: Callable[[int], str]
    labels: Tensor | None = None
    channels: int = 3

    def __len__(self) -> int:
        return self.size

    def encoded(self, index: int) -> Tensor:
        """The bytes of one image, uint8 [bytes]. Raises BadImageError."""
        try:
            data = self.read(index)
        except OSError as error:
            raise BadImageError(f"{self.name(index)}: {error}") from error
        if not data:
            raise BadImageError(f"{self.name(index)}: the file is empty")
        return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())

    def decoded(self, index: int) -> Tensor:
        """One image as RGB, uint8 [3, H, W]. Raises BadImageError."""
        try:
            return decode_image(self.encoded(index), mode=ImageReadMode.RGB)
        except RuntimeError as error:
            if isinstance(error, BadImageError):
                raise
            raise BadImageError(f"{self.name(index)}: {one_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class Files:
    """Reads images from paths."""

    paths: list[Path]

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        return str(self.paths[index])


@dataclasses.dataclass(frozen=True)
class TableColumn:
    """Reads images from a column of a Hugging Face data set whose images are left encoded."""

    table: object
    column: str

    def read(self, index: int) -> bytes:
        entry = self.table[index][self.column]
        if entry is None:
            raise FileNotFoundError("the row has no image")
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes()

    def name(self, index: int) -> str:
        return f"row {index} of column {self.column!r}"
