"""Tables of results: the console shows them, the JSON files keep them, the HTML page repeats them."""

import dataclasses
import statistics

from rich.table import Table
from rich.text import Text


def percent(value: float | None, deviation: float | None = None) -> str:
    """A fraction for a table's cell, in percent, with its standard deviation where there is one; None as a dash."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if deviation is None else f"{100 * value:.1f} ± {100 * deviation:.1f}"


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation of repetitions; a single one has no deviation."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """A table of text cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    @staticmethod
    def of(title: str, first: str, columns: dict[str, str], rows: dict[str, dict[str, str]]) -> "ResultTable":
        """A row per setting and a column per key of `columns`; rows: setting -> column key -> cell."""
        body = [[setting, *(cells[key] for key in columns)] for setting, cells in rows.items()]
        return ResultTable(title, [first, *columns.values()], body)

    def rich(self) -> Table:
        # As Text: names of classes and files may hold square brackets, which rich takes for markup in a string.
        table = Table(title=Text(self.title))
        for number, name in enumerate(self.columns):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table
