"""What a stopped `pack` goes on from: the same source, what it had written, and a folder that it has for itself."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch

from simclr_fast.config import SourceOptions
from simclr_fast.data import EncodedImages, pack
from simclr_fast.data.pack_writers import SplitWriter
from simclr_fast.data.packed import JOURNAL, read_checked
from simclr_fast.data.parts import digest_of
from simclr_fast.data.sources import Files
from simclr_fast.errors import ConfigError, DataError
from simclr_fast.lock import LOCK_FILE
from tests.data.conftest import write_image
from tests.data.packing import StoppedError, contents, failing, loaded, packing

pytestmark = pytest.mark.usefixtures("small_shards")


def stopped(options: pack.PackOptions, monkeypatch, shards: int = 1) -> None:
    """Pack until so many shards are noted."""
    with monkeypatch.context() as patch:
        patch.setattr(pack, "write_checked", failing(pack.write_checked, 2 + shards, StoppedError()))
        with pytest.raises(StoppedError):
            pack.pack(options)


def rename(root: Path) -> None:
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "9.png")


def overwrite(root: Path) -> None:
    (root / "train" / "dog" / "7.jpg").write_bytes((root / "train" / "dog" / "6.jpg").read_bytes())


@pytest.mark.parametrize("change", [rename, overwrite])
@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_another_source_is_refused(form: str, change: Callable, folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    options = packing(folder_root, tmp_path / "out", format=form, size=16)
    stopped(options, monkeypatch)
    change(folder_root)
    with pytest.raises(ConfigError, match="its images or classes are not those that were there when the packing began"):
        pack.pack(options)


def test_a_shuffled_table_is_refused_and_the_same_one_is_not(tmp_path: Path, monkeypatch) -> None:
    for i in range(14):
        write_image(tmp_path / "files" / f"{i:02d}.png", 12, 14, seed=i)
    files = [str(path) for path in sorted((tmp_path / "files").iterdir())]
    table = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    options = packing(tmp_path / "in", tmp_path / "out", dataset="huggingface")
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "in"))
    stopped(options, monkeypatch)
    (tmp_path / "in").rename(tmp_path / "aside")
    datasets.DatasetDict({"train": table.shuffle(seed=1)}).save_to_disk(str(tmp_path / "in"))
    with pytest.raises(ConfigError, match="not those that were there when the packing began"):
        pack.pack(options)
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "aside").rename(tmp_path / "in")
    pack.pack(options)
    assert len(loaded(tmp_path / "out").train) == 14


def test_a_file_is_told_apart_by_its_path_size_and_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, ns=(5, 7))
    files = Files(tmp_path, ["a", "b", "c"])
    assert files.identity(0) == "a, 5 bytes, changed 7"
    assert files.identity(1) == "b, 5 bytes, changed 7"
    assert files.identity(2) == "c, -1 bytes, changed -1"
    assert files.images().identity == files.identity


def test_a_digest_tells_sources_apart_by_identities_order_and_classes() -> None:
    def digest(identities: range, codes: torch.Tensor, threads: int = 0) -> str:
        read, name = (lambda index: b""), "image {}".format
        source = EncodedImages(len(identities), read, name, identity=lambda index: f"file {identities[index]}")
        return digest_of(source, codes, threads)

    codes = torch.arange(150) % 3
    digests = [digest(range(150), codes), digest(range(149, -1, -1), codes), digest(range(1, 151), codes)]
    digests += [digest(range(150), codes.flip(0)), digest(range(149), codes[:149])]
    assert len(set(digests)) == 5
    assert digest(range(150), codes.clone(), threads=3) == digests[0]


@pytest.mark.parametrize("shards", [2, 5], ids=["in the first split", "in the second"])
@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_damage_between_two_runs_is_found_before_anything_is_packed(
    form: str, shards: int, folder_root: Path, tmp_path: Path, monkeypatch
) -> None:
    (folder_root / "val" / "cat" / "9.png").write_bytes((folder_root / "val" / "cat" / "0.png").read_bytes())
    output = tmp_path / "out"
    options = packing(folder_root, output, format=form, size=16)
    stopped(options, monkeypatch, shards)
    whole = contents(output)
    noted = [name for split in read_checked(output / JOURNAL)["splits"].values() for name in split["files"]]
    damaged = 0
    for name, content in whole.items():
        path = output / name
        if len(content) <= 128 or (path.suffix != ".npy" and name not in noted):
            continue
        wrong = {"lost": None, "cut": content[:129]}
        if path.suffix != ".arrow" and path.name != "images.npy":  # of those, the end of the packing reads all
            wrong["flipped"] = content[:129] + bytes([content[129] ^ 1]) + content[130:]
        for bytes_there in wrong.values():
            path.unlink()
            if bytes_there is not None:
                path.write_bytes(bytes_there)
            with monkeypatch.context() as patch:
                patch.setattr(SplitWriter, "add", lambda *_: pytest.fail("packed on"))
                with pytest.raises(DataError, match=str(path)):
                    pack.pack(options)
            damaged += 1
            for file, before in whole.items():
                (output / file).write_bytes(before)
    assert damaged >= {"jpeg": 13, "raw": 8}[form]
    pack.pack(options)
    assert loaded(output).train.labels.tolist() == [0] * 8 + [1] * 8


def test_a_pack_killed_while_it_wrote_its_first_journal_goes_on(folder_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    for name in ("packing.partial", "packed.partial", LOCK_FILE):
        (output / name).write_text("{")
    pack.pack(packing(folder_root, output))
    assert not list(output.glob("*.partial"))
    assert not (output / LOCK_FILE).exists()


def test_refusals_leave_no_folder(folder_root: Path, mnist_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    (tmp_path / "empty").mkdir()
    for source, changes in ((tmp_path / "missing", {}), (tmp_path / "empty", {}), (mnist_root, {"dataset": "mnist"})):
        with pytest.raises(ConfigError):
            pack.pack(packing(source, output, **changes))
        assert not output.exists()
        output.mkdir()
        with pytest.raises(ConfigError):
            pack.pack(packing(source, output, **changes))
        assert [path.name for path in output.iterdir()] == [LOCK_FILE]
        shutil.rmtree(output)


def test_mnist5k_needs_no_folder_to_go_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pack, "SHARD", 2000)
    options = pack.PackOptions(tmp_path / "out", "raw", data=SourceOptions(dataset="mnist5k", workers=0))
    monkeypatch.chdir(tmp_path)
    stopped(options, monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pack.pack(options)
    assert len(loaded(tmp_path / "out").train) == 4000


HOLDER = """
import sys, time
from pathlib import Path
from simclr_fast.lock import claim
claim(Path(sys.argv[1]), "another process packs")
print("held", flush=True)
time.sleep(600)
"""


def test_two_at_once_are_refused_and_a_killed_one_holds_nothing(folder_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"another process packs there \(process {process.pid} on .*wait for"):
            pack.pack(packing(folder_root, output))
        process.kill()
    pack.pack(packing(folder_root, output))


def test_a_file_system_without_locks_is_said_and_packed_into(folder_root: Path, tmp_path: Path, monkeypatch, caplog):
    def without_locks(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", without_locks)
    pack.pack(packing(folder_root, tmp_path / "out"))
    assert "cannot be locked (No locks available): let no other process write there" in caplog.text


def test_a_failed_pack_leaves_no_descriptor(folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    (folder_root / "train" / "dog" / "7.jpg").write_bytes(b"broken")
    for form in ("jpeg", "raw"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(DataError, match="1 unreadable images"):
            pack.pack(packing(folder_root, tmp_path / form, format=form, size=16, max_bad_images=0.0))
        assert len(os.listdir("/proc/self/fd")) == before
