"""Probes of frozen features: nearest neighbours in bounded memory, linear classifiers by L-BFGS, both on few labels."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.evaluation.splits import balanced_fraction
from simclr_fast.evaluation.tables import TOP, accuracy, share_right, top5_accuracy

# Rows of queries and of the bank whose similarities are held at a time: 256 MiB of float32, whatever their number.
QUERY_ROWS = 1024
BANK_ROWS = 65536
KNN_K = (1, 5, 10, 20, 50, 100, 200)  # numbers of neighbours between which the training images choose
KNN_T = 0.1
CHOICE_ROWS = 5000  # training images that choose; of more, the same share of every class, fixed
# Inverse L2 penalty of the few-label probe, the same for every kind of feature; fixed beforehand, never tuned on test
# labels.
PENALTY_C = 0.1
# Beyond this C the penalty hardly bends the objective, whose lowest point float32 and an early end miss: 80 images of 8
# features whose classes overlap have a largest weight of 100.7 at C = 1e6 in place of 61.5, the paper's path of 45
# penalties on 1,000 images of 64 features takes 1.7 times as long in float64, one of 300 images 4 times.
WEAK_C = 1e3
# L-BFGS: largest gradient and change of the objective at which it ends, and iterations at most, by type.
ENDS = {torch.float32: (1e-6, 1e-10, 300), torch.float64: (1e-9, 1e-14, 1000)}
SMALLEST_STD = 1e-12  # where all images have the same features, they become zeros instead of 0 / 0


def nearest(
    bank: Tensor,
    queries: Tensor | None,
    knn_k: int,
    device: torch.device | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine similarity float32 [Q, k] and bank index int64 [Q, k] of the most similar rows, best first.

    bank [M, D], queries [Q, D]: rows are L2-normalised here. queries None takes the bank's own rows, all or those at
    `rows` int64 [Q], each without itself (leave one out). knn_k is cut to what there is. device: where to compute
    (default: where the bank lies). Raises ValueError for knn_k < 1 and for a bank that has no neighbour to offer.
    """
    if knn_k < 1:
        raise ValueError(f"knn_k={knn_k}: pass an integer >= 1")
    leave_one_out = queries is None
    k = min(knn_k, len(bank) - leave_one_out)
    if k < 1:
        raise ValueError(f"bank has {len(bank)} row(s): no neighbour is left to look at")
    device = bank.device if device is None else device
    asking = bank if queries is None else queries
    asked = torch.arange(len(asking)) if rows is None else rows.cpu()
    found = [_nothing_found(len(part), device) for part in asked.split(QUERY_ROWS)]
    for begin in range(0, len(bank), BANK_ROWS):  # each tile of the bank reaches the device and is normalised once
        tile = F.normalize(bank[begin : begin + BANK_ROWS].to(device).float(), dim=1)  # [tile, D]
        for i, part in enumerate(asked.split(QUERY_ROWS)):
            scores = F.normalize(asking[part].to(device).float(), dim=1) @ tile.T  # [part, tile]
            if leave_one_out:
                own = part.to(device)
                here = (own >= begin) & (own < begin + len(tile))
                scores[here.nonzero().flatten(), own[here] - begin] = -torch.inf
            found[i] = _best_of(*found[i], scores, begin, k)
    similarity, index = (torch.cat(column).to(bank.device) for column in zip(*found))
    return similarity, index


def vote(similarity: Tensor, neighbours: Tensor, knn_t: float, classes: int) -> Tensor:
    """Score of each class by a vote of neighbours with weight exp(similarity / knn_t) (Wu et al. 2018,
    arXiv:1805.01978), float32 [Q, classes]; -inf for a class that no neighbour has.

    similarity [Q, k], best first; neighbours: their classes, int64 [Q, k].
    """
    if not knn_t > 0:
        raise ValueError(f"knn_t={knn_t}: pass a number > 0")
    weight = torch.exp((similarity - similarity[:, :1]) / knn_t)  # relative to the nearest: no overflow at small knn_t
    votes = weight.new_zeros(len(similarity), classes).scatter_add_(1, neighbours, weight)
    voted = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, neighbours, True)
    return votes.masked_fill_(~voted, -torch.inf)


def choose_k(
    bank: Tensor,
    labels: Tensor,
    candidates: tuple[int, ...],
    *,
    knn_t: float,
    classes: int,
    device: torch.device | None = None,
) -> tuple[int, dict[int, float]]:
    """The number of neighbours that serves best on the training images themselves, and the accuracy of each candidate.

    The rows of the bank [M, D] that `choosing_rows` names are classified by all others (leave one out); labels int64
    [M]. Of equals the first wins. Only candidates with as many neighbours to look at count, or else the smallest. Both
    are cut to what there is: the number to M, the accuracies' to M - 1.
    """
    rows, most = choosing_rows(labels), len(bank) - 1
    similarity, index = nearest(bank, None, max(candidates), device, rows)
    scores = {
        k: accuracy(vote(similarity[:, :k], labels[index[:, :k]], knn_t, classes), labels[rows])
        for k in dict.fromkeys(min(k, most) for k in candidates)
    }
    possible = [k for k in candidates if k <= most]
    return max(possible, key=scores.get) if possible else min(*candidates, len(bank)), scores


def choosing_rows(labels: Tensor) -> Tensor:
    """The training images that choose the number of neighbours, of labels int64 [M]: rows int64, ascending.

    All up to CHOICE_ROWS; of more the same share of every class, about CHOICE_ROWS together, always the same ones: each
    costs a product with the whole bank.
    """
    return balanced_fraction(labels, min(1.0, CHOICE_ROWS / len(labels)), seed=0)


def chosen_by(images: int, choosing: int) -> str:
    """Who chose the number of neighbours, in words; images: all training images; choosing: those of `choosing_rows`."""
    return "the training images" if choosing == images else f"{choosing:,} of the {images:,} training images"


def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor | None,
    *,
    knn_k: int,
    knn_t: float = KNN_T,
) -> Tensor:
    """Class of each query by its knn_k nearest neighbours in the bank, int64 [Q].

    bank [M, D] with labels int64 [M]; queries [Q, D], or None for the bank's own rows, each without itself.
    """
    if len(bank) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries for the {len(bank)} rows of bank")
    similarity, index = nearest(bank, queries, knn_k)
    return vote(similarity, labels[index], knn_t, int(labels.max()) + 1).argmax(dim=1)


def knn_accuracy(bank: Tensor, labels: Tensor, queries: Tensor | None, truth: Tensor, **options) -> float:
    """Share of the queries whose predicted class is the true one, int64 [Q]; options as for `knn_predict`."""
    return share_right(knn_predict(bank, labels, queries, **options), truth)


def _nothing_found(queries: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.empty(queries, 0, device=device), torch.empty(queries, 0, dtype=torch.int64, device=device)


def _best_of(similarity: Tensor, index: Tensor, scores: Tensor, begin: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best of those found so far and of the scores [Q, tile] of the bank's rows from `begin` on."""
    scores, column = scores.topk(min(k, scores.shape[1]), dim=1)
    similarity, index = torch.cat([similarity, scores], dim=1), torch.cat([index, begin + column], dim=1)
    similarity, kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return similarity, index.gather(1, kept)


@dataclasses.dataclass(frozen=True)
class LinearClassifier:
    """weight [classes, D] and bias [classes] of a softmax classifier."""

    weight: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> "LinearClassifier":
        """The same numbers in another type."""
        return LinearClassifier(self.weight.to(dtype), self.bias.to(dtype))

    def logits(self, features: Tensor) -> Tensor:
        """Score of each class for each row of features [N, D], float32 [N, classes] on the CPU."""
        return F.linear(features.to(self.weight.device), self.weight, self.bias).cpu()


def fit_linear(
    features: Tensor,
    labels: Tensor,
    penalty_c: float = PENALTY_C,
    *,
    classes: int | None = None,
    device: torch.device | None = None,
    start: LinearClassifier | None = None,
) -> LinearClassifier:
    """Multinomial logistic regression: minimises C * (sum of cross-entropies) + |weight|^2 / 2, as scikit-learn does.

    features [N, D] on a common scale (see `standardize`), labels int64 [N]. Full-batch L-BFGS on the device, from
    `start`, or from zero: the optimum is one, and nearer from that of a similar C. Weak penalties, from WEAK_C on, are
    fitted in float64, which takes a copy of the features of twice their size; the classifier is float32.
    """
    if not penalty_c > 0:
        raise ValueError(f"penalty_c={penalty_c}: pass a number > 0")
    x, y = features.to(device).to(torch.float64 if penalty_c >= WEAK_C else torch.float32), labels.to(device)
    classes = classes if classes is not None else int(labels.max()) + 1
    begin = start or LinearClassifier(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    loss_of = lambda weight, bias: F.cross_entropy(F.linear(x, weight, bias), y)
    return fit_penalised(begin.to(x.dtype), penalty_c, len(x), loss_of).to(torch.float32)


def fit_penalised(
    start: LinearClassifier, penalty_c: float, images: int, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> LinearClassifier:
    """Minimises C * images * loss_of(weight, bias) + |weight|^2 / 2 by full-batch L-BFGS from `start`.

    loss_of: the mean loss of the images, a scalar, in the type of `start`, which decides how near the optimum it ends.
    """
    weight, bias = (begun.clone().requires_grad_() for begun in (start.weight, start.bias))
    gradient, change, iterations = ENDS[weight.dtype]
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=gradient,
        tolerance_change=change,
        line_search_fn="strong_wolfe",
    )
    decay = 1 / (2 * penalty_c * images)  # the objective divided by C * N: of order one whatever the number of images

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(weight, bias) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return LinearClassifier(weight.detach(), bias.detach())


def standardize(features: Tensor, *others: Tensor) -> list[Tensor]:
    """Rows L2-normalised, then columns of mean 0 and variance 1 by the statistics of `features`, which come first."""
    rows = [F.normalize(part.float(), dim=1) for part in (features, *others)]
    mean, std = rows[0].mean(dim=0), floored_std(rows[0])
    return [part.sub_(mean).div_(std) for part in rows]  # in place: of a large set each copy takes gigabytes


def floored_std(features: Tensor) -> Tensor:
    """Standard deviation of each column of features [N, D], float32 [D], by which the column can be divided.

    For columns that hardly vary (blank pixels) it is 1% of the mean deviation instead of almost nothing.
    """
    std = features.std(dim=0, correction=min(1, len(features) - 1))  # of one row 0
    return std.clamp_min(0.01 * std.mean()).clamp_min(SMALLEST_STD)


def few_label_accuracies(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    truth: Tensor,
    draws: list[Tensor],
    *,
    classes: int,
    scaled: list[Tensor],
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Accuracy (fraction) on the queries for each draw of labelled rows, by probe: "1nn", "linear", "linear_top5".

    bank [M, D] with labels int64 [M], queries [Q, D] with truth int64 [Q]; draws: rows of the bank, int64 each; scaled:
    what `standardize` makes of bank and queries. The top-5 accuracy is there where there are more than five classes.
    """
    train, test = scaled
    logits = [fit_linear(train[few], labels[few], classes=classes, device=device).logits(test) for few in draws]
    scores = {
        "1nn": [knn_accuracy(bank[few], labels[few], queries, truth, knn_k=1) for few in draws],
        "linear": [accuracy(of_draw, truth) for of_draw in logits],
    }
    if classes > TOP:
        scores["linear_top5"] = [top5_accuracy(of_draw, truth) for of_draw in logits]
    return scores
