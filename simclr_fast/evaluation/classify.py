"""Supervised training of a backbone with a linear classifier on top: fine-tuning, or training from scratch."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from simclr_fast.errors import NonFiniteLossError
from simclr_fast.evaluation.batches import LabelledBatches
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
    compile: bool = False


def train_classifier(
    model: Classifier,
    batches: LabelledBatches,
    *,
    steps: int,
    lr: float,
    process: Process,
    speed: Speed,
    title: str = "",
) -> Classifier:
    """Train all parameters by SGD-Nesterov 0.9 with a cosine and no decay (Chen et al. 2020, B.5); returns the model.

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

    compute = torch.compile(loss_of, dynamic=False) if speed.compile else loss_of
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=speed.autocast == torch.float16)
    bar = tqdm(batches.steps(steps), total=steps, desc=title, unit="step", disable=not process.is_main)
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
