"""The trained encoder beside its two baselines, and the features that they give."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from simclr_fast.data import Dataset
from simclr_fast.evaluation.features import Pixels, Preprocess, embed
from simclr_fast.evaluation.run import Run


@dataclasses.dataclass(frozen=True)
class Features:
    """Features [N, D] of labelled training and of test images under one encoder, float32 on the CPU."""

    train: Tensor
    test: Tensor


def encoders(run: Run) -> dict[str, nn.Module]:
    """The encoders to compare, by the keys of ENCODERS, in eval mode on the CPU."""
    return {"raw": Pixels(), "random_init": run.random_init(), "simclr": run.encoder()}


def preprocess_of(run: Run) -> Preprocess:
    """The test-time view that belongs to the run's recipe."""
    return Preprocess.of(run.config.augment)


def all_features(run: Run, data: Dataset, device: torch.device) -> Iterator[tuple[str, Features]]:
    """(key of ENCODERS, features of the labelled training and of the test images), one encoder after the other.

    Let go of the features before you ask for the next: of ImageNet, raw pixels alone take 15.7 GB.
    """
    preprocess = preprocess_of(run)
    for name, encoder in encoders(run).items():
        encoder = encoder.to(device)
        yield name, Features(*(embed(encoder, part, preprocess, device) for part in (data.labelled, data.test)))
