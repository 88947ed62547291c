"""Reading encoded images in worker processes: chunks of a batch, packed into one buffer, bad images replaced."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from simclr_fast.data.sources import BadImageError, EncodedImages

REPLACEMENT_TRIES = 10


class DataError(RuntimeError):
    """The data cannot be trained on; the message says why."""


class Chunk(NamedTuple):
    """Some images of a batch in one buffer, which one copy moves to the device.

    bytes: uint8, the images one after the other; shapes: int64 [n, 3] (C, H, W) of decoded images, [n, 1] (bytes) of
    encoded ones; indices: int64 [n], the images as asked for; bad: a message for each image that could not be read.
    """

    bytes: Tensor
    shapes: Tensor
    indices: Tensor
    bad: dict[int, str]

    def images(self) -> list[Tensor]:
        """Views of the images in the buffer."""
        shapes = self.shapes.tolist()
        sizes = self.shapes.prod(dim=1).tolist()
        return [part.view(shape) for part, shape in zip(self.bytes.split(sizes), shapes)]


class ChunkReader(torch.utils.data.Dataset):
    """Reads chunks for a DataLoader: asked for a list of indices, gives one Chunk."""

    def __init__(self, source: EncodedImages, decode: bool):
        self.source = source
        self.load = source.decoded if decode else source.encoded

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> Chunk:
        images, bad = [], {}
        for index in indices:
            images.append(load_or_replace(self.load, index, len(self.source), bad))
        return Chunk(
            bytes=torch.cat([image.flatten() for image in images]),
            shapes=torch.tensor([image.shape for image in images]),
            indices=torch.tensor(indices),
            bad=bad,
        )


def load_or_replace(load: Callable[[int], Tensor], index: int, size: int, bad: dict[int, str]) -> Tensor:
    """Image `index`, or where it is unreadable the next readable one on a fixed walk through the data set.

    Adds a message per unreadable image to `bad`. The replacement depends on `index` alone, so that a resumed run
    sees the same images. Raises DataError after ten unreadable ones in a row.
    """
    for attempt in range(REPLACEMENT_TRIES):
        candidate = (index + attempt * 7919) % size  # a prime step: neighbours often share one broken archive
        try:
            return load(candidate)
        except BadImageError as error:
            bad[candidate] = str(error)
    raise DataError(f"{REPLACEMENT_TRIES} unreadable images in a row, the last: {error_text(bad)}")


def error_text(bad: dict[int, str]) -> str:
    """The newest message."""
    return next(reversed(bad.values()))


def decode_on_device(
    encoded: list[Tensor], indices: list[int], source: EncodedImages, device: torch.device, bad: dict[int, str]
) -> list[Tensor]:
    """Decode encoded images with torchvision's batched JPEG decoder (nvJPEG on CUDA), uint8 [3, H, W] each.

    What it refuses (PNG files, CMYK or broken JPEGs) goes through the CPU decoder, one image at a time.
    """
    try:
        return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    except RuntimeError:
        if len(encoded) == 1:
            image = load_or_replace(source.decoded, indices[0], len(source), bad)
            return [image.to(device, non_blocking=True)]
        half = len(encoded) // 2
        return [
            *decode_on_device(encoded[:half], indices[:half], source, device, bad),
            *decode_on_device(encoded[half:], indices[half:], source, device, bad),
        ]
