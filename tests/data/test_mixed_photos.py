"""300 photos as people have them, in one folder: trained on, reported on, and all that is ignored is named."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch

from simclr_fast import visualize
from simclr_fast.cli import main
from simclr_fast.config import DataOptions
from simclr_fast.data import image_files, load_dataset
from simclr_fast.data.ignored import IGNORED_FILE, IgnoredFile
from simclr_fast.data.messages import on_one_line
from simclr_fast.data.pixels import HEIC_REMEDY
from simclr_fast.data.unreadable import BadImageError
from simclr_fast.recipes import RECIPES
from simclr_fast.run_files import read_metrics
from tests.data.conftest import write_image
from tests.data.mixed_photos import MixedPhotos, mixed_photos

TINY = ["imagenet", "--model", "resnet_mini", "--size", "16", "--head-hidden", "8", "--head-dim", "8"]
TINY += ["--batch-size", "148", "--epochs", "1", "--warmup-epochs", "0", "--log-interval", "1", "--workers", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> MixedPhotos:
    return mixed_photos(tmp_path_factory.mktemp("mixed") / "photos")


def lines(path: Path) -> dict[str, str]:
    return dict(line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())


def test_all_are_found_and_read_or_named(photos: MixedPhotos, caplog) -> None:
    data = load_dataset(DataOptions(data=photos.root))
    source = data.train
    assert f"{photos.root}: 300 images without class folders (--dataset imagefolder)" in caplog.text
    numbers = {os.path.basename(source.name(index)): index for index in range(len(source))}
    assert numbers.keys() == {*photos.images, *photos.unreadable}
    for name in photos.images:
        image = source.decode(numbers[name])
        assert (image.shape[0], image.dtype) == (3, torch.uint8), name
        assert image.float().std() > 0 or image[0].numel() == 1, f"{name}: all of one colour"
    for name, reason in photos.unreadable.items():
        with pytest.raises(BadImageError, match=reason):
            source.decode(numbers[name])
    found = {os.path.basename(name): reason for name, reason in data.ignored}
    assert found.keys() == photos.ignored.keys()
    assert all(words in found[name] for name, words in photos.ignored.items())
    assert "ignored 7 (2 hidden: .DS_Store, .hidden.jpg; " in caplog.text


def test_the_recipe_photos_goes_on_without_the_package_for_heic(photos: MixedPhotos, monkeypatch) -> None:
    """As after a fresh install: the one HEIC is ignored then, and the unreadable ones are few enough."""
    monkeypatch.setattr(image_files, "suffixes", lambda: image_files.SUFFIXES)
    data = load_dataset(dataclasses.replace(RECIPES["photos"].data, data=photos.root))
    assert len(data.train) == 299
    assert data.train.bad.allowed == 30
    data.train.note(dict.fromkeys(range(len(photos.unreadable)), "broken"))
    heic = [(os.path.basename(name), reason) for name, reason in data.ignored if name.endswith(".HEIC")]
    assert heic == [("phone.HEIC", f".HEIC, which {HEIC_REMEDY}")]


@pytest.mark.parametrize("count", [2, 5, 9, 40])
def test_one_of_few_photos_may_be_unreadable(count: int, tmp_path: Path) -> None:
    for number in range(count - 1):
        write_image(tmp_path / f"{number}.png", 4, 4, number)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    for share in (0.01, RECIPES["photos"].data.max_bad_images):
        data = load_dataset(DataOptions(data=tmp_path, max_bad_images=share))
        data.train.take(torch.arange(count))
        assert len(data.train.bad) == 1


def test_they_are_trained_and_reported_on(photos: MixedPhotos, tmp_path: Path, monkeypatch) -> None:
    """Two steps see all but four photos, hence one of the unreadable ones at least."""
    monkeypatch.setattr(visualize, "MAPPED_IMAGES", 40)
    run = tmp_path / "run"
    assert main(["pretrain", *TINY, "--data", str(photos.root), "--output", str(run)]) == 0
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == [1, 2]
    assert json.loads((run / "results.json").read_text())["steps"] == 2
    listed = lines(run / IGNORED_FILE)
    place = lambda name: on_one_line(str(photos.root / name))
    met = {name for name in photos.unreadable if place(name) in listed}
    assert met
    assert listed.keys() == {place(name) for name in {*photos.ignored, *met}}
    for name in met:
        assert re.search(f"^unreadable: .*({photos.unreadable[name]})", listed[place(name)])
    assert main(["report", str(run)]) == 0
    assert (run / "evaluation" / "report.html").stat().st_size > 1000


def test_the_list_has_each_line_once_and_no_line_breaks(tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\tb\nc\xe4\r.jpg") + "\u2028\u202f"
    for _ in range(2):
        file = IgnoredFile(tmp_path)
        file.add([(odd, "no image"), ("übung 🐈.txt", "no\nimage")])
        file.add([(odd, "no image")])
    expected = "a\\tb\\nc\\xe4\\r.jpg\\u2028\u202f\tno image\nübung 🐈.txt\tno\\nimage\n"
    assert (tmp_path / IGNORED_FILE).read_bytes() == expected.encode()
    IgnoredFile(tmp_path / "none").add([])
    assert not (tmp_path / "none").exists()
