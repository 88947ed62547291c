"""Which files are images, by name, and all those below a folder; what else lies there, and why it is no image."""

import errno
import functools
import os
from collections.abc import Callable, Iterator

from simclr_fast.data.messages import Ignored
from simclr_fast.data.own_files import mark_among
from simclr_fast.data.pixels import HEIC_REMEDY, reads_heic

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
HEIC_SUFFIXES = (".heic", ".heif")
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # of links to nothing, and to themselves
OWN_FOLDER = "folder that simclr-fast wrote"


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


def is_folder(entry: os.DirEntry) -> bool:
    """Whether this is a folder, or a link to one; a link that leads nowhere is none. Raises OSError."""
    return _leads_to(entry, entry.is_dir)


def is_file(entry: os.DirEntry) -> bool:
    """Whether this is a regular file, or a link to one; a link that leads nowhere is none. Raises OSError."""
    return _leads_to(entry, entry.is_file)


def _leads_to(entry: os.DirEntry, ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError as error:
        if entry.is_symlink() and error.errno in NOWHERE:
            return False
        raise


def images_below(folder: str, ignored: list[Ignored]) -> Iterator[str]:
    """Paths of the images below a folder, relative and in the order of their parts; links are followed, as elsewhere.

    Links to a folder around them are not followed in a circle, and folders in it that this program wrote are left out.
    ignored: takes the path and the reason of all that is no image. Raises OSError for a folder that cannot be read.
    """
    open_folders = [_Folder(folder, "")]  # each lies in the one before it; a stack, since they may be nested deeply
    while open_folders:
        inner = open_folders[-1]
        entry = next(inner.entries, None)
        if entry is None:
            open_folders.pop()
        elif entry.name.startswith("."):
            ignored.append((entry.path, "hidden"))
        elif is_folder(entry):
            below = _Folder(entry.path, f"{inner.prefix}{entry.name}{os.sep}")
            if any(below.identity == around.identity for around in open_folders):
                ignored.append((entry.path, "link to a folder around it"))
            elif below.mark is not None:
                ignored.append((entry.path, f"{OWN_FOLDER} ({below.mark} is in it)"))
            else:
                open_folders.append(below)
        elif (reason := why_no_image(entry.name)) is not None:
            ignored.append((entry.path, reason))
        elif is_file(entry):
            yield inner.prefix + entry.name
        else:
            ignored.append((entry.path, "link to nothing" if entry.is_symlink() else "no regular file"))


class _Folder:
    """A folder that is looked through. prefix: its path from the outermost one, with a separator at the end."""

    def __init__(self, path: str, prefix: str):
        status = os.stat(path)
        self.prefix, self.identity = prefix, (status.st_dev, status.st_ino)
        with os.scandir(path) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        self.entries = iter(inside)
        self.mark = mark_among(path, [entry.name for entry in inside])


def class_folders(root: str, ignored: list[Ignored]) -> list[str]:
    """The folders in a folder, by their names in order, but for those that hold nothing but what this program wrote.

    ignored: what `images_below` found there.
    """
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_folder(entry))
    own = {os.path.relpath(name, root).split(os.sep, 1)[0] for name, reason in ignored if reason.startswith(OWN_FOLDER)}
    return [name for name in names if name not in own or _holds_an_image(os.path.join(root, name))]


def _holds_an_image(folder: str) -> bool:
    own = mark_among(folder, sorted(os.listdir(folder))) is not None
    return not own and next(images_below(folder, []), None) is not None
