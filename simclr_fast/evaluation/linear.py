"""The command `linear`: linear classifiers of frozen features, all labels, by SGD on augmented images and by L-BFGS.

SGD trains the classifiers of several learning rates at once, since each step of the encoder serves all of them.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from simclr_fast.data import Dataset
from simclr_fast.evaluation.features import (
    ENCODERS,
    REFERENCE_BATCH,
    LabelledBatches,
    all_features,
    cut_batch,
    encoders,
)
from simclr_fast.evaluation.label_list import with_labels_of
from simclr_fast.evaluation.penalty_sweep import sweep_linear
from simclr_fast.evaluation.probes import LinearClassifier, floored_std, standardize
from simclr_fast.evaluation.protocols import Protocol, described, protocol_of
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import hold_out
from simclr_fast.evaluation.tables import (
    TOP,
    ResultTable,
    accuracy,
    class_accuracies,
    class_names,
    class_table,
    top5_accuracy,
)
from simclr_fast.optim import lr_at

PUBLISHED_EPOCHS = 90  # Chen et al. 2020, B.6
DEMO_EPOCHS = 30
METHODS = {"sgd": "SGD, augmented images", "lbfgs": "L-BFGS, cached features"}
SCORES = {"accuracy": "", "top5_accuracy": ", top-5"}
MOMENTUM = 0.9
DROP = 0.1  # what a protocol's drops multiply the learning rate by


def main(session: Session) -> dict[str, Any]:
    """Test accuracy by method and encoder; hyper-parameters are chosen on a held-out part of the training images."""
    options = session.options
    data = with_labels_of(session.labelled_data(), options.label_list)
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
            results[method][name] = {
                "accuracy": accuracy(logits, truth),
                **top5,
                "images": len(data.labelled),
                **found,
                "per_class": by_class,
            }
            session.keep(results)
        del features  # the next encoder's need the room
    rows = {
        METHODS[method] + title: {encoder: one[score] for encoder, one in scores.items()}
        for method, scores in results.items()
        for score, title in SCORES.items()
        if score in scores["simclr"]
    }
    listed = f"the {len(data.labelled)} labels of {options.label_list.name}" if options.label_list else "all labels"
    protocol = described(options)
    title = f"Linear classifier, {listed}: test accuracy (%){protocol}"
    tables = [ResultTable.of(title, "", ENCODERS, rows)]
    for method, scores in results.items():
        by_class = {encoder: one["per_class"] for encoder, one in scores.items()}
        tables.append(class_table(f"Accuracy by class (%), {METHODS[method]}", names, truth, by_class, ENCODERS))
    return session.finish(results, *tables, protocol=protocol)


def _by_sgd(
    session: Session, data: Dataset, name: str, train: Tensor, test: Tensor, classes: int
) -> tuple[Tensor, dict[str, Any]]:
    """Test logits [Q, classes] of the probe that the held-out images choose, and what was chosen.

    One learning rate leaves nothing to choose: then nothing is held out, and the accuracy there is None.
    """
    options, run, labels = session.options, session.run, data.labelled.labels
    protocol = protocol_of(options)
    source, kept, held_out = data.labelled, torch.arange(len(labels)), None
    if len(options.lr_base) > 1:
        kept, held_out = hold_out(labels, options.held_out, options.seed)
        source = source.subset(kept)
    epochs = options.epochs or (DEMO_EPOCHS if run.config.recipe == "demo" else PUBLISHED_EPOCHS)
    batches = LabelledBatches(source, options.batch_size, run, options.seed, session.process, protocol.crop)
    if batches.batch_size < options.batch_size and name == next(iter(ENCODERS)):  # once for all encoders
        session.say(cut_batch(batches.batch_size, options.batch_size))
    scale = Standardize(train[kept]) if protocol.standardize else nn.Identity()
    probes = train_probes(
        nn.Sequential(encoders(run)[name], scale).to(session.device),
        train.shape[1],
        batches,
        classes,
        steps=epochs * batches.steps_per_epoch,
        lr_base=options.lr_base,
        protocol=protocol,
        title=f"{METHODS['sgd']}, {ENCODERS[name]}",
    )
    scale = scale.cpu()
    probe, score = probes[0], None
    if held_out is not None:
        probe, score = best_probe(probes, scale(train[held_out]), labels[held_out])
    found = {
        "held_out_accuracy": score,
        "lr_base": probe.lr_base,
        "batch_size": batches.batch_size,
        "epochs": epochs,
    }
    return probe.classifier.logits(scale(test)), found


def _by_lbfgs(session: Session, data: Dataset, train: Tensor, test: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Test logits [Q, classes] with the penalty that the held-out images choose, and what was chosen."""
    options = session.options
    scaled_train, scaled_test = standardize(train, test) if protocol_of(options).standardize else (train, test)
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


class Standardize(nn.Module):
    """Brings features [B, D] to mean 0 and variance 1, by fixed statistics of training features [N, D].

    A linear map, so that the classifier on top stays linear in the features; with it one grid of learning rates suits
    every encoder (as the batch norm without parameters of He et al. 2022, arXiv:2111.06377, A.1).
    """

    def __init__(self, features: Tensor):
        super().__init__()
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("std", floored_std(features))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


@dataclasses.dataclass(frozen=True)
class Probe:
    """A classifier on top of a frozen encoder, and the learning rate per 256 images that trained it."""

    lr_base: float
    classifier: LinearClassifier


def train_probes(
    encoder: nn.Module,
    features: int,
    batches: LabelledBatches,
    classes: int,
    *,
    steps: int,
    lr_base: tuple[float, ...],
    protocol: Protocol,
    title: str = "",
) -> list[Probe]:
    """One classifier per learning rate, from zero, all trained on the same features by SGD with momentum, no decay.

    protocol: what kind of momentum, and how the learning rate falls.

    encoder: [B, C, S, S] -> [B, features]; runs in eval mode without gradients, so neither its parameters nor its batch
    norm statistics move.
    """
    device = batches.labels.device
    encoder.eval()
    weight = torch.zeros(len(lr_base), classes, features, device=device, requires_grad=True)
    bias = torch.zeros(len(lr_base), 1, classes, device=device, requires_grad=True)
    peaks = torch.tensor(lr_base, device=device).view(-1, 1, 1) * batches.batch_size / REFERENCE_BATCH
    momenta = [torch.zeros_like(p) for p in (weight, bias)]
    for step, (images, labels) in enumerate(tqdm(batches.steps(steps), total=steps, desc=title, unit="step")):
        with torch.no_grad():
            x = encoder(images).float()
        logits = torch.einsum("bd,kcd->kbc", x, weight) + bias  # [K, B, classes]
        # The sum of the mean losses: each classifier's gradient is that of its own loss.
        loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(lr_base)), reduction="sum") / len(labels)
        grads = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            for p, grad, momentum in zip((weight, bias), grads, momenta):
                momentum.mul_(MOMENTUM).add_(grad)
                update = grad + MOMENTUM * momentum if protocol.nesterov else momentum  # as torch's SGD
                p.sub_(peaks * share_of_peak(protocol, step, steps) * update)
    return [
        Probe(lr, LinearClassifier(w.detach(), b.detach()[0]))
        for lr, w, b in zip(lr_base, weight.unbind(), bias.unbind())
    ]


def share_of_peak(protocol: Protocol, step: int, steps: int) -> float:
    """The learning rate of a step as a share of the highest, by the protocol's drops or by a cosine."""
    if not protocol.drops:
        return lr_at(step, 1.0, steps, 0)
    return DROP ** sum(100 * step >= percent * steps for percent in protocol.drops)


def best_probe(probes: list[Probe], features: Tensor, labels: Tensor) -> tuple[Probe, float]:
    """The probe with the highest accuracy on held-out features [N, D], and that accuracy."""
    scores = [accuracy(probe.classifier.logits(features), labels) for probe in probes]
    best = max(range(len(probes)), key=scores.__getitem__)
    return probes[best], scores[best]
