"""Rows made under inference_mode, as a frozen teacher's are: every loss takes them as it takes others."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simclr_fast import clip_loss, info_nce_loss, ntxent_loss, similarity_logsumexp, sup_con_loss
from tests.helpers import relative_error

CALLS: dict[str, Callable[..., Tensor]] = {
    "ntxent": lambda x, k, more, t, b: ntxent_loss(x, k, t, backend=b),
    "decoupled": lambda x, k, more, t, b: ntxent_loss(x, k, t, decoupled=True, backend=b),
    "views": lambda x, k, more, t, b: ntxent_loss(more, temperature=t, backend=b),
    "info_nce": lambda x, k, more, t, b: info_nce_loss(x, k, temperature=t, backend=b),
    "paired": lambda x, k, more, t, b: info_nce_loss(x, k, more, t, negative_mode="paired", backend=b),
    "clip": lambda x, k, more, t, b: clip_loss(x, k, 1 / t, backend=b),
    "sup_con": lambda x, k, more, t, b: sup_con_loss(more, None, t, backend=b),
    "primitive": lambda x, k, more, t, b: similarity_logsumexp(x, k, t, backend=b).sum(),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_frozen_rows(name: str, backend: str) -> None:
    x, t = torch.randn(3, 5, requires_grad=True), torch.tensor(0.2, requires_grad=True)
    ordinary = torch.randn(3, 5), torch.randn(3, 4, 5)
    with torch.inference_mode():
        frozen = [rows.clone() for rows in ordinary]
    found = []
    for k, more in (ordinary, frozen):
        loss = CALLS[name](x, k, more, t, backend)
        found.append([loss, *torch.autograd.grad(loss, (x, t), materialize_grads=True, allow_unused=True)])
    assert all(relative_error(actual, expected) == 0 for expected, actual in zip(*found))


@pytest.mark.parametrize("name", ["clip", "ntxent"])
def test_frozen_rows_of_a_compiled_loss(name: str) -> None:
    """It cannot look whether they are such: a loss that saves them says to clone them."""
    x, more, t = torch.randn(3, 5, requires_grad=True), torch.empty(0), 0.2
    with torch.inference_mode():
        frozen = torch.randn(3, 5)
    loss = lambda k: CALLS[name](x, k, more, t, "cpp")
    compiled, expected = torch.compile(loss, fullgraph=True, backend="aot_eager"), loss(frozen)
    if name == "clip":
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward.*clone"):
            compiled(frozen)
        frozen = frozen.clone()
    found = compiled(frozen)
    assert relative_error(found, expected) <= 1e-6
    assert relative_error(*(torch.autograd.grad(value, x)[0] for value in (found, expected))) <= 1e-5
