"""`embed` on all kinds of data: what each image is called, and what becomes of images that cannot be read."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch

from simclr_fast.config import SourceOptions
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.data.pack import PackOptions, pack
from simclr_fast.evaluation import page, report, session
from simclr_fast.evaluation.features import embed, preprocess_of
from simclr_fast.evaluation.run import Run
from simclr_fast.run_files import write_results
from tests.data.conftest import write_image
from tests.data.mixed_photos import mixed_photos
from tests.evaluation.embedding import embedded, truth

QUIET = ("--duplicates", "None")


@pytest.fixture(autouse=True)
def no_picture(monkeypatch) -> None:
    """Others look at it."""
    monkeypatch.setattr("simclr_fast.evaluation.embed.draw", lambda path, *_: path.write_bytes(b"\x89PNG"))


def table(folder: Path) -> pandas.DataFrame:
    return pandas.read_parquet(sorted(folder.glob("*.parquet")))


def test_every_file_of_mixed_photos_is_embedded_or_named(color_run: Path, tmp_path: Path, caplog) -> None:
    mixed = mixed_photos(tmp_path / "mixed", 60)
    assert embedded(color_run, mixed.root, tmp_path / "out", "--shard-size", "25", *QUIET) == 0
    frame = table(tmp_path / "out")
    spelled = {"two\nlines.jpg": "two\\nlines.jpg", "tab\t.jpg": "tab\\t.jpg"}
    wanted = {
        spelled.get(name, name).encode(errors="surrogateescape").decode(errors="backslashreplace")
        for name in mixed.images
    }
    assert set(frame["name"]) == wanted
    assert len(frame) == len(wanted)
    results = json.loads((tmp_path / "out" / "embed.json").read_text())["results"]
    left_out = dict(results["left_out"])
    assert left_out.keys() == mixed.unreadable.keys()
    for name, reason in mixed.unreadable.items():
        assert re.search(reason, left_out[name])
        assert f"unreadable image, left out: {mixed.root / name}: " in caplog.text
    listed = dict(line.split("\t") for line in (tmp_path / "out" / "ignored.txt").read_text().splitlines())
    listed = {name.removeprefix(f"{mixed.root}/"): reason for name, reason in listed.items()}
    assert listed.keys() == mixed.ignored.keys() | mixed.unreadable.keys()
    for name, reason in (mixed.ignored | mixed.unreadable).items():
        assert re.search(re.escape(reason) if name in mixed.ignored else reason, listed[name])
    # Under its name is the feature of that image, not of one in its place.
    for name in ("rgb.jpg", "palette.png", "animated.gif"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes((mixed.root / name).read_bytes())
        _, features, _ = truth(color_run, tmp_path / name)
        np.testing.assert_allclose(frame.set_index("name")["feature"][name], features[0], atol=1e-5)


def test_names_that_differ_stay_different(color_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    names = ["\udce4.jpg", "\\xe4.jpg", "a\nb.jpg", "a\\nb.jpg", "c\\d.jpg", "e\\\\f.jpg"]
    wanted = ["\\xe4.jpg", "\\\\xe4.jpg", "a\\nb.jpg", "a\\\\nb.jpg", "c\\d.jpg", "e\\\\\\\\f.jpg"]
    for seed, name in enumerate(names):
        write_image(root / "1.jpg", 8, 8, seed)
        (root / "1.jpg").rename(root / name)
    (root / "\udce4.txt").write_text("x")
    (root / "\\xe4.txt").write_text("x")
    assert embedded(color_run, root, tmp_path / "out", *QUIET) == 0
    assert set(table(tmp_path / "out")["name"]) == set(wanted)
    listed = (tmp_path / "out" / "ignored.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in listed} == {f"{root}/\\xe4.txt", f"{root}/\\\\xe4.txt"}
    pack(PackOptions(tmp_path / "packed", size=8, data=SourceOptions(data=root, workers=2)))
    assert embedded(color_run, tmp_path / "packed", tmp_path / "again", *QUIET) == 0
    assert set(table(tmp_path / "again")["name"]) == set(wanted), "spelled out once"


def test_where_no_image_can_be_read_it_says_so(color_run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad").mkdir()
    for number in range(12):
        (tmp_path / "bad" / f"{number:02d}.jpg").write_bytes(b"")
    assert embedded(color_run, tmp_path / "bad", tmp_path / "out") == 1
    assert re.search(
        r"none of the 12 images can be read; the last: .*/11.jpg: the file is empty", capsys.readouterr().err
    )


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_packed_images_keep_their_names(form: str, color_run: Path, photos: Path, tmp_path: Path) -> None:
    """Where their pixels alone were packed, they are called by split and number."""
    pack(PackOptions(tmp_path / "packed", format=form, size=32, data=SourceOptions(data=photos, workers=2)))
    assert embedded(color_run, tmp_path / "packed", tmp_path / "out", *QUIET) == 0
    names = table(tmp_path / "out")["name"].tolist()
    wanted, _, codes = truth(color_run, photos)
    assert names == (
        wanted if form == "jpeg" else [*(f"train/{k}" for k in range(16)), *(f"test/{k}" for k in range(6))]
    )
    assert table(tmp_path / "out")["label"].tolist() == codes


def test_rows_of_a_table_are_called_by_split_and_number(color_run: Path, photos: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(photos.rglob("*.jpg"))[:5]]
    rows = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "table"))
    assert embedded(color_run, tmp_path / "table", tmp_path / "out", *QUIET) == 0
    frame = table(tmp_path / "out")
    assert frame["name"].tolist() == [f"train/{k}" for k in range(5)]
    assert list(frame.columns) == ["name", "split", "feature"], "there are no labels"


def test_arrays_and_their_splits(run_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """With labels of some images only, of which the others have none; --split takes a part."""
    images = lambda count: ImageArrays(torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8))
    train, test = images(9), ImageArrays(images(4).images, torch.tensor([0, 1, 1, 0]))
    codes = torch.tensor([0, -1, 1, 1, -1, 0, 0, 0, 0])
    data = Dataset(train, train.subset(torch.tensor([0])), test, ("ant", "bee"), codes)
    monkeypatch.setattr(session, "load_dataset", lambda _: data)
    assert embedded(run_folder, tmp_path, tmp_path / "all", *QUIET) == 0
    frame = table(tmp_path / "all")
    assert frame["label"].fillna(-1).tolist() == [*codes.tolist(), 0, 1, 1, 0]
    assert frame["class"][0] == "ant"
    for column in ("label", "class"):
        assert frame[column].isna().tolist() == (codes == -1).tolist() + 4 * [False]
    assert embedded(run_folder, tmp_path, tmp_path / "test", "--split", "test", *QUIET) == 0
    part = table(tmp_path / "test")
    assert part["name"].tolist() == [f"test/{k}" for k in range(4)]
    run = Run.open(run_folder)
    features = embed(run.encoder(), test, preprocess_of(run), torch.device("cpu"))
    np.testing.assert_allclose(np.stack(part["feature"]), features, atol=1e-5)


def test_features_that_are_not_finite_are_refused(run_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """float16 holds no number above 65,504."""
    data = Dataset(ImageArrays(torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8)))
    monkeypatch.setattr(session, "load_dataset", lambda _: data)
    encoder = Run.encoder
    monkeypatch.setattr(Run, "encoder", lambda run: torch.nn.Sequential(encoder(run), Times(1e8)))
    assert embedded(run_folder, tmp_path, tmp_path / "out", "--dtype", "float16") == 1
    assert re.search(
        r"image \d: its features are not finite as float16; --dtype float32 holds larger", capsys.readouterr().err
    )


class Times(torch.nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.factor


def test_the_report_shows_the_neighbours(tmp_path: Path) -> None:
    assert report._embedded(tmp_path) == []
    tables = [{"title": "Embedded", "columns": ["", "count"], "rows": [["images with features", "7"]]}]
    write_results(tmp_path / "embed.json", {"results": {"rows": 7, "data": "photos/<a>"}, "tables": tables, "step": 3})
    assert report._embedded(tmp_path) == [], "without a picture there is nothing to show"
    (tmp_path / "neighbours.png").write_bytes(b"\x89PNG")
    (section,) = report._embedded(tmp_path)
    text = page.render("title", [section])
    assert "among the 7 images of photos/&lt;a&gt;" in text
    assert "data:image/png;base64,iVBORw==" in text
    assert "images with features" in text
