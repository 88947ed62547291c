"""From the labels of rows, as text, to numbers of classes."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import torch
from torch import Tensor

from simclr_fast.data.messages import on_one_line

MOST_DIGITS = 400  # of a label that is taken for a number; more would take long to convert


def classes_of(labels: Sequence[str | None]) -> tuple[Tensor, list[str], str]:
    """Number of each label's class, int64 [N], -1 for none and for -1; the classes' names; why images have none.

    Classes are in the order of their numbers where all of them are numbers (3, 3.0 and 03 are one then), else of their
    names, which differ where the labels do.
    """
    given = [None if label is None else label.strip() for label in labels]
    distinct = {label for label in given if label}
    numbers = {label: _number(label) for label in distinct}
    if all(number is not None for number in numbers.values()):
        if fraction := next((label for label in sorted(numbers) if not _is_whole(numbers[label])), None):
            return torch.full((len(given),), -1), [], f"labels such as {fraction} are no numbers of classes"
        ordered = {label: str(int(numbers[label])) for label in sorted(numbers, key=numbers.__getitem__)}
    else:
        ordered = {label: on_one_line(label) for label in sorted(distinct)}
    ordered = {label: name for label, name in ordered.items() if numbers[label] != -1}
    classes = list(dict.fromkeys(ordered.values()))
    place = {name: number for number, name in enumerate(classes)}
    codes = torch.tensor([place[ordered[label]] if label in ordered else -1 for label in given], dtype=torch.long)
    return codes, classes, "no row has a label" if not classes else "some rows have no label"


def _number(label: str) -> Decimal | None:
    """The number that a label is, exactly: those of products have more digits than a float. None for a name."""
    if not label.isascii() or "_" in label or len(label) > MOST_DIGITS:  # Python reads 1_0 as 10
        return None
    try:
        number = Decimal(label)
    except InvalidOperation:
        return None
    is_huge = number.is_finite() and abs(number.adjusted()) > MOST_DIGITS
    return None if is_huge or number.is_snan() else number


def _is_whole(number: Decimal) -> bool:
    return number.is_finite() and number == number.to_integral_value()
