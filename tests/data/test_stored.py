"""Byte ranges of files: their files are closed with them, and where one of them cannot be opened."""

import os
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


def test_a_damaged_record_is_refused_every_time(tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(b"bytes")
    numbers = lambda value, dtype: np.array([value], dtype=dtype)
    records = Records([tmp_path / "records"], [0], numbers(0, "i8"), numbers(5, "i8"), numbers(7, "u4"))
    for _ in range(2):
        with pytest.raises(DataError, match="records, image 0, bytes 0 to 5: damaged"):
            records.read(0)
