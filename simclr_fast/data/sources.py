"""Where images come from: one uint8 array in memory, or encoded files that are decoded when they are asked for."""

import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_fast.data.ignored import IgnoredFile
from simclr_fast.data.messages import Ignored
from simclr_fast.data.pixels import decode_rgb
from simclr_fast.data.shrink import shrink
from simclr_fast.data.stored import StoredImages
from simclr_fast.data.unreadable import BadImageError, BadImages, NoneReadableError, allowance, load_or_replace
from simclr_fast.errors import first_line

DECODE_THREADS = 16
CPU = torch.device("cpu")


def one_line(error: Exception) -> str:
    """What went wrong, without torchcodec's source line and torch's stack."""
    return re.sub(r"^.*\.cpp:\d+, ", "", first_line(error))


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

    def read(self, index: int) -> bytes:
        """The bytes of one image, as its tensor holds them."""
        return self.images[index].cpu().numpy().tobytes()

    def name(self, index: int) -> str:
        """What messages call an image."""
        return f"image {index}"

    def identity(self, index: int) -> str:
        """What tells an image from others."""
        return f"CRC-32 {zlib.crc32(self.read(index))}"

    def decode(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W] on the CPU."""
        return self.images[index].to(CPU)

    def take(self, indices: Tensor, device: torch.device = CPU) -> Tensor:
        """The images at indices int64 [n], uint8 [n, C, H, W] on the device."""
        return self.images[indices].to(device)

    def subset(self, indices: Tensor) -> "ImageArrays":
        """The images at indices int64 [n] with their labels."""
        return ImageArrays(self.images[indices], None if self.labels is None else self.labels[indices])


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Images of any sizes as JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or PPM bytes.

    read(i) gives the bytes of image i, name(i) what a message calls it, no two images the same; threads call both, side
    by side. bad: the unreadable ones that were met, and how many there may be; by default none. shrink_to: the side
    that larger ones are brought down to as `shrink` does; 0 leaves them as they are.
    """

    size: int
    read: Callable[[int], bytes | bytearray]
    name: Callable[[int], str]
    labels: Tensor | None = None
    channels: int = 3
    bad: BadImages = dataclasses.field(default_factory=BadImages)
    identity: Callable[[int], str] | None = None
    file: Callable[[int], str | None] | None = None
    shrink_to: int = 0

    def __len__(self) -> int:
        return self.size

    def encoded(self, index: int) -> Tensor:
        """The bytes of one image, uint8 [bytes]. Raises BadImageError."""
        try:
            data = self.read(index)
        except OSError as error:
            raise BadImageError(f"{self.name(index)}: {error.strerror or error}") from error
        if not data:
            raise BadImageError(f"{self.name(index)}: the file is empty")
        array = np.frombuffer(data, dtype=np.uint8)
        return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch has no read-only tensors

    def decode(self, index: int) -> Tensor:
        """One image as RGB, uint8 [3, H, W]. Raises BadImageError."""
        encoded = self.encoded(index)
        try:
            return shrink(decode_rgb(encoded), self.shrink_to)
        except (RuntimeError, ValueError) as error:
            raise BadImageError(f"{self.name(index)}: {one_line(error)}") from error

    def decoded(self, index: int) -> Tensor:
        """One image as RGB, uint8 [3, H, W], or where it is unreadable the one that training sees in its place.

        Counts and logs what is unreadable. Raises DataError where that is more than may be.
        """
        bad: dict[int, str] = {}
        with self.noting_unreadable():
            image = load_or_replace(self.decode, index, self.size, bad, self.labels)
        self.note(bad)
        return image

    def note(self, bad: dict[int, str], are_replaced: bool = True) -> None:
        """Count messages by image number. Raises DataError where there are more than may be."""
        self.bad.note({self.name(index): message for index, message in bad.items()}, are_replaced)

    @contextmanager
    def noting_unreadable(self) -> Iterator[None]:
        """Counts and names what could not be read where reading ends for want of a replacement."""
        try:
            yield
        except NoneReadableError as error:
            self.note(error.bad, are_replaced=False)
            raise

    def take(self, indices: Tensor, device: torch.device = CPU) -> list[Tensor]:
        """The images at indices int64 [n] as `decoded` gives them, each uint8 [3, H, W] on the device.

        All of them lie in memory at once. Raises DataError as `decoded` does.
        """
        with ThreadPoolExecutor(DECODE_THREADS) as pool:  # decoding releases the interpreter's lock
            return [image.to(device) for image in pool.map(self.decoded, indices.tolist())]

    def subset(self, indices: Tensor) -> "EncodedImages":
        """The images at indices int64 [n] with their labels; what is unreadable counts for the whole."""
        return dataclasses.replace(
            self,
            size=len(indices),
            read=lambda index: self.read(int(indices[index])),
            name=lambda index: self.name(int(indices[index])),
            identity=None if self.identity is None else lambda index: self.identity(int(indices[index])),
            file=None if self.file is None else lambda index: self.file(int(indices[index])),
            labels=None if self.labels is None else self.labels[indices],
        )


Source = ImageArrays | EncodedImages | StoredImages


def shrunk_to(source: Source, side: int) -> Source:
    """The source whose images are brought down to a side as they are decoded; arrays stay as they are."""
    return dataclasses.replace(source, shrink_to=side) if isinstance(source, EncodedImages) else source


@dataclasses.dataclass(frozen=True)
class Dataset:
    """train is what SimCLR sees. labelled (part of the training images with labels) and test serve evaluation only.

    classes: names by class number, the same for labelled and test; None where nothing is labelled. codes: int64
    [len(train)], the class of each training image, -1 where it has none; None where they are train.labels, if any.
    ignored: (name, reason) of all that lies in the data set and is neither trained nor evaluated on.
    """

    train: Source
    labelled: Source | None = None
    test: Source | None = None
    classes: tuple[str, ...] | None = None
    codes: Tensor | None = None
    ignored: tuple[Ignored, ...] = ()

    def list_ignored(self, folder: Path) -> None:
        """List in a run's folder what is ignored, and from now on what turns out to be unreadable. Raises OSError."""
        file = IgnoredFile(folder)
        file.add(self.ignored)
        for source in (self.train, self.labelled, self.test):
            if isinstance(source, EncodedImages):
                source.bad.list_in(file)


class Files:
    """Reads images from paths below a folder.

    The paths lie in one array, which takes less than half of the memory of as many strings.
    """

    def __init__(self, root: str | Path, names: list[str]):
        encoded = [os.fsencode(name) for name in names]
        self.root = str(root)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.characters = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def images(self, max_bad_images: float = 0.0) -> EncodedImages:
        """The images in the files, of which so large a share may be unreadable."""
        bad = BadImages(allowance(max_bad_images, len(self.ends)))
        return EncodedImages(len(self.ends), self.read, self.name, bad=bad, identity=self.identity, file=self.name)

    def read(self, index: int) -> bytes:
        with open(self.name(index), "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        return os.path.join(self.root, self._relative(index))

    def identity(self, index: int) -> str:
        """The path below the folder, the size and the time of change; -1 where the file cannot be looked at."""
        try:
            status = os.stat(self.name(index))
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:
            size = changed = -1
        return f"{self._relative(index)}, {size} bytes, changed {changed}"

    def _relative(self, index: int) -> str:
        begin = self.ends[index - 1] if index else 0
        return os.fsdecode(self.characters[begin : self.ends[index]].tobytes())


class TableColumn:
    """Reads images from a column of a Hugging Face data set whose images are left encoded.

    folders: below which files may lie that rows name instead of holding an image: what was downloaded must not have
    other files of this machine read. title: what messages call the table.
    """

    def __init__(self, table: Any, column: str, folders: Sequence[Path], title: str = ""):
        self.table, self.column, self.title = table, column, title
        self.folders = [os.path.abspath(folder) for folder in folders]

    def read(self, index: int) -> bytes:
        """The bytes of one image. Raises OSError."""
        try:
            entry = self.table[index][self.column]
        except (ValueError, LookupError) as error:  # of a damaged file
            raise OSError(one_line(error)) from error
        if entry is None or (entry["bytes"] is None and entry["path"] is None):
            raise FileNotFoundError("the row has no image")
        return entry["bytes"] if entry["bytes"] is not None else self._file(entry["path"])

    def _file(self, name: str) -> bytes:
        path = os.path.abspath(os.path.join(self.folders[0], name))
        if not any(path.startswith(f"{folder.rstrip(os.sep)}{os.sep}") for folder in self.folders):
            raise PermissionError(
                f"the row names a file outside {self.folders[0]} ({name}), which is not read; a set that "
                "`datasets` saves by save_to_disk holds its images itself"
            )
        if not os.path.isfile(path):
            raise FileNotFoundError(f"the row names {name}, and there is no such file")
        return Path(path).read_bytes()

    def identity(self, index: int) -> str:
        """The row, and the fingerprint that `datasets` gives the table, another one for other rows or another order."""
        return f"{self.table._fingerprint}, row {index}"

    def name(self, index: int) -> str:
        return f"{self.title}row {index} of column {self.column!r}"

    def file(self, index: int) -> str | None:
        """The path that the row holds beside its image, if any."""
        return self._paths[index]

    @functools.cached_property
    def _paths(self) -> list[str | None]:
        path = f"{self.column}.path"
        return self.table.flatten().select_columns([path])[path][:]  # alone: the images would take all memory
