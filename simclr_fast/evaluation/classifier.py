"""Training of a whole network on labelled images: a classifier on a backbone, from a checkpoint or from scratch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from simclr_fast.data import Source
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.evaluation.features import LabelledBatches, embed, preprocess_of
from simclr_fast.evaluation.run import Run
from simclr_fast.optim import lr_at
from simclr_fast.process import Process
from simclr_fast.sync_bn import synchronize_batch_norm


class Classifier(nn.Module):
    """A backbone [B, C, S, S] -> [B, features] and a linear layer -> [B, classes]."""

    def __init__(self, backbone: nn.Module, features: int, classes: int):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(features, classes)
        nn.init.zeros_(self.fc.weight)  # the first steps then move the classifier, not yet the backbone
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.backbone(images))


@dataclasses.dataclass(frozen=True)
class Speed:
    """How training is made fast; autocast: a dtype or None."""

    autocast: torch.dtype | None = None
    channels_last: bool = True
    compile_backend: str | None = None  # of torch.compile; None compiles nothing


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a classifier is trained, and with which batches, which are cut to the images that there are.

    lr: the highest learning rate, for the batch as it is; nesterov: whether the momentum is Nesterov's; crop: options
    of the augmentation that take the place of the recipe's.
    """

    epochs: int
    min_steps: int
    batch_size: int  # over all processes
    lr: float
    nesterov: bool = True
    crop: Mapping[str, Any] | None = None


def fine_tune(
    run: Run,
    init: str,
    train: Source,
    test: Source,
    schedule: Schedule,
    *,
    classes: int,
    seed: int,
    process: Process,
    speed: Speed,
    title: str = "",
) -> tuple[Tensor, int]:
    """Logits [Q, classes] of the test images after training on the labelled ones, and the steps that it took.

    init: "checkpoint" starts from the run's backbone, "scratch" from one as `seed` makes it; the seed decides on the
    batches and their crops, too. title: of the progress bar, which stays away without one.
    """
    batches = LabelledBatches(train, schedule.batch_size, run, seed, process, schedule.crop)
    steps = max(schedule.min_steps, schedule.epochs * batches.steps_per_epoch)
    model = train_classifier(
        _initial(run, init, seed, classes),
        batches,
        steps=steps,
        lr=schedule.lr,
        process=process,
        speed=speed,
        nesterov=schedule.nesterov,
        title=title,
    )
    return embed(model, test, preprocess_of(run), process.device), steps


def train_classifier(
    model: Classifier,
    batches: LabelledBatches,
    *,
    steps: int,
    lr: float,
    process: Process,
    speed: Speed,
    nesterov: bool = True,
    title: str = "",
) -> Classifier:
    """Train all parameters by SGD, momentum 0.9, with a cosine and no decay (Chen et al. 2020, B.5); returns the model.

    Under torchrun gradients are averaged and batch norm is synchronised over the processes. Raises NonFiniteLossError
    where the loss is not finite.
    """
    device = process.device
    if process.world_size > 1:
        model = synchronize_batch_norm(model, device)
    model = model.to(device).train()
    if speed.channels_last:
        model = model.to(memory_format=torch.channels_last)
    wrapped: nn.Module = model
    if process.world_size > 1:
        wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, speed.autocast, enabled=speed.autocast is not None):
            logits = wrapped(images)
        return F.cross_entropy(logits.float(), labels)

    backend = speed.compile_backend
    compute = loss_of if backend is None else torch.compile(loss_of, backend=backend, dynamic=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=nesterov)
    scaler = torch.amp.GradScaler(device.type, enabled=speed.autocast == torch.float16)
    bar = tqdm(batches.steps(steps), total=steps, desc=title, unit="step", disable=not process.is_main or not title)
    for step, (images, labels) in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, lr, steps, 0)
        optimizer.zero_grad(set_to_none=True)
        loss = compute(images, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step % 20 == 0 or step == steps - 1:  # seldom, because looking at it waits for the device
            if not loss.isfinite():
                raise NonFiniteLossError(f"the loss is {loss.item()} at step {step}; lower the learning rate {lr:g}")
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def _initial(run: Run, init: str, seed: int, classes: int) -> Classifier:
    backbone = run.encoder() if init == "checkpoint" else run.random_init(seed)
    with torch.no_grad():
        features = backbone(torch.zeros(1, run.channels, *[run.config.augment.size] * 2)).shape[1]
    return Classifier(backbone, features, classes)
