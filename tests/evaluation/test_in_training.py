"""What the training loop measures: the online kNN by definition, and whose neighbours are shown at the end."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from simclr_fast import visualize
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.evaluation import comparison, in_training, neighbour_picture
from simclr_fast.evaluation.features import ENCODERS
from simclr_fast.evaluation.in_training import OnlineKnn
from simclr_fast.evaluation.splits import few_label_draws
from simclr_fast.evaluation.tables import spread
from simclr_fast.models import build_model
from simclr_fast.recipes import RECIPES
from tests.evaluation.conftest import demo_config

CPU = torch.device("cpu")


def monitor(labels: torch.Tensor, pixels: torch.Tensor | None = None) -> OnlineKnn:
    if pixels is None:
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8, generator=generator)
    source = ImageArrays(pixels, labels)
    return OnlineKnn(Dataset(source, source, None), RECIPES["demo"], CPU)


def test_no_query_finds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every image is a class of its own: a query is right only where it is its own neighbour.
    knn = monitor(torch.arange(50))
    assert knn.accuracy(nn.Flatten()) == 0
    assert not set(knn.queries.tolist()) & set(knn.bank.tolist())
    assert sorted(knn.queries.tolist() + knn.bank.tolist()) == list(range(50))
    assert len(knn.queries) == 5
    monkeypatch.setattr(in_training, "LARGEST_SAMPLE", 20)
    assert [len(part) for part in (monitor(torch.arange(50)).queries, monitor(torch.arange(50)).bank)] == [2, 18]
    assert len(monitor(torch.arange(3)).queries) == 1


@pytest.mark.parametrize("wrong", [0, 2])
def test_accuracy_is_the_share_of_queries_of_the_class_around_them(wrong: int) -> None:
    labels = torch.arange(100) % 2
    pixels = torch.zeros(100, 1, 28, 28, dtype=torch.uint8)
    pixels[labels == 0, :, :14] = 200
    pixels[labels == 1, :, 14:] = 200
    knn = monitor(labels.clone(), pixels)
    knn.source.labels[knn.queries[:wrong]] = 1 - knn.source.labels[knn.queries[:wrong]]
    assert knn.accuracy(nn.Flatten()) == pytest.approx(1 - wrong / 10)


class Level(nn.Module):
    """A direction per brightness, of which there are four."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(4)[(images.amax(dim=(1, 2, 3)) * 255 / 50).long()]


def levels(labels: torch.Tensor) -> ImageArrays:
    """Noise under a brightest pixel, anywhere, that tells the class."""
    pixels = torch.randint(0, 40, (len(labels), 1, 28, 28), dtype=torch.uint8)
    pixels.flatten(1)[torch.arange(len(labels)), torch.randint(0, 784, (len(labels),))] = 50 * labels.byte() + 49
    return ImageArrays(pixels, labels)


def test_each_class_asks_once_for_those_most_alike_among_the_few_labelled_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    train, test = levels(torch.arange(120) % 4), levels(torch.tensor([3, 1, 1, 0, 3]))  # no test image of class 2
    config = dataclasses.replace(demo_config(), run=dataclasses.replace(demo_config().run, output=tmp_path, seed=4))
    drawn, draw = [], neighbour_picture.draw_side_by_side
    monkeypatch.setattr(neighbour_picture, "draw_side_by_side", lambda *given: drawn.append(given) or draw(*given))
    compared, compare = [], in_training.compare
    monkeypatch.setattr(in_training, "compare", lambda *a, **o: compared.append(a[0]) or compare(*a, **o))
    pictured = in_training.evaluate(
        config, Dataset(train, train, test), Level(), CPU, Console(quiet=True), steps=1, seconds=1.26
    )
    torch.manual_seed(4)
    untrained = build_model(config.model, 1, 28).backbone
    assert torch.equal(compared[0].conv1.weight, untrained.conv1.weight), "random init is the run's own beginning"
    results = json.loads((tmp_path / "results.json").read_text())
    assert [results[name] for name in ("seed", "train_seconds", "steps", "draws")] == [4, 1.3, 1, 5]
    path = in_training._draw_neighbours(tmp_path, pictured, CPU)
    assert path == tmp_path / "neighbours.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    ((_, queries, found, title),) = drawn
    class_of = lambda shown: int(shown.image.max()) // 50
    assert [class_of(query) for query in queries] == [0, 1, 3]
    raw, simclr = found
    assert simclr == "SimCLR encoder: 100% right"
    assert raw.startswith("raw pixels: ")
    assert int(raw.split()[2][:-1]) < 80
    assert "the 5 that each finds most alike of 40 labelled ones (10 per class)" in title
    (few,) = few_label_draws(train.labels, 10, draws=1)
    labelled = {image.numpy().tobytes() for image in train.images[few]}
    for lines in found.values():
        for query, line in zip(queries, lines):
            assert [shown.same for shown in line] == [class_of(shown) == class_of(query) for shown in line]
            assert {shown.image.numpy().tobytes() for shown in line} <= labelled


def test_every_image_is_embedded_once_by_each_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of larger sets the compared parts; the pictures take what the comparison has made of them."""
    torch.manual_seed(0)
    monkeypatch.setattr(comparison, "LARGEST", (40, 12))
    monkeypatch.setattr(in_training, "is_cheap", lambda *_: True)
    one_label = lambda run, part, raw, process: {**dict.fromkeys(ENCODERS, spread(raw)), "draws": len(raw)}
    monkeypatch.setattr(in_training, "one_label_accuracies", one_label)
    train, test = levels(torch.arange(60) % 4), levels(torch.arange(20) % 4)
    config = dataclasses.replace(demo_config(), run=dataclasses.replace(demo_config().run, output=tmp_path))
    images, maps = [], []
    embed = comparison.embed
    monkeypatch.setattr(comparison, "embed", lambda *given: images.append(len(given[1])) or embed(*given))
    monkeypatch.setattr(visualize, "embedding_map", lambda path, *given: maps.append(given))
    monkeypatch.setattr(visualize, "learning_curves", lambda *_: None)
    monkeypatch.setattr(in_training, "read_metrics", lambda _: [])
    data, encoder = Dataset(train, train, test), Level()
    pictured = in_training.evaluate(config, data, encoder, CPU, Console(quiet=True), steps=1, seconds=1.0)
    monkeypatch.delattr(in_training, "embed")
    in_training.draw_pictures(config, data, encoder, CPU, pictured)
    assert images == [40, 12] * 3
    ((features, labels, title, _),) = maps
    assert torch.equal(features.argmax(dim=1), labels)
    assert title == "Encoder features of 12 test images"
    assert sorted(pictured.asked.tolist()) == list(range(12))
    assert torch.equal(pictured.data.test.labels[pictured.asked], labels)


@pytest.mark.parametrize(("count", "shown"), [(25, [0, 2, 5, 8, 10, 13, 16, 18, 21, 24]), (3, [0, 1, 2])])
def test_the_view_grid_shows_what_the_encoder_is_shown(
    count: int, shown: list[int], tmp_path: Path, monkeypatch
) -> None:
    drawn = []
    monkeypatch.setattr(visualize, "view_grid", lambda *given: drawn.append(given))
    source = ImageArrays((torch.arange(count).view(-1, 1, 1, 1) + torch.zeros(count, 1, 8, 8)).byte(), None)
    config = demo_config()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, output=tmp_path))
    asked = []
    views = lambda images, indices: asked.append(indices.tolist()) or torch.arange(2 * len(indices)).float()
    path = in_training.draw_views(config, Dataset(source), views, CPU)
    ((at, images, view0, view1, mean, std),) = drawn
    assert (path, at, asked) == (tmp_path / "views.png", path, [shown])
    assert [int(image.max()) for image in images] == shown
    assert view0.tolist() == list(range(len(shown)))
    assert view1.tolist() == list(range(len(shown), 2 * len(shown)))
    assert (mean, std) == (config.augment.mean, config.augment.std) != (std, mean)


def test_pictures_follow_what_is_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves always, the map where test images have labels, neighbours after a comparison."""
    maps, curves = [], []
    monkeypatch.setattr(visualize, "embedding_map", lambda *given: maps.append(given))
    monkeypatch.setattr(visualize, "learning_curves", lambda *given: curves.append(given))
    monkeypatch.setattr(visualize, "MAPPED_IMAGES", 6)
    monkeypatch.setattr(in_training, "read_metrics", lambda path: [str(path)])
    train, test = levels(torch.arange(60) % 4), levels(torch.arange(20) % 4)
    config = dataclasses.replace(demo_config(), run=dataclasses.replace(demo_config().run, output=tmp_path))
    drawn = lambda data, pictured=None: [
        path.name for path in in_training.draw_pictures(config, data, Level(), CPU, pictured)
    ]
    assert drawn(Dataset(train)) == drawn(Dataset(train, None, ImageArrays(test.images, None))) == ["curves.png"]
    assert curves[0] == (tmp_path / "curves.png", [str(tmp_path / "metrics.jsonl")], pytest.approx(math.log(127)))
    assert drawn(Dataset(train, None, test)) == ["curves.png", "embeddings.png"]
    ((path, features, labels, title, names),) = maps
    assert (path.name, title, names) == ("embeddings.png", "Encoder features of 6 test images", ["0", "1", "2", "3"])
    assert torch.equal(features.argmax(dim=1), labels)
    data = Dataset(train, train, test)
    pictured = in_training.evaluate(config, data, Level(), CPU, Console(quiet=True), steps=1, seconds=1.0)
    assert drawn(data, pictured) == ["curves.png", "embeddings.png", "neighbours.png"]
