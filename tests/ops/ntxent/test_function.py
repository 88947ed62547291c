"""The way of the losses to autograd: how much Python a call runs, what it serves, and what it refuses."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch.autograd import forward_ad

from simclr_fast import NTXentLoss
from simclr_fast.losses import similarity_logsumexp
from simclr_fast.ops.ntxent.ops import OPS
from simclr_fast.ops.ntxent.reference import ntxent_textbook

# Of a step on CPU tensors, beside the calls that torch.autograd.grad makes: 38 and 61. With a Function that has
# setup_context they would be some 160 more, for PyTorch inspects and binds the signature of its forward at every call.
MOST_CALLS = {"ntxent_loss": 42, "similarity_logsumexp": 66}
LOSS = NTXentLoss(0.2, backend="cpp")
LOSSES = {
    "ntxent_loss": LOSS,
    "similarity_logsumexp": lambda z0, z1: similarity_logsumexp(z0, z1, 0.2, backend="cpp").sum(),
}


def python_calls(function: Callable[[], object]) -> int:
    """How many Python functions a call of this one runs, itself among them."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_runs_little_python(name: str) -> None:
    z0, z1 = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    of = lambda loss: lambda: torch.autograd.grad(loss(z0, z1), (z0, z1))
    of(LOSSES[name])()  # what is looked up once
    floor = python_calls(of(lambda z0, z1: (z0 * z1).sum()))
    assert python_calls(of(ntxent_textbook)) > floor
    assert python_calls(of(LOSSES[name])) - floor <= MOST_CALLS[name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("learned", [True, False])
def test_the_op_of_both_steps_is_both_steps(dtype: torch.dtype, reduction: str, learned: bool) -> None:
    z0, z1 = torch.randn(2, 7, 2 * 5).to(dtype)[:, :, ::2]
    t = torch.tensor(0.2, dtype=torch.promote_types(dtype, torch.float32)) if learned else None
    options = (0.1, t, reduction, "ieee")
    torch.library.opcheck(torch.ops.simclr_fast.ntxent_normalize_fwd.default, (z0, z1, 1e-8, *options))
    for first, second in ((z0, z1), (z0[:1], z1[:1]), (z0[:, :1], z1[:, :1])):
        u, inv_norm = OPS["cpp"].normalize(first, second, 1e-8)
        loss, *statistics = OPS["cpp"].fwd(u, len(first), 0, *options)
        both = OPS["cpp"].normalize_fwd(first, second, 1e-8, *options)
        assert all(torch.equal(a, b) for a, b in zip(both, (loss, u, inv_norm, *statistics), strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_many_upstream_gradients_at_once(name: str) -> None:
    z0, z1 = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    loss = LOSSES[name](z0, z1)
    many = torch.autograd.grad(loss, z0, torch.tensor([0.0, 1.0, -2.0]), is_grads_batched=True, retain_graph=True)[0]
    one = torch.autograd.grad(loss, z0)[0]
    assert torch.allclose(many, torch.stack([0 * one, one, -2 * one]), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_is_refused_in_both_directions(name: str) -> None:
    z0, z1 = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    loss = LOSSES[name](z0, z1)
    refused = pytest.raises(RuntimeError, match=rf"{name} has no forward-mode derivative.*backend='reference'")
    with forward_ad.dual_level(), refused:
        LOSSES[name](forward_ad.make_dual(z0.detach(), z1.detach()), z1)
    with forward_ad.dual_level(), refused:
        torch.autograd.grad(loss, z0, forward_ad.make_dual(torch.ones(()), torch.ones(())))


@pytest.mark.parametrize("name", LOSSES)
def test_a_transform_that_is_compiled_is_right_or_refused(name: str) -> None:
    z0, z1 = torch.randn(2, 4, 8)
    gradient = torch.func.grad(LOSSES[name])
    assert torch.equal(torch.compile(gradient, backend="eager")(z0, z1), gradient(z0, z1))
    torch._dynamo.reset()  # which has learnt to run it eagerly
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"cannot trace {name} within a transform of torch.func"):
        torch.compile(gradient, fullgraph=True, backend="eager")(z0, z1)
