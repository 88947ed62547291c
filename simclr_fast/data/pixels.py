"""Encoded bytes to RGB pixels, the right way up: by torchcodec, and by Pillow what torchcodec is not fit for.

torchcodec decodes outside of Python's lock, so that threads work side by side. Of an animation it decodes every frame,
however many they are; Pillow stops after the first. It has no decoder for BMP, TIFF and PPM.
"""

import contextlib
import functools
import io
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from simclr_fast.errors import ConfigError, first_line

JPEG_START = b"\xff\xd8"  # the marker "start of image"
PNG_START = b"\x89PNG\r\n\x1a\n"
# By name, because Pillow would otherwise offer the bytes to all its plugins, which even start other programs.
PILLOW_FORMATS = ("GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM")
HEAD = 64  # bytes that tell the format
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx")  # what phones write begins with one of them, after "ftyp"
HEIC_REMEDY = "needs the package 'pillow-heif' (pip install pillow-heif), or to be converted to JPEG"
# What Pillow refuses, too: a file of 30 kB can hold as many, and every thread might meet one.
MOST_PIXELS = 2 * 178_956_970


@functools.cache
def torchcodec_decoders() -> ModuleType:
    """torchcodec.decoders, imported when the first image file is at hand. Raises ConfigError where it is missing.

    Training on arrays does without, as it does on machines that have no torchcodec.
    """
    try:
        from torchcodec import decoders
    except ImportError as error:
        raise ConfigError("image files need the package 'torchcodec'; pip install 'torchcodec>=0.17'") from error
    except (OSError, RuntimeError) as error:  # its library does not load: it was built for another torch
        reason = first_line(error)
        raise ConfigError(f"image files need torchcodec, which does not load beside this torch ({reason})") from error
    return decoders


@functools.cache
def reads_heic() -> bool:
    """Whether Pillow reads HEIC here, which it does by the package pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def is_jpeg(encoded: Tensor) -> bool:
    """Whether bytes, uint8 [bytes], begin as JPEG does."""
    return encoded[:2].numpy().tobytes() == JPEG_START


def decode_rgb(encoded: Tensor) -> Tensor:
    """The bytes of one image, uint8 [bytes], as RGB, uint8 [3, H, W]: of an animation the first frame.

    Turned as its Exif orientation says. Transparency is dropped, grey is repeated, 16 bits are scaled to 8. The memory
    is that of [H, W, 3] for most images. Raises ValueError or RuntimeError for what cannot be decoded.
    """
    head = encoded[:HEAD].numpy().tobytes()
    if head.startswith(JPEG_START):
        return torchcodec_decoders().decode_jpeg(encoded, mode="RGB")
    if head.startswith(PNG_START):
        width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        if width * height > MOST_PIXELS:
            raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS}")
        return torchcodec_decoders().decode_png(encoded, mode="RGB")
    animated = head[12:16] == b"VP8X" and int.from_bytes(head[20:21], "big") & 2  # a flag of the extended format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and not animated:
        return torchcodec_decoders().decode_webp(encoded, mode="RGB")
    if head[4:12] == b"ftypavif" and b"avis" not in head:  # the brand of sequences
        return torchcodec_decoders().decode_avif(encoded, mode="RGB")
    if head[4:8] == b"ftyp" and any(brand in head for brand in HEIC_BRANDS):
        if not reads_heic():
            raise ValueError(f"HEIC, which {HEIC_REMEDY}")
        return _by_pillow(encoded, ("HEIF",))
    return _by_pillow(encoded)


def _by_pillow(encoded: Tensor, formats: tuple[str, ...] = PILLOW_FORMATS) -> Tensor:
    try:
        image = Image.open(io.BytesIO(encoded.numpy().tobytes()), formats=formats)
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"Unsupported image file: no JPEG, PNG, {', '.join(formats)} begins so") from error
    except Exception as error:  # its parsers raise whatever damaged bytes lead them into, struct.error and the like
        raise ValueError(f"{type(error).__name__}: {error}") from error
    # Damaged Exif turns nothing, as with torchcodec: its parser, too, raises whatever the bytes lead it into.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return torch.from_numpy(_rgb(image)).permute(2, 0, 1)


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # 16 bits of grey
        wide = np.asarray(image).astype(np.uint32)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its {image.format} pixels are 32-bit numbers ({image.mode}), whose scale to 8 bits is unknown"
        )
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of each such palette
    return np.array(image.convert("RGB"))
