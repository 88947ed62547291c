"""Linear classification of frozen features from few labels."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

# Inverse L2 penalty of the probe, the same for every kind of feature; fixed beforehand, never tuned on test labels.
PENALTY_C = 0.1


def few_label_draws(labels: Tensor, per_class: int, draws: int, seed: int = 0) -> list[Tensor]:
    """`draws` random choices of `per_class` indices of every class, int64 [classes * per_class] each."""
    chosen = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed * draws + draw)
        members = [(labels == label).nonzero().flatten() for label in labels.unique()]
        if min(len(m) for m in members) < per_class:
            raise ValueError(f"per_class={per_class}: the rarest class has only {min(len(m) for m in members)} images")
        chosen.append(torch.cat([m[torch.randperm(len(m), generator=generator)[:per_class]] for m in members]))
    return chosen


def standardize(features: Tensor, *others: Tensor) -> list[Tensor]:
    """Rows L2-normalised, then columns of mean 0 and variance 1 by the statistics of `features`, which come first.

    Columns that hardly vary (blank pixels) are divided by 1% of the mean deviation instead of by almost nothing.
    """
    rows = [F.normalize(part.float(), dim=1) for part in (features, *others)]
    mean, std = rows[0].mean(dim=0), rows[0].std(dim=0)
    std = std.clamp_min(0.01 * std.mean())
    return [(part - mean) / std for part in rows]


def linear_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, penalty_c: float = PENALTY_C) -> float:
    """Test accuracy (fraction) of multinomial logistic regression on features [N, D] that are standardised already."""
    probe = LogisticRegression(C=penalty_c, max_iter=1000)
    probe.fit(train.numpy(), labels.numpy())
    return float(np.mean(probe.predict(test.numpy()) == truth.numpy()))
