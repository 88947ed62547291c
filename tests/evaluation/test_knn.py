"""Nearest neighbours: search and vote against a plain computation, in bounded memory."""

import pytest
import torch
import torch.nn.functional as F

from simclr_fast.evaluation import probes
from simclr_fast.evaluation.probes import choose_k, choosing_rows, chosen_by, knn_accuracy, knn_predict, nearest, vote


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
    monkeypatch.setattr(probes, "QUERY_ROWS", query_rows)
    monkeypatch.setattr(probes, "BANK_ROWS", bank_rows)
    bank, queries = torch.randn(53, 8), None if leave_one_out else torch.randn(29, 8)
    similarity, index = nearest(bank, queries, knn_k=9)
    expected, expected_index = plain_nearest(bank, queries, 9)
    torch.testing.assert_close(similarity, expected)
    assert torch.equal(index, expected_index)
    if leave_one_out:
        rows = torch.tensor([40, 3, 52])
        similarity, index = nearest(bank, None, knn_k=9, rows=rows)
        torch.testing.assert_close(similarity, expected[rows])
        assert torch.equal(index, expected_index[rows])


def test_vote_is_weighted_by_similarity() -> None:
    # One very similar neighbour of class 1 against two distant ones of class 0.
    similarity, classes = torch.tensor([[0.9, 0.2, 0.2]]), torch.tensor([[1, 0, 0]])
    winner = lambda knn_t: vote(similarity, classes, knn_t, classes=3).argmax(dim=1).tolist()
    assert winner(0.1) == [1]
    assert winner(100.0) == [0]
    assert winner(1e-3) == [1]  # exp(0.9 / 0.001) would overflow
    assert vote(similarity, classes, 0.1, classes=3)[0, 2] == -torch.inf, "no neighbour is of class 2"


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
    ("arguments", "message"),
    [
        ({"knn_k": 0}, "knn_k=0"),
        ({"knn_t": 0.0}, "knn_t=0"),
        ({"knn_t": float("nan")}, "knn_t=nan"),
        ({"labels": 3}, "3 entries"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    arguments = {"knn_k": 2, "labels": 5, **arguments}
    labels = torch.zeros(arguments.pop("labels"), dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        knn_predict(torch.randn(5, 3), labels, torch.randn(2, 3), **arguments)


def test_a_single_row_has_no_neighbour() -> None:
    with pytest.raises(ValueError, match="no neighbour"):
        nearest(torch.randn(1, 3), None, 1)


def test_k_is_chosen_on_the_training_images() -> None:
    # Pairs of one class each, far from all others, so that one neighbour is right and nine are a coin's toss.
    pairs = torch.eye(20, 24).repeat_interleave(2, dim=0) + 0.01 * torch.randn(40, 24)
    labels = (torch.arange(40) // 2) % 2
    k, scores = choose_k(pairs, labels, (1, 9, 39, 200), knn_t=100.0, classes=2)
    assert (k, scores[1]) == (1, 1.0)
    assert set(scores) == {1, 9, 39}, "200 neighbours are not there"
    expected = {n: knn_accuracy(pairs, labels, None, labels, knn_k=n, knn_t=100.0) for n in scores}
    assert scores == pytest.approx(expected)
    # One row in five is mislabelled: a vote of several is right more often than the nearest row alone.
    noisy = torch.arange(100) % 2
    bank = torch.eye(2, 6)[noisy] + 0.05 * torch.randn(100, 6)
    noisy[::5] = 1 - noisy[::5]
    k, scores = choose_k(bank, noisy, (1, 20), knn_t=0.1, classes=2)
    assert k == 20
    assert scores[20] > scores[1]


def test_of_many_training_images_the_same_share_of_every_class_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(choosing_rows(torch.zeros(count))) for count in (4000, 5000, 20_000)] == [4000, 5000, 5000]
    monkeypatch.setattr(probes, "CHOICE_ROWS", 20)
    torch.manual_seed(0)
    labels, bank = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)], torch.randn(100, 6)
    rows = choosing_rows(labels)
    assert torch.bincount(labels[rows]).tolist() == [12, 6, 2]
    assert torch.equal(rows, choosing_rows(labels.clone())), "always the same ones"
    assert torch.equal(choosing_rows(labels[:20]), torch.arange(20)), "all, where there are no more"
    assert chosen_by(100, len(rows)) == "20 of the 100 training images"
    assert chosen_by(20, 20) == "the training images"
    # All others can be neighbours of those that choose.
    similarity, index = plain_nearest(bank, None, 5)
    right = vote(similarity, labels[index], 0.1, classes=3).argmax(dim=1) == labels
    _, scores = choose_k(bank, labels, (5,), knn_t=0.1, classes=3)
    assert scores[5] == pytest.approx(right[rows].float().mean())
    assert scores[5] != pytest.approx(right.float().mean())


def test_more_neighbours_than_there_are_choose_as_all_of_them() -> None:
    bank, labels = torch.randn(7, 4), torch.arange(7) % 2
    assert set(choose_k(bank, labels, (3, 50), knn_t=0.1, classes=2)[1]) == {3, 6}
    k, scores = choose_k(bank, labels, (50, 90), knn_t=0.1, classes=2)
    assert (k, set(scores)) == (7, {6})


def test_all_others_together_can_be_chosen() -> None:
    # The nearest of every row is the one in the middle, of another class; all others together are mostly right.
    bank = torch.tensor([[0.0, 0, 1], [0.3, 0, 1], [-0.3, 0, 1], [0, 0.3, 1], [0, -0.3, 1]])
    labels = torch.tensor([1, 0, 0, 0, 0])
    assert choose_k(bank, labels, (1, 4), knn_t=100.0, classes=2) == (4, {1: 0.0, 4: pytest.approx(0.8)})


def test_k_is_chosen_with_the_temperature_asked_for() -> None:
    # The nearest row is right, but two distant ones of another class outvote it where the temperature is high.
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.6, 0.8], [0.6, 0.81], [0.59, 0.8]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert choose_k(bank, labels, (4,), knn_t=0.01, classes=2)[1][4] == 1.0
    assert choose_k(bank, labels, (4,), knn_t=100.0, classes=2)[1][4] < 1.0
