"""The list of all that a run ignored of its data set, in the run's folder."""

from collections.abc import Iterable
from pathlib import Path

from simclr_fast.data.messages import Ignored, on_one_line, without_breaks
from simclr_fast.errors import naming

IGNORED_FILE = "ignored.txt"


class IgnoredFile:
    """A line `name TAB reason`, in UTF-8, for each file or row that was ignored; without any there is no file.

    A run that goes on adds to what is there, each line once.
    """

    def __init__(self, folder: Path):
        self.path = folder / IGNORED_FILE
        self._lines = set(self.path.read_text(encoding="utf-8").splitlines()) if self.path.exists() else set()

    def add(self, ignored: Iterable[Ignored]) -> None:
        """Append what is not there yet. Raises OSError."""
        lines = dict.fromkeys(f"{on_one_line(name)}\t{without_breaks(reason)}" for name, reason in ignored)
        new = [line for line in lines if line not in self._lines]
        if new:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in new)
            self._lines.update(new)
