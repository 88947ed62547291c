"""Data sets by name, read from small files in their real formats."""

import dataclasses
import gzip
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from simclr_fast.config import DataOptions, SourceOptions
from simclr_fast.data import array_sets, load_dataset, pack
from simclr_fast.errors import ConfigError
from tests.data.conftest import pixels, write_image


def options(name: str, root: Path, **changes) -> DataOptions:
    return dataclasses.replace(DataOptions(dataset=name, data=root), **changes)


def test_mnist5k_is_embedded_balanced_and_split() -> None:
    dataset = load_dataset(DataOptions(dataset="mnist5k"))
    assert dataset.train.images.shape == (4000, 1, 28, 28)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.test.labels.bincount().tolist() == [100] * 10
    assert dataset.train.labels.bincount().tolist() == [400] * 10
    again = load_dataset(DataOptions(dataset="mnist5k"))
    assert torch.equal(again.test.images, dataset.test.images), "the split is fixed"
    rows = torch.cat([dataset.train.images, dataset.test.images]).flatten(1)
    assert len(torch.unique(rows, dim=0)) > 4990, "no image is in both parts"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_files(name: str, mnist_root: Path) -> None:
    dataset = load_dataset(options(name, mnist_root))
    np.testing.assert_array_equal(dataset.train.images.numpy(), pixels(12, 28, 28, seed=12)[:, None])
    np.testing.assert_array_equal(dataset.test.images.numpy(), pixels(5, 28, 28, seed=5)[:, None])
    assert dataset.test.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "train"), [("cifar10", 20), ("cifar100", 4)])
def test_cifar_files(name: str, train: int, cifar_root: Path) -> None:
    dataset = load_dataset(options(name, cifar_root))
    assert dataset.train.images.shape == (train, 3, 32, 32)
    np.testing.assert_array_equal(dataset.train.images[:4].numpy(), pixels(4, 3, 32, 32, seed=0))
    assert dataset.train.labels[:4].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(dataset.test.images.numpy(), pixels(3, 3, 32, 32, seed=0))
    assert dataset.test.labels.tolist() == [0, 1, 2]


def test_stl_trains_on_the_unlabelled_split(stl_root: Path) -> None:
    dataset = load_dataset(options("stl10", stl_root))
    np.testing.assert_array_equal(dataset.train.images.numpy(), pixels(8, 3, 96, 96, seed=8))
    assert dataset.train.labels is None
    assert dataset.labelled.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.test.labels.tolist() == [0, 1, 2, 3]
    for source in (dataset.labelled, dataset.test):
        count = len(source.labels)
        np.testing.assert_array_equal(source.images.numpy(), pixels(count, 3, 96, 96, seed=count))


def test_image_folder(folder_root: Path) -> None:
    dataset = load_dataset(options("imagefolder", folder_root))
    assert len(dataset.train) == 16
    assert dataset.train.labels.tolist() == [0] * 8 + [1] * 8
    assert len(dataset.test) == 6
    assert dataset.train.decoded(1).shape == (3, 23, 38)
    assert dataset.train.decoded(0).shape == (3, 20, 40), "PNG"


def test_a_named_data_set_is_read_and_no_other(folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    """Neither a packed set in the default folder takes the place of mnist5k, nor does mnist5k that of a folder."""
    monkeypatch.chdir(tmp_path)
    pack.pack(pack.PackOptions(Path("data"), data=SourceOptions(data=folder_root, workers=1), size=16))
    assert len(load_dataset(DataOptions(dataset="mnist5k")).train) == 4000
    assert len(load_dataset(DataOptions()).train) == 16
    with pytest.raises(
        ConfigError, match="--dataset cifar10: --data data holds a packed set; pass --dataset auto to read"
    ):
        load_dataset(DataOptions(dataset="cifar10"))
    with pytest.raises(
        ConfigError, match="mnist5k lies in a package, and reads no folder; pass --dataset auto to look at"
    ):
        load_dataset(options("mnist5k", folder_root))
    with pytest.raises(ConfigError, match="--dataset cifar: there is none of that name; pass auto, imagefolder, table"):
        load_dataset(options("cifar", folder_root))


def test_packing_mnist5k_reads_no_folder(tmp_path: Path, monkeypatch) -> None:
    """Its output may be the default --data, half packed by a run before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack, "verify", interrupted)
    digits = pack.PackOptions(Path("data"), format="raw", data=SourceOptions(dataset="mnist5k", workers=1))
    with pytest.raises(KeyboardInterrupt):
        pack.pack(digits)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert pack.pack(digits)["splits"]["train"]["images"] == 4000


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["mnist5k", "imagefolder"])
def test_both_kinds_of_images_are_taken_alike(name: str, folder_root: Path) -> None:
    source = load_dataset(DataOptions(dataset=name) if name == "mnist5k" else options(name, folder_root)).train
    indices = torch.tensor([9, 0, 9])
    taken = source.take(indices)
    part = source.subset(indices)
    assert len(taken) == len(part) == 3
    assert torch.equal(part.labels, source.labels[indices])
    for place, index in enumerate(indices.tolist()):
        assert taken[place].dtype == torch.uint8
        for other in (source.take(torch.tensor([index]))[0], part.take(torch.tensor([place]))[0]):
            assert torch.equal(taken[place], other)
        assert source.read(index) == part.read(place)
    assert source.read(0) != source.read(9)
    assert not torch.equal(taken[0], taken[1])


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.jpg", 16, 16, seed=i)
    dataset = load_dataset(options("imagefolder", tmp_path))
    assert len(dataset.train) == 3
    assert dataset.labelled is None
    assert dataset.test is None


def test_classes_have_the_names_of_the_data_set(mnist_root: Path, stl_root: Path) -> None:
    assert load_dataset(DataOptions(dataset="mnist5k")).classes == tuple("0123456789")
    assert load_dataset(options("fashion-mnist", mnist_root)).classes[:2] == ("T-shirt/top", "Trouser")
    assert load_dataset(options("stl10", stl_root)).classes == tuple(f"class{i}" for i in range(10))


@pytest.fixture
def packed_root(mnist_root: Path, tmp_path: Path) -> Path:
    """The four packed files alone, as Debian's package dataset-fashion-mnist and the download pages have them."""
    folder = tmp_path / "packed"
    folder.mkdir()
    for file in (mnist_root / "FashionMNIST" / "raw").glob("*.gz"):
        file.rename(folder / file.name)
    return folder


def test_the_packed_files_of_mnist_are_read_as_they_lie(packed_root: Path, mnist_root: Path) -> None:
    packed = load_dataset(options("fashion-mnist", packed_root))
    unpacked = load_dataset(options("fashion-mnist", mnist_root))
    for part in ("train", "labelled", "test"):
        assert torch.equal(getattr(packed, part).images, getattr(unpacked, part).images)
        assert torch.equal(getattr(packed, part).labels, getattr(unpacked, part).labels)
    assert packed.classes == unpacked.classes
    assert load_dataset(options("mnist", packed_root)).classes[0] == "0 - zero"
    with pytest.raises(ConfigError, match=f"^--data {packed_root}: .*; add --dataset mnist or fashion-mnist$"):
        load_dataset(options("auto", packed_root))


def test_a_missing_decoder_is_told_before_files_are_looked_for(mnist_root: Path, monkeypatch) -> None:
    def missing() -> None:
        raise ConfigError("image files need a decoder")

    monkeypatch.setattr("simclr_fast.data.datasets.torchcodec_decoders", missing)
    for name in ("imagefolder", "table", "huggingface"):
        with pytest.raises(ConfigError, match="^image files need a decoder$"):
            load_dataset(options(name, mnist_root))
    assert len(load_dataset(options("mnist", mnist_root)).train) == 12, "arrays need none"


IMAGES = struct.pack(">4i", 0x803, 2, 3, 3) + bytes(18)
DAMAGED = {
    "cut off": (gzip.compress(IMAGES)[:-9], "is damaged"),
    "not packed": (IMAGES, "is damaged"),
    "a pixel short": (gzip.compress(IMAGES[:-1]), "is no whole idx file"),
    "without a header": (gzip.compress(b"\0"), "is no whole idx file"),
    "of floats": (gzip.compress(struct.pack(">4i", 0xD03, 2, 3, 3) + bytes(72)), "is no whole idx file"),
    "fewer images than labels": (gzip.compress(IMAGES), r"have the shapes \[2, 3, 3\] and \[12\]"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_packed_files_are_told_in_one_line(kind: str, packed_root: Path) -> None:
    content, said = DAMAGED[kind]
    (packed_root / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--data {packed_root}: .*{said}.*; copy (it|the files) anew$") as raised:
        load_dataset(options("fashion-mnist", packed_root))
    assert "\n" not in str(raised.value)


def test_who_lacks_fashion_mnist_is_told_of_debians_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_dataset(options("fashion-mnist", tmp_path))
    said = str(raised.value)
    assert f"add --download to fetch it, or put its files into {tmp_path / 'FashionMNIST' / 'raw'} yourself" in said
    assert said.endswith("with Debian's package dataset-fashion-mnist, pass --data /usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("error", [RuntimeError("Error downloading x.gz"), URLError("no route to host")])
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_failed_download_is_not_to_be_tried_by_the_same_option(
    name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self) -> None:
        raise error

    monkeypatch.setattr(array_sets.KINDS[name][0], "download", fail)
    with pytest.raises(ConfigError, match="the download failed; once the network is there, the same command") as raised:
        load_dataset(options(name, tmp_path, download=True))
    assert "add --download" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "stl10", "imagefolder", "huggingface", "table", "packed", "auto"])
def test_missing_data_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    for root in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError, match="--data") as raised:
            load_dataset(options(name, root))
        assert "\n" not in str(raised.value)
