"""Detection data in COCO's and VOC's format, through torchvision's data sets."""

import json
from pathlib import Path
from typing import TypedDict

import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from simclr_fast.config import ConfigError


class Target(TypedDict):
    """The objects of an image: boxes float32 [n, 4] (left, top, right, bottom; pixels), labels int64 [n] from 1 on."""

    boxes: Tensor
    labels: Tensor


class DetectionFolder(Dataset):
    """A torchvision detection data set as (image uint8 [channels, H, W], Target); classes[label] names a class."""

    def __init__(self, data: Dataset, classes: list[str], channels: int):
        self.data = torchvision.datasets.wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))
        self.classes = classes
        self.channels = channels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        picture, target = self.data[index]
        image = transforms.pil_to_tensor(picture.convert("L" if self.channels == 1 else "RGB"))
        boxes = torch.as_tensor(target.get("boxes", torch.zeros(0, 4))).as_subclass(Tensor).float().reshape(-1, 4)
        labels = torch.as_tensor(target.get("labels", torch.zeros(0))).as_subclass(Tensor).long()
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # COCO holds a few boxes without area
        return image, {"boxes": boxes[solid], "labels": labels[solid]}


def coco_detection(images: Path, annotations: Path, channels: int) -> DetectionFolder:
    """Images in a folder, boxes in COCO's JSON. Labels are the file's category ids. Raises ConfigError."""
    if not images.is_dir():
        raise ConfigError(f"{images}: there is no such folder of COCO images")
    try:
        categories = {entry["id"]: entry["name"] for entry in json.loads(annotations.read_text())["categories"]}
        data = torchvision.datasets.CocoDetection(images, annotations)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{annotations}: no COCO annotations ({type(error).__name__}: {error})") from error
    if not categories or min(categories) < 1:
        raise ConfigError(f"{annotations}: category ids must be 1 or more, 0 is the background")
    classes = [categories.get(label, f"unused {label}") for label in range(max(categories) + 1)]
    return DetectionFolder(data, classes, channels)


def voc_detection(root: Path, year: str, image_set: str, channels: int) -> DetectionFolder:
    """The folder that holds VOCdevkit/VOC<year>, with the 20 classes of Pascal VOC. Raises ConfigError."""
    from torchvision.tv_tensors._dataset_wrapper import VOC_DETECTION_CATEGORIES

    try:
        data = torchvision.datasets.VOCDetection(root, year=year, image_set=image_set)
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"{root}: no VOC{year} {image_set!r} there ({str(error).splitlines()[0]})") from error
    return DetectionFolder(data, list(VOC_DETECTION_CATEGORIES), channels)
