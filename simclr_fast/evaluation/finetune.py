"""The command `finetune`: backbone and classifier trained on a part of the labels, pretrained and from scratch."""

import dataclasses
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from simclr_fast.errors import ConfigError, NonFiniteLossError
from simclr_fast.evaluation.features import REFERENCE_BATCH, LabelledBatches, Pixels, embed, preprocess_of
from simclr_fast.evaluation.probes import fit_linear, standardize
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import balanced_fraction
from simclr_fast.evaluation.tables import TOP, ResultTable, accuracy, class_names, spread, top5_accuracy
from simclr_fast.optim import lr_at
from simclr_fast.process import Process, autocast_dtype, compile_backend
from simclr_fast.sync_bn import synchronize_batch_norm

COLUMNS = {"raw": "raw pixels, linear", "scratch": "from scratch", "checkpoint": "from the checkpoint"}
PUBLISHED_EPOCHS = {0.01: 60, 0.1: 30}  # Chen et al. 2020, B.5
DEMO_EPOCHS = {0.01: 60, 0.1: 30, 1.0: 5}
OTHER_EPOCHS = 30
DEMO_MIN_STEPS = 300  # with half of them, training from scratch is not done yet and would be beaten unfairly


def main(session: Session) -> dict[str, Any]:
    """Test accuracy by share of the labels and initialisation, mean over draws of the labelled images."""
    options, run, device = session.options, session.run, session.device
    data = session.labelled_data()
    demo = run.config.recipe == "demo"
    batch_size = options.batch_size or (64 if demo else 256)
    min_steps = options.min_steps if options.min_steps is not None else (DEMO_MIN_STEPS if demo else 0)
    if batch_size % session.process.world_size:
        raise ConfigError(f"--batch-size {batch_size}: it must divide by the {session.process.world_size} processes")
    epochs = options.epochs or [
        (DEMO_EPOCHS if demo else PUBLISHED_EPOCHS).get(fraction, OTHER_EPOCHS) for fraction in options.fractions
    ]
    speed = Speed(
        autocast_dtype(options.amp_dtype, device),
        options.channels_last,
        compile_backend(options.torchcompile, device),
    )
    preprocess, truth, classes = preprocess_of(run), data.test.labels, len(class_names(data))
    raw_train, raw_test = standardize(
        *(embed(Pixels(), part, preprocess, device) for part in (data.labelled, data.test))
    )
    inits = [name for name in ("scratch", "checkpoint") if options.init in ("both", name)]
    results: dict[str, dict[str, dict[str, object]]] = {}
    for fraction, epochs_of_it in zip(options.fractions, epochs):
        logits: dict[str, list[Tensor]] = {name: [] for name in ("raw", *inits)}
        draws = options.draws if fraction < 1 else 1
        for draw in range(draws):
            chosen = balanced_fraction(data.labelled.labels, fraction, options.seed * options.draws + draw)
            labels = data.labelled.labels[chosen]
            raw = fit_linear(raw_train[chosen], labels, classes=classes, device=device)
            logits["raw"].append(raw.logits(raw_test))
            for init in inits:
                seed = options.seed * options.draws + draw
                batches = LabelledBatches(data.labelled.subset(chosen), batch_size, run, seed, session.process)
                steps = max(min_steps, epochs_of_it * batches.steps_per_epoch)
                model = train_classifier(
                    _classifier(session, init, seed, classes),
                    batches,
                    steps=steps,
                    lr=options.lr_base * batch_size / REFERENCE_BATCH,
                    process=session.process,
                    speed=speed,
                    title=f"{fraction:.0%} of the labels, {COLUMNS[init]}, draw {draw + 1} of {draws}",
                )
                logits[init].append(embed(model, data.test, preprocess, device))
        results[f"{fraction:g}"] = {
            "images": len(chosen),
            "steps": steps,
            **{name: _scores(of_draws, truth) for name, of_draws in logits.items()},
        }
    columns = {name: title for name, title in COLUMNS.items() if name in ("raw", *inits)}
    rows = {}
    for fraction, result in results.items():
        row = f"{100 * float(fraction):g}% ({result['images']} images)"
        rows[row] = result
        if classes > TOP:
            rows[f"{row}, top-5"] = {name: result[name]["top5_mean"] for name in columns}
    title = "Fine-tuning: test accuracy (%), mean and standard deviation over draws"
    return session.finish(results, ResultTable.of(title, "labels", columns, rows))


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

    backend = speed.compile_backend
    compute = loss_of if backend is None else torch.compile(loss_of, backend=backend, dynamic=False)
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


def _scores(logits: list[Tensor], truth: Tensor) -> dict[str, object]:
    """Accuracies over draws; logits [Q, classes] of each."""
    draws = [accuracy(of_draw, truth) for of_draw in logits]
    scores = {**spread(draws), "draws": draws}
    if logits[0].shape[1] > TOP:
        scores["top5_mean"] = statistics.mean(top5_accuracy(of_draw, truth) for of_draw in logits)
    return scores


def _classifier(session: Session, init: str, seed: int, classes: int) -> Classifier:
    run = session.run
    backbone = run.encoder() if init == "checkpoint" else run.random_init(seed)
    with torch.no_grad():
        features = backbone(torch.zeros(1, run.channels, *[run.config.augment.size] * 2)).shape[1]
    return Classifier(backbone, features, classes)
