"""The command `linear`: linear classification of frozen features with all labels."""

from typing import Any

from torch import Tensor, nn

from simclr_fast.data import Dataset
from simclr_fast.evaluation.batches import LabelledBatches
from simclr_fast.evaluation.classes import (
    TOP,
    accuracy,
    class_accuracies,
    class_names,
    class_table,
    top5_accuracy,
)
from simclr_fast.evaluation.comparison import ENCODERS
from simclr_fast.evaluation.encoders import all_features, encoders
from simclr_fast.evaluation.linear import standardize, sweep_linear
from simclr_fast.evaluation.probe import Standardize, best_probe, train_probes
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import hold_out
from simclr_fast.evaluation.tables import ResultTable, percent

PUBLISHED_EPOCHS = 90
DEMO_EPOCHS = 30
METHODS = {"sgd": "SGD, augmented images", "lbfgs": "L-BFGS, cached features"}
SCORES = {"accuracy": "", "top5_accuracy": ", top-5"}


def main(session: Session) -> None:
    """Test accuracy by method and encoder; hyper-parameters are chosen on a held-out part of the training images."""
    options = session.options
    data = session.labelled_data()
    names, truth = class_names(data), data.test.labels
    methods = [method for method in METHODS if options.method in ("both", method)]
    results: dict[str, dict[str, dict[str, Any]]] = {method: {} for method in methods}
    for name, features in all_features(session.run, data, session.device):
        for method in methods:
            if method == "sgd":
                logits, found = _by_sgd(session, data, name, features.train, features.test, len(names))
            else:
                logits, found = _by_lbfgs(session, data, features.train, features.test)
            top5 = {"top5_accuracy": top5_accuracy(logits, truth)} if len(names) > TOP else {}
            by_class = class_accuracies(logits.argmax(dim=1), truth, len(names))
            results[method][name] = {"accuracy": accuracy(logits, truth), **top5, **found, "per_class": by_class}
        del features  # the next encoder's need the room
    rows = {
        METHODS[method] + title: {encoder: percent(one[score]) for encoder, one in scores.items()}
        for method, scores in results.items()
        for score, title in SCORES.items()
        if score in scores["simclr"]
    }
    tables = [ResultTable.of("Linear classifier, all labels: test accuracy (%)", "", ENCODERS, rows)]
    for method, scores in results.items():
        by_class = {encoder: one["per_class"] for encoder, one in scores.items()}
        tables.append(class_table(f"Accuracy by class (%), {METHODS[method]}", names, truth, by_class, ENCODERS))
    session.finish(results, *tables)


def _by_sgd(
    session: Session, data: Dataset, name: str, train: Tensor, test: Tensor, classes: int
) -> tuple[Tensor, dict[str, Any]]:
    """Test logits [Q, classes] of the probe that the held-out images choose, and what was chosen."""
    options, run, labels = session.options, session.run, data.labelled.labels
    kept, held_out = hold_out(labels, options.held_out, options.seed)
    epochs = options.epochs or (DEMO_EPOCHS if run.config.recipe == "demo" else PUBLISHED_EPOCHS)
    batches = LabelledBatches(data.labelled.subset(kept), options.batch_size, run, options.seed, session.process)
    scale = Standardize(train[kept])
    probes = train_probes(
        nn.Sequential(encoders(run)[name], scale).to(session.device),
        train.shape[1],
        batches,
        classes,
        steps=epochs * batches.steps_per_epoch,
        batch_size=options.batch_size,
        lr_base=options.lr_base,
        title=f"{METHODS['sgd']}, {ENCODERS[name]}",
    )
    scale = scale.cpu()
    probe, score = best_probe(probes, scale(train[held_out]), labels[held_out])
    found = {"held_out_accuracy": score, "lr_base": probe.lr_base, "epochs": epochs}
    return probe.classifier.logits(scale(test)), found


def _by_lbfgs(session: Session, data: Dataset, train: Tensor, test: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Test logits [Q, classes] with the penalty that the held-out images choose, and what was chosen."""
    options = session.options
    scaled_train, scaled_test = standardize(train, test)
    sweep = sweep_linear(
        scaled_train,
        data.labelled.labels,
        options.penalty_c,
        held_out=options.held_out,
        seed=options.seed,
        device=session.device,
    )
    return sweep.classifier.logits(scaled_test), {
        "held_out_accuracy": sweep.held_out_accuracy,
        "penalty_c": sweep.penalty_c,
    }
