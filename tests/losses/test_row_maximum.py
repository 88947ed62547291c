"""The row maximum that the primitive returns beside its log-sum-exps: the statistics of the losses are made of it."""

import pytest
import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import normalize_rows
from simclr_fast.ops.ntxent.similarity import similarity

OPTIONS = {"both": False, "eps": 1e-8, "precision": "ieee", "group": None}
BACKENDS = ("cpp", "reference")


def largest_logits(rows: Tensor, columns: Tensor, left_out: Tensor) -> Tensor:
    s = normalize_rows(rows.double()) @ normalize_rows(columns.double()).T / 0.1
    return s.masked_fill(left_out, -torch.inf).max(dim=1).values


@pytest.mark.parametrize("exclude", ["none", "self", "pair"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_largest_logit_of_the_columns_left_in(backend: str, exclude: str) -> None:
    options = OPTIONS | {"exclude": exclude, "backend": backend}
    rows = torch.randn(8, 5, requires_grad=True)
    offsets = {"none": (), "self": (0,), "pair": (0, 4)}[exclude]
    left_out = sum((torch.eye(8).roll(k, dims=1) for k in offsets), torch.zeros(8, 8)).bool()
    lse, _, maximum = similarity(rows, None, 0.1, need_max=True, **options)
    assert lse.requires_grad
    assert not maximum.requires_grad
    assert torch.allclose(maximum.double(), largest_logits(rows, rows, left_out), rtol=1e-6)
    assert similarity(rows, None, 0.1, **options)[2].shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_no_columns_it_is_minus_infinity(backend: str) -> None:
    options = OPTIONS | {"backend": backend, "need_max": True}
    rows, columns = torch.randn(3, 5), torch.randn(0, 5)
    maximum = similarity(rows, columns, 0.1, exclude="none", **options)[2]
    assert maximum.tolist() == [-torch.inf] * 3
    assert similarity(rows[:2], None, 0.1, exclude="pair", **options)[2].tolist() == [-torch.inf] * 2
