"""The online kNN: its queries are no part of its bank, and its accuracy is the one by definition."""

import pytest
import torch
from torch import nn

from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.evaluation.in_training import OnlineKnn
from simclr_fast.recipes import RECIPES

CPU = torch.device("cpu")


def monitor(labels: torch.Tensor, pixels: torch.Tensor | None = None) -> OnlineKnn:
    if pixels is None:
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8, generator=generator)
    source = ImageArrays(pixels, labels)
    return OnlineKnn(Dataset(source, source, None), RECIPES["demo"], CPU)


def test_no_query_finds_itself() -> None:
    # Every image is a class of its own: a query is right only where it is its own neighbour.
    knn = monitor(torch.arange(50))
    assert knn.accuracy(nn.Flatten()) == 0
    assert not set(knn.queries.tolist()) & set(knn.bank.tolist())
    assert sorted(knn.queries.tolist() + knn.bank.tolist()) == list(range(50))
    assert len(knn.queries) == 5


@pytest.mark.parametrize("wrong", [0, 2])
def test_accuracy_is_the_share_of_queries_of_the_class_around_them(wrong: int) -> None:
    labels = torch.arange(100) % 2
    pixels = torch.zeros(100, 1, 28, 28, dtype=torch.uint8)
    pixels[labels == 0, :, :14] = 200
    pixels[labels == 1, :, 14:] = 200
    knn = monitor(labels.clone(), pixels)
    knn.source.labels[knn.queries[:wrong]] = 1 - knn.source.labels[knn.queries[:wrong]]
    assert knn.accuracy(nn.Flatten()) == pytest.approx(1 - wrong / 10)
