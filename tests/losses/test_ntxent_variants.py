"""NT-Xent's variants against their formulas in float64: decoupled, weighted, with statistics, of a stack of views."""

import math

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_fast import NTXentLoss, ntxent_loss
from simclr_fast.losses.statistics import NTXentStatistics, cosine_error
from tests.helpers import non_contiguous, relative_error
from tests.ntxent_truth import EPS, KINDS, TEMPERATURES, embeddings, gradient_error, half_error

BACKENDS = ("cpp", "reference")
SHAPES = ((1, 5), (2, 1), (33, 123))


def formula(z0: Tensor, z1: Tensor, t: float | Tensor, decoupled: bool) -> tuple[Tensor, NTXentStatistics]:
    """Row losses [2n] and the statistics by their definitions, from the whole matrix of logits."""
    z = torch.cat([z0, z1])
    u = z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(EPS)
    s = u @ u.T / t
    n = z0.shape[0]
    own = torch.eye(2 * n, dtype=torch.bool)
    positive = own.roll(n, dims=1)
    negatives = s.masked_fill(own | positive, -torch.inf)
    s_pos = s[positive]
    margin = torch.logsumexp(negatives, dim=1) - s_pos
    found = (s_pos > negatives.amax(dim=1)).double().mean()
    statistics = NTXentStatistics(found, s_pos.mean(), torch.exp(-torch.logaddexp(margin, torch.zeros(()))).mean())
    return margin if decoupled else torch.logaddexp(margin, torch.zeros(())), statistics


def leaves(views: Tensor) -> tuple[Tensor, Tensor]:
    z0, z1 = (view.detach().clone().requires_grad_() for view in views)
    return z0, z1


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_decoupled_and_with_statistics_equal_their_formulas(backend: str, kind: str, temperature: float) -> None:
    for n, d in SHAPES:
        views = embeddings(kind, n, d, torch.float32)
        weights = torch.rand(n)
        for decoupled in (False, True):
            if decoupled and n == 1:
                continue
            z0, z1 = leaves(views)
            t = torch.tensor(temperature, requires_grad=True)
            wide0, wide1 = leaves(views.double())
            wide_t = t.detach().double().requires_grad_()
            loss, found = ntxent_loss(
                z0, z1, t, decoupled=decoupled, weights=weights, return_stats=True, backend=backend
            )
            rows, expected = formula(wide0, wide1, wide_t, decoupled)
            truth = (rows * weights.double().repeat(2)).mean()
            assert abs(loss.item() - truth.item()) <= 5e-6 * max(1.0, abs(truth.item()))
            loss.backward()
            truth.backward()
            dz, dz_true = torch.cat([z0.grad, z1.grad]), torch.cat([wide0.grad, wide1.grad])
            assert gradient_error(dz, dz_true, views.flatten(0, 1), temperature, kind) <= 3e-5
            # The terms of equal rows, s / t each, cancel.
            scale = temperature**-2 if kind == "equal" else wide_t.grad.abs()
            assert abs(t.grad - wide_t.grad) <= 3e-5 * scale + 1e-30
            assert not any(x.requires_grad for x in found)
            assert found.positive_logit.item() == pytest.approx(expected.positive_logit.item(), rel=1e-5, abs=1e-5)
            assert found.positive_probability.item() == pytest.approx(expected.positive_probability.item(), abs=1e-5)
            if kind not in ("equal", "zero rows") and d > 1:  # which have ties
                assert found.accuracy.item() == pytest.approx(expected.accuracy.item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_views(kind: str, dtype: torch.dtype) -> None:
    views = embeddings(kind, 9, 16, dtype)
    scale = 1.0 if kind == "huge row" else 256.0  # so that float16 gradients neither vanish nor overflow
    for decoupled in (False, True):
        z0, z1 = leaves(views)
        wide0, wide1 = leaves(views.double())
        loss, _ = ntxent_loss(z0, z1, 0.1, decoupled=decoupled, return_stats=True)
        truth = formula(wide0, wide1, 0.1, decoupled)[0].mean()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(truth.item(), rel=5e-6, abs=5e-6)
        (loss * scale).backward()
        (truth * scale).backward()
        dz, dz_true = torch.cat([z0.grad, z1.grad]), torch.cat([wide0.grad, wide1.grad])
        assert half_error(dz, dz_true, views.flatten(0, 1), 0.1, kind) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_and_any_strides(backend: str, decoupled: bool) -> None:
    z0, z1 = (non_contiguous(z).requires_grad_() for z in torch.randn(2, 7, 5, dtype=torch.float64))
    loss = ntxent_loss(z0, z1, 0.05, decoupled=decoupled, return_stats=True, backend=backend)[0]
    truth = formula(z0, z1, 0.05, decoupled)[0].mean()
    assert relative_error(loss, truth) <= 1e-12
    for found, expected in zip(*(torch.autograd.grad(x, (z0, z1)) for x in (loss, truth))):
        assert relative_error(found, expected) <= 1e-11


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_weights_are_factors_on_the_rows_of_a_sample(decoupled: bool, reduction: str) -> None:
    z0, z1 = leaves(torch.randn(2, 6, 5))
    weights = torch.rand(6, requires_grad=True)
    wide = [x.detach().double().requires_grad_() for x in (z0, z1, weights)]
    loss = ntxent_loss(z0, z1, 0.2, decoupled=decoupled, weights=weights, reduction=reduction)
    rows = formula(*wide[:2], 0.2, decoupled)[0] * wide[2].repeat(2)
    truth = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    assert relative_error(loss, truth) <= 5e-6
    upstream = torch.rand(loss.shape)
    found = torch.autograd.grad(loss, (z0, z1, weights), upstream)
    expected = torch.autograd.grad(truth, wide, upstream.double())
    assert all(relative_error(a, b) <= 3e-5 for a, b in zip(found, expected))


def test_weights_of_other_types() -> None:
    z0, z1 = torch.randn(2, 4, 5)
    mask = torch.tensor([True, False, True, True])
    rows = ntxent_loss(z0, z1, 0.2, reduction="none")
    expected = rows[mask.repeat(2)].sum() / 8
    assert relative_error(ntxent_loss(z0, z1, 0.2, weights=mask), expected) <= 1e-6
    assert relative_error(ntxent_loss(z0, z1, 0.2, weights=mask.long(), return_stats=True)[0], expected) <= 1e-6


def test_a_tie_counts_as_wrong_and_no_negatives_as_right() -> None:
    e = torch.eye(4)
    collapsed = e[:1].repeat(3, 1)
    apart = ntxent_loss(e, e, 0.1, return_stats=True)[1]
    assert (apart.accuracy, apart.positive_logit) == (1.0, pytest.approx(10.0))
    assert apart.positive_probability.item() == pytest.approx(1 / (1 + 6 * math.exp(-10)))
    same = ntxent_loss(collapsed, collapsed, 0.1, return_stats=True)[1]
    assert same.accuracy == 0.0
    assert same.positive_probability.item() == pytest.approx(1 / 5)
    assert ntxent_loss(e[:1], -e[:1], 0.1, return_stats=True)[1] == (1.0, pytest.approx(-10.0), 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_collapsed_encoder_scores_0(backend: str, dtype: torch.dtype) -> None:
    """The positive's logit and the negatives' are of one value, but rounded differently."""
    for d in (1, 2, 5, 64, 123, 512, 2048):
        for seed in range(8):
            row = torch.randn(1, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
            z = row.expand(17, d)
            for t in (0.5, torch.tensor(0.07)):
                assert ntxent_loss(z, z, t, return_stats=True, backend=backend)[1].accuracy == 0, (d, seed)


def test_how_far_apart_rounding_takes_equal_cosines() -> None:
    """By the operands that kernels multiply: on CUDA halves are float16, and tf32 has as many bits."""
    of = lambda device, dtype, *how: cosine_error(torch.empty(1, 1, dtype=dtype, device=device), *how)
    single, half = 2.0**-23, 2.0**-10
    with FakeTensorMode():
        for dtype, found, expected in (
            (torch.float32, of("cuda", torch.float32, "ieee", "cpp"), single),
            (torch.float32, of("cuda", torch.float32, "tf32", "cpp"), half),
            (torch.float32, of("cpu", torch.float32, "tf32", "cpp"), single),
            (torch.float64, of("cuda", torch.float64, "tf32", "cpp"), 2.0**-52),
            (torch.bfloat16, of("cuda", torch.bfloat16, "ieee", "triton"), half),
            (torch.bfloat16, of("cuda", torch.bfloat16, "ieee", "reference"), single),
            (torch.bfloat16, of("cpu", torch.bfloat16, "ieee", "cpp"), single),
        ):
            assert found == expected + 16 * (2.0**-52 if dtype == torch.float64 else single)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_positive_that_is_a_little_closer_is_right(backend: str, dtype: torch.dtype, apart: float) -> None:
    angle = math.acos(1 - apart)
    z = torch.tensor([[1, 0], [math.cos(angle), math.sin(angle)]], dtype=dtype)
    assert ntxent_loss(z, z, 0.07, return_stats=True, backend=backend)[1].accuracy == 1


def test_one_sample_and_one_column() -> None:
    z0, z1 = leaves(torch.randn(2, 1, 5))
    loss, statistics = ntxent_loss(z0, z1, 0.2, return_stats=True)
    loss.backward()
    assert loss == 0
    assert not z0.grad.any()
    assert statistics.accuracy == 1
    with pytest.raises(ValueError, match=r"decoupled=True with z0 \(1, 5\): one sample has no negatives; pass two"):
        ntxent_loss(z0, z1, 0.2, decoupled=True)


def test_a_stack_of_two_views_is_two_views() -> None:
    views = torch.randn(2, 6, 5)
    for options in ({}, {"decoupled": True}, {"weights": torch.rand(6)}, {"return_stats": True}):
        assert ntxent_loss(views, temperature=0.2, **options) == ntxent_loss(*views, 0.2, **options)
    assert torch.equal(NTXentLoss(0.2)(views), NTXentLoss(0.2)(*views))
    more = torch.randn(3, 6, 5)
    assert torch.equal(NTXentLoss(0.2)(more), ntxent_loss(more, temperature=0.2))


def multi_view_formula(views: Tensor, t: float | Tensor) -> Tensor:
    """Khosla et al. 2020, equation 2, of views [V, N, D], a sample being a class: the row losses [V N]."""
    count, n, _ = views.shape
    z = views.flatten(0, 1)
    u = z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(EPS)
    own = torch.eye(count * n, dtype=torch.bool)
    sample = torch.arange(n).repeat(count)
    positives = (sample == sample[:, None]) & ~own
    s = u @ u.T / t
    log_probability = s - torch.logsumexp(s.masked_fill(own, -torch.inf), dim=1, keepdim=True)
    return -(log_probability * positives).sum(dim=1) / (count - 1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", ["random", "aligned", "equal", "huge row"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_two_views(backend: str, kind: str, temperature: float) -> None:
    for count, n, d in ((3, 1, 5), (3, 7, 16), (4, 9, 123)):
        views = torch.cat([embeddings(kind, n, d, torch.float32) for _ in range(2)])[:count].requires_grad_()
        wide = views.detach().double().requires_grad_()
        t = torch.tensor(temperature, requires_grad=True)
        wide_t = t.detach().double().requires_grad_()
        weights = torch.rand(n)
        rows = multi_view_formula(wide, wide_t) * weights.double().repeat(count)
        found = ntxent_loss(views, temperature=t, weights=weights, reduction="none", backend=backend)
        assert ((found - rows).abs() <= 1e-5 * rows.abs().clamp_min(1)).all()
        loss = ntxent_loss(views, temperature=t, weights=weights, backend=backend)
        assert loss.item() == pytest.approx(rows.mean().item(), rel=5e-6, abs=5e-6)
        loss.backward()
        rows.mean().backward()
        natural = 2 / (temperature * count * n * wide.detach().norm(dim=2, keepdim=True).clamp_min(EPS))
        assert ((views.grad - wide.grad) / natural).norm(dim=2).max() <= 3e-5
        assert abs(t.grad - wide_t.grad) <= 3e-5 * max(wide_t.grad.abs(), temperature**-2)


def test_the_module_has_the_options() -> None:
    z0, z1 = torch.randn(2, 6, 5)
    weights = torch.rand(6)
    expected = ntxent_loss(z0, z1, 0.2, decoupled=True, weights=weights, return_stats=True, reduction="sum")
    module = NTXentLoss(0.2, decoupled=True, return_stats=True, reduction="sum")
    assert module(z0, z1, weights=weights) == expected
    assert module(z0, z1, weights=weights, return_stats=False) == expected[0]
    assert NTXentLoss(0.2)(z0, z1, return_stats=True)[1] == expected[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": [1.0]}, TypeError, r"weights is a list: pass a torch.Tensor \[N\]"),
        ({"weights": torch.ones(8)}, ValueError, r"weights has shape \(8,\): pass \[N\], one factor for each of the 4"),
        ({"weights": torch.ones(4, 1)}, ValueError, r"weights has shape \(4, 1\)"),
        ({"weights": torch.ones(4, dtype=torch.complex64)}, TypeError, "weights has dtype torch.complex64: pass real"),
        ({"weights": torch.ones(4, device="meta")}, ValueError, "weights is on meta and z0 is on cpu: move"),
        ({"z1": None}, ValueError, r"z0 is \(4, 3\) and z1 is None: pass z0 and z1 \[N, D\], or all views"),
        ({"z0": torch.ones(1, 4, 3), "z1": None}, ValueError, r"z0 is \(1, 4, 3\) and z1 is None"),
        (
            {"z0": torch.ones(3, 4, 3), "z1": None, "decoupled": True},
            ValueError,
            r"decoupled=True with z0 \(3, 4, 3\): it is defined for two views; leave it False",
        ),
        (
            {"z0": torch.ones(3, 4, 3), "z1": None, "return_stats": True},
            ValueError,
            r"return_stats=True with z0 \(3, 4",
        ),
        (
            {"z0": torch.ones(3, 4, 3).long(), "z1": None},
            TypeError,
            "z0 has dtype torch.int64: pass float16",
        ),
        ({"z0": torch.ones(3, 4, 0), "z1": None}, ValueError, r"z0 has shape \(3, 4, 0\): it is empty"),
        (
            {"z0": torch.ones(3, 4, 3), "z1": None, "temperature": torch.ones((), device="meta")},
            ValueError,
            "temperature is on meta and z0 is on cpu",
        ),
        (
            {"z0": torch.ones(3, 4, 3), "z1": None, "backend": "triton"},
            RuntimeError,
            "backend='triton' cannot serve ntxent_loss of more than two views on cpu",
        ),
        ({"z1": 0.5}, TypeError, "z1 is a float: pass a torch.Tensor"),
        ({"return_stats": True, "backend": "triton"}, RuntimeError, "backend='triton' cannot serve ntxent_loss on"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ntxent_loss(**{"z0": torch.ones(4, 3), "z1": torch.ones(4, 3), **change})


@pytest.mark.parametrize("on_primitive", [False, True])
def test_one_graph_for_all_batch_sizes(on_primitive: bool) -> None:
    def loss(z0: Tensor, z1: Tensor, weights: Tensor) -> Tensor:
        result = ntxent_loss(z0, z1, 0.2, decoupled=on_primitive, return_stats=on_primitive, weights=weights)
        return torch.stack([result[0], *result[1]]) if on_primitive else result

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for n in (5, 7, 9):
        z0, z1 = leaves(torch.randn(2, n, 8))
        arguments = (z0, z1, torch.rand(n, requires_grad=True))
        expected = loss(*arguments)
        found = compiled(*arguments)
        assert relative_error(found, expected) <= 1e-6
        upstream = torch.rand(expected.shape)
        for a, b in zip(*(torch.autograd.grad(x, arguments, upstream) for x in (found, expected))):
            assert relative_error(a, b) <= 1e-6
    assert counter.frame_count == 2  # one for the first size, one for all others
