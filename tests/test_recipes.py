"""The recipes: each can work, and holds the constants of what it follows."""

import dataclasses
import math
import typing

import pytest

from simclr_fast.config import Config, check
from simclr_fast.optim import peak_lr
from simclr_fast.recipes import RECIPES

# Written down from the sources, not from the recipes; a mutant of a recipe's constant is another value than here.
PAPER_VIEWS = {"scale": (0.08, 1.0), "gray_p": 0.2, "hflip": 0.5, "jitter_p": 0.8}  # Chen et al. 2020, appendix A
SMALL_VIEWS = {"scale": (0.2, 1.0), "gray_p": 0.1, "jitter": (0.4, 0.4, 0.4, 0.1), "jitter_p": 0.8, "blur_p": 0.0}
LARS = {"opt": "lars", "momentum": 0.9, "weight_decay": 1e-6, "warmup_epochs": 10.0}  # the paper's section 2.1, 2.2
CONSTANTS = {
    # dkobak/simclr-cifar10, README.md and simclr-cifar10.py: SGD, 0.03 * batch / 256, cosine without warm-up.
    "cifar10-r18": {
        "augment": {"size": 32, **SMALL_VIEWS},
        "model": {"model": "resnet18", "stem": "cifar", "head_hidden": 1024, "head_dim": 128},
        "optimization": {
            **{"opt": "sgd", "lr_base": 0.03, "lr_base_size": 256, "lr_base_scale": "linear", "momentum": 0.9},
            **{"weight_decay": 5e-4, "warmup_epochs": 0.0, "temperature": 0.5, "epochs": 500, "batch_size": 1024},
        },
    },
    # Chen et al. 2020, appendix B.9: color distortion of strength 0.5, no blur; the rest as on ImageNet.
    "cifar10": {
        "augment": {"size": 32, **PAPER_VIEWS, "jitter": (0.4, 0.4, 0.4, 0.1), "blur_p": 0.0},
        "model": {"model": "resnet50", "stem": "cifar", "head_hidden": 2048, "head_dim": 128},
        "optimization": {**LARS, "lr_base": 1.0, "temperature": 0.5, "epochs": 1000, "batch_size": 1024},
    },
    # htdt/self-supervised, cfg.py, datasets/stl10.py and README.md: `--dataset stl10 --lr 2e-3 --emb 128`.
    "stl10": {
        "augment": {"size": 64, **SMALL_VIEWS, "mean": (0.43, 0.42, 0.39), "std": (0.27, 0.26, 0.27)},
        "model": {"model": "resnet18", "stem": "cifar", "head_hidden": 1024, "head_dim": 128},
        "optimization": {"opt": "adamw", "lr": 2e-3, "weight_decay": 1e-6, "temperature": 0.5},
    },
    # Chen et al. 2020, appendix B.1: 0.075 * sqrt(batch).
    "imagenet-100ep": {
        "augment": {"size": 224, **PAPER_VIEWS, "jitter": (0.8, 0.8, 0.8, 0.2), "blur_p": 0.5},
        "model": {"model": "resnet50", "stem": "imagenet", "head_hidden": 2048, "head_dim": 128},
        "optimization": {**LARS, "lr_base_scale": "sqrt", "temperature": 0.1, "epochs": 100, "batch_size": 256},
    },
    # Chen et al. 2020, sections 2.1, 2.2 and 6: 0.3 * batch / 256; its best models trained for 1000 epochs.
    "imagenet": {
        "augment": {"size": 224, **PAPER_VIEWS, "jitter": (0.8, 0.8, 0.8, 0.2), "blur_p": 0.5},
        "model": {"model": "resnet50", "stem": "imagenet", "head_hidden": 2048, "head_dim": 128},
        "optimization": {
            **LARS,
            **{"lr_base": 0.3, "lr_base_scale": "linear", "temperature": 0.1, "epochs": 1000, "batch_size": 4096},
        },
    },
}


def test_every_recipe_can_work_and_is_an_answer_of_the_command_line() -> None:
    assert sorted(typing.get_args(typing.get_type_hints(Config)["recipe"])) == sorted(RECIPES)
    for name, config in RECIPES.items():
        assert config.recipe == name
        check(config)


@pytest.mark.parametrize("recipe", CONSTANTS)
def test_constants_are_those_of_the_source(recipe: str) -> None:
    for group, constants in CONSTANTS[recipe].items():
        held = vars(getattr(RECIPES[recipe], group))
        assert {name: held[name] for name in constants} == constants


def test_learning_rates_are_the_published_ones() -> None:
    at = lambda recipe, batch: peak_lr(dataclasses.replace(RECIPES[recipe].optimization, batch_size=batch))
    for batch in (256, 1024, 4096):
        assert at("imagenet-100ep", batch) == pytest.approx(0.075 * math.sqrt(batch))
        assert at("imagenet", batch) == pytest.approx(0.3 * batch / 256)
        assert at("cifar10-r18", batch) == pytest.approx(0.03 * batch / 256)
    assert at("imagenet", 4096) == pytest.approx(at("imagenet-100ep", 4096)), "equal at the paper's batch"
