"""Decoding images: in worker processes, chunks of a batch packed into one buffer, or on the training device."""

import io
import logging
import os
import re
import weakref
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from simclr_fast.data.pixels import is_jpeg, torchcodec_decoders
from simclr_fast.data.sources import EncodedImages, one_line
from simclr_fast.data.unreadable import load_or_replace
from simclr_fast.errors import ConfigError, DataError

log = logging.getLogger(__name__)


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
    """Reads chunks for a DataLoader of so many worker processes: asked for a list of indices, gives one Chunk."""

    def __init__(self, source: EncodedImages, decode: bool, workers: int = 0):
        self.source = source
        self.load = source.decode if decode else source.encoded
        # What each worker is at, its process and the image, in memory that outlives a worker that a decoder ends.
        self.at = torch.full((workers, 2), -1).share_memory_()
        _READERS.add(self)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> Chunk:
        images, bad = [], {}
        for index in indices:
            images.append(load_or_replace(self._load, index, len(self.source), bad, self.source.labels))
        self._note(-1)
        return Chunk(
            bytes=torch.cat([image.flatten() for image in images]),
            shapes=torch.tensor([image.shape for image in images]),
            indices=torch.tensor(indices),
            bad=bad,
        )

    def _load(self, index: int) -> Tensor:
        self._note(index)
        return self.load(index)

    def _note(self, index: int) -> None:
        if (worker := torch.utils.data.get_worker_info()) is not None:
            self.at[worker.id] = torch.tensor([os.getpid(), index])


_READERS: weakref.WeakSet[ChunkReader] = weakref.WeakSet()


def data_error(error: RuntimeError) -> DataError | None:
    """The error as one of the data in one line, where it is one; else None.

    That includes torch's error about a worker process that ended, which then names the image it was at: torch raises it
    wherever the main process happens to be, so that no loader can catch it.
    """
    text = str(error)
    if isinstance(error, DataError):  # raised in a worker, it comes with the lines of that traceback before its own
        return DataError(text.split("DataError: ")[-1].splitlines()[0])
    if not text.startswith("DataLoader worker"):
        return None
    ended = {int(number) for number in re.findall(r"\d+", text.splitlines()[0])}
    names = [
        reader.source.name(index)
        for reader in list(_READERS)
        for process, index in reader.at.tolist()
        if process in ended and index >= 0
    ]
    where = ", ".join(names) or "between two images"
    return DataError(f"a process of --workers ended while it read: {where} ({one_line(error)})")


class DeviceDecoder:
    """Decodes JPEGs by torchcodec's batched decoder, which is nvJPEG on CUDA.

    What is no JPEG, and what that decoder refuses (CMYK, broken files), goes through the CPU decoder one image at a
    time; `on_cpu` counts these images, and the first one for each reason is logged. A decoder that decodes
    nothing at all is an error: ConfigError at the start, DataError in the middle of a run.
    """

    def __init__(self, source: EncodedImages, device: torch.device):
        self.source, self.device = source, device
        self.on_cpu = 0
        self._told: set[str] = set()
        self._known_good = _gray_jpeg()
        failure = self._failure()
        if failure is not None:
            raise ConfigError(f"--decode-device {device.type}: it decodes no JPEG here ({failure}); use cpu")

    def decode(self, encoded: list[Tensor], indices: list[int], bad: dict[int, str]) -> list[Tensor]:
        """Encoded images, uint8 [bytes] each, as RGB on the device, uint8 [3, H, W] each.

        `indices` names them in the data set. Adds a message per unreadable image to `bad`, and puts another in its
        place, as `load_or_replace` does.
        """
        images: list[Tensor | None] = [None] * len(encoded)
        jpegs = []
        for place, data in enumerate(encoded):
            if is_jpeg(data):
                jpegs.append(place)
            else:
                images[place] = self._by_cpu(indices[place], "is no JPEG", bad)
        self._decode_jpegs(jpegs, encoded, indices, images, bad)
        return images

    def _decode_jpegs(
        self,
        places: list[int],
        encoded: list[Tensor],
        indices: list[int],
        images: list[Tensor | None],
        bad: dict[int, str],
    ) -> None:
        """Fills `images` at these places. One refusal fails a whole call, hence the halving to find whose it is."""
        if not places:
            return
        try:
            decoded = self._by_batch([encoded[p] for p in places])
        except RuntimeError as error:
            if len(places) > 1:
                half = len(places) // 2
                self._decode_jpegs(places[:half], encoded, indices, images, bad)
                self._decode_jpegs(places[half:], encoded, indices, images, bad)
                return
            if (failure := self._failure()) is not None:
                raise DataError(
                    f"--decode-device {self.device.type}: it decodes no JPEG any more ({failure})"
                ) from error
            (place,) = places
            images[place] = self._by_cpu(indices[place], f"is refused by the GPU's decoder ({one_line(error)})", bad)
        else:
            for place, image in zip(places, decoded):
                images[place] = image

    def _by_batch(self, encoded: list[Tensor]) -> list[Tensor]:
        return torchcodec_decoders().decode_jpeg(encoded, mode="RGB", device=self.device)

    def _by_cpu(self, index: int, why: str, bad: dict[int, str]) -> Tensor:
        self.on_cpu += 1
        if why not in self._told:
            self._told.add(why)
            log.warning("%s %s: decoded on the CPU, as are others like it", self.source.name(index), why)
        image = load_or_replace(self.source.decode, index, len(self.source), bad, self.source.labels)
        return image.to(self.device, non_blocking=True)

    def _failure(self) -> str | None:
        """What the decoder says of a picture that it must be able to decode; None where it does."""
        try:
            self._by_batch([self._known_good])[0].cpu()
        except RuntimeError as error:
            return one_line(error)
        return None


def _gray_jpeg() -> Tensor:
    """A JPEG that every decoder knows, uint8 [bytes]."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (128, 128, 128)).save(file, "JPEG")
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
