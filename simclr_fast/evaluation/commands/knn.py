"""The command `knn`: weighted nearest neighbours over splits, numbers of neighbours and encoders."""

import torch
from torch import Tensor

from simclr_fast.evaluation.comparison import ENCODERS
from simclr_fast.evaluation.encoders import Features, all_features
from simclr_fast.evaluation.knn import nearest, vote
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import ResultTable, percent

SPLITS = {"test": "test", "train": "train (one out)"}


def main(session: Session) -> None:
    """Accuracy of every encoder for every k, on the test images and, leaving one out, on the training images."""
    options = session.options
    data = session.labelled_data()
    results: dict[str, dict[str, dict[str, float]]] = {split: {} for split in SPLITS}
    for encoder, features in all_features(session.run, data, session.device).items():
        for split in SPLITS:
            truth = data.test.labels if split == "test" else data.labelled.labels
            scores = accuracies(
                features, data.labelled.labels, split, truth, options.knn_k, options.knn_t, session.device
            )
            for k, score in scores.items():
                results[split].setdefault(str(k), {})[encoder] = score
    rows = {
        f"{title}, k = {k}": {encoder: percent(score) for encoder, score in results[split][str(k)].items()}
        for split, title in SPLITS.items()
        for k in options.knn_k
    }
    table = ResultTable.of(f"Weighted kNN, t = {options.knn_t}: accuracy (%)", "images", ENCODERS, rows)
    session.finish(results, table)


def accuracies(
    features: Features,
    labels: Tensor,
    split: str,
    truth: Tensor,
    knn_k: tuple[int, ...],
    knn_t: float,
    device: torch.device,
) -> dict[int, float]:
    """Accuracy (fraction) by k; one search for the largest k serves all."""
    queries = features.test if split == "test" else None
    similarity, index = nearest(features.train, queries, max(knn_k), device)
    neighbours, classes = labels[index], int(labels.max()) + 1
    predicted = {k: vote(similarity[:, :k], neighbours[:, :k], knn_t, classes) for k in knn_k}
    return {k: (classes_of == truth).float().mean().item() for k, classes_of in predicted.items()}
