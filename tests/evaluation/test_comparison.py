"""The comparison at the end of training: every encoder's own figures under its name, and what they were measured on."""

import dataclasses
import gc
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.evaluation import comparison, in_training, probes
from simclr_fast.evaluation.comparison import (
    PROBES,
    compare,
    comparison_by_class,
    comparison_table,
    probe_accuracies,
)
from simclr_fast.evaluation.features import ENCODERS, Features, Preprocess
from simclr_fast.evaluation.probes import KNN_K, knn_accuracy, knn_predict, standardize
from simclr_fast.expectations import IMAGES, Images
from simclr_fast.recipes import RECIPES
from tests.evaluation.conftest import demo_config, linear_accuracy

CPU = torch.device("cpu")
SIDE = 8


def clusters(count: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around 4 directions in 8 dimensions, and which direction each belongs to."""
    centres = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return centres[labels] + spread * torch.randn(count, 8, generator=generator), labels


@pytest.mark.parametrize("knn_k", [1, 5, 20])
@pytest.mark.parametrize("bank_rows", [7, 1000])
def test_knn_agrees_with_scikit_learn(knn_k: int, bank_rows: int, monkeypatch) -> None:
    monkeypatch.setattr(probes, "BANK_ROWS", bank_rows)  # the bank in tiles gives the same neighbours
    bank, labels = clusters(60, 0.6)
    queries, _ = clusters(33, 0.6, seed=1)
    unit_bank, unit_queries = (torch.nn.functional.normalize(part, dim=1).numpy() for part in (bank, queries))
    # On the unit sphere Euclidean distance d orders like similarity s = 1 - d^2 / 2.
    model = KNeighborsClassifier(knn_k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1))
    expected = model.fit(unit_bank, labels.numpy()).predict(unit_queries)
    assert knn_predict(bank, labels, queries, knn_k=knn_k, knn_t=0.1).tolist() == expected.tolist()


def test_linear_probe_separates_clusters() -> None:
    train, labels = clusters(200, 0.2)
    test, truth = clusters(100, 0.2, seed=1)
    assert linear_accuracy(*_standard(train, labels, test, truth)) > 0.97
    shuffled = labels[torch.randperm(200)]
    assert linear_accuracy(*_standard(train, shuffled, test, truth)) < 0.6


def _standard(train, labels, test, truth):
    train, test = standardize(train, test)
    return train, labels, test, truth


def probed(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, classes: int, **options: int) -> dict:
    features, scaled = Features(bank, queries), Features(*standardize(bank, queries))
    return probe_accuracies(features, scaled, labels, truth, classes, **options)


def test_better_features_score_better_in_every_probe() -> None:
    labels, truth = clusters(200, 1)[1], clusters(100, 1)[1]
    scores = [
        probed(clusters(200, s)[0], labels, clusters(100, s, seed=1)[0], truth, 4, labels_per_class=5)
        for s in (1.5, 0.6, 0.1)
    ]
    for probe in ("few_label_1nn", "few_label_linear", "knn"):
        worst, middle, best = (one[probe] for one in scores)
        assert worst < middle < best <= 1.0
    assert "few_label_linear_top5" not in scores[0], "of four classes the best five say nothing"


def test_headline_knn_takes_the_k_that_the_training_images_choose() -> None:
    # Pairs of one class each, two in three of class 1: the nearest row is right, and 200 together outvote it.
    pairs = torch.eye(201, 220).repeat_interleave(2, dim=0) + 3 * torch.eye(220)[-1]
    labels = ((torch.arange(402) // 2) % 3 > 0).long()
    bank, queries = pairs + 0.01 * torch.randn(402, 220), pairs[::3] + 0.01 * torch.randn(134, 220)
    truth = labels[::3]
    scores = probed(bank, labels, queries, truth, 2, labels_per_class=1, draws=1)
    assert scores["knn_k"] == 1
    assert scores["knn"] == 1.0
    assert knn_accuracy(bank, labels, queries, truth, knn_k=200) < 0.8
    held_out = {k: knn_accuracy(bank, labels, None, labels, knn_k=k) for k in KNN_K}
    assert scores["knn_k"] == max(held_out, key=held_out.get)


class Coded(nn.Module):
    """Features of `coded_images`: a direction per class, or nearly the same for all."""

    def __init__(self, tells_classes_apart: bool):
        super().__init__()
        self.tells_classes_apart = tells_classes_apart

    def forward(self, images: Tensor) -> Tensor:
        classes = (images.amax(dim=(1, 2, 3)) * 255 / 20).round().long()
        noise = 0.01 * torch.sin(1e3 * images.flatten(1)[:, :12])
        return noise + (torch.eye(12)[classes] if self.tells_classes_apart else torch.ones(12))


def coded_images(labels: Tensor) -> ImageArrays:
    """Dark noise, and a last pixel of brightness 20 * (1 + class)."""
    images = torch.randint(0, 8, (len(labels), 1, SIDE, SIDE), dtype=torch.uint8)
    images[:, 0, -1, -1] = 20 * (1 + labels.byte())
    return ImageArrays(images, labels)


@pytest.fixture(scope="module")
def coded() -> Dataset:
    """Seven classes of 30 training images; test images lack class 6, and there is only one of class 5."""
    torch.manual_seed(0)
    train = coded_images(torch.arange(210) % 7)
    test = coded_images(torch.tensor([0, 1, 2, 3, 4] * 4 + [5]))
    return Dataset(train, train, test, ("zero", "one", "two", "three", "four", "five", "six"))


@pytest.fixture(scope="module")
def compared(coded: Dataset) -> dict:
    preprocess = Preprocess(SIDE, (0.0,), (1.0,))
    return compare(Coded(False), Coded(True), coded, preprocess, CPU, draws=2)


def test_each_encoder_is_under_its_name(compared: dict) -> None:
    for probe in ("few_label_1nn", "few_label_linear", "knn"):
        assert compared[probe]["simclr"] == 1.0
        assert compared[probe]["random_init"] < 0.6
    assert compared["few_label_linear_top5"]["simclr"] == 1.0
    assert compared["few_label_linear"]["random_init"] <= compared["few_label_linear_top5"]["random_init"] <= 1.0
    table = comparison_table(compared)
    assert table.columns == ["", *ENCODERS.values()]
    cells = {row[0]: row[1:] for row in table.rows}
    for probe in ("few_label_1nn", "few_label_linear"):
        row = cells[PROBES[probe].format(few="10 labels/class")]
        assert row == [f"{100 * compared[probe][encoder]:.1f}" for encoder in ENCODERS]
    assert cells["weighted kNN, all labels"] == [f"{100 * compared['knn'][encoder]:.1f}" for encoder in ENCODERS]
    assert cells["its k"] == [str(compared["knn_k"][encoder]) for encoder in ENCODERS]
    assert "21 held-out test images" in table.title
    assert "mean of 2 draws" in table.title


def test_summary_names_the_trained_encoder_and_writes_what_it_prints(coded: Dataset, tmp_path, monkeypatch) -> None:
    config = demo_config()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, output=tmp_path))
    monkeypatch.setattr(in_training.Preprocess, "of", lambda augment: Preprocess(SIDE, (0.0,), (1.0,)))
    monkeypatch.setattr(in_training, "build_model", lambda *_: SimpleNamespace(backbone=Coded(False)))
    monkeypatch.setitem(RECIPES, "demo", config)
    monkeypatch.setitem(IMAGES, "demo", Images("coded", len(coded.train), len(coded.test), coded.classes))
    console = Console(record=True, width=140)
    in_training.evaluate(config, coded, Coded(True), CPU, console, steps=3, seconds=1.0)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["knn"]["simclr"] == 1.0
    assert results["knn"]["random_init"] < 0.6
    printed = console.export_text()
    assert "10 labels/class" in printed
    assert "three" in printed
    assert f"\n{results['published']['line']}\n" in printed
    assert "; expected " in printed


def test_labels_measured_are_said() -> None:
    results = {"labels_per_class": 10, "rarest_class": 3}
    assert comparison.few_labels(results) == "10 labels/class (3 in the rarest)"
    assert comparison.few_labels({**results, "rarest_class": 10}) == "10 labels/class"
    assert comparison.few_labels({"labels_per_class": 1, "rarest_class": 4}) == "1 label/class"


def test_accuracy_by_class_has_names(compared: dict, coded: Dataset) -> None:
    table = comparison_by_class(compared)
    assert [row[:2] for row in table.rows] == [[name, "4"] for name in coded.classes[:5]] + [["five", "1"]]
    assert all(row[-1] == "100.0" for row in table.rows)
    shares = compared["per_class"]["random_init"]
    assert shares[6] is None
    mean = sum(n * share for n, share in zip([4] * 5 + [1], shares)) / 21
    assert mean == pytest.approx(compared["knn"]["random_init"], abs=1e-3)


def test_one_encoder_at_a_time_is_held(coded: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a large data set, the features of one encoder fill the memory.
    held: list[weakref.ref] = []
    original = comparison.embed

    def recorded(encoder, source, *rest):
        gc.collect()
        alive = [ref for ref in held if ref() is not None]
        assert len(alive) <= (source is coded.test), "features of an encoder that is done with"
        features = original(encoder, source, *rest)
        held.append(weakref.ref(features))
        return features

    monkeypatch.setattr(comparison, "embed", recorded)
    preprocess = Preprocess(SIDE, (0.0,), (1.0,))
    compare(Coded(False), Coded(True), coded, preprocess, CPU, draws=1)
    assert len(held) == 6
