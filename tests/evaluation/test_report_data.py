"""The page on data as users have it: without labels, without a test part, with classes that one part lacks."""

import base64
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from sklearn.manifold import TSNE
from torch import nn

from simclr_fast.cli import main, parse
from simclr_fast.data import Dataset, EncodedImages, ImageArrays
from simclr_fast.data.unreadable import BadImages
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation import comparison, few_label, knn, linear, pictures, probes, report, session
from simclr_fast.evaluation.comparison import compare
from simclr_fast.evaluation.features import ENCODERS, Preprocess, preprocess_of
from simclr_fast.evaluation.model_card import write_model_card
from simclr_fast.evaluation.probes import nearest, standardize
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.process import Process
from simclr_fast.run_files import read_results, write_results
from tests.evaluation.conftest import demo_config, write_run

CPU = Process(0, 1, torch.device("cpu"))
NAMES = ("ant", "$b^$", "[c]", "<d>")


def images(labels: list[int] | None, count: int = 0) -> ImageArrays:
    """Grey images, brighter by class."""
    level = torch.zeros(count) if labels is None else torch.tensor(labels)
    noise = torch.randint(0, 40, (len(level), 1, 28, 28))
    return ImageArrays((50 * level.view(-1, 1, 1, 1) + noise).byte(), None if labels is None else level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of its own, with views and a training curve."""
    write_run(tmp_path / "run", demo_config())
    line = {"step": 3, "loss": 5.0, "contrastive_accuracy": 0.1, "knn": 0.5, "lr": 1e-3}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "run" / "views.png").write_bytes(b"\x89PNG")
    return tmp_path / "run"


@pytest.fixture
def start(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """A session of a command on a data set."""
    # Points stand in for t-SNE, which takes seconds.
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, features: features[:, :2])

    def session_of(data: Dataset, *arguments: str) -> Session:
        monkeypatch.setattr(session, "load_dataset", lambda _: data)
        command, options = parse(arguments)
        return Session(command, options, Run.open(folder), CPU, tmp_path, Console(quiet=True))

    return session_of


def drawn_lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each later picture of neighbours the queries, the images that are shown as theirs, and whether they agree."""
    seen = []
    draw = report.draw_side_by_side

    def record(path: Path, queries: list, found: dict) -> Path:
        (lines,) = found.values()
        asked, images = torch.stack([one.image for one in queries]), [[one.image for one in line] for line in lines]
        same = torch.tensor([[one.same for one in line] for line in lines])
        seen.append((asked, torch.stack([torch.stack(line) for line in images]), same))
        return draw(path, queries, found)

    monkeypatch.setattr(report, "draw_side_by_side", record)
    return seen


def test_an_unlabelled_run_has_a_page(folder: Path, tmp_path: Path, start) -> None:
    report.main(start(Dataset(images(None, 30)), "report", str(folder)))
    content = json.loads((tmp_path / "report.json").read_text())["results"]["sections"]
    assert content == ["The run", "Views", "Learning curves", "Map of the embeddings", "Nearest neighbours", "Options"]
    text = (tmp_path / "report.html").read_text()
    assert "no accuracy can be measured" in text
    assert "same class" not in text
    assert "resnet_mini on mnist5k (30 images)" in text
    run = Run.open(folder)
    parameters = sum(p.numel() for p in run.encoder().parameters()) / 1e6
    for fact in (
        f"resnet_mini, {parameters:.2f} M parameters without the projection head",
        "mnist5k, 30 training images",
        f"{run.checkpoint.name}, after 3 steps",
        f"64 images, temperature {run.config.optimization.temperature}",
    ):
        assert fact in text, fact
    assert "nothing" in text.partition("Left out")[2][:40]


def test_what_is_left_out_is_counted_and_no_image_stands_for_another(
    folder: Path, tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randint(256, (9, 28, 28, 3), dtype=torch.uint8).numpy()
    encoded = []
    for one in pixels:
        data = io.BytesIO()
        Image.fromarray(one).save(data, "PNG")
        encoded.append(data.getvalue())
    encoded[4] = b"no image"
    source = EncodedImages(9, encoded.__getitem__, "image {}.png".format, bad=BadImages(2))
    features = lambda source, indices: torch.stack([one.float().mean((1, 2)) for one in source.take(indices)])
    found = Dataset(source, ignored=(("notes.txt", "no image"),) * 3)
    sections = report.training_sections(found, features, tmp_path, CPU.device)
    assert "8 training images" in sections[0].body
    assert report._left_out(found).startswith("3 ignored, 1 of those looked at here unreadable; ignored.txt")
    # Nor does another image, in its place, count as a test image or vote as a training image.
    labelled = dataclasses.replace(source, labels=torch.arange(9) % 2, bad=BadImages(2))
    test = dataclasses.replace(labelled, bad=BadImages(2))
    drawn = []
    monkeypatch.setattr(report, "nearest", lambda *given: drawn.append(given) or nearest(*given))
    *_, confusions = report.labelled_sections(Dataset(source, labelled, test), features, tmp_path, CPU.device)
    assert [len(part) for part in drawn[0][:2]] == [8, 8]
    assert (tmp_path / "confusion.png") in confusions.files


def test_what_was_measured_at_the_end_of_training_is_shown(folder: Path, tmp_path: Path, start) -> None:
    data = Dataset(images([0, 1] * 10), images([0, 1] * 10), images([0, 1] * 4), ("ant", "bee"))
    encoder = nn.Flatten()
    scores = compare(encoder, encoder, data, Preprocess(28, (0.0,), (1.0,)), CPU.device)
    write_results(folder / "results.json", scores)
    drawing = folder / "neighbours.png"
    drawing.write_bytes(b"\x89PNG of the run")
    session = start(data, "report", str(folder), "--output", str(tmp_path))
    report.main(session)
    text = (tmp_path / "report.html").read_text()
    section = text.partition('id="against-the-baselines"')[2].partition("<h2")[0]
    assert base64.b64encode(drawing.read_bytes()).decode() in section
    assert "1-NN, 10 labels/class" in section


@pytest.mark.parametrize("test", ["none", "unlabelled"])
def test_a_run_without_labelled_test_images_has_a_page(
    test: str, folder: Path, tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = images([0, 1] * 10)
    data = Dataset(train, train, None if test == "none" else images(None, 5), ("ant", "bee"))
    seen = drawn_lines(monkeypatch)
    report.main(start(data, "report", str(folder)))
    queries, found, correct = seen[0]
    brightness = lambda pixels: pixels.flatten(-3).float().mean(dim=-1) > 45  # 20 and 70 are the means of the classes
    assert torch.equal(correct, brightness(queries)[:, None] == brightness(found))
    assert not (queries[:, None] == found).flatten(2).all(dim=2).any(), "no image is its own neighbour"
    text = (tmp_path / "report.html").read_text()
    assert "no accuracy can be measured" in text
    assert "same class" in text, "the training images have labels"


@pytest.mark.parametrize("labelled", [0, 1])
@pytest.mark.parametrize("command", [few_label, knn, linear], ids=lambda module: module.__name__.rpartition(".")[2])
def test_other_commands_say_that_labels_are_missing(command, labelled: int, folder: Path, start) -> None:
    """One labelled training image has no others to choose by."""
    alone = Dataset(images(None, 30), images([0]), images([0, 1] * 4), ("ant", "bee"))
    data = alone if labelled else Dataset(images(None, 30))
    name = command.__name__.rpartition(".")[2].replace("_", "-")
    with pytest.raises(ConfigError, match="no labelled training and test images.*`report`"):
        command.main(start(data, name, "--checkpoint", str(folder)))


def test_what_is_wrong_with_the_images_names_the_option_that_chose_them(folder: Path, tmp_path: Path, start) -> None:
    data = Dataset(images(None, 30))
    with pytest.raises(ConfigError, match=f"^--data {tmp_path}: .*no labelled training"):
        knn.main(start(data, "knn", "--checkpoint", str(folder), "--data", str(tmp_path)))
    with pytest.raises(ConfigError, match="^--dataset mnist5k: .*no labelled training"):
        knn.main(start(data, "knn", "--checkpoint", str(folder)))


def test_a_single_labelled_training_image_has_a_page_of_the_others(folder: Path, tmp_path: Path, start) -> None:
    data = Dataset(images(None, 30), images([0]), images([0, 1] * 4), ("ant", "bee"))
    report.main(start(data, "report", str(folder)))
    assert "no accuracy can be measured" in (tmp_path / "report.html").read_text()


def test_a_single_row_is_standardised_to_zeros() -> None:
    for part in standardize(torch.rand(1, 4), torch.rand(3, 4)):
        assert part.isfinite().all()


def test_results_that_cannot_be_written_leave_those_before(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, {"knn": 0.5})
    with pytest.raises(TypeError):
        write_results(path, {"knn": 0.7, "device": object()})
    (tmp_path / "results.json.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        write_results(path, {"knn": 0.9})
    assert read_results(path) == {"knn": 0.5}


def test_a_class_that_one_part_lacks(folder: Path, tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 3 is in the test images alone, and class 2 in the training images alone: both have their own rows."""
    data = Dataset(images([0, 1, 2] * 8), images([0, 1, 2] * 8), images([0, 1, 3] * 4), NAMES)
    seen = []
    confusion = pictures.confusion
    monkeypatch.setattr(pictures, "confusion", lambda *given: seen.append(given) or confusion(*given))
    report.main(start(data, "report", str(folder)))
    _, predicted, truth, names, title = seen[0]
    assert names == list(NAMES)
    assert predicted.max() <= 2
    assert truth.tolist() == data.test.labels.tolist()
    assert "of 12 test images right" in title
    few_label.main(start(data, "few-label", "--checkpoint", str(folder), "--per-class", "8", "20", "--draws", "1"))
    table = json.loads((tmp_path / "few-label.json").read_text())["tables"][0]
    assert [row[0] for row in table["rows"]] == [
        "linear, 8",
        "linear, 20 (8 in the rarest class)",
        "1-NN, 8",
        "1-NN, 20 (8 in the rarest class)",
    ]


def compared(folder: Path, data: Dataset, **options: int) -> dict:
    run = Run.open(folder)
    results = comparison.compare(
        run.random_init(),
        run.encoder(),
        comparison.compared_part(data),
        preprocess_of(run),
        CPU.device,
        labelled_images=len(data.labelled),
        **options,
    )
    (folder / "results.json").write_text(json.dumps(results))
    return results


def test_page_and_card_say_what_was_measured(folder: Path, tmp_path: Path, start) -> None:
    data = Dataset(images([0, 1, 2, 3] * 8), images([0, 1, 2, 3] * 8), images([0, 1, 2, 3] * 4), NAMES)
    results = compared(folder, data, labels_per_class=4, draws=2)
    report.main(start(data, "report", str(folder)))
    page = (tmp_path / "report.html").read_text()
    card = write_model_card(Run.open(folder), tmp_path).read_text()
    for text in (page, card):
        assert "4 labels/class" in text
        assert "10 labels/class" not in text
        assert "mean of 2 draws" in text
        assert "its k" in text
    assert [f"| its k | {' | '.join(str(results['knn_k'][name]) for name in ENCODERS)} |"] == [
        line for line in card.splitlines() if "its k" in line
    ]
    k = results["knn_k"]["simclr"]
    assert f"Weighted kNN with {k} neighbour(s)" in page, "the two figures of kNN agree"
    assert "&lt;d&gt;" in page, "accuracy by class, with names"
    assert "[c]" in page


def test_a_rare_class_that_the_compared_part_has_less_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "LARGEST", (20, 10))
    monkeypatch.setattr(probes, "CHOICE_ROWS", 10)
    rare = Dataset(images([0, 1] * 5), images([0] * 90 + [1] * 10), images([0, 1] * 20), ("often", "rare"))
    results = compared(folder, rare, labels_per_class=10, draws=1)
    assert (results["train_images"], results["test_images"]) == (20, 10)
    assert 1 <= results["rarest_class"] < 10
    tables = comparison.comparison_table(results), comparison.comparison_by_class(results)
    assert results["choosing_images"] == 10
    assert "k: chosen on 10 of the 20 training images, leaving one out" in tables[0].title
    assert "weighted kNN, 20 of 100 labels" in [row[0] for row in tables[0].rows]
    assert tables[1].title == "Accuracy by class (%), weighted kNN, 20 of 100 labels"
    assert comparison.few_labels(results) == f"10 labels/class ({results['rarest_class']} in the rarest)"


def test_damaged_results_are_named(tmp_path: Path) -> None:
    assert read_results(tmp_path / "none.json") is None
    for damage in ("{", "[]", "\x00"):
        (tmp_path / "knn.json").write_text(damage)
        with pytest.raises(ConfigError, match=r"knn\.json: damaged"):
            read_results(tmp_path / "knn.json")


def test_neighbours_shown_are_training_images(tmp_path: Path, start, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset(images([0, 1] * 10), images([0, 1] * 10), images([0, 1] * 4), ("ant", "bee"))
    seen = drawn_lines(monkeypatch)
    features = lambda source, indices: source.images[indices].flatten(1).float()
    start(data, "report", str(tmp_path))
    maps = []
    monkeypatch.setattr(report.visualize, "MAPPED_IMAGES", 5)
    monkeypatch.setattr(report.visualize, "embedding_map", lambda path, *given: path.touch() or maps.append(given))
    report.labelled_sections(data, features, tmp_path, CPU.device)
    ((mapped, labels, title, names),) = maps
    at = [(data.test.images.flatten(1).float() == row).all(dim=1).nonzero().item() for row in mapped]
    assert labels.tolist() == data.test.labels[at].tolist()
    assert (len(set(at)), title, names) == (5, "t-SNE of the features of 5 test images", ["ant", "bee"])
    queries, found, correct = seen[0]
    rows = F.normalize(data.labelled.images.flatten(1).float(), dim=1)
    nearest = (F.normalize(queries.flatten(1).float(), dim=1) @ rows.T).topk(8, dim=1).indices
    assert torch.equal(found, data.labelled.images[nearest])
    is_test = (queries[:, None] == data.test.images[None]).flatten(2).all(dim=2)  # [queries, test images]
    assert is_test.any(dim=1).all()
    assert torch.equal(correct, data.labelled.labels[nearest] == data.test.labels[is_test.int().argmax(dim=1)][:, None])


def test_sample_queries_are_right_ones_then_wrong_ones() -> None:
    predicted, truth = torch.tensor([0, 1, 2, 0, 0]), torch.tensor([0, 1, 2, 1, 2])
    assert report._samples(predicted, truth).tolist() == [0, 1, 2, 3, 4]
    truth = torch.tensor([*range(9), 0, 1, 2, 3, *range(9)])
    predicted = truth.clone()
    predicted[9:12] = 8
    assert report._samples(predicted, truth).tolist() == [0, 1, 2, 3, 4, 5, 9, 10], "two wrong ones at most, of eight"
    assert report._samples(truth, truth).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_report_of_a_damaged_file_is_one_line(folder: Path, capsys) -> None:
    (folder / "results.json").write_text("{")
    assert main(["report", str(folder), "--threads", "1"]) == 2
    assert f"{folder / 'results.json'}: damaged" in capsys.readouterr().err
