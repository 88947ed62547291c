"""Which files are images, by name, and all those below a folder; what else lies there, and why it is no image."""

import functools
import os
from collections.abc import Iterator

from simclr_fast.data.messages import Ignored
from simclr_fast.data.pixels import HEIC_REMEDY, reads_heic

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
HEIC_SUFFIXES = (".heic", ".heif")


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Those of images that can be read here, in lower case."""
    return SUFFIXES + HEIC_SUFFIXES if reads_heic() else SUFFIXES


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix, whether or not it can be read here."""
    return name.lower().endswith(SUFFIXES + HEIC_SUFFIXES)


def why_no_image(name: str) -> str | None:
    """Why a file of this name is ignored; None where it is an image."""
    if name.lower().endswith(suffixes()):
        return None
    suffix = os.path.splitext(name)[1]
    if suffix.lower() in HEIC_SUFFIXES:
        return f"{suffix}, which {HEIC_REMEDY}"
    return f"no image ({suffix or 'no suffix'})"


def images_below(folder: str, ignored: list[Ignored], prefix: str = "", above: tuple = ()) -> Iterator[str]:
    """Paths of the images below a folder, relative and in the order of their parts; links are followed, as elsewhere.

    ignored: takes the path and the reason of all that is no image. above: device and inode of the folders around it, so
    that a link to one of them is not followed in a circle. Raises OSError for a folder that cannot be read.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        ignored.append((folder, "link to a folder around it"))
        return
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.name.startswith("."):
            ignored.append((entry.path, "hidden"))
        elif entry.is_dir():
            yield from images_below(entry.path, ignored, f"{prefix}{entry.name}{os.sep}", (*above, here))
        elif (reason := why_no_image(entry.name)) is not None:
            ignored.append((entry.path, reason))
        elif entry.is_file():
            yield prefix + entry.name
        else:
            ignored.append((entry.path, "link to nothing"))
