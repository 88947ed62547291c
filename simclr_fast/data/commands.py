"""The commands `pack` and `check`, of packed data sets.

    simclr-fast pack --data /data/imagenet --output /data/imagenet256        # JPEG, shorter side 256
    simclr-fast pack --data /data/imagenet --output /data/raw --format raw   # pixels, 256 x 256
    simclr-fast check --data /data/imagenet256                               # reads all of it
    simclr-fast pretrain imagenet --data /data/imagenet256

Stopped, `pack` goes on where it was when it is started again in the same way. docs/data.md says what is in the folder.
"""

import dataclasses
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from simclr_fast.config import RULES, Rule, check_values
from simclr_fast.data.ignored import IGNORED_FILE
from simclr_fast.data.pack import PackOptions, pack
from simclr_fast.data.packed import MANIFEST, read_manifest
from simclr_fast.data.verify import verify

RULES_OF_PACK: dict[str, Rule] = {
    **{name: RULES[name] for name in ("workers", "max_bad_images", "output")},
    "size": (lambda value: value >= 8, "at least 8 pixels"),
    "quality": (lambda value: 1 <= value <= 95, "1 to 95"),
}


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Read a packed set from end to end, and look at every checksum."""

    data: Path
    """Folder that holds the data set, one that `pack` wrote."""
    workers: int = 8
    """Threads that read and decode images."""


def pack_command(options: PackOptions) -> int:
    """Pack, and say what was written; returns the exit status. Raises the errors of `errors.EXIT_STATUS`."""
    check_values(vars(options) | vars(options.data), RULES_OF_PACK)
    try:
        manifest = pack(options)
    except KeyboardInterrupt:
        print("simclr-fast pack: stopped; the same command goes on behind the last whole shard", file=sys.stderr)
        return 128 + signal.SIGINT
    _say_what_is_there(options.output, manifest)
    ignored = [IGNORED_FILE] if (options.output / IGNORED_FILE).exists() else []
    folders = [f"{name}/" for name in manifest["splits"]]
    print(f"Written to {options.output}: {', '.join([*folders, MANIFEST, *manifest.get('files', {}), *ignored])}")
    return 0


def check_command(options: CheckOptions) -> int:
    """Read all of a packed set; returns the exit status. Raises the errors of `errors.EXIT_STATUS`."""
    check_values(vars(options), RULES_OF_PACK)
    manifest = read_manifest(options.data)
    verify(options.data, manifest, options.workers)
    _say_what_is_there(options.data, manifest)
    return 0


def _say_what_is_there(root: Path, manifest: dict[str, Any]) -> None:
    for name, split in manifest["splits"].items():
        size = sum(file["bytes"] for file in split["files"].values())
        left_out = sum(len(shard["left_out"]) for shard in split["shards"])
        print(f"{root}, {name}: {split['images']} images, {size / 1e6:,.1f} MB, {left_out} unreadable ones left out")
    print(f"Every checksum was right. Next: simclr-fast pretrain RECIPE --data {shlex.quote(str(root))}")
