"""A run beside what was published: only the same images, network and probe; what is far below is a warning."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from simclr_fast.config import Config, DataOptions
from simclr_fast.data import Dataset, ImageArrays, load_dataset
from simclr_fast.evaluation.published import beside_published, published_table
from simclr_fast.evaluation.report import _published
from simclr_fast.expectations import CIFAR10, EXPECTATIONS, IMAGES, headline
from simclr_fast.recipes import RECIPES

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def images(count: int, classes: int) -> ImageArrays:
    return ImageArrays(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.arange(count) % classes)


def data_of(recipe: str, **changed: Any) -> Dataset:
    """As many images as the recipe's data set has, of its classes; changed: fields of Images."""
    these = dataclasses.replace(IMAGES[recipe], **changed)
    names = these.classes if isinstance(these.classes, tuple) else tuple(f"n{k:08}" for k in range(these.classes))
    train = images(these.images, len(names))
    return Dataset(train, train, images(these.test_images, len(names)), names)


def config_of(recipe: str, **optimization: Any) -> Config:
    config = RECIPES[recipe]
    return dataclasses.replace(config, optimization=dataclasses.replace(config.optimization, **optimization))


def results_of(knn: float, train_images: int = 50_000) -> dict[str, Any]:
    """The part of what `compare` gives that is looked at."""
    return {"knn": {"simclr": knn}, "knn_k": {"simclr": 10}, "train_images": train_images}


RESULTS = {"labels_per_class": 10, "rarest_class": 100, "draws": 5}


def beside(config: Config, data: Dataset, knn: float = 0.889, train_images: int = 50_000) -> dict[str, Any] | None:
    results = RESULTS | results_of(knn, train_images) | {"few_label_linear": {"simclr": 0.9}}
    return beside_published(config, data, results)


@pytest.fixture(scope="module")
def cifar() -> Dataset:
    return data_of("cifar10-r18")


def test_the_published_trainings_around_the_run_are_named(cifar: Dataset) -> None:
    of = lambda epochs: beside(config_of("cifar10-r18", epochs=epochs), cifar)["line"]
    source = "(dkobak/simclr-cifar10; kNN (k = 10); batch 512"
    after = "weighted kNN, all labels (k = 10): 88.9% after {} of batches of 1024; published {}".format
    of_100 = "83.2% after 100 (base learning rate 0.06)"
    assert of(500) == after("500 epochs", f"90.3% after 500 {source})")
    assert of(1) == after("1 epoch", f"83.2% after 100 {source}; base learning rate 0.06)")
    assert of(200) == after("200 epochs", f"{of_100} and 90.3% after 500 {source})")
    assert of(2000) == after("2000 epochs", f"91.4% after 1000 {source})")
    assert f"    {of(200)}\n" in PAGE.read_text(), "the page shows this line"


@pytest.mark.parametrize(
    ("epochs", "knn", "far_below"),
    [
        (500, 0.903 - 0.031, True),
        (500, 0.903 - 0.029, False),
        (700, 0.903 - 0.031, True),  # trained longer
        (1000, 0.914 - 0.031, True),  # the figure of the longest training that this one is as long as
        (1000, 0.914 - 0.029, False),
        (499, 0.903 - 0.031, False),  # trained less long, and above what 100 epochs gave
        (50, 0.3, False),  # less long than any that was published
        (100, 0.3, False),  # the figure of 100 epochs is of another learning rate
        (1000, 0.95, False),
    ],
)
def test_a_warning_wants_as_long_a_training(epochs: int, knn: float, far_below: bool, cifar: Dataset) -> None:
    found = beside(config_of("cifar10-r18", epochs=epochs), cifar, knn)
    assert found["far_below"] == far_below
    assert found["line"].startswith("warning: ") == far_below
    assert found["line"].endswith("far below; docs/recipes.md says what to check") == far_below


def test_a_warning_wants_no_larger_batch_than_the_recipes(cifar: Dataset) -> None:
    far = {batch: beside(config_of("cifar10-r18", batch_size=batch), cifar, 0.5)["far_below"] for batch in (64, 2048)}
    assert far == {64: True, 2048: False}


def test_other_images_stand_beside_nothing(cifar: Dataset) -> None:
    config = RECIPES["cifar10-r18"]
    assert beside(config, cifar) is not None
    others = [
        data_of("cifar10-r18", images=49_999),
        data_of("cifar10-r18", test_images=9_999),
        data_of("cifar10-r18", classes=(*CIFAR10.classes[:-1], "van")),
        data_of("stl10"),
        dataclasses.replace(cifar, classes=None),
        dataclasses.replace(cifar, test=None),
    ]
    assert [beside(config, other) for other in others] == [None] * len(others)


def test_another_network_or_view_stands_beside_nothing(cifar: Dataset) -> None:
    config = RECIPES["cifar10-r18"]
    others = [("model", "model", "resnet34"), ("model", "stem", "imagenet"), ("model", "norm", "group")]
    others += [("model", "model_kwargs", ("grid=2",)), ("model", "pretrained", "DEFAULT"), ("augment", "size", 24)]
    for group, name, value in others:
        changed = dataclasses.replace(getattr(config, group), **{name: value})
        assert beside(dataclasses.replace(config, **{group: changed}), cifar) is None, name


def test_the_sizes_are_those_of_the_data_sets() -> None:
    sizes = {
        name: (one.images, one.test_images, *([one.classes] if isinstance(one.classes, int) else [len(one.classes)]))
        for name, one in IMAGES.items()
    }
    cifar, imagenet = (50_000, 10_000, 10), (1_281_167, 50_000, 1000)
    assert sizes == {
        "demo": (4_000, 1_000, 10),
        "small-images": (60_000, 10_000, 10),
        **dict.fromkeys(("cifar10-r18", "cifar10"), cifar),
        "stl10": (100_000, 8_000, 10),
        **dict.fromkeys(("imagenet-100ep", "imagenet"), imagenet),
    }
    digits = load_dataset(DataOptions(dataset="mnist5k"))
    assert beside(RECIPES["demo"], digits) is not None


def test_ones_own_photos_stand_beside_nothing() -> None:
    assert beside(RECIPES["photos"], data_of("cifar10")) is None


def test_what_a_runs_end_does_not_measure_is_named_with_its_command() -> None:
    config = config_of("imagenet-100ep", batch_size=4096)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, output=Path("runs/mine")))
    found = beside(config, data_of("imagenet-100ep"), knn=0.2)
    assert found["line"] == (
        "Published: linear 64.5% after 100 (Chen et al. 2020; batch 4096); to measure it: "
        f"{headline('imagenet-100ep', 100, 4096).command_for('runs/mine')}"
    )
    assert not found["far_below"]


def test_a_part_of_the_training_images_is_no_bank_to_compare_with() -> None:
    stl = data_of("stl10")
    stl = dataclasses.replace(stl, labelled=images(5_000, 10))
    whole, part = (beside(RECIPES["stl10"], stl, 0.8, train_images) for train_images in (5_000, 4_000))
    assert whole["line"].startswith(
        "weighted kNN, all labels (k = 10): 80.0% after 500 epochs of batches of 512; published 85.7%"
    )
    assert part["line"].startswith("Published: 5-NN 85.7%")


def test_few_labels_are_compared_on_a_part_of_the_training_images_too() -> None:
    results = RESULTS | results_of(0.9, 50_000) | {"few_label_linear": {"simclr": 0.78}}
    found = beside_published(RECIPES["small-images"], data_of("small-images"), results)
    assert found["line"].startswith("linear, 10 labels/class: 78.0% after 4 epochs of batches of 128; expected 78.1%")


def test_figures_of_this_project_are_expected_not_published() -> None:
    results = RESULTS | results_of(0.9, 4_000) | {"few_label_linear": {"simclr": 0.1}}
    one = next(one for one in EXPECTATIONS["demo"] if one.result == "few_label_linear")
    found = beside_published(RECIPES["demo"], data_of("demo"), results)
    expected = f"{100 * one.accuracy:.1f}% after {one.epochs} (this project; batch {one.batch_size})"
    line = f"10 labels/class: 10.0% after {one.epochs} epochs of batches of {one.batch_size}; expected {expected}"
    assert line in found["line"]
    assert found["far_below"]


def test_results_and_page_hold_it(cifar: Dataset) -> None:
    found = beside(RECIPES["cifar10-r18"], cifar)
    assert json.loads(json.dumps(found)) == found
    table = published_table(found)
    assert len(table.rows) == len(EXPECTATIONS["cifar10-r18"])
    first = "kNN (k = 10)", "90.3", "500", "512", "dkobak/simclr-cifar10"
    assert tuple(table.rows[0][:5]) == first
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert _published(RESULTS) == []
    (section,) = _published(RESULTS | {"published": found})
    assert found["line"] in section.body
    assert "simclr-fast knn runs/cifar10-r18 --knn-k 10 --knn-t 1000" in section.body
