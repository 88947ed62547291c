"""One list of classes for all splits of a data set, by name; what has no label, or no class there, is said."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simclr_fast.data.messages import Ignored, listed, say, say_ignored
from simclr_fast.data.sources import Dataset, Source


@dataclasses.dataclass(frozen=True)
class Split:
    """Images as one part of a data set has them, with that part's own numbers of classes.

    name: what messages call it; codes: int64 [N], numbers of `classes`, -1 for no label; reason: why there is none;
    ignored: what lies there and is no image of the split.
    """

    name: str
    source: Source
    codes: Tensor
    classes: list[str]
    reason: str = ""
    ignored: tuple[Ignored, ...] = ()

    @property
    def labelled(self) -> bool:
        return bool((self.codes >= 0).any())


HeldOut = tuple[str, Callable[[], Split]]  # name, and what reads it: only those are read that may serve


def assemble(train: Split, held_out: Sequence[HeldOut], ignored: Sequence[Ignored] = ()) -> Dataset:
    """The data set of a training split and the first of the held-out ones that has labels, its classes matched by name.

    Classes are those of which train has an image, in its order. Images of another class or without a label are left
    out of the evaluation. ignored: what belongs to no split. All that is missing or left out is logged, once for all
    processes.
    """
    test, unused = _chosen(held_out)
    say_ignored(train.name, train.ignored)
    left_out = [*ignored, *train.ignored, *unused]
    if test is not None:
        say_ignored(test.name, test.ignored)
        left_out += test.ignored
    if not train.labelled:
        say(f"{train.name}: no labels ({train.reason}), so that nothing is evaluated")
        if test is None or not test.labelled:
            unlabelled = None if test is None else test.source
            return Dataset(train.source, test=unlabelled, ignored=tuple(left_out))
        classes = _present(test)
        judged, without = _judged(test, train.name, classes)
        return Dataset(train.source, test=judged, classes=tuple(classes), ignored=(*left_out, *without))
    classes = _present(train)
    if empty := sorted(set(train.classes) - set(classes)):
        say(f"{train.name}: no image of {listed(empty)}")
    labels = _numbers(train, classes)
    labelled = dataclasses.replace(train.source, labels=labels)
    known = labels >= 0
    if not known.all():
        say(f"{train.name}: {int((~known).sum())} of {len(labels)} images have no label, and are only trained on")
    judged, without = (None, []) if test is None else _judged(test, train.name, classes)
    return Dataset(
        train=labelled if known.all() else train.source,
        labelled=labelled if known.all() else labelled.subset(known.nonzero().flatten()),
        test=judged,
        classes=tuple(classes),
        codes=labels,
        ignored=(*left_out, *without),
    )


def _chosen(held_out: Sequence[HeldOut]) -> tuple[Split | None, list[Ignored]]:
    """The first split with labels, or else the first; and those that are not evaluated on."""
    first: Split | None = None
    unused: list[Ignored] = []
    for place, (name, read) in enumerate(held_out):
        split = read()
        if split.labelled:
            others = [(other, f"held out, and not needed beside {name}") for other, _ in held_out[place + 1 :]]
            for other, reason in others:
                say(f"{other}: {reason}")
            return split, unused + others
        say(f"{name}: no labels ({split.reason}), so that it is not evaluated on")
        unused.append((name, "held out without labels"))
        first = first or split
    return first, unused[1:]


def _judged(split: Split, trained: str, classes: list[str]) -> tuple[Source, list[Ignored]]:
    """The held-out images of these classes with their labels, and those that are left out.

    All of them, without labels, where there are none of these classes.
    """
    labels = _numbers(split, classes)
    known = labels >= 0
    if foreign := set(_present(split)) - set(classes):
        count = int((~known & (split.codes >= 0)).sum())
        say(f"{split.name}: {count} images of {listed(sorted(foreign))} are left out, as {trained} has no such class")
    if split.labelled and (unlabelled := int((split.codes < 0).sum())):
        say(f"{split.name}: {unlabelled} of {len(labels)} images are left out, as they have no label")
    if not known.any():
        return split.source, []
    if missing := sorted(set(classes) - set(_present(split))):
        say(f"{split.name}: no image of {listed(missing)}")
    source = dataclasses.replace(split.source, labels=labels)
    if known.all():
        return source, []
    return source.subset(known.nonzero().flatten()), _left_out(split, known)


def _left_out(split: Split, known: Tensor) -> list[Ignored]:
    """The held-out images that are not evaluated on, and why."""
    left_out = []
    for index in (~known).nonzero().flatten().tolist():
        code = int(split.codes[index])
        reason = (
            "held out without a label"
            if code < 0
            else f"held out, of class {split.classes[code]}, which is not trained on"
        )
        left_out.append((split.source.name(index), reason))
    return left_out


def _present(split: Split) -> list[str]:
    """The classes that have an image, in the split's order."""
    counts = torch.bincount(split.codes[split.codes >= 0], minlength=len(split.classes)).tolist()
    return [name for name, count in zip(split.classes, counts) if count]


def _numbers(split: Split, classes: list[str]) -> Tensor:
    """int64 [N]: each image's place in `classes`, -1 for what is not there."""
    number = {name: k for k, name in enumerate(classes)}
    # The last entry serves code -1.
    return torch.tensor([number.get(name, -1) for name in split.classes] + [-1])[split.codes]
