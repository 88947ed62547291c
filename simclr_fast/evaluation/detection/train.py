"""Training a detector for a number of steps, and its COCO mean average precision on held-out images."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.detection import MeanAveragePrecision
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

from simclr_fast.errors import NonFiniteLossError
from simclr_fast.evaluation.detection.data import Target
from simclr_fast.optim import lr_at, parameter_groups

CLIP_GRAD = 10.0  # norm; only stops the rare step that would blow up a detector trained from scratch
METRICS = {
    **{"map": "mAP", "map_50": "AP50", "map_75": "AP75"},
    **{"voc_map": "mAP, 11 points", "voc_map_50": "AP50, 11 points", "voc_map_75": "AP75, 11 points"},
}
# As pycocotools has them; torchmetrics' own are of float32, by which a recall of 0.3 does not reach the point 0.3.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALL_POINTS = np.linspace(0, 1, 101).tolist()


@dataclasses.dataclass(frozen=True)
class Schedule:
    """steps of batch_size images; the learning rate grows linearly over warmup_steps, then a cosine takes it to 0."""

    steps: int
    batch_size: int
    warmup_steps: int
    optimizer: str = "sgd"
    weight_decay: float = 1e-4
    hflip: float = 0.0
    workers: int = 0


def train_detector(
    detector: nn.Module,
    data: Dataset,
    schedule: Schedule,
    *,
    lr: float,
    seed: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
    title: str = "",
) -> list[float]:
    """Train in place on (image uint8 [C, H, W], Target) pairs at a peak learning rate; returns every step's loss.

    The order of the images and their flips depend on the seed alone: two detectors trained with one seed see the same
    batches. Raises NonFiniteLossError where the loss is not finite.
    """
    detector.train()
    groups = [
        {k: v for k, v in group.items() if k != "adapt"} for group in parameter_groups(detector, schedule.weight_decay)
    ]
    if schedule.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr)
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    flips = torch.Generator().manual_seed(seed)
    losses = []
    batches = tqdm(_batches(data, schedule, seed), total=schedule.steps, desc=title, unit="step", dynamic_ncols=True)
    for step, (images, targets) in enumerate(batches):
        images, targets = _flip(images, [_counted(target) for target in targets], schedule.hflip, flips)
        images, targets = _to_device(images, targets, device)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, lr, schedule.steps, schedule.warmup_steps)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = sum(detector(images, targets).values())
        losses.append(loss.item())
        if not loss.isfinite():
            raise NonFiniteLossError(f"the detector's loss is {losses[-1]} at step {step}; lower --lr {lr:g}")
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(detector.parameters(), CLIP_GRAD)
        scaler.step(optimizer)
        scaler.update()
        if step % 10 == 0:
            batches.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return losses


@torch.no_grad()
def detect(detector: nn.Module, images: list[Tensor], device: torch.device) -> list[dict[str, Tensor]]:
    """Boxes, labels and scores found in images uint8 [C, H, W], on the CPU."""
    detector.eval()
    found = detector([image.to(device).float() / 255 for image in images])
    return [{name: value.cpu() for name, value in one.items()} for one in found]


def evaluate_detector(
    detector: nn.Module, data: Dataset, device: torch.device, *, batch_size: int = 8, workers: int = 0
) -> dict[str, float]:
    """mAP (over IoU 0.50 to 0.95), AP50 and AP75 on a data set (fractions); crowds neither count nor harm.

    By COCO's definition, and (voc_*) by that of VOC 2007, which published tables of VOC use: the mean of the precisions
    at 11 points of recall instead of 101. Boxes are matched as in COCO for both.
    """
    metric = MeanAveragePrecision(
        iou_thresholds=IOU_THRESHOLDS, rec_thresholds=RECALL_POINTS, extended_summary=True, backend="pycocotools"
    )
    for images, targets in DataLoader(data, batch_size, num_workers=workers, collate_fn=_lists):
        metric.update(detect(detector, images, device), targets)
    scores = metric.compute()
    # [IoU, recall, class] over boxes of all sizes, the 100 best of an image; -1 for a class without an object.
    precision = scores["precision"][:, ::10, :, 0, -1]
    precision = precision[:, :, (precision >= 0).all(dim=0).all(dim=0)]
    at_75 = IOU_THRESHOLDS.index(0.75)
    eleven = {"voc_map": precision, "voc_map_50": precision[0], "voc_map_75": precision[at_75]}
    return {name: (eleven[name].mean() if name in eleven else scores[name]).item() for name in METRICS}


def _batches(data: Dataset, schedule: Schedule, seed: int) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """schedule.steps batches, epoch after epoch in random order."""
    generator = torch.Generator().manual_seed(seed)
    wanted = schedule.steps * schedule.batch_size
    epochs = -(-wanted // len(data))
    order = torch.cat([torch.randperm(len(data), generator=generator) for _ in range(epochs)])[:wanted]
    batches = [batch.tolist() for batch in order.split(schedule.batch_size)]
    return iter(DataLoader(data, batch_sampler=batches, num_workers=schedule.workers, collate_fn=_lists))


def _lists(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    return [image for image, _ in samples], [target for _, target in samples]


def _counted(target: Target) -> Target:
    """The objects that are no crowds."""
    counted = target["iscrowd"] == 0 if "iscrowd" in target else slice(None)
    return {"boxes": target["boxes"][counted], "labels": target["labels"][counted]}


def _flip(
    images: list[Tensor], targets: list[Target], probability: float, generator: torch.Generator
) -> tuple[list[Tensor], list[Target]]:
    if probability == 0:
        return images, targets
    flipped_images, flipped_targets = [], []
    for image, target, draw in zip(images, targets, torch.rand(len(images), generator=generator).tolist()):
        boxes = target["boxes"]
        if draw < probability:
            image = transforms.horizontal_flip(image)
            width = image.shape[-1]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        flipped_images.append(image)
        flipped_targets.append({"boxes": boxes, "labels": target["labels"]})
    return flipped_images, flipped_targets


def _to_device(
    images: list[Tensor], targets: list[Target], device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return [image.to(device, non_blocking=True).float() / 255 for image in images], [
        {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets
    ]
