"""What a manifest must hold before anything is read by it: kinds of entries, and counts that agree with the files."""

from pathlib import Path
from typing import Any

from simclr_fast.errors import DataError

HEADER = 128  # bytes before the rows of an .npy file that `pack` writes
LABELS, CHECKSUMS, PLACES, IMAGES = "labels.npy", "checksums.npy", "places.npy", "images.npy"
ROW_BYTES = {LABELS: 8, CHECKSUMS: 4, PLACES: 16}
SPLITS = ("train", "labelled", "test")
DATASET_DICT = "dataset_dict.json"


def shard_name(number: int, count: int) -> str:
    """What `datasets` calls the Arrow files of a split."""
    return f"data-{number:05d}-of-{count:05d}.arrow"


def check_shape(path: Path, manifest: dict[str, Any]) -> None:
    """Raises DataError, with the entry's name, where the manifest of a whole set at `path` cannot be one."""
    form, classes = manifest.get("format"), manifest.get("classes")
    _require(form in ("jpeg", "raw"), path, "format", form)
    _require(isinstance(manifest.get("options"), dict), path, "options", manifest.get("options"))
    named = classes is None or (isinstance(classes, list) and all(isinstance(name, str) for name in classes))
    _require("classes" in manifest and named, path, "classes", classes)
    image = manifest.get("image")
    if form == "raw":
        _require(isinstance(image, list) and len(image) == 3 and all(map(_is_count, image)), path, "image", image)
        _require(min(image) > 0 and image[2] in (1, 3), path, "image", image)
    _check_files(path, "files", manifest.get("files"), {DATASET_DICT} if form == "jpeg" else set())
    splits = manifest.get("splits")
    _require(isinstance(splits, dict) and "train" in splits and set(splits) <= set(SPLITS), path, "splits", splits)
    for name, entry in splits.items():
        _check_split(path, name, entry, image if form == "raw" else None)


def _check_split(path: Path, name: str, entry: Any, image: list[int] | None) -> None:
    """image: [H, W, C] of raw images."""
    place = f"splits.{name}"
    _require(isinstance(entry, dict), path, place, entry)
    count, shards = entry.get("images"), entry.get("shards")
    _require(_is_count(count) and count > 0, path, f"{place}.images", count)
    _require(isinstance(shards, list), path, f"{place}.shards", shards)
    for shard in shards:
        fits = isinstance(shard, dict) and _is_count(shard.get("images")) and isinstance(shard.get("left_out"), list)
        _require(fits, path, f"{place}.shards", shard)
    _require(sum(shard["images"] for shard in shards) == count, path, f"{place}.shards", shards)
    rows = {LABELS, CHECKSUMS} | (set() if image else {PLACES})
    others = [IMAGES] if image else [shard_name(k, len(shards)) for k in range(len(shards))]
    others += [] if image else ["state.json", "dataset_info.json"]
    _check_files(path, f"{place}.files", entry.get("files"), {f"{name}/{file}" for file in (*rows, *others)})
    row_bytes = {file: ROW_BYTES[file] for file in rows}
    if image:
        row_bytes[IMAGES] = image[0] * image[1] * image[2]
    for file, size in row_bytes.items():
        known = entry["files"][f"{name}/{file}"]["bytes"]
        _require(known == HEADER + count * size, path, f"{place}.files.{name}/{file}", f"{known} bytes")


def _check_files(path: Path, place: str, files: Any, names: set[str]) -> None:
    _require(isinstance(files, dict) and set(files) == names, path, place, files)
    for name, known in files.items():
        fits = isinstance(known, dict) and _is_count(known.get("bytes"))
        fits = fits and (name.endswith(IMAGES) or _is_count(known.get("crc32")))
        _require(fits, path, f"{place}.{name}", known)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require(fulfilled: bool, path: Path, place: str, found: Any) -> None:
    if not fulfilled:
        shown = repr(found) if len(repr(found)) <= 60 else f"{repr(found)[:60]}..."
        raise DataError(f"{path}: its entry {place} cannot be ({shown}); pack the data set again into an empty folder")
