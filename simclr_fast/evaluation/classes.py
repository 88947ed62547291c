"""Classes of a data set and accuracies over them: their names, top-1, top-5, and the accuracy of every class."""

import torch
from torch import Tensor

from simclr_fast.data import Dataset
from simclr_fast.evaluation.tables import ResultTable, percent

TOP = 5
LONGEST_TABLE = 20  # classes; of more a table shows the best and the worst of the encoder that it is about


def class_names(data: Dataset) -> list[str]:
    """Name of every class by its number; the number itself where the data set has no names.

    Covers each label of the labelled training and of the test images, also one that only one of the two has.
    """
    parts = [part.labels for part in (data.labelled, data.test) if part is not None and part.labels is not None]
    largest = max((int(labels.max()) for labels in parts if len(labels)), default=-1)
    names = list(data.classes or ())
    return names + [str(label) for label in range(len(names), largest + 1)]


def accuracy(scores: Tensor, truth: Tensor) -> float:
    """Share of the rows of scores [N, classes] that are largest at their class, truth int64 [N]."""
    return (scores.argmax(dim=1).cpu() == truth.cpu()).float().mean().item()


def top5_accuracy(scores: Tensor, truth: Tensor) -> float:
    """Share of the rows of scores [N, classes] whose class is among the five largest; of use beyond five classes.

    Not for votes of neighbours: of few neighbours too few classes have a vote.
    """
    answers = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
    return (answers.cpu() == truth.cpu()[:, None]).any(dim=1).float().mean().item()


def class_accuracies(predicted: Tensor, truth: Tensor, classes: int) -> list[float | None]:
    """Accuracy (fraction) on the images of each class, int64 [N] both; None for a class that has no image."""
    right, count = (
        torch.bincount(part, minlength=classes).tolist() for part in (truth[predicted == truth], truth.flatten())
    )
    return [right[label] / count[label] if count[label] else None for label in range(classes)]


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
