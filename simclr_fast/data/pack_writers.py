"""Writes the files of a packed split shard by shard, so that a stopped `pack` goes on behind the last whole shard."""

import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from simclr_fast.data.packed import file_entry, naming, replace
from simclr_fast.data.packed_sets import CHECKSUMS, HEADER, IMAGES, LABELS, PLACES, shard_name


class GrowingArray:
    """An .npy file whose rows are added one after the other. rows: those in it that stay, the rest is cut off."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], rows: int = 0):
        self.path, self.dtype, self.shape, self.rows = path, np.dtype(dtype), shape, rows
        self.row_bytes = self.dtype.itemsize * int(np.prod(shape))
        with naming(path):
            self.file = io.BufferedRandom(io.FileIO(path, "r+" if path.exists() else "w+"))
            self.file.truncate(HEADER + rows * self.row_bytes)
            self._write_header()
            self.file.seek(0, os.SEEK_END)

    def add(self, rows: np.ndarray) -> None:
        """Append rows [n, *shape]."""
        with naming(self.path):
            self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """See to it that the rows so far survive a power failure."""
        with naming(self.path):
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """After the last row."""
        with naming(self.path):
            self.file.close()

    def _write_header(self) -> None:
        # numpy's format 1.0 by hand: its own header may grow with the number of rows, and the rows must stay in place.
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)}
        start = np.lib.format.magic(1, 0) + (HEADER - 10).to_bytes(2, "little")
        self.file.seek(0)
        self.file.write(start + repr(about).encode().ljust(HEADER - 11) + b"\n")
        self.file.seek(0, os.SEEK_END)


class RawWriter:
    """One split as images.npy, labels.npy and checksums.npy."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], done: list[dict[str, Any]]):
        rows = sum(shard["images"] for shard in done)
        self.folder = folder
        self.images = GrowingArray(folder / IMAGES, "|u1", shape, rows)
        self.labels = GrowingArray(folder / LABELS, "<i8", (), rows)
        self.checksums = GrowingArray(folder / CHECKSUMS, "<u4", (), rows)

    def add(self, images: list[np.ndarray], labels: np.ndarray, names: list[str]) -> None:
        """Images uint8 [H, W, C] with their labels."""
        for image in images:
            self.images.add(image[None])
        self.checksums.add(np.array([zlib.crc32(image.data) for image in images]))
        self.labels.add(labels)

    def end_shard(self, number: int) -> None:
        """All that was added is kept from here on."""
        for array in (self.images, self.checksums, self.labels):
            array.sync()

    def end(self) -> dict[str, Any]:
        """The files, for the manifest."""
        for array in (self.images, self.checksums, self.labels):
            array.close()
        return {
            f"{self.folder.name}/{name}": file_entry(self.folder / name, checked=name != IMAGES)
            for name in (IMAGES, LABELS, CHECKSUMS)
        }


class JpegWriter:
    """One split as `datasets` saves it, with labels, checksums and places in the Arrow files beside it.

    count: of shards; done: the shards that are there. The Arrow files have a column "image" of bytes and a name each,
    and where there are classes "label".
    """

    def __init__(self, folder: Path, classes: list[str], count: int, done: list[dict[str, Any]]):
        import datasets
        import pyarrow

        self.arrow = pyarrow
        self.folder, self.count = folder, count
        rows = sum(shard["images"] for shard in done)
        self.arrays = {
            LABELS: GrowingArray(folder / LABELS, "<i8", (), rows),
            CHECKSUMS: GrowingArray(folder / CHECKSUMS, "<u4", (), rows),
            PLACES: GrowingArray(folder / PLACES, "<i8", (2,), rows),
        }
        label = {"label": datasets.ClassLabel(names=classes)} if classes else {}
        self.features = datasets.Features({"image": datasets.Image(), **label})
        self.schema = self.features.arrow_schema
        self.temporary = folder / "shard.partial"
        self.stream: Any = None

    def add(self, images: list[bytes], labels: np.ndarray, names: list[str]) -> None:
        """JPEG bytes with their labels and names."""
        if self.stream is None:
            self._begin()
        image_type = self.schema.field("image").type
        columns = [self.arrow.array([{"bytes": i, "path": n} for i, n in zip(images, names)], type=image_type)]
        if "label" in self.features:
            columns.append(self.arrow.array(labels, type=self.arrow.int64()))
        with naming(self.temporary):
            self.stream.write_batch(self.arrow.record_batch(columns, schema=self.schema))
        self.arrays[LABELS].add(labels)
        self.arrays[CHECKSUMS].add(np.array([zlib.crc32(image) for image in images]))

    def end_shard(self, number: int) -> None:
        """Give the shard its name, and note where its images lie."""
        if self.stream is None:
            self._begin()
        path = self.folder / shard_name(number, self.count)
        with naming(path):
            self.stream.close()
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.stream = None
            self.arrays[PLACES].add(self._places())
            replace(self.temporary, path)
        for array in self.arrays.values():
            array.sync()

    def end(self) -> dict[str, Any]:
        """What `datasets` wants beside the shards; the files, for the manifest."""
        import datasets

        for array in self.arrays.values():
            array.close()
        shards = [shard_name(number, self.count) for number in range(self.count)]
        with naming(self.folder):
            datasets.DatasetInfo(features=self.features).write_to_directory(str(self.folder))
            state = _state(self.folder.name, shards, self.folder / CHECKSUMS)
            (self.folder / "state.json").write_text(json.dumps(state, indent=2))
        small = [*self.arrays, "state.json", "dataset_info.json"]
        return {
            f"{self.folder.name}/{name}": file_entry(self.folder / name, checked=name in small)
            for name in (*shards, *small)
        }

    def _begin(self) -> None:
        with naming(self.temporary):
            self.file = io.BufferedWriter(io.FileIO(self.temporary, "w"))
            self.stream = self.arrow.ipc.new_stream(self.file, self.schema)

    def _places(self) -> np.ndarray:
        """Offset and length of each image's bytes in the shard, int64 [n, 2]."""
        found = []
        with self.arrow.memory_map(str(self.temporary)) as file:
            start = file.read_buffer(file.size()).address
            file.seek(0)
            for batch in self.arrow.ipc.open_stream(file):
                column = batch.column(0).field("bytes")
                _, ends, data = column.buffers()
                ends = np.frombuffer(ends, dtype=np.int32)[: len(batch) + 1].astype(np.int64)
                found.append(np.stack([ends[:-1] + (data.address - start), np.diff(ends)], axis=1))
        return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _state(split: str, shards: list[str], checksums: Path) -> dict[str, Any]:
    """The file that `datasets.load_from_disk` begins with; the fingerprint of equal images is equal."""
    return {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": f"{zlib.crc32(checksums.read_bytes()):016x}",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
