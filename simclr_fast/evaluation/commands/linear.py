"""The command `linear`: linear classification of frozen features with all labels."""

from typing import Any

from torch import nn

from simclr_fast.evaluation.batches import LabelledBatches, subset
from simclr_fast.evaluation.comparison import ENCODERS
from simclr_fast.evaluation.encoders import encoders, preprocess_of
from simclr_fast.evaluation.features import embed
from simclr_fast.evaluation.linear import standardize, sweep_linear
from simclr_fast.evaluation.probe import Standardize, best_probe, train_probes
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import hold_out
from simclr_fast.evaluation.tables import ResultTable, percent

PUBLISHED_EPOCHS = 90
DEMO_EPOCHS = 30
METHODS = {"sgd": "SGD, augmented images", "lbfgs": "L-BFGS, cached features"}


def main(session: Session) -> None:
    """Test accuracy by method and encoder; hyper-parameters are chosen on a held-out part of the training images."""
    options, run, device = session.options, session.run, session.device
    data = session.labelled_data()
    labels, truth = data.labelled.labels, data.test.labels
    classes = int(labels.max()) + 1
    kept, held_out = hold_out(labels, options.held_out, options.seed)
    epochs = options.epochs or (DEMO_EPOCHS if run.config.recipe == "demo" else PUBLISHED_EPOCHS)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, encoder in encoders(run).items():
        encoder = encoder.to(device)
        train, test = (embed(encoder, part, preprocess_of(run), device) for part in (data.labelled, data.test))
        if options.method in ("both", "sgd"):
            batches = LabelledBatches(
                subset(data.labelled, kept), options.batch_size, run, options.seed, session.process
            )
            scale_features = Standardize(train[kept])
            probes = train_probes(
                nn.Sequential(encoder, scale_features).to(device),
                train.shape[1],
                batches,
                classes,
                steps=epochs * batches.steps_per_epoch,
                batch_size=options.batch_size,
                lr_base=options.lr_base,
                title=f"{METHODS['sgd']}, {ENCODERS[name]}",
            )
            scale = scale_features.cpu()
            probe, score = best_probe(probes, scale(train[held_out]), labels[held_out])
            results.setdefault("sgd", {})[name] = {
                "accuracy": (probe.classifier.predict(scale(test)) == truth).float().mean().item(),
                "held_out_accuracy": score,
                "lr_base": probe.lr_base,
                "epochs": epochs,
            }
        if options.method in ("both", "lbfgs"):
            scaled_train, scaled_test = standardize(train, test)
            sweep = sweep_linear(
                scaled_train, labels, options.penalty_c, held_out=options.held_out, seed=options.seed, device=device
            )
            results.setdefault("lbfgs", {})[name] = {
                "accuracy": (sweep.classifier.predict(scaled_test) == truth).float().mean().item(),
                "held_out_accuracy": sweep.held_out_accuracy,
                "penalty_c": sweep.penalty_c,
            }
    rows = {
        METHODS[method]: {encoder: percent(score["accuracy"]) for encoder, score in scores.items()}
        for method, scores in results.items()
    }
    session.finish(results, ResultTable.of("Linear classifier, all labels: test accuracy (%)", "", ENCODERS, rows))
