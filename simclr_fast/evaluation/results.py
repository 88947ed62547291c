"""Files of results: what each is called, what it is about, and which of them a command left in a folder.

Every published protocol and every list of labelled images has a file of its own, so that none takes another's place.
"""

import re
import typing
from pathlib import Path
from typing import Any

from simclr_fast.config import as_dict, flag
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.protocols import OWN, ProtocolName
from simclr_fast.run_files import read_results

LONGEST_STEM = 50  # characters of a list's name: file systems take 255 bytes, and a character may take four
# Options that are in the file's name, or that figures do not follow from but by rounding.
UNSAID = ("checkpoint", "model", "output", "device", "threads", "workers", "download", "protocol")

FIRST_WORDS = {name.partition("-")[0] for name in typing.get_args(ProtocolName)}
LIST = "list"  # the key of results of a list of labelled images, where others have a fraction


def fraction_key(fraction: float) -> str:
    """The key of results of a share of the labels: 0.01, and 1 of all of them."""
    return repr(float(fraction)).removesuffix(".0")


def share_of_labels(fraction: float) -> str:
    """A share of the labels in percent, 0.5%; of a part never 100%."""
    return f"{100 * fraction:.12g}%"


def stem_of(command: str, options: Any) -> str:
    """The name without its suffix of what a command writes: the command's, with its protocol and its list."""
    protocol, path = getattr(options, "protocol", OWN), getattr(options, "label_list", None)
    parts = [command] if protocol == OWN else [command, protocol]
    if path is not None:
        stem = re.sub(r"[^\w.-]", "_", path.stem)[:LONGEST_STEM]
        # A list that is called as a protocol is could be taken for that protocol.
        parts += [OWN] if protocol == OWN and stem.partition("-")[0] in FIRST_WORDS else []
        parts.append(stem)
    return "-".join(parts)


def left_by(command: str, folder: Path) -> dict[Path, dict[str, Any]]:
    """Content of every file of results that a command left in a folder: its own evaluation's, then others by name.

    Raises ConfigError for a damaged one.
    """
    paths = [folder / f"{command}.json", *sorted(folder.glob(f"{command}-*.json"))]
    found = {path: content for path in paths if (content := read_results(path)) is not None}
    return {path: content for path, content in found.items() if content.get("command") == command}


def heading(content: dict[str, Any]) -> str:
    """By which protocol and of which list results are, ", protocol simclr, 1percent.txt"; nothing for neither."""
    return "".join(f", {one}" for one in (content.get("protocol"), list_name(content)) if one)


def list_name(content: dict[str, Any]) -> str | None:
    """The name of the file that names the labelled images of these results; None where there was none."""
    path = content["options"].get("label_list")
    return None if path is None else Path(path).name


def other_options(path: Path, options: Any) -> str:
    """How the results that lie at `path` were made where they were made otherwise than `options` say; else nothing."""
    try:
        content = read_results(path) or {}
    except ConfigError:  # a damaged file holds nothing that could be kept: it is renewed
        return ""
    theirs, ours = content.get("options", {}), as_dict(options)
    same = lambda a, b: (list(a) if isinstance(a, tuple) else a) == (list(b) if isinstance(b, tuple) else b)
    other = [name for name in ours if name in theirs and name not in UNSAID and not same(theirs[name], ours[name])]
    return ", ".join(_words(flag(name), theirs[name]) for name in other)


def _words(name: str, value: Any) -> str:
    """An option as it was given."""
    if value is None or value is False:
        return f"no {name}"
    return name if value is True else f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
