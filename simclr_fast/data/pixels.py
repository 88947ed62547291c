"""Encoded bytes to RGB pixels: JPEG by torchvision, everything else by Pillow.

torchvision's PNG decoder ends the process on a truncated file, its GIF decoder gives every frame, and it leaves 16 bits
a channel; Pillow is as fast there and was hardened against hostile files.
"""

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

JPEG_START = [0xFF, 0xD8]  # the marker "start of image"
# By name, because Pillow would otherwise offer the bytes to all its plugins, which even start other programs.
PILLOW_FORMATS = ("PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")


def is_jpeg(encoded: Tensor) -> bool:
    """Whether bytes, uint8 [bytes], begin as JPEG does."""
    return encoded[:2].tolist() == JPEG_START


def decode_rgb(encoded: Tensor) -> Tensor:
    """The bytes of one image, uint8 [bytes], as RGB, uint8 [3, H, W]: of an animation the first frame.

    Transparency is dropped, grey is repeated, 16 bits are scaled to 8. Raises ValueError or RuntimeError for what
    cannot be decoded.
    """
    if is_jpeg(encoded):
        return decode_jpeg(encoded, mode=ImageReadMode.RGB)
    try:
        image = Image.open(io.BytesIO(encoded.numpy().tobytes()), formats=PILLOW_FORMATS)
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"Unsupported image file: no JPEG, {', '.join(PILLOW_FORMATS)} begins so") from error
    except Exception as error:  # its parsers raise whatever damaged bytes lead them into, struct.error and the like
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return torch.from_numpy(_rgb(image)).permute(2, 0, 1)


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # 16 bits of grey
        wide = np.asarray(image).astype(np.uint32)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its {image.format} pixels are 32-bit numbers ({image.mode}), whose scale to 8 bits is unknown"
        )
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of each such palette
    return np.array(image.convert("RGB"))
