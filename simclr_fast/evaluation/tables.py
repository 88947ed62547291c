"""Accuracies and the tables that show them: on the console, in the JSON files, on the HTML page and the model card."""

import dataclasses
import statistics

import torch
from torch import Tensor

from simclr_fast.data import Dataset

TOP = 5
LONGEST_TABLE = 20  # classes; of more a table shows the best and the worst of the encoder that it is about
Cell = str | float | None | dict[str, float | None]  # text, a fraction, or what `spread` gives


def class_names(data: Dataset) -> list[str]:
    """Name of every class by its number; the number itself where the data set has no names.

    Covers each label of the labelled training and of the test images, also one that only one of the two has.
    """
    parts = [part.labels for part in (data.labelled, data.test) if part is not None and part.labels is not None]
    largest = max((int(labels.max()) for labels in parts if len(labels)), default=-1)
    names = list(data.classes or ())
    return names + [str(label) for label in range(len(names), largest + 1)]


def share_right(predicted: Tensor, truth: Tensor) -> float:
    """Share of the predicted classes, int64 [N], that are the true ones, int64 [N]."""
    return (predicted.cpu() == truth.cpu()).float().mean().item()


def accuracy(scores: Tensor, truth: Tensor) -> float:
    """Share of the rows of scores [N, classes] that are largest at their class, truth int64 [N]."""
    return share_right(scores.argmax(dim=1), truth)


def top5_accuracy(scores: Tensor, truth: Tensor) -> float:
    """Share of the rows of scores [N, classes] whose class is among the five largest; of use beyond five classes.

    A class of score -inf, for which no neighbour voted, is no answer.
    """
    best, answers = scores.topk(min(TOP, scores.shape[1]), dim=1)
    right = (answers == truth.to(answers.device)[:, None]) & (best > -torch.inf)
    return right.any(dim=1).float().mean().item()


def class_accuracies(predicted: Tensor, truth: Tensor, classes: int) -> list[float | None]:
    """Accuracy (fraction) on the images of each class, int64 [N] both; None for a class that has no image."""
    right, count = (
        torch.bincount(part, minlength=classes).tolist() for part in (truth[predicted == truth], truth.flatten())
    )
    return [right[label] / count[label] if count[label] else None for label in range(classes)]


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
    def of(title: str, first: str, columns: dict[str, str], rows: dict[str, dict[str, Cell]]) -> "ResultTable":
        """A row per setting and a column per key of `columns`; rows: setting -> column key -> cell.

        Numbers are fractions and shown in percent.
        """
        body = [[setting, *(_text(cells[key]) for key in columns)] for setting, cells in rows.items()]
        return ResultTable(title, [first, *columns.values()], body)

    def rich(self) -> "rich.table.Table":
        from rich.table import Table  # accuracies can be had without the packages of training
        from rich.text import Text

        # As Text: names of classes and files may hold square brackets, which rich takes for markup in a string.
        table = Table(title=Text(self.title))
        for number, name in enumerate(self.columns):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def class_table(
    title: str,
    names: list[str],
    truth: Tensor,
    scores: dict[str, list[float | None]],
    encoders: dict[str, str],
) -> ResultTable:
    """A row per class that has test images: its name, their number, and the accuracy (%) of each encoder.

    scores: what `class_accuracies` gives, by encoder; the last one orders the classes where there are too many to show.
    """
    images = torch.bincount(truth, minlength=len(names)).tolist()
    shown = [label for label in range(len(names)) if images[label]]
    if len(shown) > LONGEST_TABLE:
        ordered = sorted(shown, key=list(scores.values())[-1].__getitem__)
        shown = ordered[-LONGEST_TABLE // 2 :][::-1] + ordered[: LONGEST_TABLE // 2][::-1]
        title += f"; the {LONGEST_TABLE // 2} best and the {LONGEST_TABLE // 2} worst of {len(ordered)} classes"
    rows = [
        [names[label], str(images[label]), *(percent(of_encoder[label]) for of_encoder in scores.values())]
        for label in shown
    ]
    return ResultTable(title, ["class", "images", *(encoders[name] for name in scores)], rows)


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return percent(cell["mean"], cell["std"]) if isinstance(cell, dict) else percent(cell)
