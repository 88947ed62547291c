"""A small run on disk, as training leaves it, for the evaluation commands to work on."""

import dataclasses
from pathlib import Path

import pytest
import torch

from simclr_fast import checkpoint
from simclr_fast.config import Config, as_dict
from simclr_fast.evaluation import options
from simclr_fast.evaluation.probes import fit_linear
from simclr_fast.evaluation.tables import accuracy
from simclr_fast.models import build_model
from simclr_fast.recipes import RECIPES
from tests.data.conftest import write_image

COMMANDS = {kind.command: kind for kind in vars(options).values() if hasattr(kind, "command")}  # options by name


def demo_config(**model_options: object) -> Config:
    """The demo's options for images that are taken as they are, at 28 pixels."""
    config = RECIPES["demo"]
    model, augment = dataclasses.replace(config.model, **model_options), dataclasses.replace(config.augment, size=28)
    return dataclasses.replace(config, model=model, augment=augment)


def plain_config(**augment_options: object) -> Config:
    """The demo's options with views that are the whole image, unflipped."""
    config = demo_config()
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, **augment_options}
    return dataclasses.replace(config, augment=dataclasses.replace(config.augment, **options))


def color_config() -> Config:
    """The demo's options for colour images of 16 pixels."""
    return plain_config(size=16, mean=(0.5,) * 3, std=(0.3,) * 3)


def recorded_rates(monkeypatch: pytest.MonkeyPatch, optimizer: type[torch.optim.Optimizer]) -> list[float]:
    """The learning rate of each later step of such an optimizer."""
    rates: list[float] = []
    step = optimizer.step

    def recorded(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        assert all(group["lr"] == rates[-1] for group in self.param_groups)
        return step(self, *arguments, **options)

    monkeypatch.setattr(optimizer, "step", recorded)
    return rates


def write_run(folder: Path, config: Config, channels: int = 1, seed: int = 5) -> Path:
    """A run whose weights and statistics are random but not those of its initialisation; returns the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = build_model(config.model, channels, config.augment.size)
    with torch.no_grad():
        model.train()(torch.rand(8, channels, config.augment.size, config.augment.size))  # moves batch norm
    content = {"step": 3, "channels": channels, "model": model.state_dict(), "ema": None, "config": as_dict(config)}
    return checkpoint.save(folder, 3, content, keep=1)


def linear_accuracy(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, truth: torch.Tensor, penalty_c: float = 0.1
) -> float:
    """Accuracy (fraction) on test of `fit_linear` on train; features [N, D] that are standardised already."""
    return accuracy(fit_linear(train, labels, penalty_c).logits(test), truth)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's backbone."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, demo_config())
    return folder


@pytest.fixture(scope="session")
def color_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on colour images of 16 pixels."""
    folder = tmp_path_factory.mktemp("color run")
    write_run(folder, color_config(), channels=3)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 images in train/ and val/, of two classes and of different sizes; not to be changed."""
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                suffix = "png" if i == 0 else "jpg"
                seed = 10 * i + label + (100 if part == "val" else 0)
                write_image(root / part / name / f"{i}.{suffix}", 20 + 3 * i, 40 - 2 * i, seed)
    return root
