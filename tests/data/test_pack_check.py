"""`check`, and `pack` into a whole set, find every changed byte; manifests that cannot be true are refused by entry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simclr_fast.cli import main
from simclr_fast.data import pack
from simclr_fast.data.packed import MANIFEST, read_checked, read_manifest, write_checked
from simclr_fast.data.verify import verify
from simclr_fast.errors import ConfigError, DataError
from tests.data.conftest import write_image
from tests.data.packing import contents, loaded, packing

FORMS = ("jpeg", "raw")


def test_what_is_missing_in_a_set_is_no_concern_of_its_check(tmp_path: Path, caplog) -> None:
    write_image(tmp_path / "in" / "0.png", 20, 20, seed=0)
    pack.pack(packing(tmp_path / "in", tmp_path / "out"))
    caplog.clear()
    assert main(["check", "--data", str(tmp_path / "out")]) == 0
    assert caplog.text == ""


@pytest.fixture(params=FORMS)
def packed(request, folder_root: Path, tmp_path: Path) -> Path:
    pack.pack(packing(folder_root, tmp_path / request.param, format=request.param, size=16))
    return tmp_path / request.param


def test_check_finds_a_changed_byte_of_every_file(packed: Path, capsys) -> None:
    for name, content in contents(packed).items():
        path = packed / name
        for place in sorted({0, 8, 60, 127, len(content) // 2, len(content) - 9, len(content) - 1}):
            if place >= len(content):
                continue
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises((DataError, ConfigError), match=str(path)):
                verify(packed, read_manifest(packed), threads=0)
        path.write_bytes(content)
    assert main(["check", "--data", str(packed)]) == 0
    assert "Every checksum was right" in capsys.readouterr().out


def test_labels_in_the_arrow_files_are_looked_at(folder_root: Path, tmp_path: Path) -> None:
    pack.pack(packing(folder_root, tmp_path / "out"))
    path = tmp_path / "out" / "train" / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    labels = (1).to_bytes(8, "little") * 8
    assert content.count(labels) == 1
    path.write_bytes(content.replace(labels, bytes(8) + labels[8:]))
    with pytest.raises(DataError, match=f"{path}: damaged, its checksum is not that of the manifest"):
        pack.pack(packing(folder_root, tmp_path / "out"))


def test_a_damaged_image_is_named_before_its_file(folder_root: Path, packed: Path) -> None:
    path, place = loaded(packed).train.name(3).split(", image ")
    begin = int(place.split("bytes ")[1].split()[0])
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: begin + 7] + bytes([content[begin + 7] ^ 1]) + content[begin + 8 :])
    with pytest.raises(DataError, match=f"{path}, image 3, bytes {begin} to"):
        pack.pack(packing(folder_root, packed, format=packed.name, size=16))


def at(*keys: Any) -> Callable[[dict, Any], None]:
    """Sets an entry of the manifest; `...` for the value deletes it."""

    def change(manifest: dict, value: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        if value is ...:
            del manifest[keys[-1]]
        else:
            manifest[keys[-1]] = value

    return change


HUGE = 10**15
WRONG = [
    *((("version",), value) for value in (..., None, "2")),
    *((("format",), value) for value in (..., "webp", 1)),
    *((("options",), value) for value in (..., 1)),
    *((("classes",), value) for value in (..., None, 7, [], ["cat"], [1, 2])),
    *((("files",), value) for value in (..., [], {"x": {}})),
    *((("splits",), value) for value in (..., {}, [], 3)),
    (("splits", "train"), ...),
    (("splits", "extra"), {}),
    *((("splits", "train", "images"), value) for value in (..., -1, 0, 15, 17, HUGE, "16", None, 16.0, True)),
    *((("splits", "train", "shards"), value) for value in (..., [], {}, [1], [{"images": HUGE, "left_out": []}])),
    *((("splits", "train", "shards", 0, "images"), value) for value in (..., -1, 15, HUGE, "16")),
    (("splits", "train", "shards", 0, "left_out"), ...),
    *((("splits", "train", "files"), value) for value in (..., {}, [])),
    *((("splits", "train", "files", "train/labels.npy"), value) for value in (..., None, {}, {"bytes": 256})),
    *((("splits", "train", "files", "train/labels.npy", "bytes"), value) for value in (-1, HUGE, "256")),
    (("splits", "train", "files", "train/labels.npy", "crc32"), None),
]
SHAPES = [[16, 16], [16, 16, 4], [16, 16, -3], [16, 16, "3"], [HUGE, HUGE, 3], [0, 0, 3], [8, 32, 3]]
OF_RAW = [(("image",), value) for value in (..., None, 16, *SHAPES)]


def test_manifests_that_cannot_be_true_are_refused_by_entry(packed: Path) -> None:
    whole = read_checked(packed / MANIFEST)
    for keys, value in WRONG + (OF_RAW if packed.name == "raw" else []):
        manifest = json.loads(json.dumps(whole))
        at(*keys)(manifest, value)
        if manifest == whole:
            continue
        write_checked(packed / MANIFEST, manifest)
        with pytest.raises(ConfigError if keys[0] == "version" else DataError) as caught:
            loaded(packed)
        for said in (packed, keys[0], *keys[2:3]):
            assert str(said) in str(caught.value), (keys, value)
    write_checked(packed / MANIFEST, whole)
    assert len(loaded(packed).train) == 16


def test_deep_json_is_refused(packed: Path, capsys) -> None:
    (packed / MANIFEST).write_text("[" * 100_000)
    assert main(["check", "--data", str(packed)]) == 1
    assert f"{packed / MANIFEST}: damaged" in capsys.readouterr().err
