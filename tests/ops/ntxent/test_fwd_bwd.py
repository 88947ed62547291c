"""ntxent_fwd_bwd, which makes loss and gradient at once: its values, when the loss takes it, and its backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from simclr_fast import ntxent_loss, similarity_logsumexp
from simclr_fast.ops.ntxent.ops import OPS
from simclr_fast.ops.ntxent.similarity_ops import OPS as SIMILARITY_OPS
from tests.helpers import non_contiguous, relative_error
from tests.ntxent_truth import embeddings, mean_truth, run_steps

OP = torch.ops.simclr_fast.ntxent_fwd_bwd
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def leaves(n: int = 6, d: int = 5, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(n, d).to(dtype).requires_grad_() for _ in range(2)]


def loss_of(z0: Tensor, z1: Tensor, temperature: float | Tensor = 0.2, **options: object) -> Tensor:
    return ntxent_loss(z0, z1, temperature, backend="cpp", **options)


def ops_of(call: Callable[[], object]) -> set[str]:
    """The ops of the package that a call runs, by name."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call()
    prefix = "simclr_fast::ntxent_"
    return {event.name.removeprefix(prefix) for event in recorded.events() if event.name.startswith(prefix)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("learned", [True, False])
def test_it_is_the_three_steps(dtype: torch.dtype, reduction: str, learned: bool) -> None:
    z0, z1 = embeddings("extreme", 7, 5, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    value, t = (0.0, torch.tensor(0.2, dtype=wide)) if learned else (0.2, None)
    torch.library.opcheck(OP.default, (z0, z1, 1e-8, value, t, reduction, "ieee", True))
    strided = non_contiguous(z0), non_contiguous(z1)
    for views in ((z0, z1), strided, (z0[:1], z1[:1]), (z0[:, :1], z1[:, :1]), torch.randn(2, 150, 123).to(dtype)):
        loss, dz, dt = OP(*views, 1e-8, value, t, reduction, "ieee", learned)
        steps = run_steps(OPS["cpp"], *views, 0.2 if t is None else t, reduction=reduction, dz_dtype=wide)
        assert torch.equal(loss, steps.loss)
        assert torch.equal(dz, torch.stack([steps.dz0, steps.dz1]))
        assert not learned or torch.equal(dt, steps.dt)
    with pytest.raises(RuntimeError, match="reduction must be 'mean' or 'sum'"):
        OP(z0, z1, 1e-8, value, t, "none", "ieee", learned)


def test_ops_refuse_views_that_do_not_match() -> None:
    z0, z1 = torch.randn(2, 6, 5)
    normalize, _, normalize_fwd, bwd, _ = OPS["cpp"]
    statistics = (torch.randn(12, 5), *(torch.ones(12) for _ in range(3)))
    for other, message in (
        (z1[:5], "must have as many rows, they have 6 and 5"),
        (z1[:, :4], "of one D, dtype and device"),
        (z1.double(), "of one D, dtype and device"),
        (z1[0], r"must be \[n, D\]"),
    ):
        calls = [
            lambda z=other: OP(z0, z, 1e-8, 0.2, None, "mean", "ieee", False),
            lambda z=other: normalize_fwd(z0, z, 1e-8, 0.2, None, "mean", "ieee"),
            lambda z=other: bwd(torch.ones(()), z0, z, *statistics, 0, "mean", 1e-8, 0.2, None, "ieee", False),
        ]
        if other.shape != (5, 5):  # which normalise as rows and columns of the primitive
            calls.append(lambda z=other: normalize(z0, z, 1e-8))
        for call in calls:
            with pytest.raises(RuntimeError, match=message):
                call()


def test_the_gradient_ops_are_given_the_views_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for CPUs read the unit rows instead; on CUDA the views give the gradient's direction."""
    given: list[Tensor] = []
    for ops, places in ((OPS, slice(1, 3)), (SIMILARITY_OPS, slice(2, 3))):
        bwd = ops["cpp"].bwd
        spy = lambda *inputs, bwd=bwd, places=places, **how: (given.extend(inputs[places]), bwd(*inputs, **how))[1]
        monkeypatch.setitem(ops, "cpp", ops["cpp"]._replace(bwd=spy))
    z0, z1 = leaves()
    loss_of(z0, z1, reduction="none").sum().backward()
    similarity_logsumexp(z0, z1, 0.2, backend="cpp").sum().backward()
    assert [torch.equal(x, z) for x, z in zip(given, (z0, z1, z0, z1), strict=True)] == [True] * 4


def test_ops_refuse_other_arguments() -> None:
    z0, z1 = torch.randn(2, 6, 5)
    u, inv_norm = OPS["cpp"].normalize(z0, z1, 1e-8)
    _, *statistics = OPS["cpp"].fwd(u, 6, 0, 0.2, None, "mean", "ieee")
    bwd = lambda dloss, reduction: OPS["cpp"].bwd(
        *(dloss, z0, z1, u, inv_norm, *statistics, 0, reduction, 1e-8, 0.2, None, "ieee", False)
    )
    assert bwd(torch.ones(12), "none")[0].shape == (6, 5)
    for dloss, reduction, message in (
        (torch.ones(12), "mean", "dloss must have 1 elements, it has 12"),
        (torch.ones(6), "none", "dloss must have 12 elements, it has 6"),
        (torch.ones(()).double(), "mean", "dloss must have the loss's dtype"),
        (torch.ones(()), "avg", "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            bwd(dloss, reduction)
    saved = {"u": u, "inv_norm": inv_norm, "lse_neg": statistics[0], "s_pos": statistics[1]}
    for name, value, offset, message in (
        ("inv_norm", inv_norm[:6], 0, "inv_norm must have 12 elements of the log-sum-exps' dtype, it has 6"),
        ("inv_norm", inv_norm.double(), 0, "inv_norm must have 12 elements"),
        ("lse_neg", statistics[0][:11], 0, "lse_neg must have 12 elements of the log-sum-exps' dtype, it has 11"),
        ("s_pos", statistics[1].double(), 0, "s_pos must have 12 elements"),
        ("u", u[:11], 0, "2 x 6 rows from row 0 on are not among the 11 unit rows"),
        ("u", u, 1, "2 x 6 rows from row 1 on are not among the 12 unit rows"),
        ("u", u, -1, "2 x 6 rows from row -1 on are not among the 12 unit rows"),
    ):
        given = saved | {name: value}
        given |= {key: given[key][: len(given["u"])] for key in ("lse_neg", "s_pos") if key != name}
        with pytest.raises(RuntimeError, match=message):
            OPS["cpp"].bwd(*(torch.ones(()), z0, z1, *given.values(), offset, "mean", 1e-8, 0.2, None, "ieee", False))
        if name == "u":
            with pytest.raises(RuntimeError, match=message):
                OPS["cpp"].fwd(value, 6, offset, 0.2, None, "mean", "ieee")
    strided = [torch.stack([x, x], 1)[:, 0] for x in (inv_norm, *statistics)]
    given = (torch.ones(()), z0, z1, u, *strided, 0, "mean", 1e-8, 0.2, None, "ieee", False)
    torch.testing.assert_close(OPS["cpp"].bwd(*given)[:2], bwd(torch.ones(()), "mean")[:2], rtol=0, atol=0)
    for temperature, precision, message in (
        (torch.ones(2), "ieee", "the temperature tensor must have one element"),
        (torch.ones(()).double(), "ieee", "the temperature tensor must have one element"),
        (None, "fast", "precision must be 'ieee' or 'tf32', got 'fast'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS["cpp"].fwd(u, 6, 0, 0.2, temperature, "mean", precision)


def test_the_loss_takes_it_where_a_scalar_is_differentiated() -> None:
    z0, z1 = leaves()
    t = torch.tensor(0.2, requires_grad=True)
    fixed = z0.detach()
    compiled = torch.compile(lambda: loss_of(z0, z1, t), fullgraph=True, backend="aot_eager")
    compiled()
    for call in (
        lambda: loss_of(z0, z1).backward(),
        lambda: loss_of(z0, z1, reduction="sum").backward(),
        lambda: loss_of(fixed, z1).backward(),
        lambda: loss_of(fixed, fixed, t).backward(),
        lambda: compiled().backward(),
    ):
        assert ops_of(call) == {"fwd_bwd"}
    assert ops_of(lambda: loss_of(z0, z1, reduction="none").sum().backward()) == {"normalize_fwd", "bwd"}
    assert ops_of(lambda: torch.func.grad(loss_of)(fixed, fixed)) == {"normalize_fwd", "bwd"}
    assert ops_of(lambda: loss_of(fixed, fixed, t.detach())) == {"normalize_fwd"}
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            assert ops_of(lambda: loss_of(z0, z1, t)) == {"normalize_fwd"}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_loss_scale_saves_gradients_of_halves(dtype: torch.dtype, compiled: bool) -> None:
    """They are too small for float16, or in its subnormal range, until the scale has been multiplied in."""
    scale = 65536.0
    z0, z1 = ((200 * z.detach()).requires_grad_() for z in leaves(64, 32, dtype))
    t = torch.tensor(0.2, requires_grad=True)
    of = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
    scaled = torch.autograd.grad(of(z0, z1, t) * scale, (z0, z1, t))
    loss_true, dz_true, dt_true = mean_truth(z0, z1, 0.2)
    assert dz_true.abs().median() < torch.finfo(torch.float16).smallest_normal
    dz_scaled = torch.cat(scaled[:2])
    assert dz_scaled.dtype == dtype
    rounded = (dz_true * scale).to(dtype)  # all that the type can hold
    assert relative_error(dz_scaled, rounded) <= 2 * torch.finfo(dtype).eps
    assert (dz_scaled == rounded).double().mean() > 0.95
    assert relative_error(scaled[2], dt_true * scale) <= 1e-6
    assert relative_error(of(z0, z1, t), loss_true) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_runs_again_where_the_graph_is_retained(dtype: torch.dtype) -> None:
    z0, z1 = leaves(dtype=dtype)
    loss = loss_of(z0, z1)
    first = torch.autograd.grad(loss, (z0, z1), retain_graph=True)
    second = torch.autograd.grad(-2 * loss, (z0, z1))
    assert all(torch.equal(-2 * a, b) for a, b in zip(first, second))
    with pytest.raises(RuntimeError, match="second time"):  # what was saved is gone
        loss.backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_second_derivative_is_refused_whatever_requires_grad(dtype: torch.dtype) -> None:
    z0, z1 = leaves(dtype=dtype)
    t = torch.tensor(0.2, requires_grad=True)
    fixed = z0.detach()
    for inputs in ((z0, z1, t), (z0, z1, 0.2), (fixed, z1, 0.2), (z0, fixed, 0.2), (fixed, fixed, t)):
        differentiated = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        gradients = torch.autograd.grad(loss_of(*inputs), differentiated, create_graph=True)
        assert all(g.requires_grad for g in gradients)
        with pytest.raises(RuntimeError, match="ntxent_loss is differentiable once; use backend='reference'"):
            sum(g.square().sum() for g in gradients).backward()


def test_gradients_of_what_requires_them() -> None:
    z0, z1 = leaves(dtype=torch.float64)
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    _, dz_true, dt_true = mean_truth(z0, z1, 0.2)
    of_z0, of_z1 = dz_true.chunk(2)
    for inputs, expected in (
        ((z0, z1.detach(), 0.2), (of_z0,)),
        ((z0.detach(), z1, 0.2), (of_z1,)),
        ((z0.detach(), z1.detach(), t), (dt_true,)),
        ((z0.detach(), z1, t), (of_z1, dt_true)),
        ((z0, z1, t.detach()), (of_z0, of_z1)),
    ):
        differentiated = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        actual = torch.autograd.grad(loss_of(*inputs), differentiated)
        assert all(relative_error(a, e) <= 1e-12 for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_may_be_changed_in_place(dtype: torch.dtype) -> None:
    z0, z1 = leaves(dtype=dtype)
    first, other = torch.autograd.grad(loss_of(z0, z1), (z0, z1))
    doubled, untouched = 2 * first, other.clone()
    first.mul_(torch.tensor(2.0, requires_grad=True))
    assert torch.equal(first, doubled)
    assert torch.equal(other, untouched)


def test_many_upstream_gradients_of_halves_at_once() -> None:
    z0, z1 = leaves(dtype=torch.float16)
    loss = loss_of(z0, z1)
    factors = torch.tensor([0.0, 1.0, -2.0])
    many = torch.autograd.grad(loss, z0, factors, is_grads_batched=True, retain_graph=True)[0]
    one = torch.autograd.grad(loss, z0)[0]
    assert torch.equal(many, torch.stack([0 * one, one, -2 * one]))
