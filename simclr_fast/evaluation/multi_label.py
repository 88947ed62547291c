"""The command `multi-label`: linear classifiers of frozen features where an image has several classes, as in VOC 2007.

Measured by the mean of the classes' average precisions.
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from simclr_fast.config import flag
from simclr_fast.errors import ConfigError, DataError
from simclr_fast.evaluation.average_precision import ABSENT, DEFINITIONS, PRESENT, average_precisions, has_both
from simclr_fast.evaluation.features import ENCODERS, embed, encoders, preprocess_of
from simclr_fast.evaluation.multi_label_probe import FOLDS, LOGISTIC_C, SVM_C, by_logistic, by_svm
from simclr_fast.evaluation.options import MultiLabelOptions
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import ResultTable, percent
from simclr_fast.evaluation.voc_labels import LabelledPart, MultiLabelData, read_parts

CLASSIFIERS = {"logistic": "logistic regression", "svm": "linear SVM"}
PARTS = ("train_set", "val_set", "test_set")


def main(session: Session) -> dict[str, Any]:
    """Mean average precision by encoder and definition, on test images; penalties are chosen on training images."""
    options, run = session.options, session.run
    data = read_parts(options.data, {name: getattr(options, name) for name in PARTS})
    train, val, test = (data.parts[name] for name in PARTS)
    session.say_channels(f"{flag('data')} {options.data}", test.images.channels)
    left_out = unmeasured(data, options.classifier)
    names = [name for name in data.classes if name not in left_out]
    kept = torch.tensor([name in names for name in data.classes], dtype=torch.bool)
    labels = [part.labels[:, kept] for part in (train, val, test)]
    _require_measurable(options, names, left_out, labels)
    preprocess = preprocess_of(run)
    results: dict[str, Any] = {"map": {key: {} for key in DEFINITIONS}, "per_class": {key: {} for key in DEFINITIONS}}
    chosen: dict[str, Any] = {}
    for encoder, network in encoders(run).items():
        network = network.to(session.device)
        features = [_embedded(network, part, preprocess, session.device) for part in (train, val, test)]
        if options.classifier == "logistic":
            candidates = options.penalty_c or LOGISTIC_C
            known = [(features[i], labels[i]) for i in range(2)]
            scores, chosen[encoder] = by_logistic(*known, features[2], candidates, session.device)
        else:
            known = (torch.cat(features[:2]), torch.cat(labels[:2]))
            title = f"{CLASSIFIERS['svm']}, {ENCODERS[encoder]}"
            scores, found = by_svm(known, features[2], options.penalty_c or SVM_C, title)
            chosen[encoder] = {"penalty_c": dict(zip(names, found["penalty_c"]))}
        by_class = [average_precisions(*pair) for pair in zip(labels[2].unbind(1), scores.unbind(1))]
        for key in DEFINITIONS:
            of_key = [one[key] for one in by_class]
            results["map"][key][encoder] = statistics.mean(of_key)
            results["per_class"][key][encoder] = dict(zip(names, of_key))
        del features, scores  # the next encoder's need the room
    counts = {name: len(part.images) for name, part in data.parts.items()}
    results |= {"chosen": chosen, "classes": names, "left_out": left_out, "images": counts, "labels": data.origin}
    return session.finish(results, *_tables(session, results, labels[2]))


def unmeasured(data: MultiLabelData, classifier: str) -> dict[str, str]:
    """Classes that cannot be learned or measured, and why: each takes images with and images without it, not difficult.

    Cross-validation needs one of each in every fold.
    """
    least = FOLDS if classifier == "svm" else 1
    known = torch.cat([data.parts[name].labels for name in ("train_set", "val_set")])
    reasons = {}
    for column, name in enumerate(data.classes):
        for labels, where, needed in ((known, "to train on", least), (data.parts["test_set"].labels, "to test on", 1)):
            for label, images in ((PRESENT, "with it"), (ABSENT, "without it")):
                count = int((labels[:, column] == label).sum())
                if count < needed and name not in reasons:
                    reasons[name] = f"{count or 'no'} image{'s' * (count != 1)} {images} {where}"
    return reasons


def _require_measurable(
    options: MultiLabelOptions, names: list[str], left_out: dict[str, str], labels: list[Tensor]
) -> None:
    """Raise ConfigError where no class is left to measure, or none that can choose the penalty."""
    if not names:
        reason = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:2]) or "there is none"
        raise ConfigError(
            f"{flag('test_set')} {' '.join(options.test_set)}: no class can be measured ({reason}); pass sets with "
            "images with and without each class, not difficult"
        )
    if options.classifier == "logistic" and not (has_both(labels[0]) & has_both(labels[1])).any():
        raise ConfigError(
            f"{flag('val_set')} {' '.join(options.val_set)}: no class has images with and without it both there and in "
            f"{flag('train_set')}, so that nothing chooses the penalty; pass larger sets"
        )


def _embedded(network: torch.nn.Module, part: LabelledPart, preprocess: Any, device: torch.device) -> Tensor:
    """Features [N, D]. Raises DataError for an image that cannot be read: another one would have other classes."""
    try:
        return embed(network, part.images, preprocess, device)
    except DataError as error:
        unreadable = next(iter(part.images.bad.messages.values()), str(error))
        raise DataError(f"{unreadable}; mend the image, or take it out of its image set") from error


def _tables(session: Session, results: dict[str, Any], truth: Tensor) -> list[ResultTable]:
    options, images = session.options, results["images"]
    title = (
        f"{CLASSIFIERS[options.classifier]}, {len(results['classes'])} classes, {images['train_set']} + "
        f"{images['val_set']} training and {images['test_set']} test images: mean average precision (%)"
    )
    rows = {name: results["map"][key] for key, name in DEFINITIONS.items()}
    tables = [ResultTable.of(title[0].upper() + title[1:], "", ENCODERS, rows)]
    present = (truth == PRESENT).sum(dim=0).tolist()
    by_class = results["per_class"]["eleven_points"]
    body = [
        [name, str(count), *(percent(by_class[encoder][name]) for encoder in ENCODERS)]
        for name, count in zip(results["classes"], present)
    ]
    columns = ["class", "images with it", *ENCODERS.values()]
    tables.append(ResultTable(f"Average precision by class (%), {DEFINITIONS['eleven_points']}", columns, body))
    if results["left_out"]:
        reasons = [list(pair) for pair in results["left_out"].items()]
        tables.append(ResultTable("Classes left out of the mean", ["class", "why"], reasons))
    return tables
