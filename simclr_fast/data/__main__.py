"""Pack data sets, so that training reads them faster.

    python -m simclr_fast.data pack --data-dir /data/imagenet --output /data/imagenet256        # JPEG, shorter side 256
    python -m simclr_fast.data pack --data-dir /data/imagenet --output /data/raw --format raw   # pixels, 256 x 256
    python -m simclr_fast.data check --data-dir /data/imagenet256                               # reads all of it
    python train.py imagenet --data-dir /data/imagenet256

Stopped, `pack` goes on where it was when it is started again in the same way. `COMMAND --help` explains every option;
docs/data.md says what is in the folder.
"""

import dataclasses
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from simclr_fast.config import RULES, Rule, require
from simclr_fast.data.pack import PackOptions, pack
from simclr_fast.data.packed import read_manifest
from simclr_fast.data.verify import verify
from simclr_fast.process import exit_status

PROGRAM = "python -m simclr_fast.data"
RULES_OF_PACK: dict[str, Rule] = {
    **{name: RULES[name] for name in ("workers", "max_bad_images")},
    "size": (lambda value: value >= 8, "at least 8 pixels"),
    "quality": (lambda value: 1 <= value <= 95, "1 to 95"),
}


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Read a packed set from end to end, and look at every checksum."""

    data_dir: Path
    """Folder that `pack` wrote."""
    workers: int = 8
    """Threads that read."""


def parse(arguments: Sequence[str]) -> PackOptions | CheckOptions:
    """The options of the command that comes first."""
    parser = tyro.extras.SubcommandApp()
    for name, kind in (("pack", PackOptions), ("check", CheckOptions)):
        parser.command(name=name)(_as_command(kind))
    return parser.cli(args=list(arguments), prog=PROGRAM, description=__doc__)


def _as_command(kind: type):
    def command(values: PackOptions | CheckOptions):
        return values

    command.__annotations__["values"] = tyro.conf.OmitArgPrefixes[kind]
    command.__doc__ = kind.__doc__
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status (see `errors.EXIT_STATUS`)."""
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(message)s")
    chosen = parse(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        values = vars(chosen) | (vars(chosen.data) if isinstance(chosen, PackOptions) else {})
        for name, (fulfils, remedy) in RULES_OF_PACK.items():
            require(name not in values or fulfils(values[name]), name, values.get(name), f"pass {remedy}")
        if isinstance(chosen, PackOptions):
            try:
                root, manifest = chosen.output, pack(chosen)
            except KeyboardInterrupt:
                print(f"{PROGRAM}: stopped; the same command goes on behind the last whole shard", file=sys.stderr)
                return 128 + signal.SIGINT
        else:
            root = chosen.data_dir
            manifest = read_manifest(root)
            verify(root, manifest, chosen.workers)
        for name, split in manifest["splits"].items():
            size = sum(file["bytes"] for file in split["files"].values())
            left_out = sum(len(shard["left_out"]) for shard in split["shards"])
            print(
                f"{root}, {name}: {split['images']} images, {size / 1e6:,.1f} MB, {left_out} unreadable ones left out"
            )
        print(f"Every checksum was right. Next: python train.py RECIPE --data-dir {root}")
        return 0

    return exit_status(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
