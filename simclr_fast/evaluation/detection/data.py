"""Detection data, and COCO's format of it: checked when it is opened, images read when they are asked for."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from simclr_fast.config import flag
from simclr_fast.errors import ConfigError, DataError

BACKGROUND = "background"
# In the order of Everingham et al. 2010.
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SIZE_SAMPLES = 200  # images whose size tells how large the images of a data set are


class Crowds(TypedDict, total=False):
    """iscrowd: int64 [n], 1 for what neither trains nor counts, found or not: COCO's crowds, VOC's difficult objects.

    Without it, all objects count.
    """

    iscrowd: Tensor


class Target(Crowds):
    """The objects of an image: boxes float32 [n, 4] (left, top, right, bottom; pixels), labels int64 [n] from 1 on."""

    boxes: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Annotated:
    """An image file, and its objects: boxes (left, top, right, bottom; pixels), the name of each one's class, and
    whether it is a crowd (COCO) or difficult (VOC)."""

    path: Path
    boxes: list[tuple[float, float, float, float]] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    crowds: list[bool] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The images of one part of a data set, and the names of the classes that it knows of."""

    images: list[Annotated]
    classes: list[str]


class DetectionFolder(Dataset):
    """Annotated images as (image uint8 [channels, H, W], Target); classes[label] names a class, 0 is the background."""

    def __init__(self, images: Sequence[Annotated], classes: Sequence[str], channels: int):
        self.images = images
        self.classes = [BACKGROUND, *classes]
        self.channels = channels
        self.labels = {name: 1 + number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Raises DataError, which names the file, for an image that cannot be read."""
        annotated = self.images[index]
        try:
            with Image.open(annotated.path) as picture:
                image = transforms.pil_to_tensor(picture.convert("L" if self.channels == 1 else "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{annotated.path}: unreadable ({' '.join(str(error).split())})") from error
        boxes = torch.tensor(annotated.boxes, dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([self.labels[name] for name in annotated.names], dtype=torch.int64)
        crowds = torch.tensor(annotated.crowds, dtype=torch.int64)
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # COCO holds a few boxes without area
        return image, {"boxes": boxes[solid], "labels": labels[solid], "iscrowd": crowds[solid]}

    def require_readable(self, threads: int) -> None:
        """Decode every image once. Raises DataError, which names the first of those that cannot be read."""
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for _ in pool.map(self._decode, range(len(self))):
                pass

    def _decode(self, index: int) -> None:
        self[index]

    def shorter_side(self) -> int:
        """Median of the images' shorter sides (pixels), of a sample spread over the data set."""
        chosen = self.images[:: max(1, len(self.images) // SIZE_SAMPLES)]
        try:
            return statistics.median_low(min(Image.open(annotated.path).size) for annotated in chosen)
        except OSError as error:
            raise DataError(f"unreadable image ({' '.join(str(error).split())})") from error


def open_parts(train: Annotations, test: Annotations, channels: int) -> tuple[DetectionFolder, DetectionFolder]:
    """Both parts with one list of classes, by name: those of the training part, then what only the test part has.

    Where all are classes of Pascal VOC, the list is that of Pascal VOC.
    """
    classes = list(dict.fromkeys([*train.classes, *test.classes]))
    if set(classes) <= set(VOC_CLASSES):
        classes = list(VOC_CLASSES)
    return DetectionFolder(train.images, classes, channels), DetectionFolder(test.images, classes, channels)


def joined(parts: Sequence[Annotations]) -> Annotations:
    """The images of all parts one after the other, and every class that one of them knows of, in their order."""
    images = [image for part in parts for image in part.images]
    return Annotations(images, list(dict.fromkeys(name for part in parts for name in part.classes)))


def require_apart(train: Iterable[Path], test: Iterable[Path], option: str, names: Sequence[str]) -> None:
    """Raise ConfigError where an image of the sets of these names, which `option` gave, is one that is trained on."""
    trained = set(train)
    shared = [path for path in test if path in trained]
    if shared:
        raise ConfigError(
            f"{flag(option)} {' '.join(names)}: {len(shared)} of its images are trained on as well, the first: "
            f"{shared[0]}; pass sets without common images"
        )


def read_coco(folder: Path, annotations: Path) -> Annotations:
    """Images in a folder, boxes in COCO's JSON; classes in the order of their ids, which may be any integers.

    Raises ConfigError for what is missing, for JSON of another layout, and for an annotation that names an unknown
    category or image.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder of COCO images")
    try:
        content = json.loads(annotations.read_text())
        names = {entry["id"]: str(entry["name"]) for entry in sorted(content["categories"], key=lambda one: one["id"])}
        images = {entry["id"]: Annotated(folder / entry["file_name"]) for entry in content["images"]}
        for entry in content["annotations"]:
            _add_coco(entry, images, names, annotations)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{annotations}: no COCO annotations ({type(error).__name__}: {error})") from error
    if not names:
        raise ConfigError(f"{annotations}: no COCO annotations ('categories' is empty)")
    return Annotations(existing(list(images.values()), annotations), list(dict.fromkeys(names.values())))


def _add_coco(entry: dict[str, Any], images: dict[int, Annotated], names: dict[int, str], source: Path) -> None:
    """Add one annotation to its image."""
    what = f"{source}: annotation {entry.get('id', entry)}"
    if entry["category_id"] not in names:
        raise ConfigError(f"{what} has category_id {entry['category_id']}, which 'categories' does not list")
    if entry["image_id"] not in images:
        raise ConfigError(f"{what} has image_id {entry['image_id']}, which 'images' does not list")
    left, top, width, height = map(float, entry["bbox"])
    if not all(map(math.isfinite, (left, top, width, height))):
        raise ConfigError(f"{what} has the bbox {entry['bbox']}; its four numbers must be finite")
    annotated = images[entry["image_id"]]
    annotated.boxes.append((left, top, left + width, top + height))
    annotated.names.append(names[entry["category_id"]])
    annotated.crowds.append(bool(entry.get("iscrowd", 0)))


def existing(images: list[Annotated], source: Path, suffixes: Sequence[str] = ()) -> list[Annotated]:
    """The images, all of which exist. suffixes: those that were looked for, too. Raises ConfigError."""
    if not images:
        raise ConfigError(f"{source}: it lists no image")
    missing = [image.path for image in images if not image.path.is_file()]
    if missing:
        of_voc = f", also under the suffixes {' '.join(suffixes)}" if suffixes else ""
        raise ConfigError(
            f"{source}: {len(missing)} of its {len(images)} images are missing, the first: {missing[0]}{of_voc}"
        )
    return images
