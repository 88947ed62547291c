"""A flat folder of photos as people have them: every format and oddity, small, with what is to become of each file."""

import base64
import dataclasses
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.conftest import pixels

# 48 x 64 pixels, red rising to the right, the upper half green too; written by pillow-heif.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABoQABAAAAAAAAADsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADd"
    "aXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAENtZGF0AAAA"
    "NygBrwtg+tL8nHxZHZvCn4x4JYnYq/tLE/phK7Le6mQWkXyTA83JUHPryB5Ka/mcOH4MOyAaL7Q="
)


@dataclasses.dataclass(frozen=True)
class MixedPhotos:
    """What lies in the folder, by name.

    images: what can be read; unreadable: files with an image's suffix that cannot, with words of the decoder's reason;
    ignored: all others, with words of the reason.
    """

    root: Path
    images: tuple[str, ...]
    unreadable: dict[str, str]
    ignored: dict[str, str]


def mixed_photos(root: Path, count: int = 300) -> MixedPhotos:
    """Write `count` files with an image's suffix into a folder that is made, three of them unreadable, and others."""
    root.mkdir(parents=True)
    images = _images()
    endings = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"), ("bmp", "BMP"), ("JPG", "JPEG"))
    whole = images["rgb.jpg"]
    unreadable = {
        "cut off.jpg": (whole[: len(whole) // 2], "incomplete or truncated"),
        "empty.png": (b"", "the file is empty"),
        "float.tiff": (_saved(Image.fromarray(np.ones((8, 9), np.float32)), "TIFF"), "32-bit numbers"),
    }
    for number in range(count - len(images) - len(unreadable)):
        ending, kind = endings[number % len(endings)]
        images[f"IMG_{number:04d}.{ending}"] = _saved(_photo(24 + number % 9, 32 - number % 7, number), kind)
    for name, content in (images | {name: content for name, (content, _) in unreadable.items()}).items():
        (root / name).write_bytes(content)
    for name in ("notes.txt", "clip.mp4", "README", ".DS_Store", ".hidden.jpg"):
        (root / name).write_bytes(b"not looked at")
    (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "loop").symlink_to(root)
    ignored = {
        "notes.txt": "no image (.txt)",
        "clip.mp4": "no image (.mp4)",
        "README": "no image (no suffix)",
        ".DS_Store": "hidden",
        ".hidden.jpg": "hidden",
        "gone.jpg": "link to nothing",
        "loop": "link to a folder around it",
    }
    return MixedPhotos(root, tuple(images), {name: reason for name, (_, reason) in unreadable.items()}, ignored)


def _images() -> dict[str, bytes]:
    """One image of each kind, and one of each odd name."""
    photo = _photo(24, 32, 1)
    gray, turned = photo.convert("L"), Image.Exif()
    turned[0x112] = 6
    palette = photo.convert("P")
    deep = np.linspace(0, 65535, 20 * 30, dtype=np.uint16).reshape(20, 30)
    others = [_photo(24, 32, seed) for seed in (2, 3)]
    several = {"save_all": True, "append_images": others}
    made = {
        "rgb.jpg": _saved(photo, "JPEG", quality=95),
        "gray.jpeg": _saved(gray, "JPEG"),
        "cmyk.jpg": _saved(photo.convert("CMYK"), "JPEG"),
        "turned.jpg": _saved(photo, "JPEG", exif=turned),
        "palette.png": _saved(palette, "PNG"),
        "transparent palette.png": _saved(palette, "PNG", transparency=bytes(range(256))),
        "alpha.png": _saved(photo.convert("RGBA"), "PNG"),
        "gray alpha.png": _saved(photo.convert("LA"), "PNG"),
        "one bit.png": _saved(photo.convert("1"), "PNG"),
        "16 bits gray.png": _saved(Image.fromarray(deep), "PNG"),
        "16 bits color.png": _deep_png(deep),
        "8 bits.tif": _saved(photo, "TIFF"),
        "16 bits gray.tiff": _saved(Image.fromarray(deep), "TIFF"),
        "16 bits color.tif": tiff(np.stack([deep, deep[::-1], deep[:, ::-1]], axis=-1)),
        "lzw.tif": _saved(photo, "TIFF", compression="tiff_lzw"),
        "16 bits lzw.tif": _saved(Image.fromarray(deep), "TIFF", compression="tiff_lzw"),
        "tiled.tif": tiff(np.asarray(photo), tile=16),
        "tiled lzw.tif": tiff(np.asarray(photo), tile=16, lzw=True),
        "pages.tif": _saved(photo, "TIFF", **several),
        "cmyk.tif": _saved(photo.convert("CMYK"), "TIFF"),
        "color.bmp": _saved(photo, "BMP"),
        "palette.bmp": _saved(palette, "BMP"),
        "one bit.bmp": _saved(photo.convert("1"), "BMP"),
        "lossy.webp": _saved(photo, "WEBP"),
        "lossless.webp": _saved(photo, "WEBP", lossless=True),
        "animated.webp": _saved(photo, "WEBP", **several),
        "animated.gif": _saved(photo, "GIF", **several),
        "color.ppm": _saved(photo, "PPM"),
        "new.avif": _saved(photo, "AVIF"),
        "phone.HEIC": HEIC,
        "one pixel.png": _saved(_photo(1, 1, 4), "PNG"),
        "one pixel.jpg": _saved(_photo(1, 1, 5), "JPEG"),
        "30000 x 10.png": _saved(_photo(10, 30_000, 6), "PNG"),
        "10 x 3000.jpg": _saved(_photo(3_000, 10, 7), "JPEG"),
        "png.jpg": _saved(photo, "PNG"),  # as phones and messengers name them
    }
    odd = ["übung 日本.jpg", "🐈.jpg", "  spaces  .jpg", "comma, \"quotes\" 'n' $HOME.jpg", "#?&%20.jpg", "-v.jpg"]
    odd += ["two\nlines.jpg", "tab\t.jpg", "back\\slash.jpg", os.fsdecode(b"latin-\xe4.jpg"), "n" * 250 + ".jpg"]
    return made | {name: _saved(_photo(20, 24, 10 + number), "JPEG") for number, name in enumerate(odd)}


def _photo(height: int, width: int, seed: int) -> Image.Image:
    """A smooth random picture."""
    coarse = Image.fromarray(pixels(1, 4, 4, 3, seed=seed)[0])
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _deep_png(gray: np.ndarray) -> bytes:
    """A PNG of 16 bits and three equal channels from uint16 [H, W]."""
    height, width = gray.shape
    rows = np.repeat(gray.astype(">u2")[..., None], 3, axis=2).tobytes()
    filtered = b"".join(b"\0" + rows[6 * width * row : 6 * width * (row + 1)] for row in range(height))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(filtered)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(image: np.ndarray, tile: int = 0, lzw: bool = False) -> bytes:
    """A TIFF of an image uint8 or uint16 [H, W, 3]; in tiles of so many pixels a side, as Pillow writes none."""
    height, width, channels = image.shape
    bits, side = 8 * image.itemsize, tile or max(height, width)
    pieces = []
    for top in range(0, height, side) if tile else (0,):
        for left in range(0, width, side) if tile else (0,):
            piece = image[top : top + side, left : left + side]
            if tile:  # those at the edges are filled up
                piece = np.pad(piece, [(0, side - piece.shape[0]), (0, side - piece.shape[1]), (0, 0)], mode="edge")
            pieces.append(_lzw(piece) if lzw else piece.astype(piece.dtype.newbyteorder("<")).tobytes())
    entries = {256: [width], 257: [height], 258: [bits] * channels, 259: [5 if lzw else 1], 262: [2], 277: [channels]}
    starts = np.cumsum([8, *map(len, pieces)]).tolist()
    lengths = [len(piece) for piece in pieces]
    entries |= {322: [side], 323: [side], 324: starts[:-1], 325: lengths} if tile else {}
    entries |= {} if tile else {273: starts[:-1], 278: [height], 279: lengths}
    directory, values = b"", b""
    after = starts[-1] + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        where = packed if len(packed) == 4 else struct.pack("<I", after + len(values))
        values += b"" if len(packed) == 4 else packed
        directory += struct.pack("<HHI", tag, 4, len(numbers)) + where
    body = b"".join(pieces) + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0" + values
    return b"II*\0" + struct.pack("<I", starts[-1]) + body


def _lzw(piece: np.ndarray) -> bytes:
    """The bytes that TIFF's LZW makes of an image: those of the only strip of a file that Pillow wrote."""
    content = _saved(Image.fromarray(piece), "TIFF", compression="tiff_lzw")
    with Image.open(io.BytesIO(content)) as image:
        (start,), (length,) = image.tag_v2[273], image.tag_v2[279]
        return content[start : start + length]
