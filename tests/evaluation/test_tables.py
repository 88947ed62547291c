"""Classes by name: which there are, accuracies over them, and names that are no markup and no formulas."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from simclr_fast import visualize
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.evaluation import pictures
from simclr_fast.evaluation.features import ENCODERS
from simclr_fast.evaluation.tables import ResultTable, class_accuracies, class_names, class_table, top5_accuracy


def images(labels: list[int] | None, count: int = 0) -> ImageArrays:
    """Black images."""
    count = count if labels is None else len(labels)
    return ImageArrays(torch.zeros(count, 1, 8, 8).byte(), None if labels is None else torch.tensor(labels))


def test_names_of_classes() -> None:
    labelled, test = images([0, 1]), images([0, 4])
    assert class_names(Dataset(labelled, labelled, test)) == ["0", "1", "2", "3", "4"]
    assert class_names(Dataset(labelled, labelled, test, ("a", "b"))) == ["a", "b", "2", "3", "4"]
    assert class_names(Dataset(images(None, 3))) == []


def test_accuracies_of_classes() -> None:
    truth = torch.tensor([0, 0, 1, 3])
    assert class_accuracies(torch.tensor([0, 1, 1, 0]), truth, 4) == [0.5, 1.0, None, 0.0]
    scores = torch.arange(8.0).flip(0).expand(4, 8)  # class 0 first, class 7 last
    assert top5_accuracy(scores, torch.tensor([0, 4, 5, 7])) == 0.5


def test_many_classes_show_the_best_and_the_worst() -> None:
    names = [f"class {label}" for label in range(50)]
    truth = torch.arange(50).repeat(2)[:98]
    share = [label / 50 for label in range(50)]
    table = class_table("Accuracy", names, truth, {"raw": share[::-1], "simclr": share}, ENCODERS)
    assert table.columns == ["class", "images", "raw pixels", "SimCLR encoder"]
    assert table.title == "Accuracy; the 10 best and the 10 worst of 50 classes"
    assert [row[0] for row in table.rows] == names[:-11:-1] + names[9::-1]
    assert table.rows[0] == ["class 49", "1", "0.0", "98.0"]
    few = class_table("Accuracy", names[:3], torch.tensor([0, 2]), {"simclr": [0.5, None, 1.0]}, ENCODERS)
    assert few.rows == [["class 0", "1", "50.0"], ["class 2", "1", "100.0"]]


def test_names_are_no_markup_on_the_console() -> None:
    console = Console(record=True, width=100)
    console.print(ResultTable("[/]", ["[red]x"], [["[/b]"], ["[c]"]]).rich())
    printed = console.export_text()
    for name in ("[/]", "[red]x", "[/b]", "[c]"):
        assert name in printed


def test_names_are_no_formulas_in_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(12) % 4
    names = ("$x^$", "_hidden", r"\$\frac$", "[d]")
    texts = []
    save = visualize.save

    def recorded(figure, path):
        texts.extend(text.get_text() for text in figure.axes[0].get_legend().get_texts())
        save(figure, path)

    monkeypatch.setattr(visualize, "save", recorded)
    for known in (names, names[:1]):
        visualize.embedding_map(tmp_path / "map.png", torch.randn(12, 5), labels, "title", known)
    assert texts == [*names, "$x^$", "1", "2", "3"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_map_of_hardly_any_image(count: int, tmp_path: Path) -> None:
    visualize.embedding_map(tmp_path / "map.png", torch.randn(count, 5), None, "title")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that would be saved."""
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure) or path)
    return figures


def test_rows_of_confusions_are_true_classes(drawn: list, tmp_path: Path) -> None:
    predicted, truth = torch.tensor([1, 1, 0, 2]), torch.tensor([0, 1, 0, 1])
    pictures.confusion(tmp_path / "x.png", predicted, truth, ["a", "b", "c"], "title")
    share = drawn[0].axes[0].images[0].get_array().tolist()
    assert share == [[50.0, 50.0, 0.0], [0.0, 50.0, 50.0], [0.0, 0.0, 0.0]]
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_detections_above_the_score_are_drawn_with_names(drawn: list, tmp_path: Path) -> None:
    true = {"boxes": torch.tensor([[1.0, 2, 11, 22]]), "labels": torch.tensor([1])}
    found = {
        "boxes": torch.tensor([[3.0, 4, 13, 24], [0.0, 0, 5, 5]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.3, 0.29]),
    }
    image = torch.zeros(1, 30, 30, dtype=torch.uint8)
    pictures.detections(tmp_path / "x.png", [image], [true], {"init": [found]}, ["background", "ant", "bee"], 0.3)
    shown = [
        [(patch.get_bbox().bounds, text.get_text()) for patch, text in zip(axis.patches, axis.texts, strict=True)]
        for axis in drawn[0].axes
    ]
    assert shown == [[((1.0, 2.0, 10.0, 20.0), "ant")], [((3.0, 4.0, 10.0, 20.0), "bee")]]


def test_accuracy_over_labels_is_drawn_in_percent(drawn: list, tmp_path: Path) -> None:
    results = {"linear": {"1": {"raw": {"mean": 0.5, "std": 0.1}}, "5": {"raw": {"mean": 0.75, "std": None}}}}
    results["1nn"] = {"5": {"raw": {"mean": 0.25, "std": 0.05}}}
    pictures.accuracy_over_labels(tmp_path / "x.png", results, {"1nn": "1-NN", "linear": "lin."}, {"raw": "raw pixels"})
    nearest, linear = drawn[0].axes
    assert [axis.get_title() for axis in (nearest, linear)] == ["1-NN", "lin."]
    for axis, places, means, deviations in ((nearest, [5], [25.0], [5.0]), (linear, [1, 5], [50.0, 75.0], [10.0, 0.0])):
        assert (list(axis.lines[0].get_xdata()), list(axis.lines[0].get_ydata())) == (places, means)
        ends = [[end.tolist() for end in bar] for bar in axis.collections[0].get_segments()]
        assert ends == [[[x, y - d], [x, y + d]] for x, y, d in zip(places, means, deviations)]
    assert [text.get_text() for text in linear.get_legend().get_texts()] == ["raw pixels"]
