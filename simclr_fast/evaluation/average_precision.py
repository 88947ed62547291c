"""Average precision of one class's scores by the three definitions that published tables use."""

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

PRESENT, DIFFICULT, ABSENT = 1, 0, -1  # labels as VOC's files have them; a difficult image neither counts nor harms
DEFINITIONS = {
    "eleven_points": "11 points (VOC 2007)",
    "interpolated": "interpolated area (VOC 2010)",
    "area": "area (scikit-learn)",
}


def has_both(labels: Tensor) -> Tensor:
    """Whether there are images with the class and images without it, bool [classes]; labels int8 [N, classes]."""
    return (labels == PRESENT).any(dim=0) & (labels == ABSENT).any(dim=0)


def average_precisions(labels: Tensor, scores: Tensor) -> dict[str, float]:
    """The average precision (fraction) by each of DEFINITIONS; labels int8 [N], with PRESENT among them, scores [N].

    Images of equal scores are found together, so that their order does not matter.
    """
    counted = labels != DIFFICULT
    truth = (labels[counted] == PRESENT).numpy()
    ranked = scores[counted].double().numpy()
    precision, recall, _ = precision_recall_curve(truth, ranked)
    precision, recall = precision[-2::-1], recall[-2::-1]  # best scores first, without scikit-learn's point of recall 0
    positives = truth.sum()
    found = np.rint(recall * positives)  # whole numbers, by which a recall of 63 in 90 reaches the point 0.7
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the largest precision at this recall or a higher one
    reached = np.searchsorted(10 * found, np.arange(11) * positives)
    return {
        "eleven_points": float(best[reached].mean()),
        "interpolated": float((np.diff(found, prepend=0) * best).sum() / positives),
        "area": float(average_precision_score(truth, ranked)),
    }
