"""Writes the files of a packed split shard by shard, so that a stopped `pack` goes on behind the last whole shard."""

import contextlib
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from simclr_fast.data.messages import on_one_line
from simclr_fast.data.packed import check_files, checksum_of, file_entry, replace, require_size
from simclr_fast.data.packed_sets import npy_header
from simclr_fast.data.packed_shape import CHECKSUMS, HEADER, IMAGES, LABELS, PLACES, shard_name
from simclr_fast.errors import DataError, naming


class GrowingArray:
    """An .npy file whose rows are added one after the other.

    rows: those in it that stay, the rest is cut off; checksum: the CRC-32 of their bytes, None where it is not looked
    at. Raises DataError where they are not there.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], rows: int = 0, checksum: int | None = 0):
        self.path, self.dtype, self.shape, self.rows, self.checksum = path, np.dtype(dtype), shape, rows, checksum
        self.row_bytes = self.dtype.itemsize * int(np.prod(shape))
        size = HEADER + rows * self.row_bytes
        with naming(path):
            if rows:
                require_size(path, size, at_least=True)
            self.file = io.BufferedRandom(io.FileIO(path, "r+" if path.exists() else "w+"))
            try:
                self.file.truncate(size)
                if checksum is not None and checksum_of(path, HEADER) != checksum:
                    raise DataError(
                        f"{path}: damaged, its checksum is not that of the journal; "
                        f"remove {path.parent.parent}, and pack again"
                    )
                self._write_header()
            except BaseException:
                self.file.close()
                raise

    def add(self, rows: np.ndarray) -> None:
        """Append rows [n, *shape]."""
        data = np.ascontiguousarray(rows, self.dtype).data
        with naming(self.path):
            self.file.write(data)
        if self.checksum is not None:
            self.checksum = zlib.crc32(data, self.checksum)
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
        self.file.seek(0)
        self.file.write(npy_header(self.dtype.str, (self.rows, *self.shape)))
        self.file.seek(0, os.SEEK_END)


class SplitWriter(contextlib.AbstractContextManager):
    """Writes one split; `entry` is what the journal says of it, noted here shard by shard.

    entry["rows_crc32"] has the checksums of the rows so far while the split is not whole, entry["files"] the files that
    are. Raises DataError where what was written before is not there.
    """

    def __init__(self, folder: Path, entry: dict[str, Any], arrays: dict[str, tuple[str, tuple[int, ...]]]):
        self.folder, self.entry = folder, entry
        folder.mkdir(exist_ok=True)
        check_files(folder.parent, entry["files"])
        self.arrays: dict[str, GrowingArray] = {}
        with contextlib.ExitStack() as opened:
            for name, (dtype, shape) in arrays.items():
                checksum = entry["rows_crc32"].get(name, 0) if name != IMAGES else None
                self.arrays[name] = GrowingArray(folder / name, dtype, shape, entry["images"], checksum)
                opened.callback(self.arrays[name].close)
            self.opened = opened.pop_all()

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def add(self, images: list, labels: np.ndarray, names: list[str]) -> None:
        """Images as the form of packing makes them, with their labels and names."""
        self.arrays[CHECKSUMS].add(np.array([zlib.crc32(image) for image in images]))
        self.arrays[LABELS].add(labels)

    def end_shard(self, shard: dict[str, Any]) -> None:
        """All that was added is kept from here on. shard: its entry for the journal."""
        for array in self.arrays.values():
            array.sync()
        self.entry["rows_crc32"] = {name: array.checksum for name, array in self.arrays.items() if name != IMAGES}
        self.entry["shards"].append(shard)
        self.entry["images"] += shard["images"]

    def end(self) -> None:
        """Note all files as whole."""
        for name, array in self.arrays.items():
            array.close()
            path = self.folder / name
            self.entry["files"][f"{self.folder.name}/{name}"] = file_entry(path)
            if array.checksum is not None and checksum_of(path, HEADER) != array.checksum:
                raise DataError(f"{path}: its bytes are not those that were written; pack again into an empty folder")
        del self.entry["rows_crc32"]


class RawWriter(SplitWriter):
    """One split as images.npy, labels.npy and checksums.npy; images are uint8 [H, W, C]."""

    def __init__(self, folder: Path, entry: dict[str, Any], shape: tuple[int, int, int]):
        super().__init__(folder, entry, {IMAGES: ("|u1", shape), LABELS: ("<i8", ()), CHECKSUMS: ("<u4", ())})

    def add(self, images: list[np.ndarray], labels: np.ndarray, names: list[str]) -> None:
        for image in images:
            self.arrays[IMAGES].add(image[None])
        super().add(images, labels, names)


class JpegWriter(SplitWriter):
    """One split as `datasets` saves it, with labels, checksums and places in the Arrow files beside it.

    count: of shards; images are JPEG bytes. The Arrow files have a column "image" of bytes and a name each, and where
    there are classes "label".
    """

    def __init__(self, folder: Path, entry: dict[str, Any], classes: list[str], count: int):
        import datasets
        import pyarrow

        super().__init__(folder, entry, {LABELS: ("<i8", ()), CHECKSUMS: ("<u4", ()), PLACES: ("<i8", (2,))})
        self.arrow = pyarrow
        self.count = count
        label = {"label": datasets.ClassLabel(names=classes)} if classes else {}
        self.features = datasets.Features({"image": datasets.Image(), **label})
        self.schema = self.features.arrow_schema
        self.temporary = folder / "shard.partial"
        self.file: io.BufferedWriter | None = None
        self.stream: Any = None

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        super().__exit__()

    def add(self, images: list[bytes], labels: np.ndarray, names: list[str]) -> None:
        if self.stream is None:
            self._begin()
        image_type = self.schema.field("image").type
        rows = [{"bytes": image, "path": on_one_line(name)} for image, name in zip(images, names)]
        columns = [self.arrow.array(rows, type=image_type)]
        if "label" in self.features:
            columns.append(self.arrow.array(labels, type=self.arrow.int64()))
        with naming(self.temporary):
            self.stream.write_batch(self.arrow.record_batch(columns, schema=self.schema))
        super().add(images, labels, names)

    def end_shard(self, shard: dict[str, Any]) -> None:
        """As for each writer; the shard is given its name, and where its images lie is noted."""
        if self.stream is None:
            self._begin()
        path = self.folder / shard_name(len(self.entry["shards"]), self.count)
        with naming(path):
            self.stream.close()
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.stream = self.file = None
            self.arrays[PLACES].add(self._places())
            self.entry["files"][f"{self.folder.name}/{path.name}"] = file_entry(self.temporary)
            replace(self.temporary, path)
        super().end_shard(shard)

    def end(self) -> None:
        """As for each writer; what `datasets` wants beside the shards is added."""
        import datasets

        super().end()
        shards = [shard_name(number, self.count) for number in range(self.count)]
        with naming(self.folder):
            datasets.DatasetInfo(features=self.features).write_to_directory(str(self.folder))
            state = _state(self.folder.name, shards, self.folder / CHECKSUMS)
            (self.folder / "state.json").write_text(json.dumps(state, indent=2))
        for name in ("state.json", "dataset_info.json"):
            self.entry["files"][f"{self.folder.name}/{name}"] = file_entry(self.folder / name)

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
