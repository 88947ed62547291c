"""`--dataset auto`: what it finds in what people have, what it says of it, and what it asks where it cannot tell."""

import gzip
import io
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from simclr_fast.config import DataOptions
from simclr_fast.data import load_dataset, pack
from simclr_fast.data.auto import found_in
from simclr_fast.errors import ConfigError
from tests.data.conftest import write_image
from tests.data.packing import packing


def tree(root: Path, *names: str) -> Path:
    """A folder with these files: images by their suffixes, tables by their text, of others a byte."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, entry in enumerate(names):
        name, _, text = entry.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            write_image(path, 6, 8, seed=seed)
        else:
            path.write_text(text or "x")
    return root


CLASSES = ("a/1.png", "a/2.png", "b/1.png")
TABLE = "labels.csv=path,label\na/1.png,x\na/2.png,y\nb/1.png,x\n"
FOUND = {
    "flat": (("1.png", "2.png", "notes.txt"), "2 images without class folders (--dataset imagefolder)"),
    "classes": (CLASSES, "3 images of 2 classes in class folders (--dataset imagefolder)"),
    "parts": (
        [f"{part}/{name}" for part in ("train", "val") for name in CLASSES],
        "3 images and 3 held-out ones of 2 classes in class folders of train and val (--dataset imagefolder)",
    ),
    "flat parts": (
        ("train/1.png", "test/2.png"),
        "1 images and 1 held-out ones without class folders in train and test",
    ),
    "one table": (
        ("images/1.png", "images/2.png", "labels.csv=path,label\nimages/1.png,x\nimages/2.png,y\n"),
        "2 images of 2 classes named by labels.csv (--dataset table)",
    ),
    "kaggle": (
        (
            "train/1.png",
            "train/2.png",
            "test/3.png",
            "train.csv=id,breed\n1,x\n2,x\n",
            "sample_submission.csv=id,breed\n3,x\n",
        ),
        "2 images of 1 classes named by train.csv (--dataset table)",
    ),
    "a table of something else": (
        ("1.png", "2.png", "log.csv=time,temperature\n1,2\n3,4\n"),
        "(--dataset imagefolder)",
    ),
    "a broken table": (("1.png", "2.png", "log.csv=a,b\n1,2\n1,2,3\n"), "(--dataset imagefolder)"),
    "classes and a table without labels": (
        (*CLASSES, "files.csv=path,size\na/1.png,9\nb/1.png,8\n"),
        "(--dataset imagefolder)",
    ),
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_found_is_said_with_the_reason(kind: str, tmp_path: Path, caplog) -> None:
    names, said = FOUND[kind]
    load_dataset(DataOptions(data=tree(tmp_path / "set", *names)))
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"{tmp_path / 'set'}: ") and said in line for line in lines), lines


@pytest.mark.parametrize(("name", "root"), [("mnist", "mnist_root"), ("cifar100", "cifar_root"), ("stl10", "stl_root")])
def test_torchvisions_files_are_found(name: str, root: str, request, monkeypatch) -> None:
    folder = request.getfixturevalue(root)
    others = {"mnist": "FashionMNIST", "cifar100": "cifar-10-batches-py"}
    if name in others:
        with pytest.raises(
            ConfigError, match=rf"several data sets; pass the --dataset that is meant: .*--dataset {name}\)"
        ):
            found_in(DataOptions(data=folder))
        (folder / others[name]).rename(folder / ".away")
    assert found_in(DataOptions(data=folder))[0].dataset == name
    inner = next(path for path in folder.iterdir() if not path.name.startswith("."))
    with pytest.raises(ConfigError, match=f"the files of {name} are in it; pass the folder above, --data {folder}$"):
        found_in(DataOptions(data=inner))
    monkeypatch.chdir(inner)
    with pytest.raises(ConfigError, match=f"^--data .: the files of {name} are in it"):
        found_in(DataOptions(data=Path()))


def test_hugging_faces_files_are_found(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 0, 0)).save(picture, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": [{"bytes": picture.getvalue()}] * 2, "label": [1, 0]}, features)
    saved, repository, shards = tmp_path / "saved", tmp_path / "repository", tmp_path / "shards"
    datasets.DatasetDict({"train": table}).save_to_disk(str(saved))
    (repository / "data").mkdir(parents=True)
    (repository / "README.md").write_text("about it")
    parquet = repository / "data" / "train-00000-of-00001.parquet"
    table.to_parquet(str(parquet))
    shards.mkdir()
    with tarfile.open(shards / "train-000000.tar", "w") as tar:
        for suffix, content in (("png", picture.getvalue()), ("cls", b"3")):
            entry = tarfile.TarInfo(f"1.{suffix}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    said = {
        saved: "2 images of 2 classes saved by the package 'datasets' (--dataset huggingface)",
        repository: f"2 images of 2 classes in parquet files such as data/{parquet.name} (--dataset huggingface)",
        parquet: "2 images of 2 classes in a parquet file (--dataset huggingface)",
        shards: "1 images of 1 classes in tar files such as train-000000.tar (--dataset huggingface)",
        shards / "train-000000.tar": "1 images of 1 classes in a tar file (--dataset huggingface)",
    }
    for root, line in said.items():
        data = load_dataset(DataOptions(data=root))
        assert f"{root}: {line}" in caplog.text
        assert data.train.decode(0)[0, 0, 0] == 9


def test_a_packed_set_is_found_and_packing_notes_what_was_found(tmp_path: Path, caplog) -> None:
    root, output = tree(tmp_path / "photos", *CLASSES), tmp_path / "out"
    manifest = pack.pack(packing(root, output, size=8))
    assert manifest["options"]["dataset"] == "imagefolder"
    assert f"{root}: 3 images of 2 classes in class folders (--dataset imagefolder)" in caplog.text
    pack.pack(packing(root, output, size=8, dataset="imagefolder"))  # the same options
    load_dataset(DataOptions(data=output))
    assert f"{output}: 3 images of 2 classes in a packed set (--dataset packed)" in caplog.text


def test_a_table_is_found_by_its_path(tmp_path: Path, caplog) -> None:
    root = tree(tmp_path, *CLASSES, TABLE)
    assert load_dataset(DataOptions(data=root / "labels.csv")).classes == ("x", "y")
    assert f"{root / 'labels.csv'}: 3 images of 2 classes named by its rows (--dataset table)" in caplog.text


ASKED = {
    "classes and their table": (
        (*CLASSES, TABLE),
        r"several data sets; pass the --dataset that is meant: images in class folders \(--dataset imagefolder\); "
        r"images named by labels.csv \(--dataset table\)$",
    ),
    "two tables": (
        ("1.png", "one.csv=path\n1.png\n", "two.csv=path\n1.png\n"),
        r"several tables name images \(one.csv, two.csv\); pass one of them, such as --data .*/one.csv; or pass "
        r"--dataset imagefolder, for the images below .*/set as they lie$",
    ),
    "nothing": ((), "no data set is in it .it is empty; pass the folder of your images by --data.$"),
    "other files": (
        ("a.mp4", "b.mp4", "below/c.txt"),
        r"no data set is in it \(2 no image \(.mp4\), 1 no image \(.txt\); pass a folder of images \(.jpg, .*table of",
    ),
    "an archive": (("photos.zip",), "unpack .*photos.zip, or pass a folder of images"),
}


@pytest.mark.parametrize("kind", ASKED)
def test_what_cannot_be_told_is_asked_in_one_line(kind: str, tmp_path: Path) -> None:
    names, said = ASKED[kind]
    with pytest.raises(ConfigError, match=f"^--data {tmp_path}/set: .*{said}") as raised:
        load_dataset(DataOptions(data=tree(tmp_path / "set", *names)))
    assert "\n" not in str(raised.value)


def test_files_that_are_no_data_set_are_told(tmp_path: Path) -> None:
    tree(tmp_path, "1.png", "photos.zip", "notes.txt")
    (tmp_path / "idx.gz").write_bytes(gzip.compress(b"x"))
    said = {
        "1.png": "one image; pass a folder, or a table",
        "photos.zip": "an archive; unpack it, and pass its folder",
        "idx.gz": "an archive; unpack it, and pass its folder",
        "notes.txt": "a file; pass a folder, or a table",
        "nowhere": "there is no such folder or file; pass the folder of your images by --data",
    }
    for name, message in said.items():
        with pytest.raises(ConfigError, match=f"^--data {tmp_path / name}: {message}"):
            load_dataset(DataOptions(data=tmp_path / name))
    with pytest.raises(ConfigError, match="^--download: say which data set, by --dataset and one of mnist, fashion"):
        load_dataset(DataOptions(data=tmp_path, download=True))


def test_a_folder_that_cannot_be_looked_at_is_told(tmp_path: Path, monkeypatch) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ConfigError, match=f"^--data {tmp_path}: .*Permission denied: '{tmp_path}'$"):
        found_in(DataOptions(data=tmp_path))


def test_little_is_looked_at(tmp_path: Path, monkeypatch) -> None:
    """Of a large data set, some folders to their first image: it is read once more, and may lie on a slow disk."""
    from simclr_fast.data import auto

    root = tree(tmp_path, *(f"train/{number:03d}/{image}.png" for number in range(60) for image in range(2)))
    monkeypatch.setattr(auto, "LOOKED_INTO", 5)
    seen: list[str] = []
    real = auto.images_below

    def counting(folder: str, ignored: list):
        for name in real(folder, ignored):
            seen.append(name)
            yield name

    monkeypatch.setattr(auto, "images_below", counting)
    assert found_in(DataOptions(data=root))[1] == "in class folders of train"
    assert len(seen) <= 6
