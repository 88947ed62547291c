"""An embedded data set in a folder: begun, gone on with behind the last whole shard, and read again.

The journal lies there while the features are made; the manifest takes its place when they are whole.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_fast.data.packed import read_checked, unfinished, write_checked
from simclr_fast.data.parts import WHAT_TELLS_IMAGES
from simclr_fast.errors import ConfigError, DataError
from simclr_fast.evaluation.feature_files import FORMATS, FeatureFiles, Rows
from simclr_fast.lock import LOCK_FILE

MANIFEST = "embedded.json"
JOURNAL = "embedding.json"
VERSION = 1


class FeatureSet:
    """The features below a folder, and what the journal says of them.

    journal: "options" (what made them), "images" (of the data set), "width" (numbers of a feature), "classes" (names or
    None), "labelled", and "shards": of each its "rows", its "files" with byte ranges, and "left_out", [number, message]
    of each image that could not be read.
    """

    def __init__(self, root: Path, journal: dict[str, Any]):
        self.root, self.journal = root, journal
        options = journal["options"]
        self.shard_size = options["shard_size"]
        self.count = -(-journal["images"] // self.shard_size)
        self.files: FeatureFiles = FORMATS[options["format"]](root, self.count, journal["classes"])

    @staticmethod
    def open(root: Path, options: dict[str, Any], about: dict[str, Any]) -> "FeatureSet":
        """The set to go on with, or a new one. options: what makes the features what they are, by name of the option;
        about: "images", "width", "classes" and "labelled".

        Raises ConfigError for a folder with other features or other files, DataError for damage.
        """
        wanted = json.loads(json.dumps(options))
        for name in (MANIFEST, JOURNAL):
            if (root / name).exists():
                journal = read_checked(root / name, "feature set", VERSION, f"remove {root}, and embed again")
                _require_same(root, journal["options"], wanted)
                if name == MANIFEST:
                    (root / JOURNAL).unlink(missing_ok=True)  # of one that was killed right before that
                found = FeatureSet(root, journal)
                for shard in journal["shards"]:
                    found.files.check(shard["files"])
                return found
        for name in (MANIFEST, JOURNAL):
            unfinished(root / name).unlink(missing_ok=True)  # of one that was killed while it wrote its first journal
        if others := sorted(path.name for path in root.iterdir() if path.name != LOCK_FILE):
            raise ConfigError(f"--output {root}: the folder is not empty ({others[0]} is there); pass another")
        journal = {"version": VERSION, "options": wanted, **json.loads(json.dumps(about)), "shards": []}
        write_checked(root / JOURNAL, journal)
        return FeatureSet(root, journal)

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The shards that are whole."""
        return self.journal["shards"]

    @property
    def rows(self) -> int:
        """The images that have features so far."""
        return sum(shard["rows"] for shard in self.shards)

    @property
    def left_out(self) -> list[tuple[int, str]]:
        """(number, message) of each image that could not be read so far."""
        return [(number, message) for shard in self.shards for number, message in shard["left_out"]]

    @property
    def is_whole(self) -> bool:
        return (self.root / MANIFEST).exists()

    def add(self, rows: Rows, left_out: list[tuple[int, str]]) -> None:
        """Write the next shard and note it. Raises OSError with the path."""
        number = len(self.shards)
        before = self.shards[-1]["files"] if number else {}
        files = self.files.write(number, rows, before)
        self.shards.append({"rows": len(rows), "left_out": [list(one) for one in left_out], "files": files})
        write_checked(self.root / JOURNAL, self.journal)

    def end(self) -> None:
        """After the last shard: the set is whole. Raises DataError where no image could be read."""
        if self.rows == 0:
            raise DataError(
                f"none of the {self.journal['images']} images can be read; the last: {self.left_out[-1][1]}"
            )
        self.files.end(self.rows, self.journal["width"], self.journal["options"]["dtype"])
        write_checked(self.root / MANIFEST, self.journal)
        (self.root / JOURNAL).unlink()

    def features(self) -> Iterator[Tensor]:
        """The features shard by shard, [n, D] as they are stored. Raises DataError for damage."""
        for number, shard in enumerate(self.shards):
            yield torch.from_numpy(self.files.features(number, shard["files"]))

    def at(self, rows: Tensor) -> Tensor:
        """The features at rows int64 [n], [n, D] as they are stored. Raises DataError for damage."""
        found: Tensor | None = None
        first = 0
        for number, shard in enumerate(self.shards):
            here = (rows >= first) & (rows < first + shard["rows"])
            if here.any():
                features = torch.from_numpy(self.files.features(number, shard["files"]))
                found = features.new_empty(len(rows), features.shape[1]) if found is None else found
                found[here] = features[rows[here] - first]
            first += shard["rows"]
        return found

    def numbers(self) -> np.ndarray:
        """Which image each row is of, int64 [rows]: its number among all images of the data set."""
        gone = np.array([number for number, _ in self.left_out], dtype=np.int64)
        done = min(len(self.shards) * self.shard_size, self.journal["images"])
        return np.setdiff1d(np.arange(done), gone, assume_unique=True)


def _require_same(root: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ConfigError with the first option that differs."""
    for key, value in wanted.items():
        if found.get(key) == value or key == "data":  # the same images count, wherever they lie by now
            continue
        if key == "images":
            raise ConfigError(
                f"--data {wanted['data']}: its images or classes are not those that were there when the features in "
                f"{root} were begun ({WHAT_TELLS_IMAGES}); pass another --output, or remove that folder"
            )
        what = "weights" if key == "checkpoint" else key
        raise ConfigError(
            f"--output {root}: holds features made with {what} {found.get(key)}, and this is {value}; pass what was "
            "passed then, or another folder"
        )
