"""The command `few-label`: what a handful of labels per class is worth on frozen features."""

from typing import Any

from simclr_fast.evaluation import pictures
from simclr_fast.evaluation.classes import TOP, accuracy, class_names, top5_accuracy
from simclr_fast.evaluation.comparison import ENCODERS
from simclr_fast.evaluation.encoders import all_features
from simclr_fast.evaluation.knn import knn_accuracy
from simclr_fast.evaluation.linear import fit_linear, standardize
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import few_label_draws, rarest_class
from simclr_fast.evaluation.tables import ResultTable, percent, spread

PROBES = {"linear": "linear", "linear_top5": "linear, top-5", "1nn": "1-NN"}
DRAWN = {probe: PROBES[probe] for probe in ("linear", "1nn")}  # the picture's


def main(session: Session) -> None:
    """Mean and standard deviation over draws of the labelled images, by probe, labels per class and encoder."""
    options = session.options
    data = session.labelled_data()
    labels, truth = data.labelled.labels, data.test.labels
    classes, rarest = len(class_names(data)), rarest_class(labels)
    probes = {probe: title for probe, title in PROBES.items() if probe != "linear_top5" or classes > TOP}
    results: dict[str, Any] = {"rarest_class": rarest, **{probe: {} for probe in probes}}
    for encoder, features in all_features(session.run, data, session.device):
        train, test = standardize(features.train, features.test)
        for n in options.per_class:
            chosen = few_label_draws(labels, n, options.draws, options.seed)
            logits = [
                fit_linear(train[few], labels[few], classes=classes, device=session.device).logits(test)
                for few in chosen
            ]
            scores = {
                "linear": [accuracy(of_draw, truth) for of_draw in logits],
                "linear_top5": [top5_accuracy(of_draw, truth) for of_draw in logits],
                "1nn": [
                    knn_accuracy(features.train[few], labels[few], features.test, truth, knn_k=1) for few in chosen
                ],
            }
            for probe in probes:
                results[probe].setdefault(str(n), {})[encoder] = spread(scores[probe])
        del features, train, test  # the next encoder's need the room
    rows = {
        f"{title}, {n}" + (f" ({rarest} in the rarest class)" if rarest < n else ""): {
            encoder: percent(score["mean"], score["std"]) for encoder, score in results[probe][str(n)].items()
        }
        for probe, title in probes.items()
        for n in options.per_class
    }
    title = f"Test accuracy (%), mean and standard deviation of {options.draws} draws"
    picture = pictures.accuracy_over_labels(session.folder / "few-label.png", results, DRAWN, ENCODERS)
    session.finish(results, ResultTable.of(title, "labels per class", ENCODERS, rows), files=(picture,))
