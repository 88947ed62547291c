"""Data sets by name, read from small files in their real formats."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from simclr_fast.config import ConfigError, DataOptions
from simclr_fast.data import EncodedImages, load_dataset
from simclr_fast.data.sources import TableColumn
from simclr_fast.data.unreadable import BadImageError
from tests.data.conftest import pixels, write_image


def options(name: str, root: Path, **changes) -> DataOptions:
    return dataclasses.replace(DataOptions(dataset=name, data_dir=root), **changes)


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
    assert dataset.test.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "train"), [("cifar10", 20), ("cifar100", 4)])
def test_cifar_files(name: str, train: int, cifar_root: Path) -> None:
    dataset = load_dataset(options(name, cifar_root))
    assert dataset.train.images.shape == (train, 3, 32, 32)
    np.testing.assert_array_equal(dataset.train.images[:4].numpy(), pixels(4, 3, 32, 32, seed=0))
    assert dataset.train.labels[:4].tolist() == [0, 1, 2, 3]
    assert len(dataset.test) == 3


def test_stl_trains_on_the_unlabelled_split(stl_root: Path) -> None:
    dataset = load_dataset(options("stl10", stl_root))
    np.testing.assert_array_equal(dataset.train.images.numpy(), pixels(8, 3, 96, 96, seed=8))
    assert dataset.train.labels is None
    assert dataset.labelled.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(dataset.test) == 4


def test_image_folder(folder_root: Path) -> None:
    dataset = load_dataset(options("imagefolder", folder_root))
    assert len(dataset.train) == 16
    assert dataset.train.labels.tolist() == [0] * 8 + [1] * 8
    assert len(dataset.test) == 6
    assert dataset.train.decoded(1).shape == (3, 23, 38)
    assert dataset.train.decoded(0).shape == (3, 20, 40), "PNG"


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.jpg", 16, 16, seed=i)
    dataset = load_dataset(options("imagefolder", tmp_path))
    assert len(dataset.train) == 3
    assert dataset.labelled is None
    assert dataset.test is None


@pytest.fixture(params=["saved", "parquet"])
def hugging_face_root(request, tmp_path: Path, monkeypatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        write_image(tmp_path / "files" / f"{i}.jpg", 20 + i, 30, seed=i)
    paths = [str(tmp_path / "files" / f"{i}.jpg") for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": paths, "label": [0, 1, 2, 0, 1, 2]}, features=features)
    root = tmp_path / "set"
    if request.param == "saved":
        datasets.DatasetDict({"train": table.select(range(4)), "test": table.select([4, 5])}).save_to_disk(str(root))
    else:
        (root / "data").mkdir(parents=True)
        table.select(range(4)).to_parquet(str(root / "data" / "train-00000-of-00001.parquet"))
        table.select([4, 5]).to_parquet(str(root / "data" / "test-00000-of-00001.parquet"))
    return root


def test_hugging_face_folder(hugging_face_root: Path) -> None:
    dataset = load_dataset(options("huggingface", hugging_face_root))
    assert len(dataset.train) == 4
    assert dataset.train.labels.tolist() == [0, 1, 2, 0]
    assert dataset.train.decoded(3).shape == (3, 23, 30)
    assert len(dataset.test) == 2
    with pytest.raises(ConfigError, match=r"--image-column picture: the data set has the columns image, label"):
        load_dataset(options("huggingface", hugging_face_root, image_column="picture"))


def test_hugging_face_row_without_an_image_is_a_bad_image() -> None:
    column = TableColumn([{"image": None}, {"image": {"bytes": None, "path": None}}], "image")
    source = EncodedImages(1, column.read, column.name)
    with pytest.raises(BadImageError, match="row 0 of column 'image': the row has no image"):
        source.decode(0)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "stl10", "imagefolder", "huggingface"])
def test_missing_data_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    for root in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError, match="--data-dir") as raised:
            load_dataset(options(name, root))
        assert "\n" not in str(raised.value)
