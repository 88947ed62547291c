"""`pack` on images and names that are out of the ordinary: thin, huge, of mixed sizes, unreadable, not in UTF-8."""

import logging
import os
import resource
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from simclr_fast.data import Dataset, ImageArrays, pack, pack_images
from simclr_fast.data.pack_images import JPEG_SIDE, centre
from simclr_fast.errors import DataError
from tests.data.conftest import save_image, write_image
from tests.data.packing import error_of, loaded, packing

pytestmark = pytest.mark.usefixtures("small_shards")


def save_zeros(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(exist_ok=True)
    save_image(path, torch.zeros(3, height, width, dtype=torch.uint8))


@pytest.mark.parametrize("looked_at", [2, 64])
def test_raw_finds_the_one_image_of_another_size(looked_at: int, tmp_path: Path, monkeypatch, caplog) -> None:
    for i in range(5):
        save_zeros(tmp_path / "in" / f"{i}.png", 10, 12 if i == 1 else 10)
    monkeypatch.setattr("simclr_fast.data.pack_images.LOOKED_AT", looked_at)
    with caplog.at_level(logging.WARNING):
        pack.pack(packing(tmp_path / "in", tmp_path / "out", format="raw", size=16))
    assert "squares of 16 pixels" in caplog.text
    assert "--size 10 enlarges none" in caplog.text
    assert loaded(tmp_path / "out").train.shape == (16, 16, 3)
    pack.pack(packing(tmp_path / "in", tmp_path / "advised", format="raw", size=10))
    assert loaded(tmp_path / "advised").train.shape == (10, 10, 3)


def test_the_size_of_all_splits_counts(tmp_path: Path) -> None:
    for part, side in (("train", 10), ("val", 12)):
        for label in ("a", "b"):
            (tmp_path / "in" / part / label).mkdir(parents=True)
            save_zeros(tmp_path / "in" / part / label / "0.png", 10, side)
    pack.pack(packing(tmp_path / "in", tmp_path / "out", format="raw", size=11))
    assert loaded(tmp_path / "out").test.shape == (11, 11, 3)


def test_thin_images_are_cut_before_they_are_enlarged(tmp_path: Path) -> None:
    save_zeros(tmp_path / "in" / "0.png", 1, 60_000)
    save_zeros(tmp_path / "in" / "1.png", 60_000, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pack.pack(packing(tmp_path / "in", tmp_path / "out", format="raw", size=128))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kB; 60,000 x 128 x 128 is 3 GB"
    assert loaded(tmp_path / "out").train.shape == (128, 128, 3)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 40), (16, 30), (31, 16), (9, 14)])
def test_the_centre_is_that_of_pillow(height: int, width: int) -> None:
    image = np.asarray(Image.effect_noise((width, height), 40).convert("RGB"))
    cut = centre(image, 16)
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    if side == 16:
        left, top = int(left), int(top)  # no pixel is mixed with its neighbour
    box = (left, top, left + side, top + side)
    wanted = Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(cut, np.asarray(wanted))
    grey = centre(np.ascontiguousarray(image[..., :1]), 16)
    assert error_of(torch.from_numpy(grey[..., 0].copy()), torch.from_numpy(cut[..., 0].copy())) < 1


def test_what_jpeg_cannot_hold_is_unreadable_and_named(tmp_path: Path) -> None:
    save_zeros(tmp_path / "in" / "0.png", 2, JPEG_SIDE + 1)
    save_zeros(tmp_path / "in" / "1.png", 2, JPEG_SIDE)
    with pytest.raises(DataError, match=r"0.png: 65501 x 2 pixels, more than a side of JPEG may have"):
        pack.pack(packing(tmp_path / "in", tmp_path / "strict", max_bad_images=0.0))
    manifest = pack.pack(packing(tmp_path / "in", tmp_path / "out", max_bad_images=0.5))
    assert manifest["splits"]["train"]["images"] == 1


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_a_set_without_a_readable_image_is_an_error(form: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match="none of its 3 images can be read|3 unreadable images in a row"):
        pack.pack(packing(tmp_path / "in", tmp_path / "out", format=form, max_bad_images=1.0))
    assert not (tmp_path / "out" / "packed.json").exists()


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_a_stopped_set_without_a_readable_image_stays_an_error(form: str, tmp_path: Path, monkeypatch) -> None:
    write_image(tmp_path / "in" / "train" / "a" / "0.png", 20, 20, seed=0)
    (tmp_path / "in" / "val" / "a").mkdir(parents=True)
    (tmp_path / "in" / "val" / "a" / "0.png").write_bytes(b"broken")
    monkeypatch.setattr(pack_images, "load_or_replace", lambda load, *_: torch.zeros(3, 20, 20, dtype=torch.uint8))
    for _ in range(2):
        with pytest.raises(DataError, match="test: none of its 1 images can be read; the last: .*0.png"):
            pack.pack(packing(tmp_path / "in", tmp_path / "out", format=form, size=30, max_bad_images=1.0))


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_an_empty_held_out_split_is_left_out(form: str, tmp_path: Path, monkeypatch) -> None:
    arrays = ImageArrays(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    nothing = arrays.subset(torch.tensor([], dtype=torch.long))
    monkeypatch.setattr(pack, "load_dataset", lambda _: Dataset(arrays, test=nothing))
    pack.pack(packing(tmp_path, tmp_path / "out", format=form, dataset="imagefolder"))
    after = loaded(tmp_path / "out")
    assert (len(after.train), after.test) == (2, None)
    monkeypatch.setattr(pack, "load_dataset", lambda _: Dataset(nothing))
    with pytest.raises(DataError, match="the split train has no image"):
        pack.pack(packing(tmp_path, tmp_path / "nothing", format=form, dataset="imagefolder"))


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_names_that_are_not_utf8(form: str, tmp_path: Path, caplog) -> None:
    for k, folder in enumerate((b"a\xff", b"a\xfe")):
        write_image(tmp_path / "in" / os.fsdecode(folder) / os.fsdecode(b"\xe9\xff.png"), 20, 30, seed=k)
    (tmp_path / "in" / os.fsdecode(b"a\xff") / os.fsdecode(b"\xf1.jpg")).write_bytes(b"broken")
    pack.pack(packing(tmp_path / "in", tmp_path / "out", format=form, size=16, max_bad_images=0.5))
    assert "a\\xff/\\xf1.jpg" in caplog.text
    after = loaded(tmp_path / "out")
    assert after.classes == ("a\\xfe", "a\\xff")
    assert after.train.labels.tolist() == [0, 1]
    if form == "jpeg":
        rows = datasets.load_from_disk(str(tmp_path / "out"))["train"]
        assert rows.features["label"].names == ["a\\xfe", "a\\xff"]
        assert rows.cast_column("image", datasets.Image(decode=False))[1]["image"]["path"] == "a\\xff/\\xe9\\xff.png"


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_a_large_split_has_larger_shards_instead_of_more(form: str, tmp_path: Path, monkeypatch) -> None:
    for i in range(13):
        write_image(tmp_path / "in" / f"{i:02d}.png", 8, 9, seed=i)
    monkeypatch.setattr(pack, "MOST_SHARDS", 2)  # and of 6 images each, as tests have them, there would be three
    manifest = pack.pack(packing(tmp_path / "in", tmp_path / "out", format=form, size=8))
    assert [shard["images"] for shard in manifest["splits"]["train"]["shards"]] == [7, 6]
    after = loaded(tmp_path / "out").train
    assert [after.decode(k).shape[1:] for k in (0, 7, 12)] == [(8, 9)] * 3
    if form == "jpeg":
        assert [after.file(k) for k in (6, 7, 12, 0, 8)] == ["06.png", "07.png", "12.png", "00.png", "08.png"]


def test_finished_images_that_wait_are_few(tmp_path: Path, monkeypatch) -> None:
    for i in range(40):
        save_zeros(tmp_path / "in" / f"{i:02d}.png", 8, 8)
    monkeypatch.setattr(pack, "SHARD", 40)
    monkeypatch.setattr(pack, "PIECE_BYTES", 3 * 8 * 8 * 3)
    pieces: list[int] = []
    real = pack.RawWriter.add

    def adding(writer: pack.RawWriter, images: list, labels: np.ndarray, names: list[str]) -> None:
        pieces.append(len(images))
        real(writer, images, labels, names)

    monkeypatch.setattr(pack.RawWriter, "add", adding)
    pack.pack(packing(tmp_path / "in", tmp_path / "out", format="raw", size=8))
    assert pieces == [3] * 13 + [1]
