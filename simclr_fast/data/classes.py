"""One list of classes for all splits of a data set, by name; what has no label, or no class there, is said."""

import dataclasses
import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from simclr_fast.data.sources import Dataset, Source

SHOWN = 5  # names that a message spells out

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Split:
    """Images as one part of a data set has them, with that part's own numbers of classes.

    name: what messages call it; codes: int64 [N], numbers of `classes`, -1 for no label; reason: why there is none.
    """

    name: str
    source: Source
    codes: Tensor
    classes: list[str]
    reason: str = ""

    @property
    def labelled(self) -> bool:
        return bool((self.codes >= 0).any())


def assemble(train: Split, held_out: Iterable[Split]) -> Dataset:
    """The data set of a training split and the first of the held-out ones that has labels, its classes matched by name.

    Classes are those of which train has an image, in its order. Images of another class or without a label are left
    out of the evaluation. All that is missing or left out is logged, once for all processes.
    """
    test = _chosen(held_out)
    if not train.labelled:
        say(f"{train.name}: no labels ({train.reason}), so that nothing is evaluated")
        if test is None or not test.labelled:
            return Dataset(train.source, test=None if test is None else test.source)
        classes = _present(test)
        return Dataset(train.source, test=_judged(test, train.name, classes), classes=tuple(classes))
    classes = _present(train)
    if empty := sorted(set(train.classes) - set(classes)):
        say(f"{train.name}: no image of {listed(empty)}")
    labels = _numbers(train, classes)
    labelled = dataclasses.replace(train.source, labels=labels)
    known = labels >= 0
    if not known.all():
        say(f"{train.name}: {int((~known).sum())} of {len(labels)} images have no label, and are only trained on")
    return Dataset(
        train=labelled if known.all() else train.source,
        labelled=labelled if known.all() else labelled.subset(known.nonzero().flatten()),
        test=None if test is None else _judged(test, train.name, classes),
        classes=tuple(classes),
        codes=labels,
    )


def _chosen(held_out: Iterable[Split]) -> Split | None:
    """The first split with labels, or else the first."""
    first = None
    for split in held_out:
        if split.labelled:
            return split
        say(f"{split.name}: no labels ({split.reason}), so that it is not evaluated on")
        first = first or split
    return first


def _judged(split: Split, trained: str, classes: list[str]) -> Source:
    """The held-out images of these classes with their labels; all of them, without labels, where there are none."""
    labels = _numbers(split, classes)
    known = labels >= 0
    if foreign := set(_present(split)) - set(classes):
        count = int((~known & (split.codes >= 0)).sum())
        say(f"{split.name}: {count} images of {listed(sorted(foreign))} are left out, as {trained} has no such class")
    if split.labelled and (unlabelled := int((split.codes < 0).sum())):
        say(f"{split.name}: {unlabelled} of {len(labels)} images are left out, as they have no label")
    if not known.any():
        return split.source
    if missing := sorted(set(classes) - set(_present(split))):
        say(f"{split.name}: no image of {listed(missing)}")
    source = dataclasses.replace(split.source, labels=labels)
    return source if known.all() else source.subset(known.nonzero().flatten())


def _present(split: Split) -> list[str]:
    """The classes that have an image, in the split's order."""
    counts = torch.bincount(split.codes[split.codes >= 0], minlength=len(split.classes)).tolist()
    return [name for name, count in zip(split.classes, counts) if count]


def _numbers(split: Split, classes: list[str]) -> Tensor:
    """int64 [N]: each image's place in `classes`, -1 for what is not there."""
    number = {name: k for k, name in enumerate(classes)}
    # The last entry serves code -1.
    return torch.tensor([number.get(name, -1) for name in split.classes] + [-1])[split.codes]


def say(message: str) -> None:
    """Log a warning in the first process only."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        log.warning("%s", message)


def listed(names: list[str]) -> str:
    """class(es) by name, the first few of them."""
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"{'class' if len(names) == 1 else f'{len(names)} classes:'} {shown}"
