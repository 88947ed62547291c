"""Second, forward-mode and batched derivatives of every loss: what the reference gives, and what the others refuse."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simclr_fast import NTXentLoss, clip_loss, info_nce_loss, ntxent_loss, similarity_logsumexp, sup_con_loss
from simclr_fast.ops.ntxent.reference import log_add_exp, log_sum_exp, unit_rows
from tests.helpers import relative_error

BANK = NTXentLoss(0.3, (1, 3)).double()


def with_bank(x: Tensor, y: Tensor, backend: str) -> Tensor:
    module = copy.deepcopy(BANK)  # a call changes the bank
    module.backend = backend
    return module(x, y)


def sup_con(rows: Tensor, labels: Tensor, t: Tensor, backend: str) -> Tensor:
    return sup_con_loss(rows, labels, t, backend=backend)


def three_views(x: Tensor, y: Tensor, t: Tensor, backend: str) -> Tensor:
    return ntxent_loss(torch.stack([x, y, y - x]), temperature=t, backend=backend)


def lse(x: Tensor, y: Tensor, t: Tensor, backend: str) -> Tensor:
    return similarity_logsumexp(x, y, t, exclude="self", backend=backend).nan_to_num(neginf=0).sum()


# What users call, and what with rows x, y [n, 3]. Of one row each, most have rows without negatives.
LOSSES: list[tuple[str, Callable[..., Tensor]]] = [
    ("ntxent_loss", lambda x, y, t, b: ntxent_loss(x, y, t, backend=b)),
    ("ntxent_loss", lambda x, y, t, b: ntxent_loss(x, y, t, return_stats=True, backend=b)[0]),
    ("ntxent_loss of more than two views", three_views),
    ("NTXentLoss with a memory bank", lambda x, y, t, b: with_bank(x, y, b) + 0 * t),
    ("info_nce_loss", lambda x, y, t, b: info_nce_loss(x, y, None, t, backend=b)),
    ("info_nce_loss", lambda x, y, t, b: info_nce_loss(x, y, None, t, symmetric=True, backend=b)),
    ("clip_loss", lambda x, y, t, b: clip_loss(x, y, 1 / t, backend=b)),
    ("sup_con_loss", lambda x, y, t, b: sup_con(torch.cat([x, y]), torch.zeros(2 * len(x)).long(), t, b)),
    ("sup_con_loss", lambda x, y, t, b: sup_con(torch.cat([x, y, -y[:1]]), torch.arange(2 * len(x) + 1) // 2, t, b)),
    ("sup_con_loss", lambda x, y, t, b: sup_con(torch.cat([x, y]), torch.arange(2 * len(x)), t, b)),
    ("sup_con_loss", lambda x, y, t, b: sup_con(x[:1], torch.arange(1), t, b) + 0 * y.sum()),
    ("similarity_logsumexp", lse),
]  # fmt: skip
PAIRS_ALONE: list[tuple[str, Callable[..., Tensor]]] = [  # of which the kernels, too, have all derivatives
    ("info_nce_loss", lambda x, y, t, b: info_nce_loss(x, y, y[:0], t, backend=b)),
    ("info_nce_loss", lambda x, y, t, b: info_nce_loss(x, y, y[:, None][:, :0], t, negative_mode="paired", backend=b)),
]


def names(losses: list[tuple[str, Callable[..., Tensor]]]) -> list[str]:
    return [f"{k}: {called}" for k, (called, _) in enumerate(losses)]


def leaves(n: int) -> list[Tensor]:
    x, y = torch.randn(2, n, 3, dtype=torch.float64).unbind()
    return [x.requires_grad_(), y.requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("loss", [loss for _, loss in LOSSES + PAIRS_ALONE], ids=names(LOSSES + PAIRS_ALONE))
def test_all_derivatives_of_the_reference(loss: Callable[..., Tensor], n: int) -> None:
    of = lambda *inputs: loss(*inputs, "reference")
    assert torch.autograd.gradcheck(of, leaves(n), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(of, leaves(n), fast_mode=True)


@pytest.mark.parametrize(("called", "loss"), LOSSES, ids=names(LOSSES))
def test_what_the_kernels_refuse_names_the_loss_and_the_remedy(called: str, loss: Callable[..., Tensor]) -> None:
    x, y, t = (z.detach() for z in leaves(3))
    of = lambda x: loss(x, y, t, "cpp")
    assert relative_error(torch.func.grad(of)(x), torch.func.grad(lambda x: loss(x, y, t, "reference"))(x)) <= 1e-9
    for transform, message in (
        (lambda: torch.func.vmap(of)(torch.stack([x, x])), f"{called} cannot be vmapped"),
        (lambda: torch.func.jvp(of, (x,), (x,)), f"{called} has no forward-mode derivative"),
        (lambda: torch.func.jacrev(of)(x), f"the gradient of {called} cannot be vmapped"),
        (lambda: torch.func.grad(lambda x: torch.func.grad(of)(x).sum())(x), f"{called} is differentiable once"),
    ):
        with pytest.raises(RuntimeError, match=f"^{message}.*backend='reference'"):
            transform()


def test_rows_that_are_clamped_have_derivatives_too() -> None:
    """Of every order, also at 0, where a norm has none."""
    z = torch.cat([torch.zeros(1, 4), 0.1 * torch.ones(1, 4), torch.randn(2, 4) + 2]).double().requires_grad_()
    of = lambda z: unit_rows(z, eps=0.5)
    assert torch.autograd.gradcheck(of, z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(of, z)


def test_log_sums_of_nothing_and_of_numbers_far_apart() -> None:
    nothing, far = torch.full((2,), -torch.inf, dtype=torch.float64), torch.tensor([-2000.0, 3.0], dtype=torch.float64)
    a, b = torch.cat([nothing, far, far, nothing[:1]]), torch.cat([far, nothing, far.flip(0), nothing[:1]])
    assert torch.equal(log_add_exp(a, b), torch.logaddexp(a, b))
    assert torch.equal(log_sum_exp(torch.stack([a, b], dim=1)), torch.logaddexp(a, b))
    for function in (log_add_exp, lambda a, b: log_sum_exp(torch.stack([a, b], dim=1))):
        second = torch.func.hessian(lambda a, function=function: function(a, b).nan_to_num(neginf=0).sum())(a)
        assert not second.any()


def test_many_temperatures_of_the_reference_are_differentiated_at_once() -> None:
    z0, z1 = torch.randn(2, 5, 4).double()
    ts = torch.tensor([0.1, 0.3], dtype=torch.float64)
    of = lambda t: ntxent_loss(z0, z1, t, backend="reference")
    many = torch.func.vmap(torch.func.grad(of))(ts)
    assert torch.allclose(many, torch.stack([torch.func.grad(of)(t) for t in ts]))
