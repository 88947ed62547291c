"""What `pack` makes of an image: its shorter side brought down to a size, as JPEG bytes or as pixels of one size."""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from simclr_fast.data.chunks import CHUNK, work_ahead
from simclr_fast.data.pixels import is_jpeg
from simclr_fast.data.shrink import resize
from simclr_fast.data.sources import EncodedImages, Source
from simclr_fast.data.threads import Place
from simclr_fast.data.unreadable import BadImageError, load_or_replace
from simclr_fast.errors import DataError

FILTER = Image.Resampling.BICUBIC  # as `resize` has it
# Half of the colour resolution either way, as nearly all photographs on disk have: full resolution takes 1.5 times the
# bytes and the time to decode.
SUBSAMPLING = "4:2:0"
JPEG_SIDE = 65_500  # pixels; libjpeg refuses more
LOOKED_AT = 64  # images that mostly tell, at once, that not all are of one size

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JpegForm:
    """JPEG bytes, the shorter side at most `size`. A JPEG that need not shrink keeps its bytes, unless new ones are
    fewer."""

    size: int
    quality: int

    def __call__(self, source: Source, index: int) -> bytes:
        """The packed image. Raises BadImageError where it cannot be read."""
        before = pixels(source, index)
        after = shrunk(before, self.size)
        if max(after.shape[:2]) > JPEG_SIDE:
            raise BadImageError(f"{source.name(index)}: {_size(after.shape)}, more than a side of JPEG may have")
        encoded = self.encode(after)
        if after is before and isinstance(source, EncodedImages):
            original = source.encoded(index)
            if is_jpeg(original) and len(original) <= len(encoded):
                return original.numpy().tobytes()
        return encoded

    def encode(self, image: np.ndarray) -> bytes:
        """JPEG bytes of an image uint8 [H, W, 3]."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self.quality, subsampling=SUBSAMPLING)
        return file.getvalue()


@dataclasses.dataclass(frozen=True)
class RawForm:
    """Pixels, all of one shape [H, W, C].

    square: whether they are the centre of the image once its shorter side is H = W; else all have that shape already.
    """

    shape: tuple[int, int, int]
    square: bool

    @staticmethod
    def of(sources: Sequence[Source], size: int, threads: int) -> "RawForm":
        """Squares of `size`, unless all images have one shape whose shorter side is not larger.

        Some images are looked at; where these have one small shape, all of them are, so that no other shape turns up
        when most are packed. Raises DataError where ten in a row cannot be read.
        """
        shapes = set().union(*(_some_shapes(source) for source in sources))
        channels = min(shapes)[2]
        if len(shapes) == 1 and min(min(shapes)[:2]) <= size:
            shapes = set().union(*(_all_shapes(source, threads) for source in sources)) or shapes
            if len(shapes) == 1:
                return RawForm(min(shapes), square=False)
        shorter = min(min(shape[:2]) for shape in shapes)
        if shorter < size:
            log.warning(
                "not all images have one size: they become squares of %d pixels, and smaller ones are enlarged (the "
                "shorter side of one is %d; --size %d enlarges none of those that were looked at)",
                *(size, shorter, shorter),
            )
        return RawForm((size, size, channels), square=True)

    def __call__(self, source: Source, index: int) -> np.ndarray:
        """The packed image, uint8 [H, W, C]. Raises BadImageError, or DataError for an image of another size."""
        image = pixels(source, index)
        if self.square:
            return centre(image, self.shape[0])
        if image.shape != self.shape:
            raise DataError(
                f"{source.name(index)}: {_size(image.shape)}, and all images had {_size(self.shape)} when the "
                "packing began; remove the output folder, and begin again"
            )
        return image


def _some_shapes(source: Source) -> set[tuple[int, ...]]:
    if not isinstance(source, EncodedImages):
        return {pixels(source, 0).shape}
    indices = torch.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).long().tolist()
    shapes = (load_or_replace(source.decode, index, len(source), {}).shape for index in indices)
    return {(height, width, channels) for channels, height, width in shapes}


def _all_shapes(source: Source, threads: int) -> set[tuple[int, ...]]:
    """Of all images that can be read; until there are two."""
    if not isinstance(source, EncodedImages):
        return _some_shapes(source)

    def look(indices: list[int], place: Place) -> set[tuple[int, ...]]:
        shapes = set()
        for index in indices:
            with contextlib.suppress(BadImageError):  # it is left out later, with its name
                shapes.add(pixels(source, place.enter(index)).shape)
        return shapes

    found: set[tuple[int, ...]] = set()
    pieces = (list(range(k, min(k + CHUNK, len(source)))) for k in range(0, len(source), CHUNK))
    with contextlib.closing(work_ahead(look, pieces, threads, source.name)) as looked_at:
        for shapes in tqdm(looked_at, desc="sizes", unit=" chunks", total=-(-len(source) // CHUNK)):
            found |= shapes
            if len(found) > 1:
                break
    return found


def pixels(source: Source, index: int) -> np.ndarray:
    """An image as it is, uint8 [H, W, C]. Raises BadImageError where it cannot be read."""
    return np.ascontiguousarray(source.decode(index).permute(1, 2, 0).numpy())


def shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """An image uint8 [H, W, C] in the same proportions whose shorter side is at most `size`; the same object where it
    is."""
    height, width, _ = image.shape
    shorter = min(height, width)
    if shorter <= size:
        return image
    wanted = (round(height * size / shorter), round(width * size / shorter))
    return np.ascontiguousarray(resize(torch.from_numpy(image).permute(2, 0, 1), *wanted).permute(1, 2, 0).numpy())


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The largest square in the middle of an image uint8 [H, W, C], brought to `side` pixels, uint8 [side, side, C].

    Cut before it is enlarged: of a line of 65,000 pixels, the rest would take gigabytes.
    """
    height, width, channels = image.shape
    shorter = min(height, width)
    if shorter == side:
        top, left = (height - side) // 2, (width - side) // 2
        return np.ascontiguousarray(image[top : top + side, left : left + side])
    top, left = (height - shorter) / 2, (width - shorter) / 2
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    square = picture.resize((side, side), FILTER, box=(left, top, left + shorter, top + shorter))
    return np.asarray(square).reshape(side, side, channels)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
