"""The command `multi-label`: labels as VOC writes them, average precisions, the choice on val, and what is refused."""

import dataclasses
import itertools
import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from simclr_fast.cli import main
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation import multi_label, multi_label_probe, report
from simclr_fast.evaluation.average_precision import DEFINITIONS, average_precisions
from simclr_fast.evaluation.features import Pixels, Preprocess, embed
from simclr_fast.evaluation.multi_label_probe import LOGISTIC_C, SVM_C, by_logistic, by_svm, fit_logistic
from simclr_fast.evaluation.probes import standardize
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.voc_labels import read_parts
from tests.evaluation.voc_folders import write_annotation, write_image, write_set

CPU = torch.device("cpu")
PARTS = {"train_set": ("2007-train",), "val_set": ("2007-val",), "test_set": ("2007-test",)}


def points(labels: list[int], scores: list[float]) -> list[tuple[int, int]]:
    """(right ones, all) of those found at every threshold, difficult ones aside."""
    counted = [(score, label) for score, label in zip(scores, labels) if label]
    found = [[label for score, label in counted if score >= at] for at in sorted({s for s, _ in counted}, reverse=True)]
    return [(one.count(1), len(one)) for one in found]


def eleven_points(labels: list[int], scores: list[float]) -> Fraction:
    """Everingham et al. 2010, section 4.2, by its words, in exact numbers."""
    found, positives = points(labels, scores), labels.count(1)
    at = lambda k: max(Fraction(right, of) for right, of in found if 10 * right >= k * positives)
    return sum(map(at, range(11))) / 11


def interpolated(labels: list[int], scores: list[float]) -> Fraction:
    found, positives = points(labels, scores), labels.count(1)
    at = lambda least: max(Fraction(right, of) for right, of in found if right >= least)
    return sum(map(at, range(1, positives + 1))) / positives


@pytest.mark.parametrize("levels", [1, 3, 1000])  # many ties, or none
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_average_precisions_are_exact(levels: int, share: float) -> None:
    rng = np.random.default_rng(levels)
    for images in (2, 3, 10, 40):
        labels = np.where(rng.random(images) < share, 1, -1)
        labels[rng.random(images) < 0.2] = 0
        labels[:2] = 1, -1
        scores = rng.integers(levels, size=images) / 7
        found = average_precisions(torch.from_numpy(labels), torch.from_numpy(scores))
        assert found.keys() == DEFINITIONS.keys()
        lists = labels.tolist(), scores.tolist()
        assert found["eleven_points"] == pytest.approx(float(eleven_points(*lists)), abs=1e-12)
        assert found["interpolated"] == pytest.approx(float(interpolated(*lists)), abs=1e-12)
        expected = average_precision_score(labels[labels != 0] == 1, scores[labels != 0])
        assert found["area"] == pytest.approx(expected, abs=1e-12)


def test_a_recall_of_seven_in_ten_reaches_its_point() -> None:
    """In floats 63 / 90 * 90 is less than 63."""
    labels = torch.tensor([1] * 63 + [-1] * 810 + [1] * 27)
    found = average_precisions(labels, torch.arange(900.0).flip(0))
    assert found["eleven_points"] == pytest.approx((8 + 3 * 0.1) / 11)


def problem(images: int = 90, features: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(images, features)
    labels = torch.where(x @ torch.randn(features, classes) + torch.randn(images, classes) > 0.5, 1, -1)
    labels[torch.rand(images, classes) < 0.15] = 0
    return x, labels.to(torch.int8)


@pytest.mark.parametrize("penalty_c", [0.01, 1.0])
def test_logistic_regression_is_that_of_scikit_learn_for_every_class(penalty_c: float) -> None:
    x, labels = problem()
    ours = fit_logistic(x, labels, penalty_c)
    for number in range(3):
        counted = labels[:, number] != 0
        theirs = LogisticRegression(C=penalty_c, max_iter=5000, tol=1e-8)
        theirs.fit(x[counted].numpy(), labels[counted, number].numpy())
        torch.testing.assert_close(
            ours.weight[number].double(), torch.from_numpy(theirs.coef_[0]).double(), atol=2e-3, rtol=0
        )
        assert ours.bias[number].item() == pytest.approx(theirs.intercept_[0], abs=2e-3)


def test_val_chooses_after_training_on_train_alone_and_both_are_fitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = problem()
    train, val, test = (x[:40], labels[:40]), (x[40:70], labels[40:70]), x[70:]
    fitted = []

    def fit(features, labels, penalty_c, device=None):
        fitted.append((len(features), penalty_c))
        return fit_logistic(features, labels, penalty_c, device)

    monkeypatch.setattr(multi_label_probe, "fit_logistic", fit)
    candidates = (1e-6, 1.0, 100.0)
    scores, chosen = by_logistic(train, val, test, candidates, CPU)
    assert fitted == [*((40, c) for c in candidates), (70, chosen["penalty_c"])]
    scaled, scaled_val = standardize(train[0], val[0])
    found = {c: fit_logistic(scaled, train[1], c).logits(scaled_val) for c in candidates}
    expected = {c: [average_precisions(val[1][:, k], found[c][:, k])["eleven_points"] for k in range(3)] for c in found}
    means = {c: sum(of_c) / 3 for c, of_c in expected.items()}
    assert len(set(means.values())) == 3
    assert chosen == {"penalty_c": max(means, key=means.get), "val_map": pytest.approx(max(means.values()))}
    scaled, scaled_test = standardize(x[:70], test)
    torch.testing.assert_close(scores, fit_logistic(scaled, labels[:70], chosen["penalty_c"]).logits(scaled_test))
    # A class of which val has nothing to say does not choose, and is learned none the less.
    silent = val[1].clone()
    silent[:, 2] = -1
    scores, again = by_logistic(train, (val[0], silent), test, candidates, CPU)
    assert scores.shape == (20, 3)
    assert again["val_map"] == pytest.approx(max(sum(of_c[:2]) / 2 for of_c in expected.values()))


def test_the_svm_learns_each_class_without_its_difficult_images() -> None:
    x, labels = problem()
    scores, chosen = by_svm((x[:70], labels[:70]), x[70:], (0.01, 1.0))
    assert len(chosen["penalty_c"]) == 3
    assert set(chosen["penalty_c"]) <= {0.01, 1.0}
    for number in range(3):
        assert average_precisions(labels[70:, number], scores[:, number])["area"] > 0.6
    for number, c in enumerate(chosen["penalty_c"]):
        counted = labels[:70, number] != 0
        rows, truth = F.normalize(x[:70][counted].double(), dim=1).numpy(), labels[:70, number][counted].numpy()
        svm = lambda c: LinearSVC(C=c, class_weight={1: 2, -1: 1}, dual="auto", max_iter=2000, random_state=0)
        of = {
            c: cross_val_score(svm(c), rows, truth, cv=StratifiedKFold(3), scoring="average_precision").mean()
            for c in (0.01, 1.0)
        }
        assert of[c] == max(of.values()) > min(of.values()), "the better one of three folds"
        expected = svm(c).fit(rows, truth).decision_function(F.normalize(x[70:].double(), dim=1).numpy())
        np.testing.assert_allclose(scores[:, number], expected, atol=1e-6)
    np.testing.assert_allclose(LOGISTIC_C, np.logspace(-5, 1, 13))
    assert SVM_C == (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0), "as VISSL has them"
    wrong = torch.where(labels == 0, 1, labels)
    assert not torch.equal(
        by_svm((x[:70], wrong[:70]), x[70:], (1.0,))[0], by_svm((x[:70], labels[:70]), x[70:], (1.0,))[0]
    )


def test_the_svm_weighs_positives_twice() -> None:
    """As if each were there twice."""
    x, labels = problem()
    positives = labels[:70, 0] == 1
    twice = [torch.cat([part[:70], part[:70][positives]]) for part in (x, labels[:, :1])]
    own = F.normalize(x[70:].double(), dim=1).numpy()
    plain = LinearSVC(C=1.0, dual="auto", random_state=0)
    counted = twice[1][:, 0] != 0
    plain.fit(F.normalize(twice[0].double(), dim=1)[counted].numpy(), twice[1][counted, 0].numpy())
    scores, _ = by_svm((x[:70], labels[:70, :1]), x[70:], (1.0,))
    np.testing.assert_allclose(scores[:, 0], plain.decision_function(own), atol=1e-3)


CLASSES = ("bright", "even", "none_of_train")


def write_devkit(root: Path, year: str = "2007", sizes: dict[str, int] | None = None, files: bool = True) -> Path:
    """Images of brightness 10, 20, ...: `bright` from 110 on, `even` every second one; their first one is difficult."""
    base, number = root / "VOCdevkit" / f"VOC{year}", itertools.count()
    for part, count in (sizes or {"train": 12, "val": 8, "test": 8}).items():
        stems = [f"{next(number):06d}" for _ in range(count)]
        write_set(base, part, stems)
        rows = []
        for place, stem in enumerate(stems):
            brightness = 10 + 20 * place % 240
            write_image(base / "JPEGImages" / f"{stem}.png", 20, 24, brightness)
            present = {
                "bright": brightness > 100,
                "even": place % 2 == 0,
                "none_of_train": part == "test" and place < 2,
            }
            rows.append(
                [(2 if place else 1) * there - 1 if not (there and not place) else 0 for there in present.values()]
            )
            write_annotation(base, stem, {name: not place for name, there in present.items() if there})
        for name, column in zip(CLASSES, zip(*rows)):
            if files:
                text = "".join(f"{stem} {label:2d}\n" for stem, label in zip(stems, column))
                (base / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text(text)
    return base


def test_labels_are_those_of_the_files_and_of_the_annotations(tmp_path: Path) -> None:
    write_devkit(tmp_path / "a")
    write_devkit(tmp_path / "b", files=False)
    of_files, of_objects = (read_parts(tmp_path / name, PARTS) for name in ("a", "b"))
    assert (of_files.origin, of_objects.origin) == ("ImageSets/Main/<class>_<set>.txt", "Annotations")
    assert of_files.classes == of_objects.classes == list(CLASSES)
    for option in PARTS:
        labels = of_files.parts[option].labels
        assert torch.equal(labels, of_objects.parts[option].labels), option
        assert labels[0].tolist() == [-1, 0, 0 if option == "test_set" else -1], "the first image is difficult"
        assert labels[:, 0].tolist()[5:8] == [1, 1, 1]
        assert labels.shape == (len(of_files.parts[option].images), 3)
    assert of_files.parts["val_set"].images.name(0).endswith("a/VOCdevkit/VOC2007/JPEGImages/000012.png")


def test_an_object_that_is_not_difficult_makes_a_class_present(tmp_path: Path) -> None:
    base = write_devkit(tmp_path, files=False)
    things = [
        f"<object><name>even</name><difficult>{d}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for d in (1, 0, 1)
    ]
    (base / "Annotations" / "000000.xml").write_text(f"<annotation>{''.join(things)}</annotation>")
    assert read_parts(tmp_path, PARTS).parts["train_set"].labels[0].tolist() == [-1, 1, -1]


def test_sets_of_several_years_are_joined(tmp_path: Path) -> None:
    write_devkit(tmp_path)
    base = write_devkit(tmp_path, "2012", {"train": 3})
    write_set(base, "my_train", ["000000"])  # a set, and no class called "my"
    data = read_parts(tmp_path, PARTS | {"train_set": ("2007-train", "2012-train")})
    part = data.parts["train_set"]
    assert part.labels.shape == (15, 3)
    assert [part.images.name(i).split("/")[-3] for i in (0, 14)] == ["VOC2007", "VOC2012"]
    assert torch.equal(part.images.take(torch.tensor([14]))[0][:, 0, 0], torch.full((3,), 50, dtype=torch.uint8))


def test_label_files_of_another_set_and_doubled_images(tmp_path: Path) -> None:
    base = write_devkit(tmp_path)
    write_set(base, "my_train", ["000000"])
    (base / "ImageSets" / "Main" / "cat_my_train.txt").write_text("000000 1\n")
    assert read_parts(tmp_path, PARTS).classes == list(CLASSES), "the file is of my_train, and cat_my is no class"
    path = base / "ImageSets" / "Main" / f"{CLASSES[0]}_train.txt"
    labels = path.read_text()
    path.write_text(labels + "000000 -1\n")
    assert read_parts(tmp_path, PARTS).classes == list(CLASSES), "twice the same"
    path.write_text(labels + "000000  1\n")
    with pytest.raises(ConfigError, match=r"_train.txt: it labels 000000 twice, -1 and 1; leave one of the lines"):
        read_parts(tmp_path, PARTS)
    path.write_bytes(b"\xff 1\n")
    with pytest.raises(ConfigError, match=r"_train.txt: unreadable \("):
        read_parts(tmp_path, PARTS)


def arguments(run: Path, data: Path, output: Path) -> list[str]:
    return ["--checkpoint", str(run), "--data", str(data), "--output", str(output), "--threads", "1"]


def test_command(color_run: Path, tmp_path: Path, capsys) -> None:
    write_devkit(tmp_path)
    common = arguments(color_run, tmp_path, tmp_path / "out")
    assert main(["multi-label", *common, "--penalty-c", "0.01", "1"]) == 0
    content = json.loads((tmp_path / "out" / "multi-label.json").read_text())
    results = content["results"]
    assert results["classes"] == ["bright", "even"]
    assert results["left_out"] == {"none_of_train": "no images with it to train on"}
    assert results["images"] == {"train_set": 12, "val_set": 8, "test_set": 8}
    assert results["per_class"]["area"]["raw"]["bright"] > 0.8 > results["per_class"]["area"]["raw"]["even"]
    # Its figures are those of the parts: of raw pixels, with the penalty that val chose.
    data = read_parts(tmp_path, PARTS)
    augment = Run.open(color_run).config.augment
    preprocess = Preprocess.of(augment)
    x = {option: embed(Pixels(), part.images, preprocess, CPU) for option, part in data.parts.items()}
    scaled, test = standardize(torch.cat([x["train_set"], x["val_set"]]), x["test_set"])
    labels = torch.cat([data.parts[name].labels[:, :2] for name in ("train_set", "val_set")])
    logits = fit_logistic(scaled, labels, results["chosen"]["raw"]["penalty_c"]).logits(test)
    for key in DEFINITIONS:
        expected = [average_precisions(data.parts["test_set"].labels[:, k], logits[:, k])[key] for k in range(2)]
        found = results["per_class"][key]["raw"]
        assert list(found.values()) == pytest.approx(expected, abs=1e-3)
        assert results["map"][key]["raw"] == pytest.approx(sum(expected) / 2, abs=1e-3)
    titles = [table["title"] for table in content["tables"]]
    assert "2 classes, 12 + 8 training and 8 test images" in titles[0]
    assert content["tables"][1]["rows"][0][:2] == ["bright", "3"]
    assert content["tables"][2]["rows"] == [["none_of_train", "no images with it to train on"]]
    assert "11 points" in capsys.readouterr().out
    (section,) = report._commands(tmp_path / "out")
    assert section.title == "Multi-label classification"
    assert "none_of_train" in section.body
    assert main(["multi-label", *common, "--classifier", "svm", "--penalty-c", "1", "10"]) == 0
    results = json.loads((tmp_path / "out" / "multi-label.json").read_text())["results"]
    assert set(results["chosen"]["simclr"]["penalty_c"]) == {"bright", "even"}
    assert results["map"]["area"]["raw"] > 0.5


def test_no_test_label_changes_what_is_learned(
    color_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes are left out for want of test images, and nothing else of the test labels reaches the classifiers."""
    seen = []
    monkeypatch.setattr(multi_label, "by_logistic", lambda *a: seen.append(a) or (torch.zeros(8, 2), {"penalty_c": 1}))
    for name in ("a", "b"):
        base = write_devkit(tmp_path / name)
        if name == "b":
            file = base / "ImageSets" / "Main" / "even_test.txt"
            file.write_text(file.read_text().replace(" 1", " 2").replace("-1", "1").replace(" 2", "-1"))
        assert main(["multi-label", *arguments(color_run, tmp_path / name, tmp_path)]) == 0
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert all(torch.equal(a, b) for i in range(2) for a, b in zip(first[i], second[i]))
        assert torch.equal(first[2], second[2])


def only(label: str) -> dict[str, str]:
    return {f"{name}_test.txt": "".join(f"{20 + i:06d} {label}\n" for i in range(8)) for name in CLASSES}


@pytest.mark.parametrize(
    ("options", "files", "said"),
    [
        (["--train-set", "2008-train"], {}, "--train-set 2008-train: there is no folder"),
        (["--val-set", "2007-vall"], {}, "pass one of test, train, val"),
        (
            ["--val-set", "2007-train"],
            {},
            "--val-set 2007-train: 12 of its images are trained on as well, the first: ",
        ),
        (
            ["--test-set", "2007-val"],
            {},
            "--test-set 2007-val: 8 of its images are trained on as well, the first: ",
        ),
        (["--train-set", "train"], {}, "--train-set train: pass the year and the image set of VOC"),
        (["--penalty-c", "0"], {}, "--penalty-c 0.0: pass a number > 0"),
        ([], {"even_val.txt": "000012 1\n"}, "even_val.txt: 7 of the 8 images of"),
        ([], {"even_val.txt": "000012 yes\n"}, "the line '000012 yes' must be an image and 1 (present), 0 (difficult)"),
        ([], {"even_val.txt": None}, "--val-set 2007-val: there is no"),
        ([], {"val.txt": "\n"}, "val.txt lists no image; pass another set"),
        ([], {"train.txt": "000000\n000000\n"}, "/000000 is in them twice"),
        ([], only("0"), "no class can be measured (bright: no images with it to test on; even: no images with it"),
        ([], only("-1"), "no class can be measured"),
        ([], only(" 1"), "no class can be measured (bright: no images without it to test on"),
        ([], {"test.txt": "000025\n"}, "no class can be measured"),
        ([], {"val.txt": "000013\n"}, "--val-set 2007-val: no class has images with and without it both there and in"),
        ([], {"../../JPEGImages/000003.png": None}, "1 of its 12 images are missing, the first:"),
        ([], {"../../JPEGImages/000003.png": "no image"}, "000003.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_measured_is_one_line(
    options: list[str], files: dict[str, str | None], said: str, color_run: Path, tmp_path: Path, capsys
) -> None:
    base = write_devkit(tmp_path)
    for name, text in files.items():
        path = base / "ImageSets" / "Main" / name
        path.unlink() if text is None else path.write_text(text)
    assert main(["multi-label", *arguments(color_run, tmp_path, tmp_path), *options]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert said in line


def test_an_image_listed_without_annotation_is_named(tmp_path: Path) -> None:
    base = write_devkit(tmp_path, files=False)
    (base / "Annotations" / "000001.xml").unlink()
    with pytest.raises(ConfigError, match=r"000001\.xml: no VOC annotation"):
        read_parts(tmp_path, PARTS)


def test_a_model_of_grey_images_sees_colours_in_grey(run_folder: Path, tmp_path: Path, capsys) -> None:
    write_devkit(tmp_path)
    assert main(["multi-label", *arguments(run_folder, tmp_path, tmp_path)]) == 0
    assert f"--data {tmp_path}: its images are in colour, and the model sees them in grey" in capsys.readouterr().out


def test_cross_validation_needs_a_class_in_every_fold(tmp_path: Path) -> None:
    write_devkit(tmp_path)
    data = read_parts(tmp_path, PARTS)
    part = data.parts["train_set"]
    part.labels[:, 0] = -1
    data.parts["val_set"].labels[:, 0] = -1
    part.labels[:2, 0] = 1
    data = dataclasses.replace(data, classes=list(CLASSES))
    assert multi_label.unmeasured(data, "logistic").keys() == {"none_of_train"}
    assert multi_label.unmeasured(data, "svm")["bright"] == "2 images with it to train on"
    # One class that both parts can say something about is enough to choose the penalty.
    known, of_val = torch.tensor([[1, 1], [-1, -1]]), torch.tensor([[1, 1], [-1, 1]])
    multi_label._require_measurable(SimpleNamespace(classifier="logistic"), ["bright", "even"], {}, [known, of_val])
