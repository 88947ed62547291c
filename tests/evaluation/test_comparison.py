"""kNN and few-label probes against plain computations and on features whose classes are known to separate."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from simclr_fast.evaluation import knn
from simclr_fast.evaluation.comparison import ENCODERS, PROBES, probe_accuracies, results_table
from simclr_fast.evaluation.knn import knn_predict
from simclr_fast.evaluation.linear import linear_accuracy, standardize


def clusters(count: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around 4 directions in 8 dimensions, and which direction each belongs to."""
    centres = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(9)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return centres[labels] + spread * torch.randn(count, 8, generator=generator), labels


@pytest.mark.parametrize("knn_k", [1, 5, 20])
@pytest.mark.parametrize("bank_rows", [7, 1000])
def test_knn_agrees_with_scikit_learn(knn_k: int, bank_rows: int, monkeypatch) -> None:
    monkeypatch.setattr(knn, "BANK_ROWS", bank_rows)  # the bank in tiles gives the same neighbours
    bank, labels = clusters(60, 0.6)
    queries, _ = clusters(33, 0.6, seed=1)
    unit_bank, unit_queries = (torch.nn.functional.normalize(part, dim=1).numpy() for part in (bank, queries))
    # On the unit sphere Euclidean distance d orders like similarity s = 1 - d^2 / 2.
    model = KNeighborsClassifier(knn_k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1))
    expected = model.fit(unit_bank, labels.numpy()).predict(unit_queries)
    assert knn_predict(bank, labels, queries, knn_k=knn_k, knn_t=0.1).tolist() == expected.tolist()


def test_linear_probe_separates_clusters() -> None:
    train, labels = clusters(200, 0.2)
    test, truth = clusters(100, 0.2, seed=1)
    assert linear_accuracy(*_standard(train, labels, test, truth)) > 0.97
    shuffled = labels[torch.randperm(200)]
    assert linear_accuracy(*_standard(train, shuffled, test, truth)) < 0.6


def _standard(train, labels, test, truth):
    train, test = standardize(train, test)
    return train, labels, test, truth


def test_better_features_score_better_in_every_probe_and_in_the_table() -> None:
    labels, truth = clusters(200, 1)[1], clusters(100, 1)[1]
    scores = {
        encoder: probe_accuracies(clusters(200, s)[0], labels, clusters(100, s, seed=1)[0], truth, labels_per_class=5)
        for encoder, s in zip(ENCODERS, (1.5, 0.6, 0.1))
    }
    for probe in PROBES:
        raw, random_init, simclr = (scores[encoder][probe] for encoder in ENCODERS)
        assert raw < random_init < simclr <= 1.0
    table = results_table({probe: {e: scores[e][probe] for e in ENCODERS} for probe in PROBES})
    assert table.row_count == 3
    assert len(table.columns) == 4
