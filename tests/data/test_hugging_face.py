"""Hugging Face data sets: saved, in parquet, in WebDataset shards; labels of every kind."""

import dataclasses
import io
import json
import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from simclr_fast.config import DataOptions
from simclr_fast.data import EncodedImages, load_dataset
from simclr_fast.data.sources import TableColumn
from simclr_fast.data.unreadable import BadImageError
from simclr_fast.errors import ConfigError
from tests.data.conftest import write_image


def options(name: str, root: Path, **changes) -> DataOptions:
    return dataclasses.replace(DataOptions(dataset=name, data=root), **changes)


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def saved(root: Path, feature: Any, **splits: list) -> Path:
    """A saved data set whose splits have these labels."""
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    tables = {
        name: datasets.Dataset.from_dict(
            {"image": [{"bytes": png(i)} for i in range(len(labels))], "label": labels}, features
        )
        for name, labels in splits.items()
    }
    datasets.DatasetDict(tables).save_to_disk(str(root))
    return root


def load(root: Path, **changes):
    return load_dataset(options("huggingface", root, **changes))


@pytest.fixture(params=["saved", "parquet"])
def hugging_face_root(request, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        write_image(tmp_path / "files" / f"{i}.jpg", 20 + i, 30, seed=i)
    images = [{"bytes": (tmp_path / "files" / f"{i}.jpg").read_bytes()} for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2, 0, 1, 2]}, features=features)
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


def test_hugging_face_row_without_an_image_is_a_bad_image(tmp_path: Path) -> None:
    column = TableColumn([{"image": None}, {"image": {"bytes": None, "path": None}}], "image", [tmp_path])
    source = EncodedImages(2, column.read, column.name)
    for row in range(2):
        with pytest.raises(BadImageError, match=f"row {row} of column 'image': the row has no image"):
            source.decode(row)


NUMBER, NAME = datasets.Value("int64"), datasets.Value("string")


def test_a_labelled_validation_is_preferred_to_an_unlabelled_test(tmp_path: Path, caplog) -> None:
    named = datasets.ClassLabel(names=["cat", "dog"])
    data = load(saved(tmp_path, named, train=[0, 1, 1], validation=[1, 0], test=[-1, -1]))
    assert data.test.labels.tolist() == [1, 0]
    assert data.classes == ("cat", "dog")
    assert "split 'test': no labels (the column 'label' holds only -1 or nothing), so that it is not" in caplog.text


def test_a_labelled_test_comes_first(tmp_path: Path) -> None:
    assert load(saved(tmp_path, NUMBER, train=[0, 1], validation=[0, 1], test=[1])).test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("feature", "train", "test", "classes"),
    [
        (NAME, ["pear", "apple", "pear"], ["pear", "apple"], ("apple", "pear")),
        (NUMBER, [102, 7, 102], [102, 7], ("7", "102")),
        (datasets.Value("bool"), [True, False, True], [True, False], ("False", "True")),
        (datasets.ClassLabel(names=["z", "none", "a"]), [2, 0, 2], [2, 0], ("z", "a")),
    ],
)
def test_labels_become_classes_by_name(feature, train: list, test: list, classes: tuple, tmp_path: Path) -> None:
    data = load(saved(tmp_path, feature, train=train, test=test))
    assert data.classes == classes
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.test.labels.tolist() == [1, 0]


def test_a_split_that_lacks_a_class_is_numbered_alike(tmp_path: Path, caplog) -> None:
    data = load(saved(tmp_path, NAME, train=["a", "b", "c"], test=["c", "x", "b"]))
    assert data.test.labels.tolist() == [2, 1]
    assert torch.equal(data.test.decode(1), data.train.decode(2)), "the image moves with its label"
    assert "split 'test': 1 images of class x are left out, as split 'train' has no such class" in caplog.text
    assert "split 'test': no image of class a" in caplog.text


@pytest.mark.parametrize(
    ("feature", "labels", "reason"),
    [
        (datasets.List(NUMBER), [[1], [2, 3]], "neither numbers of classes nor names"),
        (datasets.Value("float32"), [0.5, 1.5], "neither numbers of classes nor names"),
        (NUMBER, [None, None], "holds only -1 or nothing"),
        (NAME, [None, None], "holds only -1 or nothing"),
        (NUMBER, [-1, -1], "holds only -1 or nothing"),
        (datasets.Value("null"), [None, None], "neither numbers of classes nor names"),
    ],
)
def test_labels_that_are_none_do_not_stop_training(feature, labels: list, reason: str, tmp_path: Path, caplog) -> None:
    data = load(saved(tmp_path, feature, train=labels))
    assert (len(data.train), data.labelled, data.classes) == (2, None, None)
    assert "none of the splits test, validation, valid, val, so that no test images are evaluated on" in caplog.text
    assert reason in caplog.text
    assert "so that nothing is evaluated" in caplog.text


def test_each_split_counts_its_own_unreadable_rows(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": NUMBER})
    rows = {"image": [{"bytes": png(1)}, {"bytes": b"broken"}] * 2, "label": [0, 1, 1, 1]}
    tables = {name: datasets.Dataset.from_dict(rows, features) for name in ("train", "test")}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path))
    data = load(tmp_path, max_bad_images=0.5)
    for source, name in ((data.train, "train"), (data.test, "test")):
        assert source.bad.allowed == 2
        source.decoded(1)
        assert list(source.bad.messages) == [f"split '{name}', row {row} of column 'image'" for row in (1, 3)]
        assert "Unsupported image file" in next(iter(source.bad.messages.values()))


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^--label-column cls: the data set has the columns image, label$"):
        load(saved(tmp_path, NUMBER, train=[0, 1]), label_column="cls")


def test_columns_are_found_by_what_they_hold(tmp_path: Path) -> None:
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"]), "n": NUMBER}
    )
    rows = {"picture": [{"bytes": png(7)}] * 2, "kind": [1, 0], "n": [5, 6]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(str(tmp_path / "one"))
    data = load(tmp_path / "one")
    assert data.classes == ("a", "b")
    assert data.train.labels.tolist() == [1, 0]
    several = features | {"mask": datasets.Image()}
    table = datasets.Dataset.from_dict(rows | {"mask": rows["picture"]}, datasets.Features(several))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(ConfigError, match="the columns picture, mask all hold images; pass the one that is meant by"):
        load(tmp_path / "two")
    assert len(load(tmp_path / "two", image_column="mask").train) == 2


def test_without_a_split_to_train_on_nothing_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^--data {tmp_path}: no split 'train', only validation, test$"):
        load(saved(tmp_path, NUMBER, validation=[0, 1], test=[1]))


def test_other_splits_are_named(tmp_path: Path, caplog) -> None:
    data = load(saved(tmp_path, NUMBER, train=[0, 1], test=[0], extra=[1]))
    assert data.ignored == (("split 'extra'", "neither train nor held out"),)
    assert "the splits extra are neither trained nor evaluated on" in caplog.text


def test_rows_without_a_label_are_trained_on_only(tmp_path: Path, caplog) -> None:
    data = load(saved(tmp_path, NUMBER, train=[1, None, -1, 5], test=[5, None]))
    assert len(data.train) == 4
    assert data.train.labels is None
    assert data.labelled.labels.tolist() == [0, 1]
    assert torch.equal(data.labelled.decode(1), data.train.decode(3))
    assert data.test.labels.tolist() == [1]
    assert "split 'train': 2 of 4 images have no label, and are only trained on" in caplog.text


def test_another_column_of_images_is_not_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {"image": [{"bytes": png(7)}], "mask": [{"bytes": b"broken"}]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(str(tmp_path))
    assert load(tmp_path).train.decode(0)[0, 0, 0] == 7


def test_web_dataset_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "shards"
    root.mkdir()
    for shard, classes in (("train-000000", [0, 1]), ("train-000001", [1]), ("val-000000", [1, 0])):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for i, label in enumerate(classes):
                picture = io.BytesIO()
                Image.new("RGB", (9, 8), (50 * label, 0, 0)).save(picture, "JPEG")
                for suffix, content in (("jpg", picture.getvalue()), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{shard}_{i}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    data = load_dataset(DataOptions(data=root))
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.labels.tolist() == [1, 0]
    assert [data.train.decode(i)[0].float().mean().round().item() for i in range(3)] == pytest.approx(
        [0, 50, 50], abs=2
    )


@pytest.mark.parametrize("kind", ["saved", "parquet", "columns"])
def test_damaged_data_is_told_in_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    if kind == "saved":
        saved(root, NUMBER, train=[0, 1])
        next(root.glob("train/*.arrow")).write_bytes(b"broken")
    elif kind == "parquet":
        root.mkdir()
        (root / "train-00000-of-00001.parquet").write_bytes(b"broken")
    else:
        root.mkdir()
        for part, column in enumerate(("label", "other")):
            datasets.Dataset.from_dict({column: [1]}).to_parquet(root / f"train-0000{part}-of-00002.parquet")
    with pytest.raises(ConfigError, match=f"^--data {root}: not a Hugging Face data set") as raised:
        load(root)
    assert "\n" not in str(raised.value)


def repository(root: Path, about: str = "", name: str = "README.md") -> Path:
    """A downloaded repository of one image, with this about its configs."""
    (root / "data").mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": NUMBER})
    table = datasets.Dataset.from_dict({"image": [{"bytes": png(1)}] * 2, "label": [0, 1]}, features)
    table.to_parquet(str(root / "data" / "train-0.parquet"))
    table.to_parquet(str(root.parent / "secret.parquet"))
    text = about.replace("ROOT", str(root.parent))
    (root / name).write_text(text if name == ".huggingface.yaml" else f"---\n{text}\n---\nabout it\n")
    return root


CONFIGS = "configs:\n- config_name: default\n  {}\n"
ELSEWHERE = {
    "a URL": "data_files: http://127.0.0.1:{port}/x.parquet",
    "a URL of a split": "data_files: [{{split: train, path: ['http://127.0.0.1:{port}/x.parquet']}}]",
    "an archive of a URL": "data_files: 'zip://x.parquet::http://127.0.0.1:{port}/x.zip'",
    "an absolute path": "data_files: ROOT/secret.parquet",
    "the folder above": "data_files: [{{split: train, path: data/../../secret.parquet}}]",
    "another folder": "data_dir: ..",
}


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_repository_can_have_nothing_else_read_or_fetched(kind: str, name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        about = CONFIGS.format(ELSEWHERE[kind].format(port=server.getsockname()[1]))
        root = repository(tmp_path / "set", about, name)
        said = f"^--data {root}: {name} names what lies elsewhere .*, and nothing outside the folder is read or fetched"
        with pytest.raises(ConfigError, match=said) as raised:
            load(root)
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (CONFIGS.format("data_files: [{split: train, path: 'data/train-*'}]"), None),
        ("license: mit", None),
        ("a: b: [", "not a Hugging Face data set"),
        ("configs: 3", "not a Hugging Face data set"),
        (CONFIGS.format("data_files: nothing-*"), "not a Hugging Face data set"),
    ],
)
def test_what_a_repository_says_of_itself_is_followed_or_told(about: str, said: str | None, tmp_path: Path) -> None:
    root = repository(tmp_path / "set", about)
    if said is None:
        assert len(load(root).train) == 2
        return
    with pytest.raises(ConfigError, match=f"^--data {root}: {said}") as raised:
        load(root)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train/state.json", {"_data_files": [{"filename": "../../secret.arrow"}]}),
        *(
            ("train/state.json", {"_data_files": [{"filename": name}]})
            for name in ("/secret.arrow", "~/secret.arrow", "a\\..\\..\\secret.arrow", "zip://x", "a::b")
        ),
        ("dataset_dict.json", {"splits": ["train", "../other"]}),
    ],
)
def test_a_saved_set_can_have_nothing_else_read(file: str, content: dict, tmp_path: Path) -> None:
    root = saved(tmp_path / "set", NUMBER, train=[0, 1])
    (root / file).write_text(json.dumps({**json.loads((root / file).read_text()), **content}))
    with pytest.raises(ConfigError, match=f"^--data {root}: {Path(file).name} names what lies elsewhere"):
        load(root)


def test_rows_name_images_of_their_own_folder_alone(tmp_path: Path) -> None:
    """What was downloaded must not have other files of this machine read: a device would never end."""
    root = tmp_path / "set"
    write_image(root / "1.png", 6, 8, seed=0)
    write_image(tmp_path / "set2" / "2.png", 6, 8, seed=0)
    os.mkfifo(root / "fifo")
    names = ["1.png", str(root / "1.png"), "../set2/2.png", str(tmp_path / "set2" / "2.png"), "/dev/zero", "fifo"]
    rows = [{"image": {"bytes": None, "path": name}} for name in [*names, "http://127.0.0.1/1.png"]]
    source = EncodedImages(len(rows), *(lambda column: (column.read, column.name))(TableColumn(rows, "image", [root])))
    assert torch.equal(source.decode(0), source.decode(1))
    for row in (2, 3, 4):
        with pytest.raises(BadImageError, match=f"row {row} .*: the row names a file outside {root} "):
            source.decode(row)
    for row in (5, 6):
        with pytest.raises(BadImageError, match="there is no such file"):
            source.decode(row)


def test_text_labels_are_those_of_tables(tmp_path: Path) -> None:
    data = load(saved(tmp_path, NAME, train=["b", "-1", "", None, "a "], test=["a", "b"]))
    assert data.classes == ("a", "b")
    assert data.codes.tolist() == [1, -1, -1, -1, 0]
