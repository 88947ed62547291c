"""`pair_logits`: values and gradients against float64, in parts and whole, twice differentiable; `reduce_rows`."""

import pytest
import torch
from torch import Tensor

from simclr_fast.losses import pairs
from simclr_fast.losses.pairs import pair_logits
from simclr_fast.losses.rows import reduce_rows
from tests.helpers import non_contiguous, relative_error
from tests.ntxent_truth import EPS, KINDS, embeddings

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def truth(a: Tensor, b: Tensor, temperature: Tensor, normalize: bool = True) -> Tensor:
    """The formula, in the dtype of its arguments."""
    if normalize:
        a, b = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS) for x in (a, b))
    return (a * b).sum(dim=-1) / temperature


def values_and_gradients(function, a: Tensor, b: Tensor, t: Tensor, weights: Tensor, **options) -> list[Tensor]:
    a, b, t = (x.detach().clone().requires_grad_() for x in (a, b, t))
    logits = function(a, b, t, **options)
    return [logits.detach(), *torch.autograd.grad((logits * weights).sum(), (a, b, t))]


@pytest.mark.parametrize("parts", ["whole", "in parts"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_and_gradients(dtype: torch.dtype, kind: str, parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if parts == "in parts":
        monkeypatch.setattr(pairs, "_part", lambda device: 64)  # 4 rows of 13, the last part smaller
    generator = torch.Generator().manual_seed(3)
    a, b = embeddings(kind, 23, 13, dtype, generator)
    weights = torch.randn(23, dtype=torch.float64, generator=generator)
    if kind == "zero rows" and dtype == torch.float16:
        weights[:3] *= 1e-4  # a gradient of 1 / (eps t) leaves the range
    t = torch.tensor(0.05, dtype=torch.float64)
    actual = values_and_gradients(pair_logits, non_contiguous(a), b, t.to(torch.float64), weights)
    expected = values_and_gradients(truth, a.double(), b.double(), t, weights)
    assert actual[0].dtype == torch.float64
    assert relative_error(actual[0], expected[0]) <= 1e-14
    assert relative_error(actual[3], expected[3]) <= 1e-12
    for gradient, wanted in zip(actual[1:3], expected[1:3]):
        assert gradient.dtype == dtype
        for row, wanted_row in zip(gradient, wanted):
            bound = 1e-11 if dtype == torch.float64 else torch.finfo(dtype).eps
            scale = max(wanted_row.norm().item(), torch.finfo(dtype).tiny / torch.finfo(dtype).eps)
            rounded = wanted_row.to(dtype).double()
            assert torch.equal(row.isinf(), rounded.isinf())
            difference = (row.double() - wanted_row)[rounded.isfinite()]
            if kind in ("aligned", "random", "huge row", "zero rows"):
                assert difference.norm().item() <= bound * scale
            else:  # the gradients vanish: beside 1 / (t |z|), their scale elsewhere
                assert difference.norm().item() <= 1e-14 * 20 * weights.abs().max()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_twice(normalize: bool, backend: str) -> None:
    a, b = torch.randn(2, 3, 2, 4, dtype=torch.float64).requires_grad_().unbind()
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def function(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return pair_logits(a, b, t, normalize=normalize, backend=backend)

    assert torch.autograd.gradcheck(function, (a, b, t))
    assert torch.autograd.gradgradcheck(function, (a, b, t))
    assert relative_error(function(a, b, t), truth(a, b, t, normalize)) <= 1e-14


def test_only_what_is_needed() -> None:
    a, b = torch.randn(2, 5, 3)
    logits = pair_logits(a, b.requires_grad_(), 0.2)
    wanted = torch.autograd.grad(truth(a.double(), b.double(), torch.tensor(0.2)).sum(), b)[0]
    assert relative_error(torch.autograd.grad(logits.sum(), b)[0], wanted) <= 1e-6
    assert not pair_logits(a, a, 0.2).requires_grad


def test_autocast_leaves_the_dtype_alone() -> None:
    a, b = torch.randn(2, 40, 30)
    with torch.autocast("cpu", torch.bfloat16):
        logits = pair_logits(a, b, 0.2)
    assert torch.equal(logits, pair_logits(a, b, 0.2))


def test_compiles_for_all_batch_sizes() -> None:
    compiled = torch.compile(pair_logits, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 7, 12):
        a, b = torch.randn(2, n, 5).unbind()
        a.requires_grad_()
        t = torch.tensor(0.2, requires_grad=True)
        logits = compiled(a, b, t)
        assert relative_error(logits, pair_logits(a, b, t)) <= 1e-14
        gradients = [torch.autograd.grad(x.sum(), a)[0] for x in (logits, pair_logits(a, b, t))]
        assert relative_error(*gradients) <= 1e-6


def test_reductions() -> None:
    losses = torch.tensor([1.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    counted = torch.tensor([True, False, True])
    assert reduce_rows(losses, "mean", None, dtype=torch.float32).item() == pytest.approx(5 / 3)
    mean = reduce_rows(losses, "mean", None, dtype=torch.float32, counted=counted)
    assert (mean.item(), mean.dtype) == (2.5, torch.float32)
    assert torch.autograd.grad(mean, losses)[0].tolist() == [0.5, 0.5, 0.5]
    assert reduce_rows(losses, "sum", None, dtype=torch.float64, counted=counted).item() == 5
    assert reduce_rows(losses, "none", None, dtype=torch.float32).tolist() == [1, 0, 4]
    assert reduce_rows(losses * 0, "mean", None, dtype=torch.float64, counted=counted & False).item() == 0


def test_rows_are_taken_in_parts_that_suit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU one thread takes 256 KiB of float64, and eight or more share 2 MiB."""
    one, shared = 2**15 - 1, 2**18
    for threads, expected in ((1, one), (7, one), (8, shared)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        of = [pairs._part(torch.device(device)) for device in ("cpu", "cuda", "meta")]
        assert of == [expected, 2**25, None]
    sizes: list[int] = []
    with torch.no_grad():
        for n, d in ((2**13, 32), (2**13 + 1, 32), (2, shared + 1)):
            pairs.in_parts(lambda x: (sizes.append(len(x)), (x,))[1], torch.empty(n, d))
    assert sizes == [2**13, 2**13, 1, 1, 1]
