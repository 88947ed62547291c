"""Which files the rows of a table name: by paths that are there, or by the images below the folder that end so."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence

from simclr_fast.data.image_files import is_image_name

SAMPLE = 64  # values of a column that are tried
# Share of them that must be found by their ends alone: numbers are the names of some images by accident.
FOUND_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Way:
    """How the values of a column name files.

    parts: 0 for paths from the table's folder (or from the root of the disk); else by so many last parts of a path, the
    rest of which is of another machine, or missing. stem: the names lack their suffix.
    """

    parts: int
    stem: bool = False

    def __str__(self) -> str:
        return "" if self.parts == 0 else f", found by their {'names' if self.parts == 1 else 'last folders and names'}"


class AmbiguousNameError(ValueError):
    """Several images have the name."""


class NamedFiles:
    """Finds files for values of a table in a folder. below: gives the images below it, by relative paths."""

    def __init__(self, root: str, below: Callable[[], list[str]]):
        self.root = root
        self.below = functools.cache(below)
        self._by_end: dict[Way, dict[str, list[str]]] = {}

    def way(self, values: Sequence[str | None], expected: bool) -> Way | None:
        """How these values name files; None where (nearly) none of them does.

        expected: whether the column is called as one of images; others may hold numbers that are names by accident.
        """
        given = [value for value in values if value is not None]
        sample = given[:: max(1, len(given) // SAMPLE)]
        there = [path for path in map(self._there, sample) if path is not None]
        # A path of an image that is there is no accident; files of other kinds, and without a suffix, may be.
        bare = [path for path in there if not os.path.splitext(path)[1]]
        if any(map(is_image_name, there)) or len(bare) > FOUND_SHARE * len(sample):
            return Way(0)
        if not sample or not self.below():
            return None
        stem = not any(is_image_name(value.strip()) for value in sample)
        if stem and not expected and all(value.strip().isdigit() for value in sample):
            return None
        most = max(len(_parts(value)) for value in sample)
        ways = [Way(parts, stem) for parts in range(most, 0, -1)]
        found = [sum(bool(self._ending(value, way)) for value in sample) for way in ways]
        if max(found) < FOUND_SHARE * len(sample):
            return None
        return next(way for way, count in zip(ways, found) if count >= max(found) / 2)

    def find(self, value: str, way: Way, preferred: str) -> str | None:
        """The file's path, from the folder or from the root of the disk; None where it is missing.

        preferred: of several images that end so, that in a first folder whose name begins so is meant. Raises
        AmbiguousNameError where that decides nothing.
        """
        if way.parts == 0:
            return self._there(value)
        found = self._ending(value, way)
        if len(found) > 1:
            found = [name for name in found if name.lower().startswith(preferred.lower())] or found
        if len(found) > 1:
            raise AmbiguousNameError(f"{value!r} is {found[0]} and {found[1]}")
        return found[0] if found else None

    def first(self, value: str, way: Way) -> str | None:
        """The file's path, or that of the first image that might be meant; None where it is missing."""
        return self._there(value) if way.parts == 0 else next(iter(self._ending(value, way)), None)

    def _there(self, value: str) -> str | None:
        found = next((path for path in _spellings(value) if os.path.isfile(os.path.join(self.root, path))), None)
        # "./a.png" is a.png; what ".." means, only the disk knows, where a link is before it.
        return found if found is None or ".." in found.split("/") else os.path.normpath(found)

    def _ending(self, value: str, way: Way) -> list[str]:
        if way not in self._by_end:
            ends: dict[str, list[str]] = {}
            for name in self.below():
                if (end := _end(name, way)) is not None:
                    ends.setdefault(end, []).append(name)
            self._by_end[way] = ends
        end = _end(value, way)
        return [] if end is None else self._by_end[way].get(end, [])


def _spellings(value: str) -> Iterator[str]:
    """A path as it is written, without blanks around it, and as Windows would mean it."""
    for path in dict.fromkeys((value, value.strip(), value.strip().replace("\\", "/"))):
        if path and "\0" not in path:
            yield path


def _parts(value: str) -> list[str]:
    return [part for part in value.strip().replace("\\", "/").split("/") if part not in ("", ".")]


def _end(value: str, way: Way) -> str | None:
    """The last parts of a path; None where it has fewer."""
    parts = _parts(value)
    if len(parts) < way.parts:
        return None
    if way.stem and is_image_name(parts[-1]):
        parts[-1] = os.path.splitext(parts[-1])[0]
    return "/".join(parts[-way.parts :])
