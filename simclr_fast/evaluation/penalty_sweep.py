"""The linear classifier by L-BFGS with the penalty that held-out training images choose."""

import dataclasses

import torch
from torch import Tensor

from simclr_fast.evaluation.probes import LinearClassifier, fit_linear
from simclr_fast.evaluation.splits import hold_out
from simclr_fast.evaluation.tables import accuracy


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What the held-out images chose. classifier: fitted to all training images with it.

    held_out_accuracy: None where there was but one penalty, and nothing was held out.
    """

    penalty_c: float
    held_out_accuracy: float | None
    classifier: LinearClassifier


def sweep_linear(
    features: Tensor,
    labels: Tensor,
    candidates: tuple[float, ...],
    *,
    held_out: float,
    seed: int,
    device: torch.device | None = None,
) -> Sweep:
    """`fit_linear` with the penalty of `candidates` (C) that serves best on a held-out part of the training images.

    features [N, D], labels int64 [N]. From the strongest penalty to the weakest, each from the optimum of the one
    before (Kornblith et al. 2019, arXiv:1805.08974), so that many take little longer than the weakest alone; of
    equals the strongest is chosen.
    """
    if len(candidates) == 1:
        return Sweep(candidates[0], None, fit_linear(features, labels, candidates[0], device=device))
    kept, chosen_by = hold_out(labels, held_out, seed)
    classes = int(labels.max()) + 1
    x, y = features[kept].to(device), labels[kept]
    scores: dict[float, float] = {}
    best = classifier = None
    for candidate in sorted(candidates):
        classifier = fit_linear(x, y, candidate, classes=classes, device=device, start=classifier)
        scores[candidate] = accuracy(classifier.logits(features[chosen_by]), labels[chosen_by])
        if best is None or scores[candidate] > scores[best]:
            best, start = candidate, classifier
    del x  # all training images need the room
    refitted = fit_linear(features, labels, best, classes=classes, device=device, start=start)
    return Sweep(best, scores[best], refitted)
