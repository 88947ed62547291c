"""Folders of image files: train/CLASS/image with val/ or test/ beside it, CLASS/image, or images alone."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from simclr_fast.config import SourceOptions
from simclr_fast.data.classes import Split, assemble, say
from simclr_fast.data.sources import Dataset, EncodedImages, Files
from simclr_fast.data.unreadable import BadImages
from simclr_fast.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
TRAIN = ("train", "training")  # names of parts, in any case
HELD_OUT = ("val", "validation", "valid", "test", "testing")  # the first with labels serves


def image_folder(options: SourceOptions) -> Dataset:
    """The data set in --data. Raises ConfigError where there is no image, or a folder cannot be read."""
    try:
        return _in_parts(options.data, options)
    except OSError as error:
        raise ConfigError(f"--data {options.data}: {error}") from error


def _in_parts(root: Path, options: SourceOptions) -> Dataset:
    with os.scandir(root) as entries:
        found = [entry.name for entry in entries if entry.name.lower() in TRAIN + HELD_OUT and entry.is_dir()]
    parts = {name.lower(): root / name for name in sorted(found)}  # of names that differ in case, the lower one serves
    train = next((parts[name] for name in TRAIN if name in parts), None)
    held_out = [parts[name] for name in HELD_OUT if name in parts]
    if train is None:
        if held_out:
            say(f"{root}: no train in it, so that {', '.join(part.name for part in held_out)} are taken for classes")
        return assemble(_split(root, options), [])
    if not held_out:
        say(f"{root}: none of {', '.join(HELD_OUT)} is beside {train.name}, so that no test images are evaluated on")
    return assemble(_split(train, options), (_split(part, options) for part in held_out))


def _split(root: Path, options: SourceOptions) -> Split:
    """One folder. Its classes are the folders in it, in the order of their names, whether or not they hold images."""
    left_out: Counter[str] = Counter()
    names = list(_images(str(root), "", (), left_out))
    if left_out:
        say(f"{root}: left out {', '.join(f'{count} {kind}' for kind, count in left_out.most_common(8))}")
    if not names:
        raise ConfigError(f"--data {root}: no image ({', '.join(SUFFIXES)}) in it or below")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    number = {name: k for k, name in enumerate(classes)}
    codes = torch.tensor([number.get(name.split(os.sep, 1)[0], -1) if os.sep in name else -1 for name in names])
    files = Files(root, names)
    bad = BadImages(options.max_bad_images * len(names))
    source = EncodedImages(len(names), files.read, files.name, bad=bad, identity=files.identity)
    return Split(str(root), source, codes, classes, "the images lie in no class folders")


def _images(folder: str, prefix: str, above: tuple[tuple[int, int], ...], left_out: Counter[str]) -> Iterator[str]:
    """Paths of the images below a folder, relative and in the order of their parts; links are followed, as elsewhere.

    above: device and inode of the folders around it, so that a link to one of them is not followed in a circle.
    left_out: counts, by kind, what is no image.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        left_out["links to a folder around them"] += 1
        return
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.name.startswith("."):
            left_out["hidden files and folders"] += 1
        elif entry.is_dir():
            yield from _images(entry.path, f"{prefix}{entry.name}{os.sep}", (*above, here), left_out)
        elif not entry.name.lower().endswith(SUFFIXES):
            left_out[f"{os.path.splitext(entry.name)[1] or 'files without suffix'}"] += 1
        elif entry.is_file():
            yield prefix + entry.name
        else:
            left_out["links to nothing"] += 1
