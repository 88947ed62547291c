"""A linear classifier of frozen features for every class by itself: logistic regression, and the linear SVM."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC
from torch import Tensor
from tqdm.auto import tqdm

from simclr_fast.evaluation.average_precision import DIFFICULT, PRESENT, average_precisions, has_both
from simclr_fast.evaluation.probes import LinearClassifier, fit_penalised, standardize

LOGISTIC_C = tuple(10 ** (half / 2) for half in range(-10, 3))  # from 1e-5 to 10
SVM_C = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)  # as VISSL has them for VOC 2007
FOLDS = 3


def fit_logistic(
    features: Tensor, labels: Tensor, penalty_c: float, device: torch.device | None = None
) -> LinearClassifier:
    """For every class, minimises C * (sum of binary cross-entropies of its images) + |weight|^2 / 2, as scikit-learn.

    features [N, D] on a common scale (see `standardize`), labels int8 [N, classes], of which difficult ones do not
    count. Full-batch L-BFGS from zero over all classes at once, on the device.
    """
    x, labels = features.to(device).float(), labels.to(device)
    counted, truth = (labels != DIFFICULT).float(), (labels == PRESENT).float()
    start = LinearClassifier(x.new_zeros(labels.shape[1], x.shape[1]), x.new_zeros(labels.shape[1]))

    def loss_of(weight: Tensor, bias: Tensor) -> Tensor:
        logits = F.linear(x, weight, bias)
        return F.binary_cross_entropy_with_logits(logits, truth, counted, reduction="sum") / len(x)

    return fit_penalised(start, penalty_c, len(x), loss_of)


def by_logistic(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    candidates: tuple[float, ...],
    device: torch.device,
) -> tuple[Tensor, dict[str, float]]:
    """Scores [Q, classes] of test features [Q, D], and what was chosen: one penalty for all classes.

    train, val: features [N, D] and labels int8 [N, classes]. Each candidate is fitted on the training images; the mean
    average precision (11 points) on the validation images chooses, over the classes that both parts can say something
    about; the classifier is fitted again on both together.
    """
    telling = has_both(train[1]) & has_both(val[1])
    scaled, scaled_val = standardize(train[0], val[0])
    found = {}
    for candidate in candidates:
        scores = fit_logistic(scaled, train[1][:, telling], candidate, device).logits(scaled_val)
        truth = val[1][:, telling]
        found[candidate] = np.mean(
            [average_precisions(*pair)["eleven_points"] for pair in zip(truth.unbind(1), scores.unbind(1))]
        )
    best = max(found, key=found.get)
    scaled, scaled_test = standardize(torch.cat([train[0], val[0]]), test)
    classifier = fit_logistic(scaled, torch.cat([train[1], val[1]]), best, device)
    return classifier.logits(scaled_test), {"penalty_c": best, "val_map": float(found[best])}


def by_svm(
    train: tuple[Tensor, Tensor], test: Tensor, candidates: tuple[float, ...], title: str = ""
) -> tuple[Tensor, dict[str, list[float]]]:
    """Scores [Q, classes] of test features [Q, D], and what was chosen: a penalty for every class.

    As Goyal et al. 2019 (arXiv:1905.01235): rows L2-normalised, squared hinge, positives weighted twice, and the
    penalty by the average precision of three-fold cross-validation on the training images; difficult images do not
    count. train: features [N, D] and labels int8 [N, classes], of each class at least FOLDS images with and without it.
    """
    features, queries = (F.normalize(part.double(), dim=1).numpy() for part in (train[0], test))
    scores, chosen = [], []
    for labels in tqdm(train[1].unbind(1), desc=title, unit="class", dynamic_ncols=True):
        counted = (labels != DIFFICULT).numpy()
        x, y = features[counted], labels.numpy()[counted]
        folds = StratifiedKFold(FOLDS)
        found = {c: cross_val_score(_svm(c), x, y, cv=folds, scoring="average_precision").mean() for c in candidates}
        best = max(found, key=found.get)
        chosen.append(best)
        scores.append(torch.from_numpy(_svm(best).fit(x, y).decision_function(queries)))
    return torch.stack(scores, dim=1), {"penalty_c": chosen}


def _svm(penalty_c: float) -> LinearSVC:
    # "auto" is the primal where it is the smaller problem: the same optimum, and it is reached.
    return LinearSVC(C=penalty_c, class_weight={1: 2, -1: 1}, dual="auto", max_iter=2000, random_state=0)
