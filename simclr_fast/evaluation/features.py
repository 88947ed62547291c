"""How images reach encoders: the test-time view and what encoders make of it, and augmented batches with labels."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import grayscale_to_rgb, rgb_to_grayscale

from simclr_fast.augmentation import SimCLRAugment, SimCLREval
from simclr_fast.config import AugmentOptions
from simclr_fast.data import Dataset, EncodedImages, Source, build_loader
from simclr_fast.data.sampler import step_seed_of
from simclr_fast.data.shrink import side_of
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.run import Run
from simclr_fast.process import Process

ENCODERS = {"raw": "raw pixels", "random_init": "random-init encoder", "simclr": "SimCLR encoder"}
REFERENCE_BATCH = 256  # images that the learning rates of supervised training are given for
TAKEN = 64  # images held at a time as they are
TAKEN_FILES = 16  # of those that may be photographs of many megapixels, which would fill the memory


class Preprocess:
    """Test-time views: resize the shorter side to size * 8/7 and cut the centre out, as published; then normalise.

    Images that are `size` x `size` already are only normalised. channels: 1 or 3, to which others are brought first by
    `in_channels`; None takes images as they are.
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...], channels: int | None = None):
        self.size, self.channels = size, channels
        self.normalize = SimCLREval(size, mean=mean, std=std)
        self.resize = SimCLREval(size, resize=round(size * 8 / 7), mean=mean, std=std)

    @staticmethod
    def of(augment: AugmentOptions, channels: int | None = None) -> "Preprocess":
        """The test-time view that belongs to a recipe."""
        return Preprocess(augment.size, augment.mean, augment.std, channels)

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        """Images uint8 [B, C, H, W], or a list of B images [C, H, W], to float32 [B, C, size, size] on their device."""
        if self.channels is not None:
            images = in_channels(images, self.channels)
        fits = torch.tensor([image.shape[-2:] == (self.size, self.size) for image in images])
        if fits.all() or not fits.any():
            return (self.normalize if fits.all() else self.resize)(images)
        views = torch.empty(len(images), len(images[0]), self.size, self.size, device=images[0].device)
        for places, transform in ((fits.nonzero(), self.normalize), ((~fits).nonzero(), self.resize)):
            views[places.flatten()] = transform([images[place] for place in places.flatten().tolist()])
        return views


def in_channels(images: Tensor | list[Tensor], channels: int) -> Tensor | list[Tensor]:
    """Images uint8 [B, C, H, W], or a list of images [C, H, W], with 1 or 3 channels, as all commands see them.

    Colours become luma (ITU-R 601), and grey three equal channels; what has them already is handed on.
    """
    if isinstance(images, list):
        return [in_channels(image, channels) for image in images]
    if images.shape[-3] == channels:
        return images
    return grayscale_to_rgb(images) if channels == 3 else rgb_to_grayscale(images)


class Pixels(nn.Module):
    """The raw-pixel baseline: the image itself, averaged down to at most 32 pixels a side, as a vector."""

    def forward(self, images: Tensor) -> Tensor:
        side = min(32, images.shape[-1])
        return F.adaptive_avg_pool2d(images, side).flatten(1)


@torch.no_grad()
def embed(
    encoder: nn.Module,
    source: Source,
    preprocess: Preprocess,
    device: torch.device,
    indices: Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    """Features [N, D], float32 on the CPU, of the images at `indices` (all by default), in eval mode."""
    was_training = encoder.training
    encoder.eval()
    indices = torch.arange(len(source)) if indices is None else indices
    taken = TAKEN_FILES if isinstance(source, EncodedImages) else TAKEN
    features: Tensor | None = None
    done = 0
    for part in indices.split(batch_size):
        images = torch.cat([preprocess(source.take(few, device)) for few in part.split(taken)])
        found = encoder(images.to(memory_format=torch.channels_last)).float().cpu()
        if features is None:  # one allocation: to gather parts and join them would take twice the memory
            features = found.new_empty(len(indices), found.shape[1])
        features[done : done + len(part)] = found
        done += len(part)
    encoder.train(was_training)
    return features


@dataclasses.dataclass(frozen=True)
class Features:
    """Features [N, D] of labelled training and of test images under one encoder, float32 on the CPU."""

    train: Tensor
    test: Tensor


def encoders(run: Run) -> dict[str, nn.Module]:
    """The encoders to compare, by the keys of ENCODERS, in eval mode on the CPU."""
    return {"raw": Pixels(), "random_init": run.random_init(), "simclr": run.encoder()}


def preprocess_of(run: Run) -> Preprocess:
    """The test-time view that belongs to the run's recipe, of images in colour or grey."""
    return Preprocess.of(run.config.augment, run.channels)


def all_features(run: Run, data: Dataset, device: torch.device) -> Iterator[tuple[str, Features]]:
    """(key of ENCODERS, features of the labelled training and of the test images), one encoder after the other.

    Let go of the features before you ask for the next: of ImageNet, raw pixels alone take 15.7 GB.
    """
    preprocess = preprocess_of(run)
    for name, encoder in encoders(run).items():
        encoder = encoder.to(device)
        yield name, Features(*(embed(encoder, part, preprocess, device) for part in (data.labelled, data.test)))


def fitting_batch(batch_size: int, images: int, processes: int = 1) -> int:
    """The batch that is taken where one of batch_size images over all processes is asked for: of no more than all."""
    return min(batch_size, images // processes * processes)


def cut_batch(batch_size: int, asked: int) -> str:
    """What is said of a batch that was cut."""
    return (
        f"there are only batches of {batch_size} images, not of {asked}; the learning rate, per {REFERENCE_BATCH} "
        "images of a batch, follows"
    )


class LabelledBatches:
    """Batches (images [b, C, S, S] normalised, labels int64 [b]) of one process, on its device.

    Random resized crop and, where the recipe flips, a horizontal flip (Chen et al. 2020, B.5 and B.6); no colour. The
    images of a step and their crops depend on (seed, step) alone. batch_size is global; one larger than the data set
    is cut to it, as the attribute of that name says. crop: options of the augmentation that take the place of the
    recipe's. How the run's images reached its device does not matter: this may be another, without its memory or its
    nvJPEG. Raises ConfigError for fewer images than processes.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        run: Run,
        seed: int,
        process: Process,
        crop: Mapping[str, Any] | None = None,
    ):
        self.batch_size = batch_size = fitting_batch(batch_size, len(source), process.world_size)
        if batch_size == 0:
            raise ConfigError(f"{len(source)} labelled images cannot be shared by {process.world_size} processes")
        self.labels = source.labels.to(process.device)
        self.seed, self.channels = seed, run.channels
        options = dataclasses.replace(run.config.data, resident="auto", decode_device="cpu")
        crop_and_flip = dataclasses.replace(run.config.augment, jitter_p=0.0, gray_p=0.0, blur_p=0.0, **(crop or {}))
        ranks, shrink_to = (process.rank, process.world_size), side_of(crop_and_flip)
        self.loader = build_loader(source, batch_size, seed, process.device, options, *ranks, shrink_to)
        self.steps_per_epoch = self.loader.sampler.steps_per_epoch
        self.augment = SimCLRAugment(**crop_and_flip.fused(), views=1)

    def steps(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` batches, epoch after epoch."""
        for epoch in range(-(-count // self.steps_per_epoch)):
            first = epoch * self.steps_per_epoch
            for step, batch in enumerate(self.loader.epoch(epoch), start=first):
                if step == count:
                    return
                images = in_channels(batch.images, self.channels)
                images = self.augment(images, seed=step_seed_of(self.seed, step), indices=batch.indices)
                yield images, self.labels[batch.indices]
