"""Folders of image files: train/CLASS/image with val/ or test/ beside it, CLASS/image, or images alone."""

import functools
import os
from pathlib import Path

import torch

from simclr_fast.config import SourceOptions
from simclr_fast.data.classes import Split, assemble
from simclr_fast.data.image_files import class_folders, images_below, is_folder, suffixes
from simclr_fast.data.messages import Ignored, on_one_line, say
from simclr_fast.data.sources import Dataset, Files
from simclr_fast.errors import ConfigError

TRAIN = ("train", "training")  # names of parts, in any case
HELD_OUT = ("val", "validation", "valid", "dev", "test", "testing")  # the first with labels serves


def image_folder(options: SourceOptions) -> Dataset:
    """The data set in --data. Raises ConfigError where there is no image, or a folder cannot be read."""
    root = options.data
    try:
        train, held_out = parts_in(root)
        if train is None:
            if held_out:
                say(
                    f"{root}: no train in it, so that {', '.join(part.name for part in held_out)} are taken for classes"
                )
            return assemble(_split(root, options), [])
        if not held_out:
            say(
                f"{root}: none of {', '.join(HELD_OUT)} is beside {train.name}, so that no test images are evaluated on"
            )
        return assemble(
            _split(train, options), [(str(part), functools.partial(_split, part, options)) for part in held_out]
        )
    except OSError as error:
        raise ConfigError(f"--data {root}: {error}") from error


def parts_in(root: Path) -> tuple[Path | None, list[Path]]:
    """The folder of training images, if there is one, and those of held-out ones in the order in which they serve."""
    with os.scandir(root) as entries:
        found = [entry.name for entry in entries if entry.name.lower() in TRAIN + HELD_OUT and is_folder(entry)]
    parts = {name.lower(): root / name for name in sorted(found)}  # of names that differ in case, the lower one serves
    train = next((parts[name] for name in TRAIN if name in parts), None)
    return train, [parts[name] for name in HELD_OUT if name in parts]


def _split(root: Path, options: SourceOptions) -> Split:
    """One folder. Its classes are the folders in it, in the order of their names, whether or not they hold images.

    They are called as the folders are, spelled as in `on_one_line`: tables, pictures and files of results name them.
    """
    ignored: list[Ignored] = []
    names = list(images_below(str(root), ignored))
    if not names:
        raise ConfigError(f"--data {root}: no image ({', '.join(suffixes())}) in it or below")
    folders = class_folders(str(root), ignored)
    number = {name: k for k, name in enumerate(folders)}
    codes = torch.tensor([number.get(name.split(os.sep, 1)[0], -1) if os.sep in name else -1 for name in names])
    source = Files(root, names).images(options.max_bad_images)
    classes = list(map(on_one_line, folders))
    return Split(str(root), source, codes, classes, "the images lie in no class folders", tuple(ignored))
