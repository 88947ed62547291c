"""The command `few-label`: what a handful of labels per class is worth on frozen features."""

from typing import Any

from simclr_fast.evaluation import pictures
from simclr_fast.evaluation.features import ENCODERS, all_features
from simclr_fast.evaluation.probes import few_label_accuracies, standardize
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import few_label_draws, rarest_class
from simclr_fast.evaluation.tables import TOP, ResultTable, class_names, spread

PROBES = {"linear": "linear", "linear_top5": "linear, top-5", "1nn": "1-NN"}
DRAWN = {probe: PROBES[probe] for probe in ("linear", "1nn")}  # the picture's


def main(session: Session) -> dict[str, Any]:
    """Mean and standard deviation over draws of the labelled images, by probe, labels per class and encoder."""
    options = session.options
    data = session.labelled_data()
    labels, truth = data.labelled.labels, data.test.labels
    classes, rarest = len(class_names(data)), rarest_class(labels)
    probes = {probe: title for probe, title in PROBES.items() if probe != "linear_top5" or classes > TOP}
    results: dict[str, Any] = {"rarest_class": rarest, **{probe: {} for probe in probes}}
    for encoder, features in all_features(session.run, data, session.device):
        scaled = standardize(features.train, features.test)
        for n in options.per_class:
            chosen = few_label_draws(labels, n, options.draws, options.seed)
            scores = few_label_accuracies(
                *(features.train, labels, features.test, truth, chosen),
                classes=classes,
                scaled=scaled,
                device=session.device,
            )
            for probe in probes:
                results[probe].setdefault(str(n), {})[encoder] = spread(scores[probe])
        del features, scaled  # the next encoder's need the room
    rows = {
        f"{title}, {n}" + (f" ({rarest} in the rarest class)" if rarest < n else ""): results[probe][str(n)]
        for probe, title in probes.items()
        for n in options.per_class
    }
    title = f"Test accuracy (%), mean and standard deviation of {options.draws} draws"
    picture = pictures.accuracy_over_labels(session.folder / "few-label.png", results, DRAWN, ENCODERS)
    return session.finish(results, ResultTable.of(title, "labels per class", ENCODERS, rows), files=(picture,))
