"""What `pack` makes of an image: its shorter side brought down to a size, as JPEG bytes or as pixels of one size."""

import dataclasses
import io

import numpy as np
import torch
from PIL import Image

from simclr_fast.data.pixels import is_jpeg
from simclr_fast.data.sources import EncodedImages, Source
from simclr_fast.data.stored import StoredImages
from simclr_fast.errors import DataError

# Antialiased. Of the views that training cuts out of the result, those after bicubic are nearer to the views of the
# original than those after bilinear, which blurs more (docs/data.md has the figures).
FILTER = Image.Resampling.BICUBIC
# Half of the colour resolution either way, as nearly all photographs on disk have: full resolution takes 1.5 times the
# bytes and the time to decode.
SUBSAMPLING = "4:2:0"
LOOKED_AT = 64  # images that are to tell whether all are of one size


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
    def of(source: Source, size: int) -> "RawForm":
        """Squares of `size`, unless all images that are looked at have one shape whose shorter side is not larger.

        Raises BadImageError where none can be read.
        """
        count = min(LOOKED_AT, len(source))
        indices = torch.linspace(0, len(source) - 1, count).long().tolist()
        shapes = {pixels_or_next(source, index).shape for index in indices}
        (shape, *others) = shapes
        if not others and min(shape[:2]) <= size:
            return RawForm(tuple(shape), square=False)
        return RawForm((size, size, shape[2]), square=True)

    def __call__(self, source: Source, index: int) -> np.ndarray:
        """The packed image, uint8 [H, W, C]. Raises BadImageError, or DataError for an image of another size."""
        image = pixels(source, index)
        if not self.square:
            if image.shape != self.shape:
                raise DataError(
                    f"{name_of(source, index)}: {_size(image.shape)}, where the images that were looked at have "
                    f"{_size(self.shape)}; pass a smaller --size, so that all are cut to squares"
                )
            return image
        side = self.shape[0]
        image = resized(image, side)
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        return np.ascontiguousarray(image[top : top + side, left : left + side])


def pixels(source: Source, index: int) -> np.ndarray:
    """An image as it is, uint8 [H, W, C]. Raises BadImageError where it cannot be read."""
    if isinstance(source, EncodedImages):
        image = source.decode(index)
    else:
        image = source.take(torch.tensor([index]))[0]
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def pixels_or_next(source: Source, index: int) -> np.ndarray:
    """As `pixels`, of another image where it cannot be read."""
    if isinstance(source, EncodedImages):
        return np.ascontiguousarray(source.decoded(index).permute(1, 2, 0).numpy())
    return pixels(source, index)


def name_of(source: Source, index: int) -> str:
    """What messages call an image."""
    return source.name(index) if isinstance(source, EncodedImages | StoredImages) else f"image {index}"


def shrunk(image: np.ndarray, size: int) -> np.ndarray:
    """An image uint8 [H, W, C] whose shorter side is at most `size`; the same object where it is."""
    return image if min(image.shape[:2]) <= size else resized(image, size)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image uint8 [H, W, C] whose shorter side is `size`, in the same proportions; C is 1 or 3."""
    height, width, channels = image.shape
    shorter = min(height, width)
    if shorter == size:
        return image
    wanted = (round(width * size / shorter), round(height * size / shorter))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize(wanted, FILTER)).reshape(wanted[1], wanted[0], channels)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
