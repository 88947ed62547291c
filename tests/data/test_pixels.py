"""Decoding, against what Pillow wrote: formats, 16 bits, animations, orientations, damaged and hostile bytes."""

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simclr_fast.config import DataOptions
from simclr_fast.data import EncodedImages, load_dataset
from simclr_fast.data.decode import DeviceDecoder
from simclr_fast.data.image_files import suffixes
from simclr_fast.data.pixels import decode_rgb, reads_heic, torchcodec_decoders
from simclr_fast.data.unreadable import BadImageError
from simclr_fast.errors import ConfigError
from tests.data.conftest import pixels
from tests.data.mixed_photos import HEIC

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
def test_16_bits_of_color_are_scaled(color: int, channels: int) -> None:
    value = [0x1234, 0x8000, 0xFF00, 0x7777][:channels]
    rows = (b"\0" + struct.pack(f">{channels}H", *value) * 4) * 3
    image = as_array(decode_rgb(torch.frombuffer(bytearray(png(4, 3, 16, color, rows)), dtype=torch.uint8)))
    expected = [0x12] * 3 if channels == 2 else [0x12, 0x80, 0xFE]
    np.testing.assert_array_equal(image, np.broadcast_to(np.uint8(expected), (3, 4, 3)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "PNG", "TIFF"])
def test_the_first_frame_of_several_is_taken(kind: str) -> None:
    frames = [Image.new("L", (6, 4), level) for level in (200, 0, 90)]
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    image = decode_rgb(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert torch.equal(image, torch.full((3, 4, 6), 200, dtype=torch.uint8))


@pytest.mark.parametrize(("kind", "frames"), [("WEBP", 1), ("WEBP", 2), ("JPEG", 1), ("PNG", 1)])
def test_damaged_exif_turns_nothing(kind: str, frames: int) -> None:
    image = Image.fromarray(RGB)
    several = {"save_all": True, "append_images": [image] * (frames - 1)} if kind == "WEBP" else {}
    damaged = encoded(image, kind, exif=b"Exif\0\0garbage!garbage!", **several)
    assert torch.equal(decode_rgb(damaged), decode_rgb(encoded(image, kind, **several)))


def test_transparency_is_dropped(recwarn: pytest.WarningsRecorder) -> None:
    color = np.broadcast_to(np.uint8([10, 20, 30, 128]), (3, 4, 4))
    assert decode_rgb(encoded(Image.fromarray(color), "PNG"))[:, 0, 0].tolist() == [10, 20, 30]
    palette = Image.fromarray(RGB).convert("P")
    drawn = decode_rgb(encoded(palette, "PNG", transparency=bytes(range(256))))
    np.testing.assert_array_equal(as_array(drawn), np.asarray(palette.convert("RGB")))
    assert not [warning for warning in recwarn if "ransparency" in str(warning.message)]


# What the value of the Exif tag says of the stored pixels: how to turn them to see them the right way up.
TURNS = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: np.rot90,
}
QUALITY = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def turned(kind: str, orientation: int) -> Tensor:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(Image.fromarray(RGB), kind, exif=exif, **QUALITY[kind])


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", QUALITY)
def test_images_are_turned_the_right_way_up(kind: str, orientation: int) -> None:
    expected = TURNS[orientation](RGB).astype(int)
    image = as_array(decode_rgb(turned(kind, orientation)))
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= (3 if kind in ("JPEG", "AVIF") else 0)


def test_the_batched_decoder_turns_images_too() -> None:
    jpegs = [turned("JPEG", orientation) for orientation in TURNS]
    source = EncodedImages(len(jpegs), lambda index: jpegs[index].numpy().tobytes(), str)
    decoder = DeviceDecoder(source, torch.device("cpu"))
    for image, jpeg in zip(decoder.decode(jpegs, list(range(len(jpegs))), {}), jpegs):
        assert torch.equal(image, decode_rgb(jpeg))
    assert decoder.on_cpu == 0


# The modes that Pillow writes into a file of the format, as they are.
MODES = {
    "PNG": ("L", "LA", "P", "1", "RGBA"),
    "WEBP": ("L", "LA", "RGBA"),
    "TIFF": ("L", "LA", "P", "1", "RGBA", "CMYK"),
    "GIF": ("L", "P", "1"),
    "JPEG": ("L", "CMYK"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_modes_are_those_of_pillow(kind: str, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    data = encoded(image, kind, **({"quality": 100} if kind == "JPEG" else {}))
    expected = Image.open(io.BytesIO(data.numpy().tobytes())).convert("RGB")
    np.testing.assert_array_equal(as_array(decode_rgb(data)), np.asarray(expected))


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
    "bomb": png(20_000, 20_000, 8, 2, b"\0" * 10),
    "largest": png(2**31 - 1, 2**31 - 1, 8, 2, b"\0" * 10),
    "empty": png(0, 0, 8, 2, b""),
    "foreign": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "jpeg": b"\xff\xd8\xff\xe0 no more",
    "half a gif": b"GIF89a\x05\x00",
}


def test_hostile_bytes_are_bad_images_and_end_no_process() -> None:
    source = EncodedImages(len(HOSTILE), list(HOSTILE.values()).__getitem__, list(HOSTILE).__getitem__)
    said = []
    for place in range(len(HOSTILE)):
        with pytest.raises(BadImageError) as raised:
            source.decode(place)
        said.append(str(raised.value))
    assert [message.split(": ")[0] for message in said] == list(HOSTILE)
    assert "Unsupported image file: no JPEG, PNG, GIF" in said[list(HOSTILE).index("foreign")]
    assert "bomb: 20000 x 20000 pixels, more than 357913940" in said


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what Pillow finds in damaged TIFFs
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_what_is_cut_off_or_changed_raises_or_decodes(kind: str) -> None:
    """No file ends the process; half of a JPEG or a PNG is no image."""
    picture = Image.fromarray(pixels(1, 20, 25, 3)[0])
    whole = bytes(encoded(picture, kind).tolist())
    if kind in ("JPEG", "PNG"):
        for size in (len(whole) // 2, len(whole) - 20):
            with pytest.raises((RuntimeError, ValueError)):
                decode_rgb(torch.frombuffer(bytearray(whole[:size]), dtype=torch.uint8))
    draw, refused = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole[: draw.randrange(1, len(whole))] if draw.random() < 0.5 else whole)
        for _ in range(draw.randrange(6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            image = decode_rgb(torch.frombuffer(damaged, dtype=torch.uint8))
        except (RuntimeError, ValueError):
            refused += 1
        else:
            assert image.shape[0] == 3
            assert image.dtype == torch.uint8
    assert 0 < refused < 200


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what Pillow finds in damaged TIFFs
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_no_beginning_of_a_file_is_an_image(kind: str) -> None:
    animated = {"save_all": True, "append_images": [Image.fromarray(RGB)]} if kind == "WEBP" else {}
    whole = bytes(encoded(Image.fromarray(RGB), kind, **animated).tolist())
    for size in range(1, 40):
        with pytest.raises((RuntimeError, ValueError)):
            decode_rgb(torch.frombuffer(bytearray(whole[:size]), dtype=torch.uint8))


def test_a_missing_torchcodec_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "1.png")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    torchcodec_decoders.cache_clear()
    with pytest.raises(ConfigError, match="^image files need the package 'torchcodec'; pip install"):
        load_dataset(DataOptions(dataset="imagefolder", data=tmp_path))
    monkeypatch.undo()
    assert len(load_dataset(DataOptions(dataset="imagefolder", data=tmp_path)).train) == 1


def test_the_loss_and_the_data_sets_in_memory_do_without_it() -> None:
    program = "import sys, simclr_fast, simclr_fast.data; assert 'torchcodec' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_heic_is_read_by_pillow_heif() -> None:
    image = decode_rgb(torch.frombuffer(bytearray(HEIC), dtype=torch.uint8)).float()
    assert image.shape == (3, 48, 64)
    assert image[0, :, 60].mean() - image[0, :, 3].mean() > 200
    assert image[1, :20].mean() - image[1, 28:].mean() > 150


def test_without_pillow_heif_heic_is_named_with_the_remedy(tmp_path: Path, monkeypatch, caplog) -> None:
    """Also where it has the suffix of a JPEG, as some programs copy it from phones."""
    Image.fromarray(RGB).save(tmp_path / "1.png")
    for name in ("phone.HEIC", "phone.jpg"):
        (tmp_path / name).write_bytes(HEIC)
    assert len(load_dataset(DataOptions(data=tmp_path)).train) == 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for cached in (reads_heic, suffixes):
        cached.cache_clear()
    data = load_dataset(DataOptions(data=tmp_path))
    assert len(data.train) == 2
    remedy = "needs the package 'pillow-heif' (pip install pillow-heif), or to be converted to JPEG"
    assert data.ignored == ((str(tmp_path / "phone.HEIC"), f".HEIC, which {remedy}"),)
    assert f"ignored 1 (1 .HEIC, which {remedy}: phone.HEIC)" in caplog.text
    with pytest.raises(BadImageError, match="phone.jpg: HEIC, which needs the package 'pillow-heif'"):
        data.train.decode(1)
    monkeypatch.undo()
    for cached in (reads_heic, suffixes):
        cached.cache_clear()
