"""Decoding, against what Pillow wrote: every format, 16 bits, animations, and bytes that are damaged or hostile."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simclr_fast.data import EncodedImages
from simclr_fast.data.pixels import decode_rgb
from simclr_fast.data.unreadable import BadImageError
from tests.data.conftest import pixels

RGB = pixels(1, 5, 7, 3)[0]
DEEP = np.random.default_rng(1).integers(0, 65536, (5, 7), dtype=np.uint16)


def encoded(image: Image.Image, kind: str, **options) -> Tensor:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def png(width: int, height: int, bits: int, color: int, rows: bytes, interlaced: int = 0) -> bytes:
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def as_array(image: Tensor) -> np.ndarray:
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
    ],
)
def test_formats_without_loss(kind: str, options: dict) -> None:
    np.testing.assert_array_equal(as_array(decode_rgb(encoded(Image.fromarray(RGB), kind, **options))), RGB)


def test_jpeg_is_close() -> None:
    smooth = np.tile(np.arange(0, 160, 10, dtype=np.uint8), (16, 1))
    image = as_array(decode_rgb(encoded(Image.fromarray(smooth), "JPEG", quality=95)))
    assert np.abs(image.astype(int) - smooth[..., None]).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_of_gray_are_scaled(kind: str) -> None:
    image = as_array(decode_rgb(encoded(Image.fromarray(DEEP), kind)))
    np.testing.assert_array_equal(image, np.repeat(np.round(DEEP / 257)[..., None], 3, axis=2))


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_of_color_keep_their_high_byte(color: int, channels: int) -> None:
    value = [0x1234, 0x8000, 0xFF00, 0x7777][:channels]
    rows = (b"\0" + struct.pack(f">{channels}H", *value) * 4) * 3
    image = as_array(decode_rgb(torch.frombuffer(bytearray(png(4, 3, 16, color, rows)), dtype=torch.uint8)))
    expected = [0x12] * 3 if channels == 2 else [0x12, 0x80, 0xFF]
    np.testing.assert_array_equal(image, np.broadcast_to(np.uint8(expected), (3, 4, 3)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_is_taken(kind: str) -> None:
    frames = [Image.new("L", (6, 4), level) for level in (200, 0, 90)]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_rgb(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert torch.equal(image, torch.full((3, 4, 6), 200, dtype=torch.uint8))


def test_transparency_is_dropped(recwarn: pytest.WarningsRecorder) -> None:
    color = np.broadcast_to(np.uint8([10, 20, 30, 128]), (3, 4, 4))
    assert decode_rgb(encoded(Image.fromarray(color), "PNG"))[:, 0, 0].tolist() == [10, 20, 30]
    palette = Image.fromarray(RGB).convert("P")
    drawn = decode_rgb(encoded(palette, "PNG", transparency=bytes(range(256))))
    np.testing.assert_array_equal(as_array(drawn), np.asarray(palette.convert("RGB")))
    assert not [warning for warning in recwarn if "ransparency" in str(warning.message)]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bits_have_no_scale(kind: type) -> None:
    with pytest.raises(ValueError, match="TIFF pixels are 32-bit numbers"):
        decode_rgb(encoded(Image.fromarray(DEEP.astype(kind)), "TIFF"))


HOSTILE = {
    "truncated": png(28, 28, 8, 2, b"\0" * 10),
    "interlaced": png(28, 28, 8, 2, b"\0" * 10, interlaced=1),
    "filter": png(9, 4, 1, 0, b"\0\xaa\xaa" * 40, interlaced=1),
    "wide": png(999_999, 1, 8, 2, b"\0" * 10),
    "large": png(60_000, 60_000, 8, 2, b"\0" * 10),
    "largest": png(2**31 - 1, 2**31 - 1, 8, 2, b"\0" * 10),
    "empty": png(0, 0, 8, 2, b""),
    "foreign": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "jpeg": b"\xff\xd8\xff\xe0 no more",
    "half a gif": b"GIF89a\x05\x00",
}


class Refusals(torch.utils.data.Dataset):
    """What is said of each of them."""

    def __len__(self) -> int:
        return len(HOSTILE)

    def __getitem__(self, place: int) -> str:
        source = EncodedImages(len(HOSTILE), list(HOSTILE.values()).__getitem__, list(HOSTILE).__getitem__)
        with pytest.raises(BadImageError) as raised:
            source.decode(place)
        return str(raised.value)


def test_hostile_bytes_are_bad_images_and_end_no_process() -> None:
    """In a process of its own: torchvision's decoder ends it by a segmentation fault for five of these."""
    said = list(torch.utils.data.DataLoader(Refusals(), batch_size=None, num_workers=1))
    assert [message.split(": ")[0] for message in said] == list(HOSTILE)
    assert "Unsupported image file: no JPEG, PNG, GIF" in said[list(HOSTILE).index("foreign")]
