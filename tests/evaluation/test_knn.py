"""Nearest neighbours: search and vote against a plain computation, in bounded memory."""

import pytest
import torch
import torch.nn.functional as F

from simclr_fast.evaluation import knn
from simclr_fast.evaluation.knn import knn_accuracy, knn_predict, nearest, vote


def plain_nearest(bank: torch.Tensor, queries: torch.Tensor | None, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = F.normalize(bank, dim=1)
    similarity = (rows if queries is None else F.normalize(queries, dim=1)) @ rows.T
    if queries is None:
        similarity.fill_diagonal_(-torch.inf)
    return similarity.topk(k, dim=1)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(("query_rows", "bank_rows"), [(1024, 65536), (7, 11), (64, 5)])
def test_tiles_do_not_change_the_neighbours(
    leave_one_out: bool, query_rows: int, bank_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "QUERY_ROWS", query_rows)
    monkeypatch.setattr(knn, "BANK_ROWS", bank_rows)
    bank, queries = torch.randn(53, 8), None if leave_one_out else torch.randn(29, 8)
    similarity, index = nearest(bank, queries, knn_k=9)
    expected, expected_index = plain_nearest(bank, queries, 9)
    torch.testing.assert_close(similarity, expected)
    assert torch.equal(index, expected_index)


def test_vote_is_weighted_by_similarity() -> None:
    # One very similar neighbour of class 1 against two distant ones of class 0.
    similarity, classes = torch.tensor([[0.9, 0.2, 0.2]]), torch.tensor([[1, 0, 0]])
    assert vote(similarity, classes, knn_t=0.1, classes=2).tolist() == [1]
    assert vote(similarity, classes, knn_t=100.0, classes=2).tolist() == [0]
    assert vote(similarity, classes, knn_t=1e-3, classes=2).tolist() == [1]  # exp(0.9 / 0.001) would overflow


def test_predictions_follow_the_clusters() -> None:
    centres = torch.eye(4, 16)
    labels = torch.arange(4).repeat(25)
    bank = centres[labels] + 0.05 * torch.randn(100, 16)
    truth = torch.arange(4).repeat(5)
    queries = centres[truth] + 0.05 * torch.randn(20, 16)
    assert knn_accuracy(bank, labels, queries, truth, knn_k=200) == 1.0  # more neighbours asked for than there are
    assert knn_accuracy(bank, labels, None, labels, knn_k=5) == 1.0


def test_leaving_one_out_looks_at_others_only() -> None:
    # Rows in pairs of one class each: without itself, the nearest is its partner; labels of partners are swapped.
    pairs = torch.randn(10, 6).repeat_interleave(2, dim=0)
    labels = torch.arange(2).repeat(10)
    assert knn_accuracy(pairs, labels, None, labels, knn_k=1) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"), [({"knn_k": 0}, "knn_k=0"), ({"knn_t": 0.0}, "knn_t=0"), ({"labels": 3}, "3 entries")]
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    labels = torch.zeros(arguments.pop("labels", 5), dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        knn_predict(torch.randn(5, 3), labels, torch.randn(2, 3), **arguments)
