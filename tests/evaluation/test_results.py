"""Files of results: one for every protocol and every list, known for what they are, and all of them on the page."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from simclr_fast.cli import main
from simclr_fast.data.own_files import mark_among
from simclr_fast.evaluation.options import KnnOptions
from simclr_fast.evaluation.report import _commands
from simclr_fast.evaluation.results import fraction_key, heading, left_by, other_options, share_of_labels, stem_of
from simclr_fast.run_files import write_results


@pytest.mark.parametrize(
    ("protocol", "path", "expected"),
    [
        ("own", None, "linear"),
        ("simclr", None, "linear-simclr"),
        ("own", "lists/1percent.txt", "linear-1percent"),
        ("simclr", "1percent.txt", "linear-simclr-1percent"),
        ("own", "simclr.txt", "linear-own-simclr"),
        ("own", "simclr-1percent.txt", "linear-own-simclr-1percent"),
        ("own", "own-simclr.txt", "linear-own-own-simclr"),
        ("own", "a b\n.v2.txt", "linear-a_b_.v2"),
        ("solo-learn", "\U0001f600" * 90, "linear-solo-learn-" + "_" * 50),
    ],
)
def test_every_protocol_and_list_has_a_file(protocol: str, path: str | None, expected: str, tmp_path: Path) -> None:
    stem = stem_of("linear", SimpleNamespace(protocol=protocol, label_list=path and Path(path)))
    assert stem == expected
    write_results(tmp_path / f"{stem}.json", {"command": "linear", "results": {}})
    assert list(left_by("linear", tmp_path)) == [tmp_path / f"{stem}.json"]
    assert mark_among(str(tmp_path), [f"{stem}.json"]), "known as a file of ours"
    assert stem_of("few-label", SimpleNamespace()) == "few-label"


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    write_results(tmp_path / "knn-notes.json", {"text": "mine"})
    write_results(tmp_path / "knn.json", {"command": "knn"})
    assert list(left_by("knn", tmp_path)) == [tmp_path / "knn.json"]


def test_two_protocols_keep_both_and_what_is_replaced_is_said(
    color_run: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    common = ["knn", "--checkpoint", str(color_run), "--data", str(photos), "--output", str(tmp_path), "--threads", "1"]
    assert main([*common, "--knn-k", "1"]) == 0
    first = (tmp_path / "knn.json").read_bytes()
    assert main([*common, "--protocol", "lightly"]) == 0
    assert (tmp_path / "knn.json").read_bytes() == first
    assert json.loads((tmp_path / "knn-lightly.json").read_text())["protocol"] == "protocol lightly"
    assert "take their place" not in capsys.readouterr().out
    assert main([*common, "--knn-k", "3"]) == 0
    said = capsys.readouterr().out
    assert (
        f"{tmp_path / 'knn.json'} holds results of --knn-k 1; these will take their place: --output keeps both" in said
    )
    assert main([*common, "--knn-k", "3"]) == 0
    assert "take their place" not in capsys.readouterr().out, "the same once more"
    options = KnnOptions(checkpoint=color_run, knn_k=(3,), data=photos, dataset="imagefolder", download=True)
    assert other_options(tmp_path / "knn.json", options) == "no --dataset"
    (tmp_path / "knn.json").write_text("{")
    assert main([*common, "--knn-k", "3"]) == 0, "a damaged file is renewed"
    sections = [section.title for section in _commands(tmp_path)]
    assert sections == [
        "Nearest-neighbour classification",
        "Nearest-neighbour classification, protocol lightly",
    ]


def test_a_heading_names_protocol_and_list() -> None:
    options = {"label_list": "lists/1percent.txt"}
    assert heading({"options": options, "protocol": "protocol simclr"}) == ", protocol simclr, 1percent.txt"
    assert heading({"options": {}}) == ""


def test_a_part_is_never_called_all() -> None:
    assert [fraction_key(one) for one in (0.01, 1.0, 1, 0.9999999)] == ["0.01", "1", "1", "0.9999999"]
    assert [share_of_labels(one) for one in (0.07, 1.0, 0.005, 0.9999999)] == ["7%", "100%", "0.5%", "99.99999%"]
