"""Files of features: shards of rows with their names and labels, as Parquet, safetensors or one NumPy array.

Each shard is on the disk, under its name and with its checksum, before the journal knows of it. Its bytes depend on its
rows alone.
"""

import abc
import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simclr_fast.data.packed import replace
from simclr_fast.data.packed_sets import npy_header
from simclr_fast.data.packed_shape import HEADER
from simclr_fast.errors import DataError, first_line, naming

FEATURES, LABELS, NAMES = "features.npy", "labels.npy", "names.txt"  # of the format npy
Ranges = dict[str, dict[str, int]]  # by file: where the bytes of a shard begin there, how many they are, their CRC-32


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one shard: features float32 or float16 [n, D], the names and splits of their images, and labels.

    labels: int64 [n], -1 where an image has none; None where no image of the data set has one.
    """

    features: np.ndarray
    names: list[str]
    splits: list[str]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.names)


class FeatureFiles(abc.ABC):
    """The files of a data set's features in a folder. shards: how many; classes: names by number, None without any."""

    def __init__(self, root: Path, shards: int, classes: list[str] | None):
        self.root, self.shards, self.classes = root, shards, classes

    @abc.abstractmethod
    def write(self, number: int, rows: Rows, before: Ranges) -> Ranges:
        """Write a shard behind the one of `before`, which is empty for the first. Raises OSError with the path."""

    @abc.abstractmethod
    def features(self, number: int, ranges: Ranges) -> np.ndarray:
        """The features of a shard [n, D]. Raises DataError where they cannot be read."""

    @abc.abstractmethod
    def names(self, number: int, ranges: Ranges) -> list[str]:
        """The names of a shard's rows. Raises DataError where they cannot be read."""

    def end(self, rows: int, width: int, dtype: str) -> None:  # noqa: B027 most formats need nothing more
        """After the last shard; width: numbers in a feature."""

    def check(self, ranges: Ranges) -> None:
        """Read the bytes of a shard. Raises DataError where they are not what was written."""
        for name, known in ranges.items():
            _read_range(self.root / name, known)


class ShardFiles(FeatureFiles):
    """A file for each shard, which appears under its name when it is whole."""

    suffix: ClassVar[str]

    def write(self, number: int, rows: Rows, before: Ranges) -> Ranges:
        path = self._path(number)
        temporary = path.with_suffix(".partial")
        with naming(path):
            self._save(temporary, rows)
            data = temporary.read_bytes()
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            replace(temporary, path)
        return {path.name: {"begin": 0, "bytes": len(data), "crc32": zlib.crc32(data)}}

    def features(self, number: int, ranges: Ranges) -> np.ndarray:
        return _read(self._path(number), self._features)

    def names(self, number: int, ranges: Ranges) -> list[str]:
        return _read(self._path(number), self._names)

    def _path(self, number: int) -> Path:
        return self.root / f"features-{number:05d}-of-{self.shards:05d}.{self.suffix}"

    @abc.abstractmethod
    def _save(self, path: Path, rows: Rows) -> None: ...

    @abc.abstractmethod
    def _features(self, path: Path) -> np.ndarray: ...

    @abc.abstractmethod
    def _names(self, path: Path) -> list[str]: ...


class ParquetFiles(ShardFiles):
    """Columns name, split, feature (list of fixed size D) and, where there are labels, label and class."""

    suffix = "parquet"

    def _save(self, path: Path, rows: Rows) -> None:
        import pyarrow
        import pyarrow.parquet

        kind = pyarrow.from_numpy_dtype(rows.features.dtype)
        columns = {
            "name": pyarrow.array(rows.names, pyarrow.string()),
            "split": pyarrow.array(rows.splits, pyarrow.string()),
            "feature": pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(rows.features.reshape(-1), kind), rows.features.shape[1]
            ),
        }
        if rows.labels is not None:
            classes = self.classes or []
            columns["label"] = pyarrow.array(rows.labels, pyarrow.int64(), mask=rows.labels < 0)
            named = [classes[label] if 0 <= label < len(classes) else None for label in rows.labels.tolist()]
            columns["class"] = pyarrow.array(named, pyarrow.string())
        # Features are as good as noise: to compress them, or to look for repeated values, takes time and gains nothing.
        compact = [name for name in columns if name != "feature"]
        pyarrow.parquet.write_table(
            pyarrow.table(columns),
            path,
            use_dictionary=compact,
            compression={name: "zstd" if name in compact else "none" for name in _leaves(columns)},
            write_statistics=compact,
        )

    def _features(self, path: Path) -> np.ndarray:
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(path).read(columns=["feature"])
        column = table.column("feature").combine_chunks()
        width = column.type.list_size
        return np.array(column.flatten()).reshape(-1, width)

    def _names(self, path: Path) -> list[str]:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(path).read(columns=["name"]).column("name").to_pylist()


def _leaves(columns: dict[str, Any]) -> list[str]:
    """What Parquet calls the columns: a list's numbers are a column inside of it."""
    return [f"{name}.list.element" if name == "feature" else name for name in columns]


class SafetensorsFiles(ShardFiles):
    """Tensors features [n, D] and, where there are labels, labels int64 [n], with the names as JSON in the header."""

    suffix = "safetensors"

    def _save(self, path: Path, rows: Rows) -> None:
        import safetensors.numpy

        tensors = {"features": np.ascontiguousarray(rows.features)}
        if rows.labels is not None:
            tensors["labels"] = rows.labels
        # One entry of metadata: of several, safetensors may write another order each time.
        path.write_bytes(safetensors.numpy.save(tensors, metadata={"names": json.dumps(rows.names)}))

    def _features(self, path: Path) -> np.ndarray:
        import safetensors

        with safetensors.safe_open(path, framework="np") as file:
            return file.get_tensor("features")

    def _names(self, path: Path) -> list[str]:
        import safetensors

        with safetensors.safe_open(path, framework="np") as file:
            return json.loads(file.metadata()["names"])


class NpyFiles(FeatureFiles):
    """features.npy [N, D], labels.npy int64 [N] where there are labels, names.txt with a line for each row.

    All three grow shard by shard; the headers are written last, so that nobody loads a part for the whole.
    """

    def write(self, number: int, rows: Rows, before: Ranges) -> Ranges:
        columns = {
            FEATURES: rows.features,
            NAMES: np.frombuffer("".join(f"{n}\n" for n in rows.names).encode(), np.uint8),
        }
        if rows.labels is not None:
            columns[LABELS] = rows.labels.astype("<i8")
        begins = {name: known["begin"] + known["bytes"] for name, known in before.items()}
        starts = {NAMES: 0, FEATURES: HEADER, LABELS: HEADER} | begins
        return {name: _append(self.root / name, starts[name], column) for name, column in columns.items()}

    def end(self, rows: int, width: int, dtype: str) -> None:
        headers = {FEATURES: npy_header(np.dtype(dtype).str, (rows, width)), LABELS: npy_header("<i8", (rows,))}
        for name, header in headers.items():
            path = self.root / name
            if path.exists():
                with naming(path), path.open("r+b") as file:
                    file.write(header)
                    file.flush()
                    os.fsync(file.fileno())

    def features(self, number: int, ranges: Ranges) -> np.ndarray:
        return _read(self.root / FEATURES, lambda path: self._rows(path, ranges[FEATURES]))

    def names(self, number: int, ranges: Ranges) -> list[str]:
        return _read_range(self.root / NAMES, ranges[NAMES]).decode().split("\n")[:-1]

    @staticmethod
    def _rows(path: Path, known: dict[str, int]) -> np.ndarray:
        mapped = np.load(path, mmap_mode="r")
        row = mapped.dtype.itemsize * mapped.shape[1]
        first = (known["begin"] - HEADER) // row
        return np.array(mapped[first : first + known["bytes"] // row])


FORMATS: dict[str, type[FeatureFiles]] = {"parquet": ParquetFiles, "npy": NpyFiles, "safetensors": SafetensorsFiles}


def _append(path: Path, begin: int, rows: np.ndarray) -> dict[str, int]:
    """Write rows at `begin` and cut off what follows, so that they survive a power failure; their range."""
    data = np.ascontiguousarray(rows).tobytes()
    with naming(path), path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(begin)
        file.seek(begin)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"begin": begin, "bytes": len(data), "crc32": zlib.crc32(data)}


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` reads. Raises DataError for whatever the bytes of a damaged file lead the format's reader into."""
    try:
        return read(path)
    except Exception as error:
        raise DataError(f"{path}: its features cannot be read ({first_line(error)}); {_again(path)}") from error


def _read_range(path: Path, known: dict[str, int]) -> bytes:
    """The bytes of a shard. Raises DataError where they are not what was written."""
    try:
        with path.open("rb") as file:
            file.seek(known["begin"])
            data = file.read(known["bytes"])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, but the features were there; {_again(path)}") from error
    if len(data) < known["bytes"] or zlib.crc32(data) != known["crc32"]:
        raise DataError(f"{path}: damaged, its checksum is not that of what was written; {_again(path)}")
    return data


def _again(path: Path) -> str:
    return f"remove {path.parent}, and embed again"
