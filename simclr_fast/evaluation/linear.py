"""Linear classification of frozen features by L-BFGS."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.evaluation.splits import hold_out

# Inverse L2 penalty of the few-label probe, the same for every kind of feature; fixed beforehand, never tuned on test
# labels.
PENALTY_C = 0.1
MAX_ITERATIONS = 300
SMALLEST_STD = 1e-12  # where all images have the same features, they become zeros instead of 0 / 0


@dataclasses.dataclass(frozen=True)
class LinearClassifier:
    """weight [classes, D] and bias [classes] of a softmax classifier."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Score of each class for each row of features [N, D], float32 [N, classes] on the CPU."""
        return F.linear(features.to(self.weight.device), self.weight, self.bias).cpu()

    def predict(self, features: Tensor) -> Tensor:
        """Class of each row of features [N, D], int64 [N] on the CPU."""
        return self.logits(features).argmax(dim=1)


def fit_linear(
    features: Tensor,
    labels: Tensor,
    penalty_c: float = PENALTY_C,
    *,
    classes: int | None = None,
    device: torch.device | None = None,
) -> LinearClassifier:
    """Multinomial logistic regression: minimises C * (sum of cross-entropies) + |weight|^2 / 2, as scikit-learn does.

    features [N, D] on a common scale (see `standardize`), labels int64 [N]. Full-batch L-BFGS from zero, on the device.
    """
    if not penalty_c > 0:
        raise ValueError(f"penalty_c={penalty_c}: pass a number > 0")
    x, y = features.to(device).float(), labels.to(device)
    classes = classes if classes is not None else int(labels.max()) + 1
    weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    decay = 1 / (2 * penalty_c * len(x))  # the objective divided by C * N: of order one whatever the number of images

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return LinearClassifier(weight.detach(), bias.detach())


def standardize(features: Tensor, *others: Tensor) -> list[Tensor]:
    """Rows L2-normalised, then columns of mean 0 and variance 1 by the statistics of `features`, which come first.

    Columns that hardly vary (blank pixels) are divided by 1% of the mean deviation instead of by almost nothing.
    """
    rows = [F.normalize(part.float(), dim=1) for part in (features, *others)]
    mean, std = rows[0].mean(dim=0), rows[0].std(dim=0)
    std = std.clamp_min(0.01 * std.mean()).clamp_min(SMALLEST_STD)
    return [part.sub_(mean).div_(std) for part in rows]  # in place: of a large set each copy takes gigabytes


def linear_accuracy(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    truth: Tensor,
    penalty_c: float = PENALTY_C,
    device: torch.device | None = None,
) -> float:
    """Accuracy (fraction) on test of `fit_linear` on train; features [N, D] that are standardised already."""
    classifier = fit_linear(train, labels, penalty_c, device=device)
    return (classifier.predict(test) == truth).float().mean().item()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What the held-out images chose. classifier: refitted on all training images with it."""

    penalty_c: float
    held_out_accuracy: float
    classifier: LinearClassifier


def sweep_linear(
    features: Tensor, labels: Tensor, candidates: tuple[float, ...], *, held_out: float, seed: int, device: torch.device
) -> Sweep:
    """`fit_linear` with the penalty of `candidates` that serves best on a held-out part of the training images."""
    kept, chosen_by = hold_out(labels, held_out, seed)
    classes = int(labels.max()) + 1
    scores = {}
    for candidate in candidates:
        classifier = fit_linear(features[kept], labels[kept], candidate, classes=classes, device=device)
        scores[candidate] = (classifier.predict(features[chosen_by]) == labels[chosen_by]).float().mean().item()
    best = max(scores, key=scores.get)
    return Sweep(best, scores[best], fit_linear(features, labels, best, classes=classes, device=device))
