"""What is said of a data set, once for all processes: what it is, and what is ignored, by count and by name."""

import logging
import os
import re
from collections.abc import Iterable

import torch

from simclr_fast.errors import in_utf8

SHOWN = 3  # names of ignored files that a message spells out for each reason
REASONS = 8  # reasons that a message spells out
LISTED = 5  # names of classes that a message spells out

Ignored = tuple[str, str]  # name, as messages call it; reason

LIKE_ESCAPE = re.compile(r"\\[\\nrtxu]")  # what escapes begin with

log = logging.getLogger(__name__)


def say(message: str) -> None:
    """Log a warning in the first process only."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        log.warning("%s", message)


def listed(names: list[str], kind: tuple[str, str] = ("class", "classes")) -> str:
    """class(es) by name, the first few of them. kind: what they are, one and several."""
    shown = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    return f"{kind[0] if len(names) == 1 else f'{len(names)} {kind[1]}:'} {shown}"


def size_text(count: float) -> str:
    """So many bytes for a reader: in GB, or in MB what is less than one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def say_ignored(name: str, ignored: Iterable[Ignored]) -> None:
    """Log how many files or rows were ignored and why, the most frequent reasons first, with a few names of each.

    name: of the data set or its part; the path of a folder is left off the names.
    """
    by_reason: dict[str, list[str]] = {}
    for entry, reason in ignored:
        by_reason.setdefault(reason, []).append(entry.removeprefix(f"{name}{os.sep}"))
    if not by_reason:
        return
    order = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    parts = [f"{len(names)} {reason}: {_few(names)}" for reason, names in order[:REASONS]]
    if len(order) > REASONS:
        parts.append(f"{sum(len(names) for _, names in order[REASONS:])} for other reasons")
    say(f"{name}: ignored {sum(map(len, by_reason.values()))} ({'; '.join(parts)})")


def _few(names: list[str]) -> str:
    return ", ".join(map(on_one_line, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def on_one_line(name: str) -> str:
    """A name that fits into a line of UTF-8: line breaks and tabs, and bytes that are not UTF-8, become escapes.

    Names that differ stay different, so not to be applied twice: where there is an escape, or what might be taken for
    one, backslashes are doubled.
    """
    escaped = without_breaks(name)
    return escaped if escaped == name and not LIKE_ESCAPE.search(name) else without_breaks(name.replace("\\", "\\\\"))


def without_breaks(text: str) -> str:
    """As `on_one_line`, for text in which there may be escapes already."""
    breaks = lambda character: character == "\t" or len(f" {character} ".splitlines()) > 1
    return in_utf8("".join(c.encode("unicode_escape").decode() if breaks(c) else c for c in text))
