"""`pack`: what is in the packed set, that it is read as what was packed, and what is refused."""

import contextlib
import dataclasses
import io
import json
import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from simclr_fast.cli import main, parse
from simclr_fast.config import SourceOptions
from simclr_fast.data import EncodedImages, pack
from simclr_fast.data.pack import PackOptions
from simclr_fast.data.stored import StoredImages
from simclr_fast.errors import ConfigError, DataError
from tests.data.conftest import write_image
from tests.data.packing import contents, error_of, loaded, packing

pytestmark = pytest.mark.usefixtures("small_shards")


def test_jpeg_keeps_order_labels_names_and_small_images(folder_root: Path, tmp_path: Path) -> None:
    before = loaded(folder_root, dataset="imagefolder")
    pack.pack(packing(folder_root, tmp_path / "out", size=30))
    for name in ("auto", "packed"):
        after = loaded(tmp_path / "out", dataset=name, max_bad_images=0.25)
        assert (after.train.bad.allowed, after.test.bad.allowed) == (4, 2)
        assert (after.classes, len(after.train), len(after.test)) == (("cat", "dog"), 16, 6)
        assert torch.equal(after.labelled.labels, before.labelled.labels)
        assert torch.equal(after.test.labels, before.test.labels)
    for part in ("train", "test"):
        source, packed = getattr(before, part), getattr(after, part)
        for index in range(len(source)):
            image, kept = source.decode(index), packed.decode(index)
            if min(image.shape[1:]) <= 30:
                assert error_of(image, kept) < 8, "noise of JPEG"
                is_jpeg = source.name(index).endswith("jpg")
                assert not is_jpeg or len(packed.read(index)) <= len(source.read(index)), (
                    "the bytes of the file, or fewer"
                )
            else:
                assert min(kept.shape[1:]) == 30
                assert abs(kept.shape[2] / kept.shape[1] - image.shape[2] / image.shape[1]) < 0.04


def test_jpeg_that_need_not_shrink_keeps_its_bytes(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "coarse.jpg", 24, 30, seed=1)
    image = Image.open(tmp_path / "in" / "coarse.jpg")
    image.save(tmp_path / "in" / "coarse.jpg", quality=40)
    image.save(tmp_path / "in" / "fine.jpg", quality=100, subsampling=0)
    pack.pack(packing(tmp_path / "in", tmp_path / "out"))
    source, packed = loaded(tmp_path / "in").train, loaded(tmp_path / "out").train
    assert packed.read(0) == source.read(0)
    assert len(packed.read(1)) < len(source.read(1))
    again = Image.open(io.BytesIO(packed.read(1)))
    assert again.info["jfif"]
    assert JpegImagePlugin.get_sampling(again) == 2, "4:2:0"


def test_datasets_reads_the_packed_jpegs(folder_root: Path, tmp_path: Path) -> None:
    pack.pack(packing(folder_root, tmp_path / "out"))
    table = datasets.load_from_disk(str(tmp_path / "out"))
    assert {name: len(split) for name, split in table.items()} == {"train": 16, "test": 6}
    assert table["train"].features["label"].names == ["cat", "dog"]
    assert table["train"]["label"][:] == [0] * 8 + [1] * 8
    packed = loaded(tmp_path / "out").train
    encoded = table["train"].cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in encoded] == [packed.read(index) for index in range(16)]
    assert encoded[0]["image"]["path"] == "train/cat/0.png"


def test_raw_is_squares_of_the_size(folder_root: Path, tmp_path: Path) -> None:
    pack.pack(packing(folder_root, tmp_path / "out", format="raw", size=16))
    packed, source = loaded(tmp_path / "out"), loaded(folder_root)
    assert isinstance(packed.train, StoredImages)
    assert packed.classes == source.classes
    assert torch.equal(packed.labelled.labels, source.labelled.labels)
    images = packed.train.take(torch.arange(16))
    assert images.shape == (16, 3, 16, 16)
    mapped = np.load(tmp_path / "out" / "train" / "images.npy", mmap_mode="r")
    assert np.array_equal(mapped.transpose(0, 3, 1, 2), images.numpy())
    for index in (0, 9):
        whole = source.train.decode(index).permute(1, 2, 0).numpy()
        height, width = whole.shape[:2]
        side = min(height, width)
        centre = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        wanted = Image.fromarray(whole).resize((16, 16), Image.Resampling.BICUBIC, box=centre)
        assert error_of(torch.from_numpy(np.array(wanted)).permute(2, 0, 1), images[index]) < 4


@pytest.mark.parametrize("name", ["cifar10", "stl10", "mnist"])
def test_raw_keeps_arrays_as_they_are(name: str, request, tmp_path: Path, tmp_path_factory) -> None:
    root = request.getfixturevalue({"cifar10": "cifar_root", "stl10": "stl_root", "mnist": "mnist_root"}[name])
    output = tmp_path_factory.mktemp("packed")
    pack.pack(packing(root, output, dataset=name, format="raw"))
    before, after = loaded(root, dataset=name), loaded(output)
    assert torch.equal(after.train.take(torch.arange(len(after.train))), before.train.images)
    classes = {before.classes[label] for label in before.labelled.labels.tolist()}
    assert set(after.classes) == classes, "those that have an image"
    for part in ("labelled", "test"):
        old, new = getattr(before, part), getattr(after, part)
        known = [k for k, label in enumerate(old.labels.tolist()) if before.classes[label] in classes]
        assert torch.equal(new.take(torch.arange(len(new))), old.images[known])
        assert [after.classes[label] for label in new.labels] == [before.classes[old.labels[k]] for k in known]
    part = after.train.subset(torch.tensor([3, 1]))
    assert torch.equal(part.take(torch.tensor([1])), before.train.images[1:2])
    assert part.read(0) == before.train.images[3].permute(1, 2, 0).contiguous().numpy().tobytes()


def test_grey_arrays_as_jpeg_are_refused(mnist_root: Path, tmp_path_factory) -> None:
    with pytest.raises(ConfigError, match="grey, and would come back with 3 channels; pass --format raw"):
        pack.pack(packing(mnist_root, tmp_path_factory.mktemp("out"), dataset="mnist"))


def test_images_without_labels_stay_so(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_image(tmp_path / "in" / label / "0.png", 12, 14, seed=ord(label))
    write_image(tmp_path / "in" / "loose.png", 12, 14, seed=0)
    pack.pack(packing(tmp_path / "in", tmp_path / "out", format="raw"))
    after = loaded(tmp_path / "out")
    assert (len(after.train), after.train.labels, len(after.labelled), after.classes) == (3, None, 2, ("a", "b"))
    assert torch.equal(after.labelled.take(torch.tensor([0])), after.train.take(torch.tensor([0])))


def test_kinds_of_files_are_packed_as_training_sees_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = Image.effect_noise((40, 24), 20)
    exif = picture.convert("RGB").getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.convert("RGB").save(tmp_path / "in" / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(tmp_path / "in" / "cmyk.jpg")
    picture.save(tmp_path / "in" / "grey.png")
    Image.fromarray(np.asarray(picture).astype(np.uint16) * 257).save(tmp_path / "in" / "wide.png")
    for size in (64, 12):
        pack.pack(packing(tmp_path / "in", tmp_path / f"out{size}", size=size, quality=95))
    source, same, small = (loaded(tmp_path / name).train for name in ("in", "out64", "out12"))
    for index in range(4):
        image = source.decode(index)
        assert error_of(image, same.decode(index)) < 8
        assert small.decode(index).shape[1:] == ((20, 12) if image.shape[1] > image.shape[2] else (12, 20))


def test_unreadable_images_are_left_out_with_their_labels(folder_root: Path, tmp_path: Path, caplog) -> None:
    broken = folder_root / "train" / "cat" / "3.jpg"
    broken.write_bytes(b"\xff\xd8 broken")
    for form in ("jpeg", "raw"):
        with caplog.at_level(logging.WARNING):
            manifest = pack.pack(packing(folder_root, tmp_path / form, format=form, size=16, max_bad_images=0.1))
        assert caplog.text.count(f"unreadable image, left out: {broken}") == 1
        caplog.clear()
        assert sum(len(shard["left_out"]) for shard in manifest["splits"]["train"]["shards"]) == 1
        after = loaded(tmp_path / form)
        assert after.labelled.labels.tolist() == [0] * 7 + [1] * 8
    with pytest.raises(DataError, match="1 unreadable images, more than --max-bad-images allows .*3.jpg"):
        pack.pack(packing(folder_root, tmp_path / "strict", max_bad_images=0.0))
    with pytest.raises(ConfigError, match="its packing has not ended"):
        loaded(tmp_path / "strict")


def test_outputs_that_cannot_serve(folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="the folder is not empty"):
        pack.pack(packing(folder_root, folder_root))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--output .*file: nothing can be written there"):
        pack.pack(packing(folder_root, tmp_path / "file"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(ConfigError, match=r"needs 4.3 MB, and 0.0 MB are free"):
        pack.pack(packing(folder_root, tmp_path / "raw", format="raw"))
    free = 22 * 256 * 256 * 3
    for left, is_refused in ((free - 1, True), (free, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, left=left: shutil._ntuple_diskusage(10, 10, left))
        with pytest.raises(ConfigError) if is_refused else contextlib.nullcontext():
            pack.pack(packing(folder_root, tmp_path / "raw", format="raw"))
    pack.pack(packing(folder_root, tmp_path / "out"))
    with pytest.raises(ConfigError, match="packed with size 256, and this is 32; pass the same options"):
        pack.pack(packing(folder_root, tmp_path / "out", size=32))
    before = contents(tmp_path / "out")
    pack.pack(packing(folder_root, tmp_path / "out"))
    assert contents(tmp_path / "out") == before


def test_the_command_packs_and_checks(folder_root: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["pack", "--data", str(folder_root), "--output", str(out), "--workers", "0"]
    for option, value, wanted in (
        *(("--quality", value, "1 to 95") for value in ("0", "96")),
        ("--size", "7", "at least 8 pixels"),
        ("--max-bad-images", "1.1", "a fraction"),
    ):
        assert main([*arguments, option, value]) == 2
        assert f"{option} {value}: pass {wanted}" in capsys.readouterr().err
    for quality in ("1", "95"):
        assert main([*arguments[:3], "--output", f"{out}{quality}", "--size", "8", "--quality", quality]) == 0
    capsys.readouterr()
    least, most = (len(loaded(Path(f"{out}{quality}")).train.read(7)) for quality in (1, 95))
    assert least < most
    assert main(arguments) == 0
    said = capsys.readouterr().out
    sizes = {name: sum(path.stat().st_size for path in (out / name).iterdir()) for name in ("train", "test")}
    for name, count in (("train", 16), ("test", 6)):
        assert f"{out}, {name}: {count} images, {sizes[name] / 1e6:.1f} MB, 0 unreadable ones left out\n" in said
    assert said.endswith(f"Written to {out}: train/, test/, packed.json, dataset_dict.json\n")
    assert main(["check", "--data", str(out)]) == 0
    assert capsys.readouterr().out == said.partition("Written to")[0]
    assert main(["check", "--data", str(out), "--workers", "1025"]) == 2
    assert "--workers 1025: pass an integer in [0, 1024]" in capsys.readouterr().err
    path = next((out / "test").glob("*.arrow"))
    content = bytearray(path.read_bytes())
    begin = int(loaded(out).test.name(2).rsplit("bytes ", 1)[1].split()[0])
    content[begin + 5] ^= 1
    path.write_bytes(content)
    assert main(["check", "--data", str(out)]) == 1
    assert f"{path}, image 2, bytes {begin} to" in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(folder_root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ["pack", "--data", str(folder_root), "--output", str(tmp_path / "out"), "--workers", "0"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt  # as Python's handler does; a job in the background ignores the signal itself

    with monkeypatch.context() as patch:
        patch.setattr(pack.JpegForm, "encode", interrupted)
        assert main(arguments) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err.splitlines()[-1]
    assert main(arguments) == 0


def test_options_of_the_command() -> None:
    _, chosen = parse(["pack", "--data", "in", "--output", "out", "--format", "raw", "--dataset", "stl10"])
    assert chosen == PackOptions(Path("out"), "raw", data=SourceOptions(dataset="stl10", data=Path("in")))
    assert (chosen.size, chosen.quality, PackOptions(Path("out")).format) == (256, 90, "jpeg")
    assert dataclasses.asdict(chosen.data) == dataclasses.asdict(SourceOptions(dataset="stl10", data=Path("in")))


def test_packed_jpegs_can_be_packed_again(folder_root: Path, tmp_path: Path) -> None:
    pack.pack(packing(folder_root, tmp_path / "jpeg"))
    pack.pack(packing(tmp_path / "jpeg", tmp_path / "raw", format="raw", size=16))
    assert len(loaded(tmp_path / "raw").train) == 16
    assert isinstance(loaded(tmp_path / "jpeg").train, EncodedImages)
    assert json.loads((tmp_path / "raw" / "packed.json").read_text())["options"]["size"] == 16
