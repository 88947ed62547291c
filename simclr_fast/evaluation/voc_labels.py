"""Images with the classes that they hold, in VOC's layout: from its label files, or from annotations of objects."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from simclr_fast.config import flag
from simclr_fast.data import EncodedImages
from simclr_fast.data.sources import Files
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.average_precision import ABSENT, DIFFICULT, PRESENT
from simclr_fast.evaluation.detection.data import Annotated, existing, require_apart
from simclr_fast.evaluation.detection.voc import SUFFIXES, ImageSet, open_sets, read_objects

LABELS = {str(label): label for label in (PRESENT, DIFFICULT, ABSENT)}


@dataclasses.dataclass(frozen=True)
class LabelledPart:
    """Images, and int8 [N, classes] of PRESENT, DIFFICULT and ABSENT."""

    images: EncodedImages
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class MultiLabelData:
    """The names of the classes, the parts by the option that names their sets, and where the labels come from."""

    classes: list[str]
    parts: dict[str, LabelledPart]
    origin: str


def read_parts(root: Path, names: dict[str, tuple[str, ...]]) -> MultiLabelData:
    """The parts below root by option, each of one or more sets <year>-<set>; no image may be in two of them.

    A set's labels are those of its files ImageSets/Main/<class>_<set>.txt; without any, an image has the classes of its
    annotated objects, and is difficult where all of a class are. Raises ConfigError for what is missing or malformed.
    """
    sets: dict[str, list[ImageSet]] = {}
    for option, of_option in names.items():
        opened = open_sets(root, of_option, option)
        earlier = [place for others in sets.values() for one in others for place in one.places]
        require_apart(earlier, [place for one in opened for place in one.places], option, of_option)
        sets[option] = opened
    labels = {one.name: _labels_of(one) for part in sets.values() for one in part}
    classes = sorted({name for of_set in labels.values() for name in of_set.by_class})
    origins = sorted({of_set.origin for of_set in labels.values()})
    parts = {
        option: LabelledPart(
            _images(root, part), torch.cat([_table(one, labels[one.name], classes, option) for one in part])
        )
        for option, part in sets.items()
    }
    return MultiLabelData(classes, parts, " and ".join(origins))


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Of one set: by class, the label of each image by its name; an image that a class's dict lacks is ABSENT."""

    by_class: dict[str, dict[str, int]]
    origin: str


FILES, ANNOTATIONS = "ImageSets/Main/<class>_<set>.txt", "Annotations"


def _labels_of(one: ImageSet) -> _Labels:
    suffix = f"_{one.part}.txt"
    files = {
        path.name.removesuffix(suffix): path
        for path in one.listing.parent.iterdir()
        if path.name.endswith(suffix) and not _is_of_longer_name(path, one)
    }
    read = {name: rows for name, path in files.items() if (rows := _read_file(path, one)) is not None}
    if read:
        existing([Annotated(one.image(stem)) for stem in one.stems], one.listing, SUFFIXES)
        return _Labels(read, FILES)
    found: dict[str, dict[str, int]] = {}
    for stem, image in zip(one.stems, read_objects(one).images):
        for name, is_difficult in zip(image.names, image.crowds):
            of_class = found.setdefault(name, {})
            of_class[stem] = max(of_class.get(stem, DIFFICULT), DIFFICULT if is_difficult else PRESENT)
    return _Labels(found, ANNOTATIONS)


def _is_of_longer_name(path: Path, one: ImageSet) -> bool:
    """Whether a file of labels belongs to another set: cat_my_train.txt to my_train, where that is a list of images."""
    words = path.stem.removesuffix(f"_{one.part}").split("_")[1:]
    sets = ("_".join([*words[start:], one.part]) for start in range(len(words)))
    return any(_lists_images(path.with_name(f"{name}.txt")) for name in sets)


def _lists_images(path: Path) -> bool:
    """Whether a file lists images without labels."""
    try:
        return all(len(line.split()) < 2 for line in path.read_text().splitlines())
    except (OSError, ValueError):  # no such set: the file is of the shorter name
        return False


def _read_file(path: Path, one: ImageSet) -> dict[str, int] | None:
    """The labels of a class; None where the file has names alone: another set, which happens to be called so."""
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: unreadable ({error})") from error
    if all(len(row) == 1 for row in rows):
        return None
    for row in rows:
        if len(row) != 2 or row[1] not in LABELS:
            raise ConfigError(
                f"{path}: the line {' '.join(row)!r} must be an image and 1 (present), 0 (difficult) or -1 (absent)"
            )
    labels = {stem: LABELS[label] for stem, label in rows}
    for stem, label in rows:
        if labels[stem] != LABELS[label]:
            raise ConfigError(f"{path}: it labels {stem} twice, {label} and {labels[stem]}; leave one of the lines")
    missing = [stem for stem in one.stems if stem not in labels]
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} of the {len(one.stems)} images of {one.listing} have no label there, the first: "
            f"{missing[0]}"
        )
    return labels


def _table(one: ImageSet, labels: _Labels, classes: list[str], option: str) -> Tensor:
    """int8 [images, classes]."""
    missing = [name for name in classes if labels.origin == FILES and name not in labels.by_class]
    if missing:
        raise ConfigError(
            f"{flag(option)} {one.name}: there is no {one.listing.parent / missing[0]}_{one.part}.txt, though other "
            f"sets know the class {missing[0]}; pass sets of the same classes"
        )
    columns = [labels.by_class.get(name, {}) for name in classes]
    rows = [[column.get(stem, ABSENT) for column in columns] for stem in one.stems]
    return torch.tensor(rows, dtype=torch.int8).reshape(len(one.stems), len(classes))


def _images(root: Path, sets: list[ImageSet]) -> EncodedImages:
    names = [str(one.image(stem).relative_to(root)) for one in sets for stem in one.stems]
    return Files(root, names).images()
