"""Detection folders as users have them: COCO's and VOC's format, own classes, and what is wrong said in one line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from simclr_fast.cli import main, parse
from simclr_fast.errors import ConfigError, DataError
from simclr_fast.evaluation import detect, pictures
from simclr_fast.evaluation.detect import image_size
from simclr_fast.evaluation.detection.data import VOC_CLASSES, Annotated, Annotations, joined, open_parts, read_coco
from simclr_fast.evaluation.detection.voc import open_sets, read_objects
from tests.evaluation.voc_folders import write_annotation, write_image, write_voc


def write_coco(root: Path, part: str = "train2017", **changes: object) -> tuple[Path, Path]:
    for number in (1, 2):
        write_image(root / part / f"{number}.png", 40, 60)
    content = {
        "images": [{"id": number, "file_name": f"{number}.png", "height": 40, "width": 60} for number in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [5, 6, 0, 10], "area": 0, "iscrowd": 0},
        ],
        **changes,
    }
    annotations = root / "annotations" / f"instances_{part}.json"
    annotations.parent.mkdir(exist_ok=True)
    annotations.write_text(json.dumps(content))
    return root / part, annotations


def voc(root: Path, name: str) -> Annotations:
    """The objects of one image set."""
    (one,) = open_sets(root, (name,), "train_set")
    return read_objects(one)


@pytest.mark.parametrize("channels", [1, 3])
def test_coco_folder(channels: int, tmp_path: Path) -> None:
    part = read_coco(*write_coco(tmp_path))
    data, _ = open_parts(part, part, channels)
    assert data.classes == ["background", *VOC_CLASSES], "all are classes of VOC"
    image, target = data[0]
    assert (image.shape, image.dtype) == ((channels, 40, 60), torch.uint8)
    assert target["boxes"].tolist() == [[5.0, 6.0, 25.0, 16.0]]  # the box without area is dropped
    assert [data.classes[label] for label in target["labels"]] == ["cat"]
    _, empty = data[1]
    assert (empty["boxes"].shape, empty["labels"].shape, empty["iscrowd"].shape) == ((0, 4), (0,), (0,))


def test_crowds_and_difficult_objects_are_marked(tmp_path: Path) -> None:
    boxes = [{"id": n, "image_id": 1, "category_id": 3, "bbox": [5, 6, 20, 10], "iscrowd": n} for n in (0, 1)]
    part = read_coco(*write_coco(tmp_path, annotations=boxes))
    assert open_parts(part, part, 3)[0][0][1]["iscrowd"].tolist() == [0, 1]
    write_voc(tmp_path, "2012-train")
    write_annotation(tmp_path / "VOCdevkit" / "VOC2012", "train", {"cat": True, "dog": False})
    part = voc(tmp_path, "2012-train")
    assert open_parts(part, part, 3)[0][0][1]["iscrowd"].tolist() == [1, 0]


def test_category_ids_may_start_anywhere(tmp_path: Path) -> None:
    boxes = [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [5, 6, 20, 10]}]
    zero = [{"id": 0, "name": "zero"}, {"id": 90, "name": 90}]
    part = read_coco(*write_coco(tmp_path, categories=zero, annotations=boxes))
    data, _ = open_parts(part, part, 3)
    assert data.classes == ["background", "zero", "90"]
    assert data[0][1]["labels"].tolist() == [1], "0 is the background's"


def test_parts_share_one_list_of_classes_by_name(tmp_path: Path) -> None:
    """The test part numbers its categories otherwise, and has one that training lacks."""
    write_coco(tmp_path, categories=[{"id": 3, "name": "helmet"}, {"id": 1, "name": "head"}])
    other = [{"id": 3, "name": "head"}, {"id": 7, "name": "vest"}]
    boxes = [{"id": n, "image_id": 1, "category_id": n, "bbox": [5, 6, 20, 10]} for n in (3, 7)]
    train = read_coco(tmp_path / "train2017", tmp_path / "annotations" / "instances_train2017.json")
    test = read_coco(*write_coco(tmp_path, "val2017", categories=other, annotations=boxes))
    train_data, test_data = open_parts(train, test, 3)
    assert train_data.classes == test_data.classes == ["background", "head", "helmet", "vest"]
    assert train_data[0][1]["labels"].tolist() == [2]
    assert test_data[0][1]["labels"].tolist() == [1, 3]


def test_voc_folder(tmp_path: Path) -> None:
    write_voc(tmp_path, "2012-train", "cat")
    write_voc(tmp_path, "2012-val", "person", "cat", suffix=".png")
    train, test = open_parts(voc(tmp_path, "2012-train"), voc(tmp_path, "2012-val"), channels=3)
    assert train.classes == ["background", *VOC_CLASSES]
    assert len(VOC_CLASSES) == 20
    image, target = train[0]
    assert image.shape == (3, 30, 50)
    assert target["boxes"].tolist() == [[4.5, 5.0, 30.0, 20.0]]
    assert [test.classes[label] for label in test[0][1]["labels"]] == ["person", "cat"]


def test_voc_folder_of_own_classes(tmp_path: Path) -> None:
    write_voc(tmp_path, "2012-train", "helmet", "cat")
    write_voc(tmp_path, "2012-val", "$x^$")
    train, test = open_parts(voc(tmp_path, "2012-train"), voc(tmp_path, "2012-val"), channels=3)
    assert train.classes == test.classes == ["background", "cat", "helmet", "$x^$"]
    assert train[0][1]["labels"].tolist() == [2, 1]
    assert test[0][1]["labels"].tolist() == [3]


def box(**changes: object) -> dict[str, list]:
    return {"annotations": [{"id": 17, "image_id": 1, "category_id": 3, "bbox": [5, 6, 20, 10], **changes}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": []}, "categor"),
        ({"categories": [{"name": "no id"}]}, "KeyError: 'id'"),
        ({"images": [], "annotations": []}, "it lists no image"),
        (box(category_id=99), "annotation 17 has category_id 99, which 'categories' does not list"),
        (box(image_id=99), "annotation 17 has image_id 99, which 'images' does not list"),
        (box(bbox=[1, 2, 3]), "no COCO annotations"),
        (box(bbox=[1, 2, 3, float("nan")]), "annotation 17 has the bbox"),
        (box(bbox=None), "no COCO annotations"),
    ],
)
def test_bad_coco_is_refused(changes: dict, said: str, tmp_path: Path) -> None:
    paths = write_coco(tmp_path, **changes)
    with pytest.raises(ConfigError) as refusal:
        read_coco(*paths)
    assert said in str(refusal.value)
    assert str(paths[1]) in str(refusal.value)


def test_missing_coco_files_are_named(tmp_path: Path) -> None:
    images, annotations = write_coco(tmp_path)
    with pytest.raises(ConfigError, match="no such folder of COCO images"):
        read_coco(tmp_path / "nowhere", annotations)
    with pytest.raises(ConfigError, match=r"nowhere\.json: no COCO annotations"):
        read_coco(images, tmp_path / "nowhere.json")
    (images / "2.png").unlink()
    with pytest.raises(ConfigError, match=r"1 of its 2 images are missing, the first: .*2\.png"):
        read_coco(images, annotations)
    annotations.write_text("{")
    with pytest.raises(ConfigError, match="no COCO annotations"):
        read_coco(images, annotations)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            "../../VOCdevkit",
            "--train-set 2012-train: there is no folder .*VOC2012; pass the folder that holds VOCdevkit",
        ),
        ("../VOC2012", r"--train-set 2012-train: there is no folder .*VOC2012; pass one of the years there \(2007\)"),
        ("ImageSets/Main/train.txt", r"--train-set 2012-train: no image set .*; pass one of val$"),
        ("Annotations/train.xml", r"Annotations/train\.xml: no VOC annotation"),
        ("JPEGImages/train.jpg", r"1 of its 1 images are missing, the first: .*JPEGImages/train\.jpg"),
    ],
)
def test_missing_voc_files_are_named(missing: str, said: str, tmp_path: Path) -> None:
    write_voc(tmp_path, "2012-train", "cat")
    write_voc(tmp_path, "2012-val", "cat")
    write_voc(tmp_path, "2007-train", "cat")
    (tmp_path / "VOCdevkit" / "VOC2012" / missing).resolve().rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=said) as refusal:
        voc(tmp_path, "2012-train")
    assert "\n" not in str(refusal.value)


def test_sets_of_several_years_are_joined(tmp_path: Path) -> None:
    """Images of one name are of two years; each year may know classes that the other lacks."""
    for name, thing in (("2007-trainval", "cat"), ("2012-trainval", "zebra"), ("2007-test", "cat")):
        write_voc(tmp_path, name, thing, stem="000001" if "train" in name else "000002")
    sets = open_sets(tmp_path, ("2007-trainval", "2012-trainval"), "train_set")
    train, test = joined([read_objects(one) for one in sets]), voc(tmp_path, "2007-test")
    train_data, test_data = open_parts(train, test, channels=3)
    assert [image.path.parts[-3:] for image in train.images] == [
        (f"VOC{year}", "JPEGImages", "000001.jpg") for year in (2007, 2012)
    ]
    assert train_data.classes == test_data.classes == ["background", "cat", "zebra"]
    assert [train_data[i][1]["labels"].tolist() for i in range(2)] == [[1], [2]]


def test_an_image_counts_once(run_folder: Path, tmp_path: Path, capsys) -> None:
    for name in ("2007-train", "2007-trainval", "2012-train"):
        write_voc(tmp_path, name, "cat", stem="000001")
    with pytest.raises(
        ConfigError, match=r"--train-set 2007-train 2007-trainval: .*/000001 is in them twice; pass sets"
    ):
        open_sets(tmp_path, ("2007-train", "2007-trainval"), "train_set")
    write_coco(tmp_path)
    common = ["--checkpoint", str(run_folder), "--data", str(tmp_path), "--output", str(tmp_path), "--threads", "1"]
    for kind, train, test, image in (
        ("voc", "2007-train", ["2012-train", "2007-trainval"], "VOC2007/JPEGImages/000001.jpg"),
        ("coco", "train2017", ["train2017"], "train2017/1.png"),
    ):
        assert main(["detect", *common, "--dataset", kind, "--train-set", train, "--test-set", *test]) == 2
        line = capsys.readouterr().err
        assert f"--test-set {' '.join(test)}: " in line
        assert "of its images are trained on as well, the first: " in line
        assert image in line
        assert main(["detect", *common, "--dataset", kind, "--train-set", train, train]) == 2
        assert f"--train-set {train} {train}: pass every set once" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_set_without_an_object_that_counts_is_refused(part: str, run_folder: Path, tmp_path: Path, capsys) -> None:
    write_voc(tmp_path, "2012-train", "cat", difficult=part == "train")
    write_voc(tmp_path, "2012-val", "cat", difficult=part == "test")
    write_voc(tmp_path, "2012-empty")
    options = [
        "--dataset",
        "voc",
        "--data",
        str(tmp_path),
        "--workers",
        "0",
        "--output",
        str(tmp_path),
        "--threads",
        "1",
    ]
    assert main(["detect", "--checkpoint", str(run_folder), *options]) == 2
    assert (
        f"--{part}-set 2012-{'val' if part == 'test' else part}: none of its 1 images has an object that counts"
        in capsys.readouterr().err
    )
    assert main(["detect", "--checkpoint", str(run_folder), *options, f"--{part}-set", "2012-empty"]) == 2
    assert f"--{part}-set 2012-empty: none of its 1 images" in capsys.readouterr().err


def test_a_set_without_its_year_is_refused(run_folder: Path, capsys) -> None:
    arguments = ["--checkpoint", str(run_folder), "--dataset", "voc", "--train-set", "2007-trainval", "trainval"]
    assert main(["detect", *arguments]) == 2
    assert "--train-set trainval: pass the year and the image set of VOC, as 2012-train" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["<annotation><object></object></annotation>", "<annotation>", ""])
def test_bad_voc_annotations_are_named(text: str, tmp_path: Path) -> None:
    write_voc(tmp_path, "2012-train", "cat")
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "train.xml").write_text(text)
    with pytest.raises(ConfigError, match=r"train\.xml: no VOC annotation"):
        voc(tmp_path, "2012-train")


def test_an_orientation_does_not_turn_an_image_away_from_its_boxes(tmp_path: Path) -> None:
    images, annotations = write_coco(tmp_path)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by a quarter
    Image.new("RGB", (60, 40)).save(images / "1.png", exif=exif)
    coco = read_coco(images, annotations)
    train, _ = open_parts(coco, coco, channels=3)
    image, target = train[0]
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[5, 6, 25, 16]]


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    part = read_coco(*write_coco(tmp_path))
    data, _ = open_parts(part, part, 3)
    (tmp_path / "train2017" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png: unreadable"):
        data[0]
    with pytest.raises(DataError, match=r"1\.png: unreadable"):
        data.require_readable(threads=2)
    with pytest.raises(DataError, match="unreadable image"):
        data.shorter_side()


def test_an_unreadable_image_is_met_before_the_training(run_folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    write_voc(tmp_path, "2012-train", "helmet")
    write_voc(tmp_path, "2012-val", "helmet", suffix=".JPG")
    (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "val.JPG").write_bytes(b"no image")
    monkeypatch.setattr(detect, "trained_detector", lambda *_: pytest.fail("it trains"))
    arguments = ["--dataset", "voc", "--data", str(tmp_path), "--threads", "1", "--output", str(tmp_path)]
    assert main(["detect", "--checkpoint", str(run_folder), *arguments]) == 1
    assert "val.JPG: unreadable" in capsys.readouterr().err
    of_training = tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "train.jpg"
    whole = of_training.read_bytes()
    of_training.write_bytes(whole[: len(whole) // 2])  # its header is whole
    assert main(["detect", "--checkpoint", str(run_folder), *arguments]) == 1
    assert "train.jpg: unreadable" in capsys.readouterr().err
    of_training.write_bytes(whole)
    (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "val.JPG").unlink()
    assert main(["detect", "--checkpoint", str(run_folder), *arguments]) == 2
    assert "1 of its 1 images are missing, the first: " in (said := capsys.readouterr().err)
    assert "val.jpg, also under the suffixes .jpg .jpeg .png .JPG" in said


@pytest.mark.parametrize(
    ("data", "own", "arguments", "expected"),
    [
        ("coco", 28, [], (28, 47)),  # 800 pixels would be 28 times the time
        ("coco", 2000, [], (800, 1333)),
        ("voc", 375, [], (375, 625)),
        ("voc", 600, [], (480, 800)),
        ("coco", 480, ["--min-size", "800"], (800, 1333)),
    ],
)
def test_images_are_not_enlarged_unless_asked_for(data: str, own: int, arguments: list, expected: tuple) -> None:
    _, options = parse(["detect", "--checkpoint", "x", "--dataset", data, *arguments])
    assert image_size(options, own) == expected


def test_the_images_own_size_is_their_median_shorter_side(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, (height, width) in zip(paths, [(40, 60), (90, 30), (50, 50), (500, 600), (20, 900)]):
        write_image(path, height, width)
    part = Annotations([Annotated(path) for path in paths], ["thing"])
    assert open_parts(part, part, 3)[0].shorter_side() == 40


def test_names_are_no_formulas_in_pictures(tmp_path: Path) -> None:
    names = ["background", "$x^$", r"\$\frac$", "_plain", "[b]"]
    boxes = {"boxes": torch.tensor([[1.0, 2, 20, 20]] * 4), "labels": torch.arange(1, 5)}
    found = [{**boxes, "scores": torch.ones(4)}]
    image = torch.zeros(1, 30, 30, dtype=torch.uint8)
    path = pictures.detections(tmp_path / "detect.png", [image], [boxes], {"SimCLR init": found}, names, 0.3)
    assert path.read_bytes().startswith(b"\x89PNG")
    labels = torch.arange(5)
    path = pictures.confusion(tmp_path / "confusion.png", labels, labels, names, "title")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_command_on_own_classes_at_the_images_own_size(run_folder: Path, tmp_path: Path) -> None:
    write_voc(tmp_path, "2012-train", "helmet", "$x^$")
    write_voc(tmp_path, "2012-val", "helmet")
    arguments = ["--dataset", "voc", "--data", str(tmp_path), "--steps", "1", "--batch-size", "1", "--seeds", "1"]
    arguments += ["--init", "scratch", "--workers", "0", "--threads", "1", "--output", str(tmp_path)]
    assert main(["detect", "--checkpoint", str(run_folder), *arguments]) == 0
    results = json.loads((tmp_path / "detect.json").read_text())["results"]
    assert results["image_size"] == [30, 50]
    assert results["schedule"]["lr"] == 0.02 / 16
