"""Lists of labelled images: matched by name or path in every kind of data set, or refused in one line."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from simclr_fast.cli import main
from simclr_fast.config import DataOptions
from simclr_fast.data import EncodedImages, ImageArrays, load_dataset, pack
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.label_list import listed, with_labels_of
from simclr_fast.evaluation.options import LinearOptions, check
from tests.data.packing import packing


def source_of(*files: str | None) -> EncodedImages:
    return EncodedImages(len(files), lambda i: b"", str, labels=torch.arange(len(files)), file=list(files).__getitem__)


TREE = source_of("/d/train/cat/1.jpg", "/d/train/dog/1.jpg", "/d/train/dog/2.jpg", "/d/train/dog/n 3.jpg")


def write(folder: Path, content: bytes) -> Path:
    path = folder / "list.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"2.jpg\n", [2]),
        (b"n 3.jpg\n2.jpg", [2, 3]),
        (b"\xef\xbb\xbf2.jpg\r\n\r\n  cat/1.jpg \r\n\n", [0, 2]),
        (b"./dog/1.jpg\ntrain/cat/1.jpg\n/d/train/dog/2.jpg\n", [0, 1, 2]),
    ],
    ids=["name", "order", "mark and carriage returns", "paths"],
)
def test_lines_name_images(content: bytes, expected: list[int], tmp_path: Path) -> None:
    assert listed(TREE, write(tmp_path, content)).tolist() == expected
    part = TREE.subset(torch.tensor([3, 2, 1, 0]))
    assert listed(part, tmp_path / "list.txt").tolist() == sorted(3 - index for index in expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty; pass a file that names an image a line"),
        (b"\xef\xbb\xbf\r\n \n", "it is empty"),
        ("2.jpg\n".encode("utf-16"), "it holds no lines of UTF-8"),
        (
            b"9.jpg\n2.jpg\n8.jpg\n7.jpg\n6.jpg",
            "4 of its names name no labelled training image (9.jpg, 8.jpg, 7.jpg, ...)",
        ),
        (b"9.jpg\n" * 2000, "1 of its names name no labelled training image (9.jpg); one of them is 1.jpg; pass their"),
        (
            b"cat\\1.jpg",
            "(cat\\1.jpg); write paths with / and without the folders above the data set's, as in cat/1.jpg; one",
        ),
        (b"/other/1.jpg", "(/other/1.jpg); write paths with / and without the folders above"),
        (b"9.jpg", "(9.jpg); one of them is 1.jpg; pass their --data, or take those lines out"),
        (b"bird/2.jpg", "1 of its names name no labelled training image (bird/2.jpg)"),
        (b"og/2.jpg", "1 of its names name no labelled training image (og/2.jpg)"),
        (b"dog/", "1 of its names name no labelled training image (dog/)"),
        (b"\xff.jpg\n", "name no labelled training image (\\xff.jpg)"),
        (b"2.jpg\n1.jpg", "1 of its names name more than one image (1.jpg); write the folder before the name"),
        (b"2.jpg\ndog/2.jpg\n2.jpg", "2 of its names name an image that another line names (2.jpg, dog/2.jpg)"),
    ],
)
def test_hostile_lists_are_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        listed(TREE, write(tmp_path, content))
    message = str(caught.value)
    assert message.startswith(f"--label-list {tmp_path / 'list.txt'}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "source",
    [
        ImageArrays(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2)),
        dataclasses.replace(TREE, file=None),
        source_of(None, None),
    ],
    ids=["arrays", "no names", "empty names"],
)
def test_images_without_names_are_refused(source, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the images of this data set have no file names"):
        listed(source, write(tmp_path, b"2.jpg"))


def test_a_long_list_is_matched(tmp_path: Path) -> None:
    """In one pass over the images: to look for each name would take minutes here."""
    count = 100_000
    name = lambda i: f"/d/train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG"
    path = write(tmp_path, "\n".join(f"n{i % 1000:08d}_{i}.JPEG" for i in range(0, count, 2)).encode())
    source = EncodedImages(count, lambda i: b"", str, file=name)
    assert listed(source, path).tolist() == list(range(0, count, 2))


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def hugging_face(root: Path, *names: str | None) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(), "path": name} for name in names], "label": [i % 2 for i in range(len(names))]}
    table = datasets.Dataset.from_dict(rows, features).select(range(len(names))[::-1])
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(root))
    return root


def test_every_kind_of_data_set_keeps_the_names(photos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    path = write(tmp_path, b"dog/3.jpg\ncat/0.png\n")
    pack.pack(packing(root, tmp_path / "packed"))
    (root / "train.csv").write_text(
        "path,label\n"
        + "".join(f"train/{c}/{i}.jpg,{c}\n" for i in (1, 3) for c in ("cat", "dog"))
        + "train/cat/0.png,cat\n"
    )
    sets = {
        "imagefolder": DataOptions(dataset="imagefolder", data=root),
        "table": DataOptions(dataset="table", data=root / "train.csv"),
        "packed": DataOptions(dataset="packed", data=tmp_path / "packed"),
    }
    for options in sets.values():
        chosen = with_labels_of(load_dataset(options), path).labelled
        found = [(chosen.file(index), label) for index, label in enumerate(chosen.labels.tolist())]
        assert sorted((*Path(file).parts[-2:], label) for file, label in found) == [
            ("cat", "0.png", 0),
            ("dog", "3.jpg", 1),
        ]
    saved = hugging_face(tmp_path / "hf", "n1_0.JPEG", "n2_1.JPEG", "n1_2.JPEG")
    data = load_dataset(DataOptions(dataset="huggingface", data=saved))
    assert listed(data.labelled, write(tmp_path, b"n1_0.JPEG\nn2_1.JPEG\n")).tolist() == [1, 2], "the rows are reversed"
    nameless = load_dataset(DataOptions(dataset="huggingface", data=hugging_face(tmp_path / "no names", None, None)))
    with pytest.raises(ConfigError, match="have no file names"):
        listed(nameless.labelled, tmp_path / "list.txt")


def test_raw_packed_sets_have_no_names(photos: Path, tmp_path: Path) -> None:
    pack.pack(packing(photos, tmp_path / "raw", format="raw", size=16))
    data = load_dataset(DataOptions(dataset="packed", data=tmp_path / "raw"))
    with pytest.raises(ConfigError, match="have no file names"):
        with_labels_of(data, write(tmp_path, b"0.png"))
    assert with_labels_of(data, None) is data


def test_options_that_cannot_go_with_a_list(tmp_path: Path, capsys) -> None:
    path = str(write(tmp_path, b"1.jpg"))
    for arguments, said in (
        (["--label-list", str(tmp_path)], "it is a folder; pass a file that names an image a line"),
        (["--label-list", path, "--fractions", "0.1"], f"--fractions 0.1: --label-list {path} takes their place"),
        (["--label-list", path, "--draws", "3"], f"--draws 3: --label-list {path} leaves nothing to draw"),
        (["--label-list", path, "--epochs", "1", "2"], "--epochs 1 2: pass one number for the --label-list"),
    ):
        assert main(["finetune", "--checkpoint", "x", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no such file"):
        check(LinearOptions(checkpoint=Path("x"), label_list=tmp_path / "none.txt"))


def test_commands_train_on_the_list(color_run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    lines = [f"{name}/{i}.{'png' if i == 0 else 'jpg'}" for name in ("cat", "dog") for i in range(3)]
    path = write(tmp_path, "\n".join(lines).encode())
    common = [
        "--checkpoint",
        str(color_run),
        "--dataset",
        "imagefolder",
        "--data",
        str(photos),
        "--output",
        str(tmp_path),
    ]
    common += ["--threads", "1", "--label-list", str(path)]
    assert main(["finetune", *common, "--init", "checkpoint", "--min-steps", "0", "--epochs", "1"]) == 0
    found = json.loads((tmp_path / "finetune-list.json").read_text())
    (result,) = found["results"].values()
    assert set(found["results"]) == {"list"}, "not 1, which is all labels"
    assert (result["images"], result["batch_size"], result["epochs"], found["options"]["draws"]) == (6, 6, 1, 1)
    assert len(result["checkpoint"]["draws"]) == 1, "a list leaves nothing to draw"
    assert found["tables"][0]["title"].startswith("Fine-tuning on the 6 labels of list.txt: ")
    assert found["tables"][0]["rows"][0][0] == "list.txt (6 images)"
    assert main(["linear", *common, "--method", "lbfgs", "--penalty-c", "0.1"]) == 0
    found = json.loads((tmp_path / "linear-list.json").read_text())
    assert found["tables"][0]["title"] == "Linear classifier, the 6 labels of list.txt: test accuracy (%)"
    capsys.readouterr()
