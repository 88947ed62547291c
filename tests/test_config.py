"""The options of `pretrain`: what each may be, up to its limits, what they may be together, what each is unnamed."""

import dataclasses
import math
import os
from pathlib import Path

import pytest

from simclr_fast.config import RULES, AugmentOptions, Config, DataOptions, RunOptions, as_dict, check, graph_conflict
from simclr_fast.errors import ConfigError
from simclr_fast.named_options import changed, named_in
from simclr_fast.recipes import RECIPES
from simclr_fast.training.pretrain import with_fitting_batch

PROBABILITY = ((0.0, 1.0), (-0.01, 1.01, math.nan))
COUNT = ((1, 10**6), (0, -1))
COUNT_OR_ZERO = ((0, 10**6), (-1,))
WIDTH = ((1, 65536), (0, 65537))
THREADS = ((0, 1024), (-1, 1025))
DECAY = ((0.0, 0.999), (1.0, -0.01, math.nan))
ABOVE_ZERO = ((1e-9, 1e9), (0.0, -1.0, math.nan))
NOT_NEGATIVE = ((0.0, 5.0), (-1e-9, math.nan))
# By option: what may be passed, and what is refused.
LIMITS = {
    **dict.fromkeys(("lr_base_size", "checkpoint_hist", "log_interval"), COUNT),
    **dict.fromkeys(("knn_epochs", "profile", "shrink_to"), COUNT_OR_ZERO),
    **dict.fromkeys(("head_hidden", "head_dim"), WIDTH),
    **dict.fromkeys(("workers", "threads"), THREADS),
    **dict.fromkeys(("hflip", "jitter_p", "gray_p", "blur_p"), PROBABILITY),
    **dict.fromkeys(("weight_decay", "shear"), NOT_NEGATIVE),
    **dict.fromkeys(("momentum", "model_ema_decay"), DECAY),
    **dict.fromkeys(("lr", "lr_base", "clip_grad", "checkpoint_minutes"), ABOVE_ZERO),
    "epochs": ((1, 10**6), (0, -1)),
    "micro_batch_size": ((0, 32, 64), (-1, 48, 65, 128)),
    "batch_size": ((2, 64), (1, 0)),
    "seed": ((0, 2**63 - 1), (-1, 2**63)),
    "temperature": ((1e-9, 9.0), (0.0, -0.1, math.inf, math.nan)),
    "size": ((8, 8192), (7, 8193)),
    "scale": (((1e-6, 1.0), (0.5, 0.5)), ((0.0, 1.0), (0.6, 0.5), (0.5, 1.01))),
    "ratio": (((0.1, 9.0), (1.0, 1.0)), ((0.0, 1.0), (1.1, 1.0), (1.0, math.inf))),
    "rotate": ((0.0, 180.0), (-0.1, 180.1)),
    "jitter": (
        ((0.0, 0.0, 0.0, 0.0), (9.0, 9.0, 9.0, 0.5)),
        ((-0.1, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.51), (0.0, math.inf, 0.0, 0.0), (0.0, 0.0, 0.0, -0.1)),
    ),
    "mean": (((0.5,), (-1.0, 0.0, 1.0)), ((0.5, 0.5), (math.inf,), ())),
    "std": (((0.5,), (0.1, 0.2, 3.0)), ((0.5, 0.5), (0.0,), (0.5, 0.5, -0.5), (math.inf,))),
    "max_bad_images": ((0.0, 1.0), (-0.01, 1.01)),
    "warmup_epochs": ((0.0, 45.0), (-0.1, 45.1)),
    "output": ((Path("runs/ü \\xfc"),), (Path(os.fsdecode(b"runs/\xfc")),)),
}


def demo(**options: object) -> Config:
    """The demo, whose run has 45 epochs of 64 images a step."""
    return changed(RECIPES["demo"], {"warmup_epochs": 0.0} | options)


def test_every_rule_has_its_limits_here() -> None:
    assert LIMITS.keys() - {"warmup_epochs"} == RULES.keys()


@pytest.mark.parametrize("name", LIMITS)
def test_values_are_taken_up_to_the_limits_and_refused_beyond(name: str) -> None:
    taken, refused = LIMITS[name]
    for value in taken:
        check(demo(**{name: value}))
    for value in refused:
        with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} "):
            check(demo(**{name: value}))


def test_a_batch_and_its_parts_are_shared_by_the_processes() -> None:
    check(demo(micro_batch_size=16), world_size=4)
    for options, world_size, said in (
        ({}, 3, "--batch-size 64: it is the global batch and must divide by the 3 processes"),
        ({"micro_batch_size": 32}, 4, "--micro-batch-size 32: it must divide the 16 images of a process"),
    ):
        with pytest.raises(ConfigError, match=f"^{said}$"):
            check(demo(**options), world_size)


@pytest.mark.parametrize(
    ("images", "world_size", "batch_size"),
    [(256, 1, 256), (1000, 8, 256), (255, 1, 255), (255, 2, 254), (7, 4, 4), (2, 1, 2), (2, 2, 2), (9, 8, 8)],
)
def test_a_batch_is_cut_to_what_the_processes_share_of_the_images(
    images: int, world_size: int, batch_size: int
) -> None:
    fitting = with_fitting_batch(RECIPES["photos"], images, world_size)
    assert fitting == changed(RECIPES["photos"], {"batch_size": batch_size})


@pytest.mark.parametrize(("images", "world_size"), [(0, 1), (1, 1), (3, 4), (1, 2)])
def test_too_few_images_for_a_step_are_told(images: int, world_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"too few training images \({images}\); two per step are needed"):
        with_fitting_batch(RECIPES["photos"], images, world_size)


def test_options_that_the_command_line_sets_are_known_by_their_names() -> None:
    given = ["photos", "--no-eval", "--norm", "batch", "--batch-size=4", "--scale", "0.2", "1", "--log-wandb"]
    assert named_in(given) == {"eval", "norm", "batch_size", "scale", "log_wandb"}


def test_what_compiles_and_what_is_one_graph() -> None:
    for backend in ("auto", "inductor"):
        check(demo(torchcompile=backend, torchcompile_mode="max-autotune"))
    for backend in ("off", "aot_eager"):
        check(demo(torchcompile=backend))
        with pytest.raises(ConfigError, match=f"only inductor has modes, and --torchcompile is {backend}$"):
            check(demo(torchcompile=backend, torchcompile_mode="reduce-overhead"))
    check(demo(cuda_graph="on"))
    conflicting = {"micro_batch_size": 32, "amp_dtype": "float16", "torchcompile_mode": "max-autotune", "profile": 2}
    for name, value in conflicting.items():
        conflict = graph_conflict(demo(**{name: value}))
        assert conflict.startswith(f"--{name.replace('_', '-')} {value} ")
        check(demo(**{name: value}, cuda_graph="auto"))
        with pytest.raises(ConfigError, match=f"^--cuda-graph on: {conflict}; pass auto or off$"):
            check(demo(**{name: value}, cuda_graph="on"))


def test_options_that_nobody_names_are_the_papers_or_what_the_help_says() -> None:
    """Recipes leave them as they are; those that recipes set are in tests/test_recipes.py."""
    config = Config()
    assert vars(config.data) == {
        **{"dataset": "auto", "data": Path("data"), "download": False, "image_column": None, "label_column": None},
        **{"workers": 8, "max_bad_images": 0.01, "decode_device": "cpu", "resident": "auto"},
    }
    assert config.augment == AugmentOptions(
        **{"size": 224, "scale": (0.08, 1.0), "ratio": (0.75, 4 / 3), "hflip": 0.5, "jitter": (0.8, 0.8, 0.8, 0.2)},
        **{"jitter_p": 0.8, "gray_p": 0.2, "blur_p": 0.5, "rotate": 0.0, "shear": 0.0, "shrink_to": None},
        **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    )
    assert vars(config.model) == {
        **{"model": "resnet50", "model_kwargs": (), "stem": "imagenet", "head_hidden": 2048, "head_dim": 128},
        **{"norm": "batch", "sync_bn": True, "pretrained": None},
    }
    assert vars(config.optimization) == {
        **{"temperature": 0.1, "epochs": 100, "batch_size": 4096, "micro_batch_size": 0, "opt": "lars", "lr": None},
        **{"lr_base": 0.3, "lr_base_size": 256, "lr_base_scale": "linear", "warmup_epochs": 10.0, "momentum": 0.9},
        **{"weight_decay": 1e-6, "clip_grad": None, "model_ema": False, "model_ema_decay": 0.999},
    }
    assert vars(config.speed) == {
        **{"device": "auto", "amp_dtype": "auto", "channels_last": True, "torchcompile": "auto", "cuda_graph": "off"},
        **{"torchcompile_mode": "default", "tf32": True, "threads": 0},
    }
    assert vars(config.run) == {
        **{"output": Path("runs/simclr"), "seed": 0, "resume": None, "checkpoint_minutes": 15.0, "checkpoint_hist": 2},
        **{"log_interval": None, "knn_epochs": 10, "eval": True, "profile": 0, "log_wandb": False, "log_mlflow": False},
    }


def test_options_as_plain_values_are_nested_as_they_are() -> None:
    config = dataclasses.replace(RECIPES["demo"], data=DataOptions(data=Path("a/b")), run=RunOptions(output=Path("c")))
    plain = as_dict(config)
    assert (plain["recipe"], plain["data"]["data"], plain["run"]["output"]) == ("demo", "a/b", "c")
    assert plain["augment"]["scale"] == (0.4, 1.0)
