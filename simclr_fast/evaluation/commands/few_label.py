"""The command `few-label`: what a handful of labels per class is worth on frozen features."""

from simclr_fast.config import ConfigError
from simclr_fast.evaluation import pictures
from simclr_fast.evaluation.comparison import ENCODERS
from simclr_fast.evaluation.encoders import all_features
from simclr_fast.evaluation.knn import knn_accuracy
from simclr_fast.evaluation.linear import linear_accuracy, standardize
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import few_label_draws
from simclr_fast.evaluation.tables import ResultTable, percent, spread

PROBES = {"linear": "linear", "1nn": "1-NN"}


def main(session: Session) -> None:
    """Mean and standard deviation over draws of the labelled images, by probe, labels per class and encoder."""
    options = session.options
    data = session.labelled_data()
    labels, truth = data.labelled.labels, data.test.labels
    rarest = int(labels.bincount().min())
    too_many = [n for n in options.per_class if n > rarest]
    if too_many:
        raise ConfigError(f"--per-class {too_many[0]}: the rarest class has only {rarest} training images")
    results: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {probe: {} for probe in PROBES}
    for encoder, features in all_features(session.run, data, session.device).items():
        train, test = standardize(features.train, features.test)
        for n in options.per_class:
            chosen = few_label_draws(labels, n, options.draws, options.seed)
            scores = {
                "linear": [
                    linear_accuracy(train[few], labels[few], test, truth, device=session.device) for few in chosen
                ],
                "1nn": [
                    knn_accuracy(features.train[few], labels[few], features.test, truth, knn_k=1) for few in chosen
                ],
            }
            for probe, values in scores.items():
                results[probe].setdefault(str(n), {})[encoder] = spread(values)
    rows = {
        f"{title}, {n}": {
            encoder: percent(score["mean"], score["std"]) for encoder, score in results[probe][str(n)].items()
        }
        for probe, title in PROBES.items()
        for n in options.per_class
    }
    title = f"Test accuracy (%), mean and standard deviation of {options.draws} draws"
    picture = pictures.accuracy_over_labels(session.folder / "few-label.png", results, PROBES, ENCODERS)
    session.finish(results, ResultTable.of(title, "labels per class", ENCODERS, rows), files=(picture,))
