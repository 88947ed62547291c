"""Packs a data set: its images once read, shrunk and written in the order in which training numbers them.

Each shard that is whole is noted in a journal, so that the same command goes on behind it; the manifest, which makes
the folder a data set, is written last, once all was read back. What is written depends on the images and the options
alone, however often the command was stopped, and by however many threads.
"""

import dataclasses
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from simclr_fast.config import SourceOptions
from simclr_fast.data.chunks import CHUNK, work_ahead
from simclr_fast.data.datasets import load_dataset, mnist5k
from simclr_fast.data.pack_images import JpegForm, RawForm, name_of
from simclr_fast.data.pack_writers import JpegWriter, RawWriter
from simclr_fast.data.packed import JOURNAL, MANIFEST, VERSION, check_files, read_checked, write_checked
from simclr_fast.data.packed_sets import source_of
from simclr_fast.data.sources import Dataset, EncodedImages, Source
from simclr_fast.data.stored import Records, StoredImages
from simclr_fast.data.threads import Place
from simclr_fast.data.unreadable import BadImageError
from simclr_fast.errors import ConfigError, DataError

SHARD = 4096  # images, or more, so that a split has at most MOST_SHARDS, all of which are open while it is read
MOST_SHARDS = 256
SAMPLE = 32  # images of each split that are decoded at the end

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PackOptions:
    """Read a data set once and write it so that training reads it fast."""

    output: Path
    """Folder of the packed set; empty, absent, or left by the same command that was stopped."""
    format: Literal["jpeg", "raw"] = "jpeg"
    """jpeg: JPEG bytes in Arrow files, which Hugging Face's `datasets` reads, too. raw: pixels of one size in one .npy
    file, squares of --size cut from the centre; 3 to 6 times as large, and nothing is left to decode."""
    size: int = 256
    """Shorter side of the packed images (pixels). Smaller images stay as they are, except for raw: unless all images
    have one size, it enlarges them, too."""
    quality: int = 90
    """JPEG quality (1 to 95)."""
    data: SourceOptions = dataclasses.field(default_factory=SourceOptions)


Part = tuple[Source, Tensor]  # images with their classes, int64 [N], -1 where they have none


def pack(options: PackOptions) -> dict[str, Any]:
    """Write the packed set, or the rest of it, and return its manifest.

    Raises ConfigError where the output cannot serve, DataError for more unreadable images than may be, OSError with the
    path for a full disk.
    """
    root = options.output
    with _locked(root):
        journal = _begun(options)
        if journal is None:
            log.warning("%s: packed already, with these options", root)
            (root / JOURNAL).unlink(missing_ok=True)
            return read_checked(root / MANIFEST)
        # mnist5k comes from no folder: a packed set in the default one is not meant, and may be the output.
        dataset = mnist5k() if options.data.dataset == "mnist5k" else load_dataset(options.data)
        parts = _parts(dataset)
        _prepare(journal, options, dataset, parts)
        for name, (source, codes) in parts.items():
            if "files" not in journal["splits"][name]:
                _pack_split(name, source, codes, options, journal)
        if options.format == "jpeg":
            (root / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
        verify(root, journal, options.data.workers)
        write_checked(root / MANIFEST, journal)
        (root / JOURNAL).unlink()
        return journal


def verify(root: Path, manifest: dict[str, Any], threads: int) -> None:
    """Read every byte of a packed set back and look at each checksum, count the images, and decode some of them.

    Raises DataError with the place of the damage.
    """
    check_files(root, manifest)
    for name, entry in manifest["splits"].items():
        source = source_of(root, name, manifest)
        records: Records = source.records if isinstance(source, StoredImages) else source.read.__self__
        read = lambda numbers, place, records=records: [
            records.read(place.enter(number)) and None for number in numbers
        ]
        chunks = (list(range(first, min(first + CHUNK, len(records)))) for first in range(0, len(records), CHUNK))
        with tqdm(total=len(records), desc=f"verify {name}", unit=" images") as progress:
            for done in work_ahead(read, chunks, threads, records.name):
                progress.update(len(done))
        if isinstance(source, EncodedImages):
            for index in torch.linspace(0, len(source) - 1, min(SAMPLE, len(source))).long().tolist():
                try:
                    source.decode(index)
                except BadImageError as error:
                    raise DataError(str(error)) from error
            _check_rows(root / name, entry["images"])


def _check_rows(folder: Path, count: int) -> None:
    """Whether `datasets` finds as many rows."""
    import datasets

    rows = len(datasets.load_from_disk(str(folder)))
    if rows != count:
        raise DataError(f"{folder}: {rows} rows for {count} images")


@dataclasses.dataclass
class _Lock:
    """Keeps a second `pack` out of the folder."""

    root: Path

    def __enter__(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.folder = os.open(self.root, os.O_RDONLY)
            if not os.access(self.root, os.W_OK):
                raise PermissionError(0, "no permission to write")
        except OSError as error:
            raise ConfigError(f"--output {self.root}: nothing can be written there ({error.strerror})") from error
        try:
            fcntl.flock(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.folder)
            raise ConfigError(f"--output {self.root}: another process packs into it") from error

    def __exit__(self, *_: object) -> None:
        os.close(self.folder)


_locked = _Lock


def _begun(options: PackOptions) -> dict[str, Any] | None:
    """The journal to go on from, with no splits at the beginning; None where the set is there. Raises ConfigError."""
    root, wanted = options.output, _identity(options)
    for name in (MANIFEST, JOURNAL):
        if (root / name).exists():
            journal = read_checked(root / name)
            found = journal["options"]
            if different := [key for key in wanted if found.get(key) != wanted[key]]:
                key = different[0]
                raise ConfigError(
                    f"--output {root}: holds a set packed with {key} {found.get(key)}, and this is {wanted[key]}; pass "
                    "the same options, or another folder"
                )
            return None if name == MANIFEST else journal
    if any(root.iterdir()):
        raise ConfigError(f"--output {root}: the folder is not empty; pass another")
    return {"version": VERSION, "format": options.format, "options": wanted, "splits": {}}


def _identity(options: PackOptions) -> dict[str, Any]:
    """What makes the packed set what it is; the number of threads does not."""
    data = options.data
    quality = {"quality": options.quality} if options.format == "jpeg" else {}
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    return {
        "format": options.format,
        "size": options.size,
        **quality,
        "dataset": data.dataset,
        "data_dir": str(data.data_dir.resolve()),
        **(columns if data.dataset == "huggingface" else {}),
    }


def _parts(dataset: Dataset) -> dict[str, Part]:
    """The splits: train, test, and where labels are those of other images than train's, labelled."""
    codes = dataset.codes if dataset.codes is not None else dataset.train.labels
    parts = {"train": (dataset.train, codes)}
    if codes is None and dataset.labelled is not None:
        parts["labelled"] = (dataset.labelled, dataset.labelled.labels)
    if dataset.test is not None:
        parts["test"] = (dataset.test, dataset.test.labels)
    return {
        name: (source, torch.full((len(source),), -1) if codes is None else codes.long())
        for name, (source, codes) in parts.items()
    }


def _prepare(journal: dict[str, Any], options: PackOptions, dataset: Dataset, parts: dict[str, Part]) -> None:
    """Note what is to be packed in a new journal; in an old one, see that it is the same. Raises ConfigError."""
    classes = None if dataset.classes is None else list(dataset.classes)
    about = {"classes": classes, "sources": {name: len(source) for name, (source, _) in parts.items()}}
    if journal["splits"]:
        if {key: journal[key] for key in about} != about:
            raise ConfigError(
                f"--data-dir {options.data.data_dir}: its images or classes are not those that were there when the "
                f"packing began; remove {options.output}, and begin again"
            )
        return
    if options.format == "raw":
        form = RawForm.of(dataset.train, options.size)
        about |= {"image": form.shape, "square": form.square}
        _require_room(
            options.output, sum(map(len, (source for source, _ in parts.values()))) * int(np.prod(form.shape))
        )
    elif dataset.train.channels != 3:
        raise ConfigError("--format jpeg: the images are grey, and would come back with 3 channels; pass --format raw")
    about["splits"] = {name: {"images": 0, "shards": []} for name in parts}
    journal.update(json.loads(json.dumps(about)))
    write_checked(options.output / JOURNAL, journal)


def _require_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise ConfigError(f"--output {root}: needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _pack_split(name: str, source: Source, codes: Tensor, options: PackOptions, journal: dict[str, Any]) -> None:
    """Write the shards of a split that are missing, and note each in the journal."""
    folder, entry = options.output / name, journal["splits"][name]
    folder.mkdir(exist_ok=True)
    size = max(SHARD, -(-len(source) // MOST_SHARDS))
    count = -(-len(source) // size)
    shards = entry["shards"]
    if options.format == "raw":
        form = RawForm(tuple(journal["image"]), journal["square"])
        writer = RawWriter(folder, form.shape, shards)
    else:
        form = JpegForm(options.size, options.quality)
        writer = JpegWriter(folder, journal["classes"] or [], count, shards)
    prefix = f"{options.data.data_dir}{os.sep}"

    def convert(indices: list[int], place: Place) -> tuple[list[int], list, list[str]]:
        kept, images, bad = [], [], []
        for index in indices:
            try:
                images.append(form(source, place.enter(index)))
                kept.append(index)
            except BadImageError as error:
                bad.append(str(error))
        place.leave()
        return kept, images, bad

    done = len(shards) * size
    converted = work_ahead(
        convert, _chunks(done, len(source), size), options.data.workers, lambda i: name_of(source, i)
    )
    allowed = options.data.max_bad_images * len(source)
    with tqdm(total=len(source), initial=min(done, len(source)), desc=f"pack {name}", unit=" images") as progress:
        for number in range(len(shards), count):
            shard: dict[str, Any] = {"images": 0, "left_out": []}
            last = min((number + 1) * size, len(source))
            for _ in range(-(-(last - number * size) // CHUNK)):
                kept, images, bad = next(converted)
                for message in bad:
                    log.warning("unreadable image, left out: %s", message)
                shard["left_out"] += bad
                shard["images"] += len(images)
                left_out = sum(len(known["left_out"]) for known in (*shards, shard))
                if left_out > allowed:
                    raise DataError(
                        f"{left_out} unreadable images, more than --max-bad-images allows ({allowed:g} of {name}); the "
                        f"last: {bad[-1]}"
                    )
                if images:
                    names = [name_of(source, index).removeprefix(prefix) for index in kept]
                    writer.add(images, codes[kept].numpy(), names)
                progress.update(len(images) + len(bad))
            writer.end_shard(number)
            shards.append(shard)
            entry["images"] += shard["images"]
            write_checked(options.output / JOURNAL, journal)
    entry["files"] = writer.end()
    write_checked(options.output / JOURNAL, journal)


def _chunks(first: int, end: int, shard: int) -> Iterator[list[int]]:
    """Numbers of images, chunk by chunk; none reaches over the end of a shard."""
    for begin in range(first, end, shard):
        last = min(begin + shard, end)
        yield from (list(range(at, min(at + CHUNK, last))) for at in range(begin, last, CHUNK))
