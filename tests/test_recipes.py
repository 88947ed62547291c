"""The recipes: each can work, holds the constants of what it follows, and says what to expect of it."""

import dataclasses
import math
import typing
from pathlib import Path

import pytest

from simclr_fast.cli import main
from simclr_fast.config import Config, check
from simclr_fast.evaluation.comparison import PROBES
from simclr_fast.expectations import EXPECTATIONS, IMAGES, NOTHING_EXPECTED, SPEEDS, duration, headline
from simclr_fast.optim import peak_lr
from simclr_fast.recipes import RECIPES
from tests.docs.blocks import ROOT, check_command

PAGE = ROOT / "docs" / "recipes.md"

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


# What the recipes change beside the constants above, of each option that is another than `Config()` has.
OTHERS = {
    "photos": {
        **{"max_bad_images": 0.1, "batch_size": 256, "lr_base": 1.2, "lr_base_scale": "sqrt"},
        "output": Path("runs/photos"),
    },
    "demo": {
        **{"dataset": "mnist5k", "workers": 0, "size": 16, "scale": (0.4, 1.0), "hflip": 0.0, "gray_p": 0.0},
        **{"jitter": (0.8, 0.8, 0.0, 0.0), "blur_p": 0.0, "rotate": 25.0, "shear": 0.3, "mean": (0.0,), "std": (1.0,)},
        **{"model": "resnet_mini", "head_hidden": 256, "temperature": 0.4, "epochs": 45, "batch_size": 64},
        **{"opt": "adamw", "lr": 2e-3, "warmup_epochs": 1.0, "weight_decay": 1e-4, "knn_epochs": 5},
        "output": Path("runs/demo"),
    },
    "small-images": {
        **{"size": 28, "scale": (0.4, 1.0), "jitter": (0.8, 0.8, 0.4, 0.1), "mean": (0.5,), "std": (0.25,)},
        **{"model": "resnet_mini", "model_kwargs": ("grid=4",), "head_hidden": 256, "temperature": 0.4, "epochs": 4},
        **{"batch_size": 128, "opt": "adamw", "lr": 2e-3, "warmup_epochs": 0.2, "weight_decay": 1e-4},
        **{"knn_epochs": 2, "output": Path("runs/small-images")},
    },
    **{
        recipe: {
            **{"dataset": "cifar10", "workers": 0, "output": Path(f"runs/{recipe}")},
            **{"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
        }
        for recipe in ("cifar10-r18", "cifar10")
    },
    "stl10": {
        **{"dataset": "stl10", "workers": 0, "output": Path("runs/stl10")},
        **{"epochs": 500, "batch_size": 512, "warmup_epochs": 5.0},
    },
    "imagenet-100ep": {"lr_base": 1.2, "output": Path("runs/imagenet-100ep")},
    "imagenet": {"output": Path("runs/imagenet")},
}


def options_of(config: Config) -> dict[str, object]:
    groups = [group for group in vars(config).values() if dataclasses.is_dataclass(group)]
    return {name: value for group in groups for name, value in vars(group).items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_change_these_options_and_no_other(recipe: str) -> None:
    constants = {name: value for group in CONSTANTS.get(recipe, {}).values() for name, value in group.items()}
    assert options_of(RECIPES[recipe]) == options_of(Config()) | constants | OTHERS[recipe]


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


def test_every_recipe_says_what_to_expect_or_why_nothing() -> None:
    assert sorted([*EXPECTATIONS, *NOTHING_EXPECTED]) == sorted(RECIPES)
    assert EXPECTATIONS.keys() == IMAGES.keys() >= SPEEDS.keys()
    for recipe, several in EXPECTATIONS.items():
        assert len(set(several)) == len(several), recipe
        for one in several:
            assert 0 < one.accuracy < 1
            assert one.result is None or one.result in PROBES
            assert one.source.is_ours or one.source.url.startswith("https://")


def test_commands_that_measure_can_be_parsed() -> None:
    commands = {one.command_for("runs/mine") for several in EXPECTATIONS.values() for one in several}
    assert len(commands) > 5
    for command in commands:
        program, *arguments = command.split()
        assert program == "simclr-fast"
        check_command(arguments)


def test_the_page_has_every_recipe_and_every_figure() -> None:
    lines = PAGE.read_text().splitlines()
    for recipe, several in EXPECTATIONS.items():
        assert any(line.startswith(f"| `{recipe}` |") for line in lines)
        for one in several:
            figures = f"{100 * one.accuracy:.1f} | {one.epochs} | {one.batch_size or '-'}"
            source = f"[{one.source.name}]({one.source.url.removeprefix('docs/')})"
            command = one.command_for(RECIPES[recipe].run.output)
            row = f"| `{recipe}` | {one.measure} | {figures} | {source} | {one.differs or '-'} | `{command}` |"
            assert row in lines, f"{PAGE.name} lacks\n{row}"
    figures = sum(line.startswith("| `") and line.endswith("` |") for line in lines)
    assert figures == sum(map(len, EXPECTATIONS.values())), "the page has no figure that is not expected"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            "cifar10-r18",
            "Expected: kNN (k = 10) 90.3% after 500 epochs of batches of 512 (dkobak/simclr-cifar10); 500 ",
        ),
        ("cifar10-r18", "500 epochs take 9.3 min at 44,769 images/s measured on an NVIDIA H200 (steps alone"),
        ("cifar10", "1000 epochs take 10.2 h at 1,355 images/s of dkobak/simclr-cifar10 on an NVIDIA A100 (36.9 s per"),
        ("imagenet-100ep", "Expected: linear 62.8% after 100 epochs of batches of 256 (Chen et al. 2020)"),
        ("stl10", "5-NN 85.7% after 2000 epochs (Ermolov et al. 2021, table 1). docs/recipes.md has all figures."),
        ("photos", "Nothing was published for it to be compared with: every folder of photos is another data set"),
    ],
)
def test_help_says_what_to_expect(recipe: str, said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["pretrain", recipe, "--help"])
    assert end.value.code == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_rates_are_those_of_the_pages_and_of_the_sources() -> None:
    published: set[tuple[str, int]] = set()
    for one in (speed for speeds in SPEEDS.values() for speed in speeds):
        if one.source.is_ours:
            pages = (ROOT / one.source.url, ROOT / "README.md", PAGE)
            assert any(f"{one.images_per_second:,.0f} images/s" in page.read_text() for page in pages)
        else:
            published.add((one.source.name, round(one.images_per_second)))
    assert published == {
        *(("dkobak/simclr-cifar10", 4202), ("dkobak/simclr-cifar10", 1355)),  # 11.9 and 36.9 s per epoch
        ("lightly's benchmarks", 610),  # 35 minutes per epoch
        ("google-research/simclr", 5931),  # 100 epochs in 6 hours
        ("Chen et al. 2020", 23725),  # 100 epochs in 1.5 hours
    }


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(99.4, "99 s"), (100, "1.7 min"), (599, "10.0 min"), (600, "10 min"), (5999, "100 min"), (6000, "1.7 h")],
)
def test_durations_are_told_in_the_unit_of_a_person(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(("batch_size", "accuracy"), [(256, 0.628), (300, 0.628), (4096, 0.645), (2**14, 0.648)])
def test_the_headline_is_of_the_nearest_training(batch_size: int, accuracy: float) -> None:
    one = headline("imagenet-100ep", 100, batch_size)
    assert (one.measure, one.batch_size is not None, one.accuracy) == ("linear", True, accuracy)
    assert headline("imagenet", 90, 256).epochs == 100
