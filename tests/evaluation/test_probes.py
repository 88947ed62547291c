"""kNN and few-label probes against plain computations and on features whose classes are known to separate."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from simclr_fast.evaluation import knn
from simclr_fast.evaluation.knn import knn_accuracy, knn_predict
from simclr_fast.evaluation.linear import few_label_draws, linear_accuracy, standardize
from simclr_fast.evaluation.report import ENCODERS, PROBES, probe_accuracies, results_table


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


def test_knn_weights_do_not_overflow_at_small_temperature() -> None:
    bank, labels = clusters(40, 0.05)
    assert knn_accuracy(bank, labels, bank, labels, knn_k=10, knn_t=1e-3) == 1.0


def test_knn_of_a_bank_smaller_than_k() -> None:
    bank, labels = clusters(8, 0.01)
    assert knn_accuracy(bank, labels, bank, labels, knn_k=200) == 1.0


@pytest.mark.parametrize("options", [{"knn_k": 0}, {"knn_t": 0.0}])
def test_knn_refuses_what_it_cannot_do(options: dict) -> None:
    bank, labels = clusters(8, 0.1)
    with pytest.raises(ValueError, match="knn_k"):
        knn_predict(bank, labels, bank, **options)
    with pytest.raises(ValueError, match="labels has 7"):
        knn_predict(bank, labels[:7], bank)


def test_few_label_draws_are_balanced_fixed_and_different() -> None:
    labels = torch.arange(100) % 5
    draws = few_label_draws(labels, per_class=4, draws=3)
    for chosen in draws:
        assert labels[chosen].bincount().tolist() == [4] * 5
        assert len(chosen.unique()) == 20
    assert not torch.equal(draws[0], draws[1])
    assert all(torch.equal(a, b) for a, b in zip(draws, few_label_draws(labels, 4, 3)))
    with pytest.raises(ValueError, match="the rarest class has only 20"):
        few_label_draws(labels, per_class=21, draws=1)


def test_standardize_uses_the_training_statistics_and_tames_blank_columns() -> None:
    train, test = torch.rand(50, 6) + 0.5, torch.rand(20, 6) + 0.5
    train[:, 0] = 0.0
    test[:, 0] = 0.5
    a, b = standardize(train, test)
    torch.testing.assert_close(a.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(a[:, 1:].std(0), torch.ones(5))
    assert b[:, 0].abs().max() < 1000


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
