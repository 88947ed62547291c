"""Tables of paths and labels as people have them: which columns, which files, which rows are left out and why."""

import csv
import os
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch

from simclr_fast.config import DataOptions
from simclr_fast.data import Dataset, load_dataset, pack
from simclr_fast.data.labels import classes_of
from simclr_fast.data.named_files import AmbiguousNameError, NamedFiles, Way
from simclr_fast.data.table_columns import TableFolder
from simclr_fast.errors import ConfigError
from simclr_fast.training.state import data_identity
from tests.data.conftest import write_image
from tests.data.packing import packing


def photos(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        write_image(root / name, 6, 8, seed=seed)
    return root


def load(path: Path, **changes) -> Dataset:
    return load_dataset(DataOptions(dataset="table", data=path, **changes))


def names(source, root: Path) -> list[str]:
    return [os.path.relpath(source.name(index), root) for index in range(len(source))]


def labels(data: Dataset) -> dict[str, str]:
    """Names of the classes of the labelled images, by the names of the images."""
    source = data.labelled
    return {os.path.basename(source.name(i)): data.classes[int(source.labels[i])] for i in range(len(source))}


WRITTEN = {
    "comma": "path,label\na/1.png,cat\na/2.png,dog\n",
    "semicolon": "path;label\na/1.png;cat\na/2.png;dog\n",
    "quoted": '"path","label"\n"a/1.png","cat"\n"a/2.png","dog"\n',
    "windows": "Path,Label\r\na\\1.png,cat\r\na\\2.png,dog\r\n",
    "blanks": "path, label\na/1.png, cat\na/2.png , dog\n",
    "byte order mark": "\ufeffpath,label\na/1.png,cat\na/2.png,dog\n",
    "index": ",image path,label\n0,a/1.png,cat\n1,a/2.png,dog\n",
    "other columns": "n,File Name,score,class_name\n1,./a/1.png,0.5,cat\n2,a/2.png,0.1,dog\n",
    "commas at the ends": "path,label\na/1.png,cat,\na/2.png,dog,\n",
    "unnamed": "where,kind of,kind\na/1.png,9.5,cat\na/2.png,8.5,dog\n",
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_csv_as_it_is_written(kind: str, tmp_path: Path, caplog) -> None:
    root = photos(tmp_path, "a/1.png", "a/2.png")
    (root / "labels.csv").write_bytes(WRITTEN[kind].encode())
    data = load(root, label_column="kind" if kind == "unnamed" else None)
    assert names(data.train, root) == ["a/1.png", "a/2.png"]
    assert labels(data) == {"1.png": "cat", "2.png": "dog"}
    assert f"{root}: labels.csv: images by its column " in caplog.text
    assert data.ignored == ()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_names_of_every_kind_in_every_format(suffix: str, tmp_path: Path) -> None:
    odd = ["übung 日本.png", "🐈.png", 'comma, "quotes".png', "#?&%20.png", "back\\slash.png", "two\nlines.png"]
    odd += [os.fsdecode(b"latin-\xe4.png")] if suffix != ".parquet" else []
    photos(tmp_path, *odd)
    rows = {"file": odd, "label": [str(k % 2) for k in range(len(odd))]}
    table = tmp_path / f"set{suffix}"
    if suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(table)
    else:
        with table.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([rows, *zip(*rows.values())])
    data = load(table)
    assert names(data.train, tmp_path) == odd
    assert data.train.labels.tolist() == [k % 2 for k in range(len(odd))]
    assert data.train.decode(1).shape == (3, 6, 8)


def test_what_spreadsheets_call_unicode_text(tmp_path: Path) -> None:
    photos(tmp_path, "ä.png", "b.png")
    (tmp_path / "labels.csv").write_text("path\tlabel\nä.png\tGrün\nb.png\tBlau\n", encoding="utf-16")
    assert labels(load(tmp_path)) == {"ä.png": "Grün", "b.png": "Blau"}


def test_every_row_that_is_left_out_is_counted_and_named(tmp_path: Path, caplog) -> None:
    root = photos(tmp_path, "1.png", "2.png", "3.png", "4.png", "extra.png")
    (root / "clip.mp4").write_bytes(b"x")
    (root / ".hidden.png").write_bytes(b"x")
    rows = ["1.png,a", "2.png,b", "gone.png,a", ",a", "1.png,a", "3.png,a", "3.png,b", "clip.mp4,b", "4.png,"]
    (root / "t.csv").write_text("path,label\n" + "\n".join(rows))
    data = load(root / "t.csv")
    assert names(data.train, root) == ["1.png", "2.png", "3.png", "4.png"]
    assert labels(data) == {"1.png": "a", "2.png": "b"}, "3 is said to be both, 4 to be nothing"
    table = str(root / "t.csv")
    assert data.ignored == (
        (f"{table}, row 3, gone.png", "of a file that is missing"),
        (f"{table}, row 4", "without a path"),
        (f"{table}, row 5, 1.png", "of an image that a row before it names"),
        (f"{table}, row 7, 3.png", "of an image that a row before it names"),
        (f"{table}, row 8, clip.mp4", "no image (.mp4)"),
        (str(root / ".hidden.png"), "hidden"),
        (str(root / "clip.mp4"), "no image (.mp4)"),
        (str(root / "extra.png"), "named by no row"),
    )
    assert f"{root}: ignored 8 (2 of an image that a row before it names: t.csv, row 5, 1.png, t.csv" in caplog.text
    assert "2 of 4 images have no label, and are only trained on" in caplog.text


def test_classes_are_numbers_or_names(tmp_path: Path, caplog) -> None:
    root = photos(tmp_path, *(f"{k}.png" for k in range(4)))

    def classes(*given: str) -> tuple | None:
        rows = (f"{k}.png,{label}" for k, label in enumerate(given))
        (root / "t.csv").write_text("path,label\n" + "\n".join(rows))
        return load(root).classes

    assert classes("10", "9", "10", "9") == ("9", "10"), "in the order of the numbers"
    assert classes("10", "9", "b", "9") == ("10", "9", "b"), "in the order of the names"
    assert classes("3.0", "3", "", "-1") == ("3",), "as pandas writes numbers where some are missing; -1 is none"
    assert classes("NA", "null", "None", "nan") == ("NA", "None", "nan", "null"), "names, too"
    assert classes("007", "7", "08", "8") == ("7", "8")
    assert classes("0.5", "0.25", "1", "2") is None
    assert "no labels (labels such as 0." in caplog.text
    assert classes("", "", "", "-1") is None
    assert "no labels (no row has a label)" in caplog.text


EXACT = {
    "-1 beside names is none": (("cat", "dog", "-1", "-1.0", ""), ["cat", "dog"], [0, 1, -1, -1, -1]),
    "more digits than a float": (
        ("12345678901234567", "12345678901234568", "12345678901234569"),
        ["12345678901234567", "12345678901234568", "12345678901234569"],
        [0, 1, 2],
    ),
    "with a point": (("9007199254740993.0", "9007199254740992.0"), ["9007199254740992", "9007199254740993"], [1, 0]),
    "an underscore": (("1_0", "10"), ["10", "1_0"], [1, 0]),
    "exponents": (("1e2", "100", "-2"), ["-2", "100"], [1, 1, 0]),
    "no end of digits": (("1e999999999", "7"), ["1e999999999", "7"], [0, 1]),
    "a backslash and a byte": (("\\xe4", "\udce4"), ["\\\\xe4", "\\xe4"], [0, 1]),
    "not a number": (("snan", "-1", "b"), ["b", "snan"], [1, -1, 0]),
}


@pytest.mark.parametrize("kind", EXACT)
def test_labels_that_differ_are_classes_that_differ(kind: str) -> None:
    given, classes, codes = EXACT[kind]
    found = classes_of(given)
    assert (found[1], found[0].tolist()) == (classes, codes)


def test_parquet_labels_of_every_kind(tmp_path: Path) -> None:
    paths = [f"{k}.png" for k in range(4)]
    photos(tmp_path, *paths)

    def classes(values: object) -> tuple | None:
        pandas.DataFrame({"path": paths, "label": values}).to_parquet(tmp_path / "t.parquet")
        return load(tmp_path / "t.parquet").classes

    assert classes([2, 10, 2, 10]) == ("2", "10")
    assert classes([2.0, None, 10.0, 2.0]) == ("2", "10")
    assert classes([True, False, True, False]) == ("False", "True")
    assert classes(pandas.Categorical(["x", "w", "x", None])) == ("w", "x")
    assert classes(["x", None, "", "y"]) == ("x", "y")
    assert classes([b"x", None, b"w", b"x"]) == ("w", "x")
    assert classes([[1], [2], [3], [4]]) is None


def test_a_column_of_parts(tmp_path: Path, caplog) -> None:
    root = photos(tmp_path, *(f"{k}.png" for k in range(6)))
    rows = [
        "0.png,a,train",
        "1.png,b,Training",
        "2.png,b,val",
        "3.png,a,test",
        "4.png,a,unused",
        "5.png,a,",
        "0.png,a,val",
    ]
    (root / "t.csv").write_text("path,label,split\n" + "\n".join(rows))
    data = load(root)
    assert names(data.train, root) == ["0.png", "1.png"]
    assert names(data.test, root) == ["2.png", "0.png"]
    assert data.test.labels.tolist() == [1, 0]
    table = str(root / "t.csv")
    assert data.ignored[:2] == (
        (f"{table}, row 5, 4.png", "of part 'unused', which is neither trained nor evaluated on"),
        (f"{table}, row 6, 5.png", "of part '', which is neither trained nor evaluated on"),
    )
    assert (f"{table}, test", f"held out, and not needed beside {table}, val") in data.ignored
    assert "val: 1 of its images are trained on, too (0.png is one)" in caplog.text


def test_a_table_for_each_part(tmp_path: Path, caplog) -> None:
    root = photos(tmp_path, *(f"{part}/{k}.png" for part in ("train", "val", "test") for k in range(2)))
    for part in ("train", "val", "test"):
        rows = (f"{part}/{k}.png,{'ab'[k]}" if part != "test" else f"{part}/{k}.png" for k in range(2))
        header = "filename,category\n" if part != "test" else "filename\n"
        (root / f"{part.title()}_labels.csv").write_text(header + "\n".join(rows))
    data = load(root)
    assert names(data.train, root) == ["train/0.png", "train/1.png"]
    assert names(data.test, root) == ["val/0.png", "val/1.png"]
    assert data.test.labels.tolist() == [0, 1]
    assert "Train_labels.csv: images by its column 'filename', classes by 'category'; Val_labels.csv: " in caplog.text


def test_names_without_folder_and_suffix_are_looked_for(tmp_path: Path, caplog) -> None:
    """As of Kaggle: train.csv beside train/, test/, and the same numbers in both."""
    root = photos(tmp_path, *(f"{part}/{part}/{k}.jpg" for part in ("train", "test") for k in range(3)))
    (root / "train.csv").write_text("id,breed\n0,pug\n1,boxer\n2,pug\n7,pug\n")
    (root / "sample_submission.csv").write_text("id,breed\n0,pug\n")
    data = load(root)
    assert names(data.train, root) == [f"train/train/{k}.jpg" for k in range(3)]
    assert labels(data) == {"0.jpg": "pug", "1.jpg": "boxer", "2.jpg": "pug"}
    assert "train.csv: images by its column 'id', found by their names, classes by 'breed'" in caplog.text
    assert (f"{root / 'train.csv'}, row 4, 7", "of a file that is missing") in data.ignored
    assert (str(root / "test" / "test" / "0.jpg"), "named by no row") in data.ignored
    assert (str(root / "sample_submission.csv"), "no image (.csv)") in data.ignored
    (root / "train.csv").rename(root / "known.csv")
    with pytest.raises(ConfigError, match=r"known.csv: '0' is .*/0.jpg and .*/0.jpg, below .*; write paths from that"):
        load(root / "known.csv")


def test_paths_of_another_machine_are_found_by_their_ends(tmp_path: Path) -> None:
    root = photos(tmp_path, "data/cat/1.png", "data/dog/1.png", "data/dog/2.png")
    rows = ["C:\\set\\cat\\1.png,a", "C:\\set\\dog\\1.png,b", "C:\\set\\dog\\2.png,b", "C:\\set\\cat\\2.png,a"]
    (root / "t.csv").write_text("path,label\n" + "\n".join(rows))
    data = load(root)
    assert names(data.train, root) == ["data/cat/1.png", "data/dog/1.png", "data/dog/2.png"]
    assert [reason for _, reason in data.ignored] == ["of a file that is missing"], "and dog/2.png is not taken for it"


def test_absolute_paths_and_another_folder(tmp_path: Path) -> None:
    root = photos(tmp_path / "images", "1.png", "2.png")
    table = tmp_path / "tables" / "t.tsv"
    table.parent.mkdir()
    table.write_text(f"file\tlabel\n{root / '1.png'}\ta\n../images/2.png\tb\n")
    data = load(table)
    assert names(data.train, root) == ["1.png", "2.png"]
    assert data.ignored == ()


def test_paths_that_are_there_go_before_those_that_end_alike(tmp_path: Path) -> None:
    root = photos(tmp_path, "1.png", "2.png")
    (root / "t.csv").write_text("was,now,label\n/old/2.png,1.png,a\n/old/1.png,2.png,b\n")
    assert labels(load(root)) == {"1.png": "a", "2.png": "b"}


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    root = photos(tmp_path, "1.png", "2.png")
    (root / "t.csv").write_text("path,mask,label,color\n1.png,2.png,a,red\n2.png,1.png,b,red\n")
    assert labels(load(root)) == {"1.png": "a", "2.png": "b"}
    assert labels(load(root, image_column="mask", label_column="color")) == {"1.png": "red", "2.png": "red"}
    (root / "t.csv").write_text("left,right\n1.png,2.png\n2.png,1.png\n")
    for changes, said in (
        ({}, "left, right all name images; pass one by --image-column"),
        ({"image_column": "up"}, "^--image-column up: .*t.csv has the columns left, right"),
        ({"image_column": "left", "label_column": "up"}, "^--label-column up: .*t.csv has the columns left, right"),
    ):
        with pytest.raises(ConfigError, match=said) as raised:
            load(root, **changes)
        assert "\n" not in str(raised.value)


def test_how_values_name_files_is_told_by_how_many_do(tmp_path: Path) -> None:
    below = [f"a/{k}.png" for k in range(8)]
    files = NamedFiles(str(tmp_path), lambda: below)
    assert files.way(["x/0.png", "q.png", "r.png", None, "s.png"], expected=False) == Way(1), "a quarter"
    assert files.way(["x/0.png", "q.png", "r.png", "s.png", "t.png"], expected=True) is None
    assert files.way(["a/0.png", "a/1.png", "b/2.png", "b/3.png"], expected=False) == Way(2), "half of the most"
    assert files.way(["a/0.png", "b/1.png", "b/2.png", "b/3.png"], expected=False) == Way(1)
    assert files.way(["0", "1"], expected=True) == Way(1, stem=True)
    assert files.way(["0", "1"], expected=False) is None, "numbers are names by accident"
    assert files.way(["0", "1", "x7"], expected=False) == Way(1, stem=True)
    assert files.way([None, None], expected=True) is None
    for name in ("f0", "f1"):
        (tmp_path / name).write_bytes(b"")
    assert files.way(["f0", "f1", "b", "c", "d", "e", "f"], expected=True) == Way(0), (
        "more than a quarter, as it is there"
    )
    assert files.way(["f0", "f1", "b", "c", "d", "e", "f", "g"], expected=True) is None
    values = [f"other {k}" for k in range(64)] + ["0", "1"] * 64  # of which every third is looked at
    assert files.way(values, expected=True) == Way(1, stem=True)
    below[:] = ["train/1.png", "train/1.jpg", "test/1.png"]
    files = NamedFiles(str(tmp_path), lambda: below)
    assert files.find("x/1.jpg", Way(1), preferred="") == "train/1.jpg"
    assert files.find("1.png", Way(1), preferred="Test") == files.find("test/1.png", Way(2), "") == "test/1.png"
    assert files.find("2.png", Way(1), preferred="") is None
    assert files.first("1", Way(1, stem=True)) == "train/1.png"
    with pytest.raises(AmbiguousNameError, match="^'1' is train/1.png and train/1.jpg$"):
        files.find("1", Way(1, stem=True), preferred="train")
    below.clear()
    assert NamedFiles(str(tmp_path), lambda: below).way(["0"], expected=True) is None


def test_one_other_column_has_classes_where_its_values_repeat(tmp_path: Path) -> None:
    photos(tmp_path, *(f"{k}.png" for k in range(4)))
    for kinds, label in (("xxyy", "thing"), ("xyzx", None), ("xxxx", "thing")):
        rows = (f"{k}.png,{kind}" for k, kind in enumerate(kinds))
        (tmp_path / "t.csv").write_text("path,thing\n" + "\n".join(rows))
        assert TableFolder(DataOptions(data=tmp_path)).train.label == label


BAD = {
    "no header": ("1.png,a\n2.png,b\n", "its first row must name the columns, and holds an image .1.png.$"),
    "no such files": ("path,label\nx.png,a\n", r"name no image that is there, counted from .*the first path: x.png\)"),
    "ragged": ("path,label\n1.png,a\n2.png,a,b\n", "cannot be read as a table .*Expected 2 fields in line 3, saw 3"),
    "longer rows": ("path,label\n1.png,a,x\n2.png,b,x\n", "cannot be read as a table .Length of header or names"),
    "empty": ("", "cannot be read as a table .No columns to parse"),
    "two of a name": ("path,label,label \n1.png,a,b\n", "cannot be read as a table .two columns are called label"),
    "no rows": ("path,label\n", r"name no image that is there, counted from .*the first path: nothing\)"),
    "all held out": ("path,split\n1.png,val\n2.png,val\n3.png,train\n", "none of its rows is an image to train on"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_are_told_in_one_line(kind: str, tmp_path: Path) -> None:
    text, said = BAD[kind]
    (photos(tmp_path, "1.png", "2.png") / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=f"^--data {tmp_path / 't.csv'}: .*{said}") as raised:
        load(tmp_path / "t.csv")
    assert "\n" not in str(raised.value)


def test_broken_parquet_and_folders_without_tables_are_told(tmp_path: Path) -> None:
    photos(tmp_path, "1.png")
    with pytest.raises(ConfigError, match=r"no table in it \(.csv, .tsv, .parquet\)"):
        load(tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"t.parquet: it cannot be read as a table \("):
        load(tmp_path / "t.parquet")


def test_a_parquet_file_with_two_columns_of_a_name_is_no_table(tmp_path: Path) -> None:
    root = photos(tmp_path, "a/1.png", "b/1.png")
    columns = [pyarrow.array(["a/1.png", "b/1.png"]), pyarrow.array(["x", "y"]), pyarrow.array(["x", "x"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, ["path", "label", "label"]), root / "t.parquet")
    with pytest.raises(ConfigError, match=r"t.parquet: it cannot be read as a table .*'label' exists|\"label\" exists"):
        load(root / "t.parquet")
    assert load_dataset(DataOptions(data=root)).classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "dataset"),
    [
        ("file,kind\nmeta.csv,x\nmeta.csv,x\n", "imagefolder"),
        ("file,label\nREADME,x\ngone,x\ngone,y\ngone,y\ngone,x\n", "imagefolder"),
        ("file,label\nREADME,x\nREADME,x\n", "table"),  # images without a suffix are named so
        ("file,label\na/1.png,x\nb/1.png,x\ngone.png,y\n" + 9 * "gone.png,y\n", "several"),
    ],
)
def test_a_column_of_other_files_names_no_images(text: str, dataset: str, tmp_path: Path) -> None:
    root = photos(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    (root / "meta.csv").write_text(text)
    (root / "README").write_text("about them")
    if dataset == "imagefolder":
        assert load_dataset(DataOptions(data=root)).classes == ("a", "b")
    elif dataset == "table":
        assert [columns.image for columns in [TableFolder(DataOptions(data=root)).train]] == ["file"]
    else:
        with pytest.raises(ConfigError, match="it holds several data sets; pass the --dataset that is meant"):
            load_dataset(DataOptions(data=root))


def test_unreadable_images_of_a_table_are_replaced_and_counted(tmp_path: Path) -> None:
    root = photos(tmp_path, *(f"{k}.png" for k in range(4)))
    (root / "2.png").write_bytes(b"broken")
    (root / "t.csv").write_text("path,label\n" + "\n".join(f"{k}.png,{k % 2}" for k in range(4)))
    data = load(root, max_bad_images=0.25)
    assert torch.equal(data.train.decoded(2), data.train.decode(0)), "of its class"
    assert list(data.train.bad.messages) == [str(root / "2.png")]


def test_a_table_is_packed_and_known_again(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", *(f"{k}.png" for k in range(4)))
    (root / "t.csv").write_text("path,label\n" + "\n".join(f"{k}.png,{'ab'[k % 2]}" for k in (3, 1, 0, 2)))
    before = load(root)
    manifest = pack.pack(packing(root, tmp_path / "out", format="raw", size=8))
    assert manifest["options"]["dataset"] == "table"
    after = load_dataset(DataOptions(data=tmp_path / "out"))
    assert after.classes == before.classes == ("a", "b")
    assert after.train.labels.tolist() == before.train.labels.tolist() == [1, 1, 0, 0]
    known = data_identity(before.train)
    assert known == data_identity(load(root).train)
    (root / "t.csv").write_text("path,label\n" + "\n".join(f"{k}.png,{'ab'[k % 2]}" for k in range(4)))
    assert known != data_identity(load(root).train), "another order"
    with pytest.raises(ConfigError, match="holds a set packed with image_column None, and this is path"):
        pack.pack(packing(root, tmp_path / "out", format="raw", size=8, image_column="path"))
