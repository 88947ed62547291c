"""Packs a data set: its images once read, shrunk and written in the order in which training numbers them.

Each shard that is whole is noted in a journal, so that the same command goes on behind it; the manifest, which makes
the folder a data set, is written last, once all was read back. What is written depends on the images and the options
alone, however often the command was stopped, and by however many threads.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from simclr_fast.config import SourceOptions
from simclr_fast.data.auto import about, found_in
from simclr_fast.data.chunks import CHUNK, work_ahead
from simclr_fast.data.datasets import load_dataset
from simclr_fast.data.ignored import IgnoredFile
from simclr_fast.data.messages import say, size_text
from simclr_fast.data.pack_images import JpegForm, RawForm
from simclr_fast.data.pack_writers import JpegWriter, RawWriter
from simclr_fast.data.packed import (
    JOURNAL,
    MANIFEST,
    VERSION,
    check_files,
    file_entry,
    read_checked,
    read_manifest,
    unfinished,
    write_checked,
)
from simclr_fast.data.packed_shape import DATASET_DICT, check_shape
from simclr_fast.data.parts import WHAT_TELLS_IMAGES, Part, digest_of, parts_of, pieces_of
from simclr_fast.data.sources import Dataset, Source
from simclr_fast.data.threads import Place
from simclr_fast.data.unreadable import BadImageError, allowance
from simclr_fast.data.verify import verify
from simclr_fast.errors import ConfigError, DataError
from simclr_fast.lock import LOCK_FILE, claim

SHARD = 4096  # images, or more, so that a split has at most MOST_SHARDS, all of which are open while it is read
MOST_SHARDS = 256
PIECE_BYTES = 4 << 20  # of raw images that a thread has finished at a time; each thread is up to two pieces ahead

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


def pack(options: PackOptions) -> dict[str, Any]:
    """Write the packed set, or the rest of it, and return its manifest.

    Raises ConfigError where the output cannot serve, DataError for more unreadable images than may be and for damage,
    OSError with the path for a full disk.
    """
    root, threads = options.output, options.data.workers
    with _locked(root):
        data, why = found_in(options.data)
        options = dataclasses.replace(options, data=data)  # so that what is noted is what was found
        journal = _begun(options)
        if journal is None:
            log.warning("%s: packed already, with these options; it is only verified", root)
            manifest = read_manifest(root)
            verify(root, manifest, threads)
            (root / JOURNAL).unlink(missing_ok=True)
            return manifest
        dataset = load_dataset(options.data)
        if why is not None:
            say(about(options.data, dataset, why))
        parts = parts_of(dataset)
        _prepare(journal, options, dataset, parts)
        IgnoredFile(root).add(dataset.ignored)
        for entry in journal["splits"].values():
            if _is_whole(entry):
                check_files(root, entry["files"])
        for name, (source, codes) in parts.items():
            if not _is_whole(journal["splits"][name]):
                _pack_split(name, source, codes, options, journal)
        if options.format == "jpeg":
            (root / DATASET_DICT).write_text(json.dumps({"splits": list(parts)}))
            journal["files"] = {DATASET_DICT: file_entry(root / DATASET_DICT)}
        check_shape(root / JOURNAL, journal)
        verify(root, journal, threads)
        write_checked(root / MANIFEST, journal)
        (root / JOURNAL).unlink()
        return journal


def _is_whole(entry: dict[str, Any]) -> bool:
    return "rows_crc32" not in entry


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keeps a second `pack` out of a folder, which goes again where it was made here and nothing was packed.

    Raises ConfigError.
    """
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = claim(root, "another process packs")
    except OSError as error:
        raise ConfigError(f"--output {root}: nothing can be written there ({error.strerror})") from error
    try:
        yield
    finally:
        # Whoever waits for the lock of a whole set, or of a folder that goes, writes nothing there.
        empty = is_new and [path.name for path in root.iterdir()] == [LOCK_FILE]
        if empty or (root / MANIFEST).exists():
            (root / LOCK_FILE).unlink(missing_ok=True)
        if empty:
            root.rmdir()
        lock.release()


def _begun(options: PackOptions) -> dict[str, Any] | None:
    """The journal to go on from, with no splits at the beginning; None where the set is there. Raises ConfigError."""
    root, wanted = options.output, _identity(options)
    for name in (MANIFEST, JOURNAL):
        if (root / name).exists():
            journal = read_checked(root / name)
            if name == MANIFEST:
                check_shape(root / name, journal)
            found = journal["options"]
            if different := [key for key in wanted if found.get(key) != wanted[key]]:
                key = different[0]
                raise ConfigError(
                    f"--output {root}: holds a set packed with {key} {found.get(key)}, and this is {wanted[key]}; pass "
                    "the same options, or another folder"
                )
            return None if name == MANIFEST else journal
    for name in (MANIFEST, JOURNAL):
        unfinished(root / name).unlink(missing_ok=True)  # of a pack that was killed while it wrote its first journal
    if [path for path in root.iterdir() if path.name != LOCK_FILE]:
        raise ConfigError(f"--output {root}: the folder is not empty; pass another")
    return {"version": VERSION, "format": options.format, "options": wanted, "files": {}, "splits": {}}


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
        **({} if data.dataset == "mnist5k" else {"data": str(data.data.resolve())}),
        **(columns if data.dataset in ("huggingface", "table") else {}),
    }


def _prepare(journal: dict[str, Any], options: PackOptions, dataset: Dataset, parts: dict[str, Part]) -> None:
    """Note what is to be packed in a new journal; in an old one, see that it is the same. Raises ConfigError."""
    classes = None if dataset.classes is None else list(dataset.classes)
    threads = options.data.workers
    sources = {name: {"images": len(part[0]), "digest": digest_of(*part, threads)} for name, part in parts.items()}
    about = {"classes": classes, "sources": sources}
    if journal["splits"]:
        if {key: journal[key] for key in about} != about:
            raise ConfigError(
                f"--data {options.data.data}: its images or classes are not those that were there when the "
                f"packing began ({WHAT_TELLS_IMAGES}); remove {options.output}, and begin again"
            )
        return
    if options.format == "raw":
        form = RawForm.of([source for source, _ in parts.values()], options.size, threads)
        about |= {"image": form.shape, "square": form.square}
        needed = sum(len(source) for source, _ in parts.values()) * int(np.prod(form.shape))
        if needed > (free := shutil.disk_usage(options.output).free):
            raise ConfigError(f"--output {options.output}: needs {size_text(needed)}, and {size_text(free)} are free")
    elif dataset.train.channels != 3:
        raise ConfigError("--format jpeg: the images are grey, and would come back with 3 channels; pass --format raw")
    about["splits"] = {name: {"images": 0, "shards": [], "files": {}, "rows_crc32": {}} for name in parts}
    journal.update(json.loads(json.dumps(about)))
    write_checked(options.output / JOURNAL, journal)


def _pack_split(name: str, source: Source, codes: Tensor, options: PackOptions, journal: dict[str, Any]) -> None:
    """Write the shards of a split that are missing, and note each in the journal."""
    folder, entry = options.output / name, journal["splits"][name]
    size = max(SHARD, -(-len(source) // MOST_SHARDS))
    count = -(-len(source) // size)
    shards, piece = entry["shards"], CHUNK
    if options.format == "raw":
        form = RawForm(tuple(journal["image"]), journal["square"])
        writer = RawWriter(folder, entry, form.shape)
        piece = max(1, min(CHUNK, PIECE_BYTES // int(np.prod(form.shape))))
    else:
        form = JpegForm(options.size, options.quality)
        writer = JpegWriter(folder, entry, journal["classes"] or [], count)
    prefix = f"{options.data.data}{os.sep}"

    def convert(indices: list[int], place: Place) -> tuple[list[int], list, list[str]]:
        kept, images, bad = [], [], []
        for index in indices:
            try:
                images.append(form(source, place.enter(index)))
                kept.append(index)
            except BadImageError as error:
                bad.append(str(error))
        return kept, images, bad

    done = len(shards) * size
    allowed = allowance(options.data.max_bad_images, len(source))
    pieces = pieces_of(done, len(source), size, piece)
    converting = work_ahead(convert, pieces, options.data.workers, source.name)
    progress = tqdm(total=len(source), initial=min(done, len(source)), desc=f"pack {name}", unit=" images")
    with writer, contextlib.closing(converting) as converted, progress:
        for number in range(len(shards), count):
            shard: dict[str, Any] = {"images": 0, "left_out": []}
            last = min((number + 1) * size, len(source))
            for _ in range(-(-(last - number * size) // piece)):
                kept, images, bad = next(converted)
                for message in bad:
                    log.warning("unreadable image, left out: %s", message)
                shard["left_out"] += bad
                shard["images"] += len(images)
                left_out = sum(len(known["left_out"]) for known in (*shards, shard))
                if left_out > allowed:
                    raise DataError(
                        f"{left_out} unreadable images, more than --max-bad-images allows ({allowed} of {name}); the "
                        f"last: {bad[-1]}"
                    )
                if images:
                    names = [source.name(index).removeprefix(prefix) for index in kept]
                    writer.add(images, codes[kept].numpy(), names)
                progress.update(len(images) + len(bad))
            writer.end_shard(shard)
            write_checked(options.output / JOURNAL, journal)
        if entry["images"] == 0:
            last_bad = "".join(shards[-1]["left_out"][-1:])
            raise DataError(f"{name}: none of its {len(source)} images can be read; the last: {last_bad}")
        writer.end()
    write_checked(options.output / JOURNAL, journal)
