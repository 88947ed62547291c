"""Nearest neighbours and near-duplicates: those of a plain float64 computation, and the files that show them."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from PIL import Image

from simclr_fast.errors import status_and_message
from simclr_fast.evaluation import duplicates, neighbour_picture
from simclr_fast.evaluation.neighbour_picture import Shown, draw
from simclr_fast.evaluation.neighbours import nearest_rows
from simclr_fast.run_files import write_results
from simclr_fast.visualize import new_figure, save
from tests.data.conftest import pixels, write_image
from tests.evaluation.embedding import embedded

CPU = torch.device("cpu")


def brute_force(bank: torch.Tensor, queries: torch.Tensor) -> np.ndarray:
    """Cosine similarities float64 [Q, N], zeros for rows of zeros."""
    unit = lambda rows: np.nan_to_num(
        rows.numpy().astype(np.float64) / np.linalg.norm(rows.numpy().astype(np.float64), axis=1)[:, None]
    )
    with np.errstate(invalid="ignore"):
        return unit(queries) @ unit(bank).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_neighbours_are_those_of_float64(count: int, dtype: torch.dtype) -> None:
    bank, queries = torch.randn(60, 5).to(dtype), torch.randn(4, 5)
    bank[10] = 0
    wanted = brute_force(bank, queries)
    similarity, rows = nearest_rows(bank.split(13), queries, count)
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :count]
    assert rows.tolist() == order.tolist()
    np.testing.assert_allclose(similarity, np.take_along_axis(wanted, order, axis=1), atol=1e-12)


def test_equal_rows_come_in_their_order_and_a_row_can_be_left_out() -> None:
    bank = torch.randn(3, 4).repeat(5, 1)  # rows k, k + 3, k + 6, ... are equal
    _, rows = nearest_rows(bank.split(4), bank[:3], 5)
    assert rows.tolist() == [[k, k + 3, k + 6, k + 9, k + 12] for k in range(3)]
    similarity, rows = nearest_rows(bank.split(4), bank[:3], 20, [3, 0, None])
    assert rows.shape == (3, 14)
    assert rows[0, :4].tolist() == [0, 6, 9, 12]
    assert 3 not in rows[0]
    assert 0 not in rows[1]
    assert similarity.isfinite().all()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_pairs_are_those_of_float64(threshold: float, monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 16)
    rows = torch.randn(70, 6)
    rows[33], rows[69], rows[5], rows[40] = rows[2], rows[2], 0, 1e30 * rows[3]
    wanted = brute_force(rows, rows)
    pairs = duplicates.similar_pairs(duplicates.unit_rows(rows.split(9), 70), threshold, CPU)
    first, second = np.nonzero(np.triu(wanted > threshold, k=1))
    assert pairs.first.tolist() == first.tolist()
    assert pairs.second.tolist() == second.tolist()
    np.testing.assert_allclose(pairs.similarity, wanted[first, second], atol=1e-6)
    joined = torch.eye(70, dtype=torch.int64)
    joined[first, second] = joined[second, first] = 1
    connected = torch.linalg.matrix_power(joined.double().clamp(max=1), 64) > 0
    groups = duplicates.groups_of(pairs, 70)
    assert groups == [sorted(group) for group in groups]
    assert {tuple(group) for group in groups} == {
        tuple(row.nonzero().flatten().tolist()) for row in connected if row.sum() > 1
    }


def test_products_are_float32_whatever_the_caller_allows() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with duplicates.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_threshold_that_finds_nearly_all_is_told(monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 100)
    units = F.normalize(torch.ones(16, 3), dim=1)
    with pytest.raises(duplicates.TooManyPairsError, match="more than 100 pairs of images are above 0.9"):
        duplicates.similar_pairs(units, 0.9, CPU)
    assert len(duplicates.similar_pairs(units[:14], 0.9, CPU)) == 91


def test_files_of_one_checksum_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates.zlib, "crc32", lambda data: 7)
    pairs = duplicates.Pairs(np.array([0, 0]), np.array([1, 2]), np.array([1.0, 1.0]))
    assert duplicates.identical(pairs, [b"same", b"same", b"else"].__getitem__).tolist() == [True, False]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, one of which is there again, saved again, and mirrored; the first file cannot be read, and has no row."""
    root = tmp_path_factory.mktemp("album") / "my photos"
    for seed in range(5):
        write_image(root / f"{seed}.jpg", 40, 30, seed)
    (root / "0 broken.jpg").write_bytes(b"")
    (root / "copies").mkdir()
    (root / "copies" / "3 (1).jpg").write_bytes((root / "3.jpg").read_bytes())
    with Image.open(root / "3.jpg") as image:
        image.save(root / "saved again.jpg", quality=85)
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "mirrored.jpg", quality=95)
    return root


def test_copies_are_found_and_a_mirrored_one_is_not(color_run: Path, folder: Path, tmp_path: Path) -> None:
    assert embedded(color_run, folder, tmp_path / "out", "--workers", "0") == 0
    with (tmp_path / "out" / "duplicates.csv").open(newline="", encoding="utf-8") as file:
        found = {(line["first"], line["second"]): line for line in csv.DictReader(file)}
    assert set(found) == {
        ("3.jpg", "copies/3 (1).jpg"),
        ("3.jpg", "saved again.jpg"),
        ("copies/3 (1).jpg", "saved again.jpg"),
    }
    assert found["3.jpg", "copies/3 (1).jpg"]["identical"] == "1"
    assert found["3.jpg", "copies/3 (1).jpg"]["similarity"] == "1.000000"
    assert found["3.jpg", "saved again.jpg"]["identical"] == "0"
    listing = json.loads((tmp_path / "out" / "duplicates.json").read_text())
    assert [group["images"] for group in listing["groups"]] == [["3.jpg", "copies/3 (1).jpg", "saved again.jpg"]]
    assert len(listing["groups"][0]["pairs"]) == 3
    results = json.loads((tmp_path / "out" / "embed.json").read_text())["results"]
    assert results["duplicates"] == {"threshold": 0.999, "groups": 1, "pairs": 3, "identical": 1}


def test_a_query_is_answered_without_embedding_again(
    color_run: Path, folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    assert embedded(color_run, folder, tmp_path / "out", "--duplicates", "None") == 0
    assert not (tmp_path / "out" / "duplicates.csv").exists()
    monkeypatch.setattr("simclr_fast.evaluation.embed.embed_missing", None)
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes((folder / "3.jpg").read_bytes())
    queries = (str(folder / "3.jpg"), str(elsewhere))
    assert embedded(color_run, folder, tmp_path / "out", "--duplicates", "None", "--query", *queries) == 0
    answers = json.loads((tmp_path / "out" / "neighbours.json").read_text())["queries"]
    assert [answer["query"] for answer in answers] == list(queries)
    inside, outside = ([found["name"] for found in answer["neighbours"]] for answer in answers)
    assert inside == ["copies/3 (1).jpg", "saved again.jpg"], "not itself"
    assert outside == ["3.jpg", "copies/3 (1).jpg"]
    assert answers[1]["neighbours"][0]["similarity"] == 1.0
    assert "3.jpg (1.000)" in capsys.readouterr().out
    asked = {}
    for seed in (0, 1):
        assert embedded(color_run, folder, tmp_path / "out", "--duplicates", "None", "--seed", str(seed)) == 0
        answers = json.loads((tmp_path / "out" / "neighbours.json").read_text())["queries"]
        rows = torch.randperm(8, generator=torch.Generator().manual_seed(seed))[:6].tolist()
        asked[seed] = dict(zip(rows, (answer["query"] for answer in answers), strict=True))
    both = asked[0].keys() & asked[1].keys()
    assert [asked[0][row] for row in both] == [asked[1][row] for row in both], "without queries, those of --seed"
    assert list(asked[0]) != list(asked[1])


def test_the_picture_holds_all_of_every_name(tmp_path: Path, monkeypatch) -> None:
    """Also of long ones, of letters without a font and of formulas; images of any shape keep it."""
    kept = {}
    monkeypatch.setattr(neighbour_picture, "save", lambda figure, path: kept.update(figure=figure) or path)
    shapes = [(3, 20, 30), (1, 28, 28), (3, 1, 288), (3, 288, 1), (3, 1, 1)]
    names = [
        "a.jpg",
        "W" * 200 + ".jpg",
        "folder/" + "deep/" * 30 + "\u00fcbung.jpg",
        "$x^2$ \u65e5\u672c \U0001f408.png",
        "$",
        "",
    ]
    images = [torch.from_numpy(pixels(1, *shape)[0]) for shape in shapes] + [None]
    line = [
        Shown(image, name, 0.5, same)
        for image, name, same in zip(images, names, [None, True, False, None, True, False])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that is missing, for example
        draw(tmp_path / "picture.png", [line, line[:2]], "Nearest images")
        kept["figure"].canvas.draw()
    figure = kept["figure"]
    axis = figure.axes[0]
    limit = neighbour_picture.CELL * figure.dpi + 1
    texts = [text for text in axis.texts if text.get_text() not in ("", "Nearest images")]
    assert all(text.get_window_extent().width <= limit for text in texts)
    assert all(figure.bbox.contains(*corner) for text in texts for corner in text.get_window_extent().get_points())
    written = [text.get_text() for text in axis.texts]
    assert any(text.startswith("WWW") and "\u2026" in text and text.endswith("W.jpg") for text in written)
    assert "\u00fcbung.jpg" in written
    assert "cannot be read" in written
    assert "0.500" in written
    sides = [np.array(image.get_extent()) for image in axis.images[:5]]
    for (left, right, bottom, top), (_, height, width) in zip(sides, shapes):
        wanted = max(neighbour_picture.THINNEST / neighbour_picture.CELL, min(height, width) / max(height, width))
        assert min(right - left, top - bottom) / max(right - left, top - bottom) == pytest.approx(wanted)
        assert (right - left > top - bottom) == (width > height)


def test_frames_tell_the_query_and_whose_class_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Green: the query's class, red: another one; as the words beside the pictures say."""
    figures = []
    monkeypatch.setattr(neighbour_picture, "save", lambda figure, path: figures.append(figure) or path)
    image = torch.zeros(3, 4, 8, dtype=torch.uint8)
    line = [Shown(image, same=True), Shown(image, same=False), Shown(image), Shown(None, same=False)]
    neighbour_picture.draw_side_by_side(tmp_path / "x.png", [Shown(image)], {"nearest first": [line]})
    (axis,) = figures[0].axes
    frames = [to_hex(patch.get_edgecolor()) for patch in axis.patches if not patch.get_fill()]
    assert frames == ["#1f77b4", "#2ecc40", "#ff4136", "#bbbbbb", "#ff4136"]
    assert [text.get_text() for text in axis.texts][:3] == ["cannot be read", "query", "nearest first"]
    lefts = [picture.get_extent()[0] for picture in axis.images]
    assert lefts == sorted(lefts), "in their order"
    assert all(
        right - left == pytest.approx(2 * (top - bottom))
        for left, right, bottom, top in (picture.get_extent() for picture in axis.images)
    ), "in their proportions"


def test_letters_without_a_font_are_spelled_out(monkeypatch) -> None:
    monkeypatch.setattr(neighbour_picture, "_letters", lambda: frozenset(map(ord, "abc\u00e9")))
    assert neighbour_picture.readable("abc\u65e5") == "abc\\u65e5"
    assert neighbour_picture.readable("e\u0301") == "\u00e9", "composed, as macOS does not"


PAIR = duplicates.Pairs(np.array([0]), np.array([1]), np.array([1.0]))
WRITERS = {
    "neighbours.json": lambda path: write_results(path, {"queries": []}),
    "neighbours.png": lambda path: save(new_figure((1, 1)), path),
    "duplicates.csv": lambda path: duplicates.write(path.parent, PAIR, np.array([True]), [[0, 1]], str, 0.9),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said_with_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("what was there")
    (tmp_path / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as raised:
        WRITERS[name](tmp_path / name)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["what was there"], "and no .partial file"
    assert status_and_message(raised.value) == (
        1,
        f"{tmp_path / name}: No space left on device; make room, then go on from the files there",
    )
