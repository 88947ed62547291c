"""Unreadable images: each is named, counted against what may be unreadable, and replaced by another."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from simclr_fast.data.ignored import IgnoredFile
from simclr_fast.data.messages import Ignored
from simclr_fast.errors import DataError, in_utf8

REPLACEMENT_TRIES = 10
# Prime steps of the walk to a replacement: neighbours often share one broken archive. A step that divides the number of
# images would lead in a circle past few of them, which is what the other step is for.
STEPS = (7919, 7907)

log = logging.getLogger(__name__)


class BadImageError(RuntimeError):
    """An image cannot be read or decoded; the message holds its name, as text, and the reason."""

    def __init__(self, message: str):
        super().__init__(in_utf8(message))


def unreadable_entry(name: str, message: str) -> Ignored:
    """What the list of ignored files holds of an image, of whose name a BadImageError's message begins."""
    return name, f"unreadable: {message.removeprefix(f'{in_utf8(name)}: ')}"


class NoneReadableError(DataError):
    """Neither an image nor those that may stand in for it can be read.

    bad: a message by its index for each of them, and for what could not be read before and was replaced.
    """

    def __init__(self, message: str, bad: dict[int, str]):
        super().__init__(message)
        self.bad = bad


def allowance(share: float, images: int) -> int:
    """How many of so many images may be unreadable: the share of them rounded up, so that any share allows one."""
    return math.ceil(round(share * images, 6))  # 0.07 of 100 are 7.000000000000001 in floats


@dataclasses.dataclass
class BadImages:
    """The unreadable images of a data set that this process knows of, each once.

    allowed: how many there may be (`allowance` of --max-bad-images); messages: by the image's name;
    listed_in: the run's list of what was ignored, which takes them too where there is one.
    """

    allowed: int = 0
    messages: dict[str, str] = dataclasses.field(default_factory=dict)
    listed_in: IgnoredFile | None = None

    def __len__(self) -> int:
        return len(self.messages)

    def note(self, found: Mapping[str, str], are_replaced: bool = True) -> None:
        """Count and log messages by name, unless they are known. Raises DataError where they are too many."""
        for name, message in found.items():
            if name not in self.messages:
                self.messages[name] = message
                replaced = ", replaced by another" if are_replaced and len(self) <= self.allowed else ""
                log.warning("unreadable image%s: %s", replaced, message)
        if found:
            self._list()
        if len(self) > self.allowed:
            raise DataError(
                f"{len(self)} unreadable images, more than --max-bad-images allows ({self.allowed} of the data set; "
                f"pass a larger share, or mend them); the last: {next(reversed(self.messages.values()))}"
            )

    def share_with_others(self) -> None:
        """Add what the other training processes know; all of them must call this. Raises DataError as `note` does."""
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return
        known: list[dict[str, str]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(known, self.messages)
        for messages in known:
            self.messages |= messages  # whoever met one has logged it
        self._list()
        self.note({})

    def list_in(self, file: IgnoredFile) -> None:
        """From now on, add what is unreadable to the run's list of what was ignored."""
        self.listed_in = file
        self._list()

    def _list(self) -> None:
        if self.listed_in is not None:
            self.listed_in.add(unreadable_entry(name, message) for name, message in self.messages.items())


def walk(index: int, size: int, labels: Tensor | None) -> Iterator[int]:
    """`index`, then the images that may stand in for it: those of its class first, so that its label stays true.

    A function of its arguments alone, so that a resumed run sees the same images.
    """
    yield index
    if labels is not None:
        members = (labels == labels[index]).nonzero().flatten()
        place = int((members == index).nonzero())
        yield from members[list(_circle(place, len(members)))].tolist()
    yield from _circle(index, size)


def _circle(place: int, size: int) -> Iterator[int]:
    """Up to REPLACEMENT_TRIES - 1 different places in range(size), none of them `place`."""
    step = STEPS[size % STEPS[0] == 0]
    for attempt in range(1, min(REPLACEMENT_TRIES, size)):
        yield (place + attempt * step) % size


def load_or_replace(
    load: Callable[[int], Tensor], index: int, size: int, bad: dict[int, str], labels: Tensor | None = None
) -> Tensor:
    """Image `index`, or where it is unreadable the next readable one of `walk`.

    Adds a message per unreadable image to `bad`. Raises NoneReadableError after ten unreadable ones in a row.
    """
    tried: set[int] = set()
    for candidate in walk(index, size, labels):
        if candidate in tried:
            continue
        try:
            return load(candidate)
        except BadImageError as error:
            bad[candidate] = last = str(error)
            tried.add(candidate)
        if len(tried) == REPLACEMENT_TRIES:
            break
    message = f"{len(tried)} unreadable images in a row, the last: {last}; mend them or take them away"
    raise NoneReadableError(message, bad)
