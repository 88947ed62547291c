"""NT-Xent as an operator: derivatives, torch.compile, autocast, checkpointing, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from simclr_fast import NTXentLoss, ntxent_loss
from tests.helpers import relative_error
from tests.ntxent_truth import mean_truth

OPS = torch.ops.simclr_fast


def leaves(n: int, d: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(n, d, dtype=dtype, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (6, 5)], ids=str)
def test_gradcheck(shape: tuple[int, int], reduction: str, temperature: float) -> None:
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    loss = lambda z0, z1, t: ntxent_loss(z0, z1, t, reduction=reduction, backend="cpp")
    # The loss changes over distances of t, so the finite difference must be far smaller.
    assert torch.autograd.gradcheck(loss, (*leaves(*shape), t), eps=1e-6 * temperature, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tensor_temperature", [True, False])
def test_opcheck(dtype: torch.dtype, reduction: str, tensor_temperature: bool) -> None:
    z0, z1 = torch.randn(2, 5, 7).to(dtype)
    torch.library.opcheck(OPS.ntxent_normalize.default, (z0, z1, 1e-8))
    u, inv_norm = OPS.ntxent_normalize(z0, z1, 1e-8)
    temperature = torch.tensor(0.1, dtype=u.dtype) if tensor_temperature else None
    arguments = (u, 5, 0, 0.1, temperature, reduction, "ieee")
    torch.library.opcheck(OPS.ntxent_fwd.default, arguments)
    loss, *statistics = OPS.ntxent_fwd(*arguments)
    more = (0, reduction, 1e-8, 0.1, temperature, "ieee", True)
    torch.library.opcheck(OPS.ntxent_bwd.default, (torch.ones_like(loss), z0, z1, u, inv_norm, *statistics, *more))


def test_compiles_into_one_graph() -> None:
    linear = torch.nn.Linear(8, 6)
    x = torch.randn(2, 10, 8)
    t = torch.tensor(0.2, requires_grad=True)

    def step(x: Tensor, t: Tensor) -> Tensor:
        return ntxent_loss(linear(x[0]), linear(x[1]), t) + ntxent_loss(linear(x[0]), linear(x[1]), 0.3)

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        loss = function(x, t)
        gradients.append([loss, *torch.autograd.grad(loss, (*linear.parameters(), t))])
    assert all(relative_error(compiled, eager) <= 1e-5 for eager, compiled in zip(*gradients))


def test_the_loss_line_written_for_lightly() -> None:
    """criterion = NTXentLoss(); loss = criterion(z0, z1); loss.backward() under autocast, eager and compiled."""
    criterion = NTXentLoss(temperature=0.5, memory_bank_size=0, gather_distributed=False)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 12))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x0 = torch.randn(32, 8)
    x1 = x0 + 0.1 * torch.randn(32, 8)

    def step(x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = model(x0), model(x1)
        assert z0.dtype == torch.bfloat16
        return criterion(z0, z1)

    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        losses = []
        for _ in range(20):
            with torch.autocast("cpu", torch.bfloat16):
                loss = function(x0, x1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert loss.dtype == torch.float32
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_autocast_does_not_cast_down(backend: str) -> None:
    z0, z1 = leaves(64, 32, torch.float32)
    loss_true, dz_true, _ = mean_truth(z0, z1, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ntxent_loss(z0, z1, 0.1, backend=backend)
    loss.backward()
    assert relative_error(loss, loss_true) <= 1e-6
    assert relative_error(torch.cat([z0.grad, z1.grad]), dz_true) <= 1e-5


def test_upstream_gradients_scale_the_result() -> None:
    """Also where they are so large that float32 would overflow if weights were not scaled."""
    z0, z1 = leaves(12, 8, torch.float32)
    _, dz_true, _ = mean_truth(z0, z1, 0.03)
    for factor in (-2.0, 1e-20, 1e30):
        dz = torch.cat(torch.autograd.grad(ntxent_loss(z0, z1, 0.03, backend="cpp") * factor, (z0, z1)))
        assert relative_error(dz, dz_true * factor) <= 1e-5
    zero = torch.cat(torch.autograd.grad(ntxent_loss(z0, z1, 0.03, backend="cpp") * 0, (z0, z1)))
    assert not zero.any()


def test_rows_with_their_own_upstream_gradient() -> None:
    z0, z1 = leaves(20, 6, torch.float32)
    weights = torch.randn(40)
    wide = [z.detach().double().requires_grad_() for z in (z0, z1)]
    expected = torch.autograd.grad(ntxent_loss(*wide, 0.1, reduction="none", backend="reference"), wide, weights)
    actual = torch.autograd.grad(ntxent_loss(z0, z1, 0.1, reduction="none", backend="cpp"), (z0, z1), weights)
    assert all(relative_error(a, e) <= 1e-5 for a, e in zip(actual, expected))


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.02, 0.003])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_one_pair_has_no_negatives_and_no_gradient(dtype: torch.dtype, reduction: str, temperature: float) -> None:
    for angle in (0.0, 1.6, 3.1):
        z0, z1 = (torch.tensor([[math.cos(a), math.sin(a)]], dtype=dtype, requires_grad=True) for a in (0.0, angle))
        t = torch.tensor(temperature, requires_grad=True)
        for given in (temperature, t):
            loss = ntxent_loss(z0, z1, given, reduction=reduction, backend="cpp").sum()
            assert loss == 0
            assert all((g == 0).all() for g in torch.autograd.grad(loss, [z0, z1, t][: 2 + (given is t)]))


def test_one_view_may_need_no_gradient() -> None:
    z0, z1 = leaves(6, 4)
    both = torch.autograd.grad(ntxent_loss(z0, z1, 0.1), (z0, z1))[0]
    assert torch.equal(torch.autograd.grad(ntxent_loss(z0, z1.detach(), 0.1), z0)[0], both)


def test_gradient_checkpointing() -> None:
    z0, z1 = leaves(6, 4)
    plain = torch.autograd.grad(ntxent_loss(z0, z1, 0.1), (z0, z1))
    recomputed = torch.autograd.grad(checkpoint(ntxent_loss, z0, z1, 0.1, use_reentrant=False), (z0, z1))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed))


def test_func_grad_works_and_what_does_not_says_so() -> None:
    z0, z1 = (z.detach() for z in leaves(6, 4))
    of = lambda backend: lambda z: ntxent_loss(z, z1, 0.1, backend=backend)
    loss, exact = of("cpp"), of("reference")
    assert relative_error(torch.func.grad(loss)(z0), torch.func.grad(exact)(z0)) <= 1e-12
    for transform, message in (
        (lambda f: torch.func.vmap(lambda z: f(z))(torch.stack([z0, z0])), "ntxent_loss cannot be vmapped"),
        (lambda f: torch.func.jvp(f, (z0,), (z0,)), "ntxent_loss has no forward-mode derivative"),
        (lambda f: torch.func.jacrev(f)(z0), "the gradient of ntxent_loss cannot be vmapped"),
        (lambda f: torch.func.grad(lambda z: torch.func.grad(f)(z).sum())(z0), "ntxent_loss is differentiable once"),
    ):
        with pytest.raises(RuntimeError, match=f"{message}.*backend='reference'"):
            transform(loss)
        transform(exact)


def test_nothing_of_a_cuda_tensor_is_read_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have no values: to read one, or a shape that depends on one, raises. So graphs can be captured."""
    monkeypatch.setattr("simclr_fast.losses.ntxent.resolve_backend", lambda *_: "triton")
    with FakeTensorMode():
        z0, z1 = (torch.empty(6, 4, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        temperature = torch.empty((), device="cuda", requires_grad=True)
        # The Function of row losses returns what it saves, too.
        for reduction, shape, saved in (("mean", (), ()), ("none", (12,), (None,) * 4)):
            loss = NTXentLoss(temperature, reduction=reduction)(z0, z1)
            assert (loss.shape, loss.dtype, loss.device.type) == (shape, torch.float32, "cuda")
            gradients = loss.grad_fn.apply(torch.empty_like(loss), *saved)[:3]  # without autograd's streams
            assert [(g.shape, g.dtype) for g in gradients] == [(x.shape, x.dtype) for x in (z0, z1, temperature)]


def test_a_second_derivative_is_refused_not_dropped() -> None:
    z0, z1 = leaves(6, 4)
    gradient = torch.autograd.grad(ntxent_loss(z0, z1, 0.1, backend="cpp"), z0, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="ntxent_loss is differentiable once; use backend='reference'"):
        (gradient.square().sum() + z0.sum()).backward()
    assert torch.autograd.gradgradcheck(lambda a, b: ntxent_loss(a, b, 0.3, backend="reference"), (z0, z1))


def test_no_gradient_wanted() -> None:
    z0, z1 = torch.randn(2, 6, 4)
    with torch.no_grad():
        assert not ntxent_loss(z0, z1, 0.1).requires_grad
    assert ntxent_loss(z0, z1, 0.1).grad_fn is None
