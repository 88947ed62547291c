"""One candidate: its options are trained on a part of the training images, and judged on the rest of them.

No test image is seen: `training_images` lets go of them before anything is trained.
"""

import dataclasses
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.config import Config, DataOptions, check
from simclr_fast.data import build_loader, load_dataset
from simclr_fast.data.sources import ImageArrays
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.features import Pixels, Preprocess, embed
from simclr_fast.evaluation.probes import few_label_accuracies, standardize
from simclr_fast.evaluation.splits import balanced_fraction, few_label_draws, hold_out
from simclr_fast.losses import NTXentLoss
from simclr_fast.optim import build_optimizer, lr_at, peak_lr
from simclr_fast.process import Process, autocast_dtype
from simclr_fast.training.average import WeightAverage
from simclr_fast.training.loop import build_step
from simclr_fast.training.state import TrainState
from simclr_fast.training.views import Draw, Images, Views

CPU = torch.device("cpu")
PER_CLASS, DRAWS = 10, 20  # labels per class, and how many times they are drawn
SPLIT_SEED = 0  # of the held-out part, the same for every candidate and seed
GROUPS = ("data", "augment", "model", "optimization", "speed")
SCHEDULES = ("cosine", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a candidate may change that is no option of `simclr-fast pretrain`."""

    decoupled: bool = False
    """The decoupled loss (Yeh et al. 2022, arXiv:2110.06848)."""
    head_layers: int = 2
    """Layers of the projection head."""
    blur_kernel: int | None = None
    """Taps of the blur (odd); None is a tenth of the view's height, made odd: none below 20 pixels."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on every pixel of a view, in units of the normalised view."""
    schedule: str = "cosine"
    """How the learning rate falls to 0 after its warm-up: one of SCHEDULES; "constant" does not."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule={self.schedule}: pass one of {', '.join(SCHEDULES)}")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What candidates are trained on, and what they are judged by: labelled images in memory."""

    train: ImageArrays
    held_out: ImageArrays


def training_images(options: DataOptions, held_out: float, most: int | None) -> Parts:
    """The labelled training images of a data set of arrays, the fraction `held_out` of every class set apart.

    most: of a larger set a fixed random part of every class is taken, of about so many images; None takes all.
    """
    images = load_dataset(options).labelled
    if not isinstance(images, ImageArrays) or images.labels is None:
        raise ConfigError(f"--dataset {options.dataset}: pass one whose labelled images lie in memory, as mnist5k")
    if most is not None and most < len(images):
        images = images.subset(balanced_fraction(images.labels, most / len(images), SPLIT_SEED))
    return Parts(*(images.subset(part) for part in hold_out(images.labels, held_out, SPLIT_SEED)))


def changed(config: Config, changes: dict[str, Any]) -> tuple[Config, Extras]:
    """The recipe with some options changed, by name; lists count as tuples. Raises ConfigError for an unknown name."""
    extras = {name: value for name, value in changes.items() if name in {f.name for f in dataclasses.fields(Extras)}}
    for name, value in changes.items():
        if name in extras:
            continue
        group = next((group for group in GROUPS if hasattr(getattr(config, group), name)), None)
        if group is None:
            raise ConfigError(f"{name}={value}: no option of {', '.join(GROUPS)} has that name")
        value = tuple(value) if isinstance(value, list) else value
        options = dataclasses.replace(getattr(config, group), **{name: value})
        config = dataclasses.replace(config, **{group: options})
    return config, Extras(**extras)


class StudiedViews(Views):
    """Views of a training run, blurred by a kernel of the size that `extras` asks for, and with noise."""

    def __init__(self, config: Config, extras: Extras, dtype: torch.dtype | None):
        super().__init__(config.augment, config.run.seed, dtype=dtype, channels_last=config.speed.channels_last)
        self.noise = extras.noise
        if extras.blur_kernel is not None:
            own = self.augment
            self.augment = SimCLRAugment(
                **config.augment.fused(),
                blur_kernel=extras.blur_kernel,
                dtype=own.dtype,
                memory_format=own.memory_format,
            )

    def apply(self, images: Images, draw: Draw) -> Tensor:
        """As in a training run; the noise follows from the step's seed, and so is the same for every candidate."""
        views = super().apply(images, draw)
        if self.noise > 0:
            generator = torch.Generator().manual_seed(int(draw.seed))
            views = views + self.noise * torch.randn(views.shape, generator=generator).to(views)
        return views


def learning_rate(schedule: str, step: int, peak: float, total_steps: int, warmup_steps: int) -> float:
    """The rate of a step, as `optim.lr_at` gives it, but for how it falls after the warm-up."""
    if schedule == "cosine" or step < warmup_steps:
        return lr_at(step, peak, total_steps, warmup_steps)
    return peak if schedule == "constant" else peak * (total_steps - step) / (total_steps - warmup_steps)


def deepen(model: nn.Module, layers: int) -> None:
    """Give the head of a SimCLR model so many layers, of the width of the hidden one."""
    hidden = model.head[0].out_features
    for _ in range(layers - 2):
        between = (nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True))
        model.head = nn.Sequential(*model.head[:3], *between, *model.head[3:])


def train(config: Config, extras: Extras, images: ImageArrays, steps: int) -> tuple[TrainState, float]:
    """The state after so many steps, and the seconds of processor time of a step, its average of weights included.

    The learning rate rises and falls over these steps, with the same share of warm-up as over the recipe's epochs. An
    average of the weights is always kept, since it changes nothing else.
    """
    check(config)
    options = dataclasses.replace(config.optimization, model_ema=True)
    config = dataclasses.replace(config, optimization=options)
    loader = build_loader(images, options.batch_size, config.run.seed, CPU, config.data)
    autocast = autocast_dtype(config.speed.amp_dtype, CPU)
    state = TrainState.create(config, images.channels, CPU, autocast=autocast)
    if extras.head_layers != 2:
        deepen(state.model, extras.head_layers)
        state.optimizer = build_optimizer(state.model, options)
        state.ema = WeightAverage(state.model, options.model_ema_decay)
    views = StudiedViews(config, extras, autocast)
    step = build_step(state, views, config, Process(0, 1, CPU), autocast)
    step.criterion = NTXentLoss(options.temperature, decoupled=extras.decoupled)
    warmup = round(steps * options.warmup_epochs / options.epochs)
    state.model.train()
    began, epoch = time.process_time(), 0
    while state.step < steps:
        for batch in loader.epoch(epoch):
            lr = learning_rate(extras.schedule, state.step, peak_lr(options), steps, warmup)
            step.take(batch, views.draw(batch.indices, state.step), lr)
            state.step += 1
            if state.step == steps:
                break
        epoch += 1
    step.settle()
    return state, (time.process_time() - began) / steps


def readouts(state: TrainState, parts: Parts, preprocess: Preprocess) -> dict[str, tuple[Tensor, Tensor]]:
    """Features of the training and of the held-out images, by where they are read."""
    encoders = {
        "backbone": state.model.backbone,
        "averaged weights": state.ema.module.backbone,
        "first layer of the head": nn.Sequential(state.model.backbone, state.model.head[:3]),
    }
    return {name: embedded(encoder, parts, preprocess) for name, encoder in encoders.items()}


def embedded(encoder: nn.Module, parts: Parts, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Features [N, D] of the training, and [Q, D] of the held-out images."""
    return tuple(embed(encoder, images, preprocess, CPU) for images in (parts.train, parts.held_out))


def probe(features: tuple[Tensor, Tensor], parts: Parts) -> dict[str, float]:
    """Accuracies (fractions) on the held-out images with PER_CLASS labels per class of the training images.

    "linear" and "1nn" are the probes of `simclr-fast few-label`: a classifier of standardised features, and cosine
    neighbours of features as they are. "1nn_standardised" and "linear_unscaled" have it the other way about.
    """
    labels, truth = parts.train.labels, parts.held_out.labels
    draws = few_label_draws(labels, PER_CLASS, DRAWS)
    scaled = standardize(*features)
    rows = [nn.functional.normalize(part, dim=1) * part.shape[1] ** 0.5 for part in features]
    found = {}
    for suffix, neighbours, classified in (("", features, scaled), ("_other", scaled, rows)):
        scores = few_label_accuracies(
            neighbours[0], labels, neighbours[1], truth, draws, classes=int(labels.max()) + 1, scaled=classified
        )
        found |= {name + suffix: statistics.mean(scores[name]) for name in ("linear", "1nn")}
    return {
        "linear": found["linear"],
        "1nn": found["1nn"],
        "linear_unscaled": found["linear_other"],
        "1nn_standardised": found["1nn_other"],
    }


def raw_pixels(parts: Parts, preprocess: Preprocess) -> dict[str, float]:
    """As `probe`, of the images themselves."""
    return probe(embedded(Pixels(), parts, preprocess), parts)


def measure(config: Config, extras: Extras, parts: Parts, steps: int) -> dict[str, Any]:
    """Train a candidate and judge it: {"step_seconds", "readouts": by where features are read, what `probe` gives}."""
    state, seconds = train(config, extras, parts.train, steps)
    found = readouts(state, parts, Preprocess.of(config.augment))
    scores = {name: {k: round(v, 4) for k, v in probe(features, parts).items()} for name, features in found.items()}
    return {"step_seconds": round(seconds, 4), "readouts": scores}
