"""Image folders as users have them: one list of classes for all parts, links, hidden files, what is no image."""

import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from simclr_fast.config import DataOptions
from simclr_fast.data import Dataset, load_dataset
from simclr_fast.data.messages import listed, say_ignored
from simclr_fast.data.sources import Files
from simclr_fast.errors import ConfigError
from tests.data.conftest import write_image


def tree(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_image(root / name, 6, 8, seed=seed)
    return root


def load(root: Path) -> Dataset:
    return load_dataset(DataOptions(dataset="imagefolder", data=root))


def by_name(source) -> dict[str, int]:
    """The label of each image, by the last two parts of its path."""
    return {"/".join(Path(source.name(i)).parts[-2:]): int(source.labels[i]) for i in range(len(source))}


TRAIN = ("train/a/1.png", "train/b/1.png", "train/c/1.png")


@pytest.mark.parametrize("part", ["val", "validation", "valid", "test"])
def test_held_out_parts_and_their_names(part: str, tmp_path: Path) -> None:
    data = load(tree(tmp_path, *TRAIN, f"{part}/c/1.png", f"{part}/a/1.png", f"{part}/b/1.png"))
    assert data.classes == ("a", "b", "c")
    assert by_name(data.test) == {"a/1.png": 0, "b/1.png": 1, "c/1.png": 2}


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_that_val_lacks_shifts_no_number(empty: bool, tmp_path: Path, caplog) -> None:
    tree(tmp_path, *TRAIN, "val/b/1.png", "val/c/1.png")
    if empty:
        (tmp_path / "val" / "a").mkdir()
    data = load(tmp_path)
    assert by_name(data.test) == {"b/1.png": 1, "c/1.png": 2}
    assert f"{tmp_path / 'val'}: no image of class a" in caplog.text


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_that_train_lacks_is_left_out(empty: bool, tmp_path: Path, caplog) -> None:
    tree(tmp_path, "train/a/1.png", "train/c/1.png", "val/a/1.png", "val/b/1.png", "val/b/2.png", "val/c/1.png")
    if empty:
        (tmp_path / "train" / "b").mkdir()
    data = load(tmp_path)
    assert data.classes == ("a", "c")
    assert by_name(data.labelled) == by_name(data.test) == {"a/1.png": 0, "c/1.png": 1}
    assert data.codes.tolist() == [0, 1], "what is packed and embedded has these numbers, not those of the folders"
    assert (
        f"{tmp_path / 'val'}: 2 images of class b are left out, as {tmp_path / 'train'} has no such class"
        in caplog.text
    )
    assert ("train: no image of class b" in caplog.text) == empty


def test_no_class_in_common_leaves_nothing_to_judge(tmp_path: Path, caplog) -> None:
    data = load(tree(tmp_path, *TRAIN, "val/x/1.png", "val/y/1.png"))
    assert data.test.labels is None
    assert "2 images of 2 classes: x, y are left out" in caplog.text


def test_links_are_followed_as_torchvision_does(tmp_path: Path) -> None:
    real = tree(tmp_path / "real", "a/1.png", "b/1.png", "b/sub/2.png", "c/1.png")
    root = tree(tmp_path / "set", "train/d/1.png")
    for name in "abc":
        (root / "train" / name).symlink_to(real / name)
    (root / "train" / "d" / "2.png").symlink_to(real / "a" / "1.png")
    data = load(root)
    theirs = ImageFolder(str(root / "train"))
    assert [(data.train.name(i), int(data.train.labels[i])) for i in range(len(data.train))] == theirs.samples
    assert len(theirs) == 6
    assert list(data.classes) == theirs.classes


def test_links_in_a_circle_and_to_nothing_are_counted(tmp_path: Path, caplog) -> None:
    tree(tmp_path, *TRAIN)
    (tmp_path / "train" / "a" / "loop").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert len(load(tmp_path).train) == 3
    said = "train: ignored 2 (1 link to nothing: a/gone.png; 1 link to a folder around it: a/loop)"
    assert said in caplog.text


def test_hidden_files_and_folders_are_no_class_and_no_image(tmp_path: Path, caplog) -> None:
    tree(tmp_path, *TRAIN, "train/.ipynb_checkpoints/1-checkpoint.png", "train/a/._1.png")
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    data = load(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert len(data.train) == 3
    assert "train: ignored 3 (3 hidden: .DS_Store, .ipynb_checkpoints, a/._1.png)" in caplog.text
    assert "no image of" not in caplog.text


def test_what_is_no_image_is_counted_by_kind_and_named(tmp_path: Path, caplog) -> None:
    tree(tmp_path, *TRAIN)
    for name in ("a/1.mp4", "a/2.mp4", "a/3.mp4", "a/4.mp4", "b/notes.txt", "b/two\nlines.txt", "b/README"):
        (tmp_path / "train" / name).write_bytes(b"x")
    data = load(tmp_path)
    assert f"{tmp_path / 'train'}: ignored 7 (4 no image (.mp4): a/1.mp4, a/2.mp4, a/3.mp4, ...; " in caplog.text
    assert "2 no image (.txt): b/notes.txt, b/two\\nlines.txt; 1 no image (no suffix): b/README)" in caplog.text
    assert (str(tmp_path / "train" / "a" / "4.mp4"), "no image (.mp4)") in data.ignored
    assert len(data.ignored) == 7


def test_of_many_reasons_and_classes_the_first_are_spelled_out(caplog) -> None:
    say_ignored("set", [(f"set/{kind}", f"reason {kind}") for kind in range(10) for _ in range(1 + (kind == 7))])
    assert "set: ignored 11 (2 reason 7: 7, 7; 1 reason 0: 0; " in caplog.text
    assert "; 1 reason 6: 6; 2 for other reasons)" in caplog.text
    caplog.clear()
    say_ignored("set", [(f"{kind}", f"reason {kind}") for kind in range(8)])
    assert "for other reasons" not in caplog.text
    assert listed(["a"]) == "class a"
    assert listed(list("abcde")) == "5 classes: a, b, c, d, e"
    assert listed(list("abcdefg"), ("file", "files")) == "7 files: a, b, c, d, e and 2 more"


def test_every_format_is_found_by_its_suffix_and_read(tmp_path: Path, caplog) -> None:
    """BMP, TIFF and PPM beside the others: one class of them once vanished without a word."""
    picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    for suffix in ("png", "PNG", "bmp", "tif", "TIFF", "ppm", "gif", "webp", "avif", "jpg", "JPEG", "jfif"):
        (tmp_path / "train" / suffix).mkdir(parents=True)
        picture.save(tmp_path / "train" / suffix / f"1.{suffix}")
    picture.convert("L").save(tmp_path / "train" / "ppm" / "2.pgm")
    data = load(tmp_path)
    assert len(data.train) == 13
    assert len(data.classes) == 12
    assert "ignored" not in caplog.text
    for index in range(13):
        decoded = data.train.decode(index).permute(1, 2, 0).numpy()
        if Path(data.train.name(index)).suffix in (".png", ".PNG", ".bmp", ".tif", ".TIFF", ".ppm"):
            np.testing.assert_array_equal(decoded, np.asarray(picture))
        else:
            assert decoded.shape == (3, 4, 3)


def test_order_is_that_of_the_parts_of_the_path(tmp_path: Path) -> None:
    """As strings, "a-1/..." comes before "a/...", and the labels would not ascend."""
    data = load(tree(tmp_path, "a/2.png", "a/10.png", "a-1/1.png", "b/1.png"))
    assert data.classes == ("a", "a-1", "b")
    assert [Path(data.train.name(i)).name for i in range(4)] == ["10.png", "2.png", "1.png", "1.png"]
    assert data.train.labels.tolist() == [0, 0, 1, 2]


def test_images_beside_the_classes_are_trained_on_only(tmp_path: Path, caplog) -> None:
    data = load(tree(tmp_path, *TRAIN, "train/z.png", "val/a/1.png", "val/stray.png"))
    assert len(data.train) == 4
    assert data.train.labels is None
    assert by_name(data.labelled) == {"a/1.png": 0, "b/1.png": 1, "c/1.png": 2}
    assert torch.equal(data.labelled.decode(2), data.train.decode(2))
    assert by_name(data.test) == {"a/1.png": 0}
    assert "train: 1 of 4 images have no label, and are only trained on" in caplog.text
    assert "val: 1 of 2 images are left out, as they have no label" in caplog.text


def test_the_part_with_labels_is_preferred(tmp_path: Path, caplog) -> None:
    data = load(tree(tmp_path, *TRAIN, "val/1.png", "test/b/1.png"))
    assert by_name(data.test) == {"b/1.png": 1}
    assert "val: no labels (the images lie in no class folders), so that it is not evaluated on" in caplog.text


def test_held_out_parts_that_are_not_needed_are_named(tmp_path: Path, caplog) -> None:
    val, test = tmp_path / "val", tmp_path / "test"
    tree(tmp_path, *TRAIN, "val/a/1.png", "val/z/1.png", "val/stray.png", "test/a/1.png")
    (val / "a" / "clip.mp4").write_bytes(b"x")
    data = load(tmp_path)
    assert f"{val}: ignored 1 (1 no image (.mp4): a/clip.mp4)" in caplog.text
    assert f"{test}: held out, and not needed beside {val}" in caplog.text
    assert data.ignored == (
        (str(test), f"held out, and not needed beside {val}"),
        (str(val / "a" / "clip.mp4"), "no image (.mp4)"),
        (str(val / "stray.png"), "held out without a label"),
        (str(val / "z" / "1.png"), "held out, of class z, which is not trained on"),
    )


def test_no_held_out_images_and_no_labels_are_said(tmp_path: Path, caplog) -> None:
    assert load(tree(tmp_path / "one", *TRAIN)).test is None
    assert "none of val, validation, valid, dev, test, testing is beside train" in caplog.text
    data = load(tree(tmp_path / "two", "1.png", "2.png"))
    assert (data.labelled, data.test, data.classes) == (None, None, None)
    assert "no labels (the images lie in no class folders), so that nothing is evaluated" in caplog.text
    assert "are taken for classes" not in caplog.text


def test_labels_of_the_held_out_part_alone_are_kept_for_its_picture(tmp_path: Path) -> None:
    data = load(tree(tmp_path, "train/1.png", "val/a/1.png", "val/b/1.png"))
    assert data.labelled is None
    assert (data.test.labels.tolist(), data.classes) == ([0, 1], ("a", "b"))


def test_messages_come_from_the_first_process_only(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    load(tree(tmp_path, *TRAIN))
    assert caplog.text == ""


@pytest.mark.parametrize(("train", "held_out"), [("Training", "Testing"), ("TRAIN", "Val"), ("training", "test")])
def test_parts_have_their_names_in_any_case(train: str, held_out: str, tmp_path: Path) -> None:
    data = load(tree(tmp_path, f"{train}/a/1.png", f"{train}/b/1.png", f"{held_out}/b/1.png"))
    assert by_name(data.train) == {"a/1.png": 0, "b/1.png": 1}
    assert by_name(data.test) == {"b/1.png": 1}


def test_of_names_that_differ_in_case_the_lower_one_serves(tmp_path: Path) -> None:
    data = load(tree(tmp_path, "Train/a/1.png", "train/b/1.png", "Val/a/1.png", "val/b/1.png"))
    assert by_name(data.train) == by_name(data.test) == {"b/1.png": 0}


def test_held_out_parts_without_a_train_are_told_as_classes(tmp_path: Path, caplog) -> None:
    data = load(tree(tmp_path, "val/a/1.png", "test/a/1.png"))
    assert data.classes == ("test", "val")
    assert f"{tmp_path}: no train in it, so that val, test are taken for classes" in caplog.text


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, *TRAIN)
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("train/b"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=rf"^--data {tmp_path}: .*Permission denied: '{tmp_path}/train/b'$"):
        load(tmp_path)


def test_only_what_cannot_be_read_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "1.mp4").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no image \(\.jpg, .*\.tif.*\) in it or below"):
        load(tmp_path)


def test_names_are_held_in_one_array_and_survive_pickling(tmp_path: Path) -> None:
    names = ["a/ä b.png", os.fsdecode(b"a/\xff.png"), "c.png"]
    files = pickle.loads(pickle.dumps(Files(tmp_path, names)))
    assert [files.name(i) for i in range(3)] == [str(tmp_path / name) for name in names]
    many = Files(tmp_path, [f"class_{i % 100:03d}/image_{i:08d}.jpg" for i in range(20_000)])
    assert len(pickle.dumps(many)) < 20_000 * (28 + 8) + 1000, "28 characters and an offset for each, no object"
    assert not any(isinstance(value, (list, tuple, dict)) for value in vars(many).values())


def test_classes_are_called_so_that_every_picture_and_file_takes_their_names(tmp_path: Path) -> None:
    """Folders of an archive in Latin-1, of a name with a line break, and of one that is spelled like an escape."""
    folders = [os.fsdecode(b"kla\xdf"), "kla\\xdf", "new\nline"]
    tree(tmp_path, *(f"{part}/{folder}/1.png" for part in ("train", "val") for folder in folders))
    data = load_dataset(DataOptions(data=tmp_path))
    assert data.classes == ("kla\\\\xdf", "kla\\xdf", "new\\nline")
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1, 2]
    assert [os.fsencode(data.test.name(row)).split(b"/")[-2] for row in (0, 1)] == [b"kla\\xdf", b"kla\xdf"]


def test_links_that_lead_nowhere_are_ignored_wherever_they_lie(tmp_path: Path, caplog) -> None:
    tree(tmp_path, *TRAIN)
    for name in ("train/loop.jpg", "train/a/loop", "val", "labels.csv", "train/d"):
        (tmp_path / name).symlink_to(tmp_path / name)
    (tmp_path / "train" / "a" / "below.png").symlink_to(tmp_path / "train" / "a" / "1.png" / "2.png")
    data = load_dataset(DataOptions(data=tmp_path))
    assert len(data.train) == 3
    assert data.classes == ("a", "b", "c")
    assert "2 link to nothing: a/below.png, loop.jpg" in caplog.text
    table = tmp_path / "train" / "t.csv"
    table.write_text("path\na/1.png\n")
    assert len(load_dataset(DataOptions(dataset="table", data=table)).train) == 1


def test_folders_may_be_nested_deeply(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1010):
        deep = deep / "d"
        deep.mkdir()
    write_image(tmp_path / "1.png", 6, 8, seed=0)
    (tmp_path / "1.png").rename(deep / "1.png")
    found = load(tmp_path).train.name(0)
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # pytest itself could not
    assert found == str(deep / "1.png")
