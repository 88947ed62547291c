"""Packed sets that were stopped half-way, and damaged ones: what is kept, and what is refused with its place named."""

import errno
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from simclr_fast.config import DataOptions
from simclr_fast.data import Source, build_loader, load_dataset, pack, pack_writers
from simclr_fast.data.pack_writers import GrowingArray
from simclr_fast.data.packed import JOURNAL, MANIFEST, VERSION, read_checked, write_checked
from simclr_fast.errors import ConfigError, DataError, status_and_message
from tests.data.packing import StoppedError, contents, failing, loaded, packing

CPU = torch.device("cpu")
FORMS = ("jpeg", "raw")


pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_pack_goes_on_to_the_same_bytes(form: str, folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    (folder_root / "train" / "cat" / "1.jpg").write_bytes(b"broken")
    changes = {"format": form, "size": 24, "max_bad_images": 0.2}
    pack.pack(packing(folder_root, tmp_path / "at once", **changes))
    whole = contents(tmp_path / "at once")
    kind = {"jpeg": pack.JpegWriter, "raw": pack.RawWriter}[form]
    places = [(kind, "add", 1), (kind, "add", 2), (kind, "end_shard", 2), (kind, "end", 2), (GrowingArray, "sync", 5)]
    places += [(pack, "write_checked", count) for count in (1, 2, 4, 8)] + [(pack, "verify", 1)]
    for number, (owner, name, limit) in enumerate(places):
        output = tmp_path / f"stopped {number}"
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(getattr(owner, name), limit, StoppedError()))
            with pytest.raises(StoppedError):
                pack.pack(packing(folder_root, output, **changes))
        with pytest.raises((ConfigError, DataError)):
            loaded(output)
        pack.pack(packing(folder_root, output, **changes))
        assert contents(output) == whole, (name, limit)


SLOW_PACK = """
import sys, time
from pathlib import Path
from simclr_fast.config import SourceOptions
from simclr_fast.data import pack
pack.SHARD = 6
form = pack.RawForm.__call__
# The third shard is never complete.
pack.RawForm.__call__ = lambda *arguments: (time.sleep(600 * (arguments[-1] >= 12)), form(*arguments))[1]
source = SourceOptions(data=Path(sys.argv[1]), workers=2)
pack.pack(pack.PackOptions(Path(sys.argv[2]), "raw", size=16, data=source))
"""


def test_a_killed_pack_keeps_whole_shards(folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SLOW_PACK, str(folder_root), str(output)])
    shards = lambda: read_checked(output / JOURNAL)["splits"]["train"]["shards"]
    while not (output / JOURNAL).exists() or not shards():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = len(shards())
    assert 1 <= done <= 2, "and the third is missing"
    packed: list[int] = []
    real = pack.RawForm.__call__

    def counting(form: pack.RawForm, source: Source, index: int) -> np.ndarray:
        packed.append(len(source) * 100 + index)
        return real(form, source, index)

    monkeypatch.setattr(pack.RawForm, "__call__", counting)
    pack.pack(packing(folder_root, output, format="raw", size=16))
    assert sorted(packed) == [*(600 + index for index in range(6)), *(1600 + index for index in range(6 * done, 16))]
    pack.pack(packing(folder_root, tmp_path / "at once", format="raw", size=16))
    assert contents(output) == contents(tmp_path / "at once")


def test_another_pack_does_not_go_on(folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pack.JpegWriter, "end", failing(pack.JpegWriter.end, 1, StoppedError()))
        with pytest.raises(StoppedError):
            pack.pack(packing(folder_root, tmp_path / "out"))
    with pytest.raises(ConfigError, match="packed with quality 90, and this is 80"):
        pack.pack(packing(folder_root, tmp_path / "out", quality=80))
    (folder_root / "train" / "dog" / "7.jpg").unlink()
    with pytest.raises(ConfigError, match="not those that were there when the packing began"):
        pack.pack(packing(folder_root, tmp_path / "out"))


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_said_and_the_rest_packed_later(
    form: str, folder_root: Path, tmp_path: Path, monkeypatch
) -> None:
    output = tmp_path / "out"
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(pack_writers.os, "fsync", failing(pack_writers.os.fsync, 6, full))
        with pytest.raises(OSError, match="No space") as caught:
            pack.pack(packing(folder_root, output, format=form, size=16))
    status, message = status_and_message(caught.value)
    assert status == 1
    assert message.startswith(str(output))
    assert "make room" in message
    pack.pack(packing(folder_root, output, format=form, size=16))
    assert len(loaded(output).train) == 16


def test_rows_that_are_not_those_that_were_written_are_found(folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    entry = pack_writers.file_entry

    def damaging(path: Path) -> dict[str, int]:
        if path.name == "labels.npy":
            flip(path, 130)
        return entry(path)

    monkeypatch.setattr(pack_writers, "file_entry", damaging)
    path = tmp_path / "out" / "train" / "labels.npy"
    with pytest.raises(
        DataError, match=f"^{path}: its bytes are not those that were written; pack again into an empty"
    ):
        pack.pack(packing(folder_root, tmp_path / "out", format="raw", size=8))


@pytest.fixture(params=FORMS)
def packed(request, folder_root: Path, tmp_path: Path) -> Path:
    pack.pack(packing(folder_root, tmp_path / request.param, format=request.param, size=16))
    return tmp_path / request.param


def read_all(root: Path) -> None:
    options = DataOptions(data=root, workers=2, max_bad_images=0.5)
    for _ in build_loader(load_dataset(options).train, 4, 0, CPU, options).epoch(0):
        pass


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_flipped_bits_are_refused_with_their_place(packed: Path) -> None:
    whole = contents(packed)
    read_all(packed)
    checked = 0
    for name in whole:
        path = packed / name
        if path.suffix == ".arrow" or name in ("train/images.npy", "test/images.npy"):
            continue
        for place in (0, 41 % len(whole[name]), len(whole[name]) // 2, len(whole[name]) - 2):
            flip(path, place)
            with pytest.raises((DataError, ConfigError), match=str(path)):
                loaded(packed)
            path.write_bytes(whole[name])
            checked += 1
    assert checked >= 20
    for number in (0, 7, 15):
        path, place = loaded(packed).train.name(number).split(", image ")
        begin, end = map(int, place.split("bytes ")[1].split(" to "))
        for place in (begin, (begin + end) // 2, end - 1):
            flip(Path(path), place)
            with pytest.raises(DataError, match=f"{path}, image {number}, bytes {begin} to {end}: damaged"):
                read_all(packed)
            Path(path).write_bytes(whole[str(Path(path).relative_to(packed))])
    read_all(packed)


def test_missing_and_cut_files_are_refused(packed: Path) -> None:
    for name, content in contents(packed).items():
        path = packed / name
        if name == MANIFEST:
            continue
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match=f"{path}: {len(content) - 1} bytes long, in the manifest {len(content)}"):
            loaded(packed)
        path.unlink()
        with pytest.raises(DataError, match=f"{path}: No such file or directory, but the packed set has it"):
            loaded(packed)
        path.write_bytes(content)
    read_all(packed)


def test_a_file_that_is_cut_while_it_is_read(packed: Path) -> None:
    source = loaded(packed).train
    path = Path(source.name(15).split(", image ")[0])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{path}, image 15, .*: the file ends before that"):
        source.read(15)


def test_other_versions_are_refused(packed: Path) -> None:
    content = read_checked(packed / MANIFEST)
    write_checked(packed / MANIFEST, content | {"version": VERSION + 1})
    said = f"a packed set of version {VERSION + 1}, and this program reads version {VERSION}"
    with pytest.raises(ConfigError, match=said):
        loaded(packed)
    for name in (MANIFEST, JOURNAL):
        (packed / MANIFEST).replace(packed / name)
        with pytest.raises(ConfigError, match=said):
            pack.pack(packing(packed.parent, packed, format=packed.name, size=16))
    (packed / JOURNAL).unlink()
    (packed / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="damaged"):
        loaded(packed)


def test_a_folder_without_a_packed_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"^--data {tmp_path}: no packed set \(no {MANIFEST} in it\); `simclr-fast pack"
    ):
        loaded(tmp_path, dataset="packed")
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=rf"^{tmp_path / MANIFEST}: damaged \('crc32'\); copy that file again, or"):
        loaded(tmp_path, dataset="packed")


def test_rows_of_a_growing_array_are_numpys(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.int64).reshape(12, 2)
    array = GrowingArray(tmp_path / "a.npy", "<i8", (2,))
    array.add(rows[:7])
    array.sync()
    checksum = array.checksum
    array.add(rows[:1])
    array.sync()
    again = GrowingArray(tmp_path / "a.npy", "<i8", (2,), 7, checksum)  # as after a stop: the last row was not kept
    again.add(rows[7:])
    again.sync()
    again.close()
    assert np.array_equal(np.load(tmp_path / "a.npy"), rows)
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), rows)
