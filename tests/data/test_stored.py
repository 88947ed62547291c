"""Byte ranges of files: their files are closed with them, and where one of them cannot be opened."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from simclr_fast.data.stored import Records
from simclr_fast.errors import DataError


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_files_are_closed_with_the_records(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for k in range(3):
        (tmp_path / f"{k}").write_bytes(b"bytes")
    empty = np.empty(0, dtype=np.int64)
    before = open_files()
    records = Records([tmp_path / f"{k}" for k in range(3)], [0, 0, 0], empty, empty, empty)
    assert open_files() == before + 3
    del records
    assert open_files() == before
    with pytest.raises(FileNotFoundError, match="missing"):
        Records([tmp_path / "0", tmp_path / "1", tmp_path / "missing"], [0, 0, 0], empty, empty, empty)
    assert open_files() == before
    assert not recwarn.list


def test_records_lie_in_several_files_and_may_come_in_parts(tmp_path: Path, monkeypatch) -> None:
    for name, content in (("a", b"__first+second"), ("b", b"+third-fourth")):
        (tmp_path / name).write_bytes(content)
    words = [b"first", b"second", b"third", b"fourth"]
    numbers = [np.array(values) for values in ([2, 8, 1, 7], [5, 6, 5, 6], [zlib.crc32(word) for word in words])]
    records = Records([tmp_path / "a", tmp_path / "b"], [0, 2], *numbers)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:2]], offset))
    assert [bytes(records.read(number)) for number in range(4)] == words
    assert records.is_checked.all(), "which happens once"
    assert records.name(3) == f"{tmp_path / 'b'}, image 3, bytes 7 to 13"
    assert records.identity(1) == f"6 bytes, CRC-32 {zlib.crc32(b'second')}"


def test_a_damaged_record_is_refused_every_time(tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(b"bytes")
    numbers = lambda value, dtype: np.array([value], dtype=dtype)
    records = Records([tmp_path / "records"], [0], numbers(0, "i8"), numbers(5, "i8"), numbers(7, "u4"))
    for _ in range(2):
        with pytest.raises(DataError, match="records, image 0, bytes 0 to 5: damaged"):
            records.read(0)
