"""InfoNCE against the formula of its paper: values, gradients, negatives of every kind, what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast import InfoNCELoss, info_nce_loss
from tests.helpers import relative_error
from tests.losses.compare import BACKENDS, anchored, check, same_when_compiled, unit
from tests.ntxent_truth import KINDS, TEMPERATURES, embeddings


def exact(query: Tensor, key: Tensor, t: Tensor, negatives: Tensor | None = None, symmetric: bool = False) -> Tensor:
    """The mean loss. Negatives: the other keys, [M, D], or [N, M, D] for each query its own."""
    q, k = unit(query), unit(key)
    if negatives is None:
        s, positive = q @ k.T / t, torch.eye(len(q), dtype=torch.bool)
        losses = anchored(s, positive)
        return ((losses + anchored(s.T, positive)) / 2).mean() if symmetric else losses.mean()
    n = unit(negatives)
    others = q @ n.T if n.ndim == 2 else torch.einsum("nd,nmd->nm", q, n)
    s = torch.cat([(q * k).sum(dim=1, keepdim=True), others], dim=1) / t
    positive = torch.zeros_like(s, dtype=torch.bool)
    positive[:, 0] = True
    return anchored(s, positive).mean()


def test_the_exact_form_is_the_cross_entropy() -> None:
    q, k, n = torch.randn(3, 6, 5, dtype=torch.float64)
    t = torch.tensor(0.2)
    q1, k1, n1 = (F.normalize(x, dim=1) for x in (q, k, n))
    assert relative_error(exact(q, k, t), F.cross_entropy(q1 @ k1.T / 0.2, torch.arange(6))) <= 1e-7
    logits = torch.cat([(q1 * k1).sum(dim=1, keepdim=True), q1 @ n1.T], dim=1) / 0.2
    assert relative_error(exact(q, k, t, n), F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))) <= 1e-7


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_keys_are_the_negatives(backend: str, symmetric: bool, kind: str, temperature: float) -> None:
    rows = list(embeddings(kind, 60, 48, torch.float32))
    check(
        lambda q, k, t: info_nce_loss(q, k, None, t, symmetric=symmetric, backend=backend),
        lambda q, k, t: exact(q, k, t, symmetric=symmetric),
        rows,
        temperature,
        kind,
    )


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_unpaired_negatives(backend: str, kind: str, temperature: float) -> None:
    q, k = embeddings(kind, 60, 48, torch.float32)
    negatives = q.clone() if kind == "equal" else embeddings(kind, 60, 48, torch.float32)[0]
    check(
        lambda q, k, n, t: info_nce_loss(q, k, n, t, backend=backend),
        lambda q, k, n, t: exact(q, k, t, n),
        [q, k, negatives],
        temperature,
        kind,
    )


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("kind", KINDS)
def test_paired_negatives(kind: str, temperature: float) -> None:
    q, k = embeddings(kind, 60, 48, torch.float32)
    negatives = q[:, None].expand(60, 7, 48) if kind == "equal" else torch.randn(60, 7, 48)
    check(
        lambda q, k, t: info_nce_loss(q, k, negatives, t, negative_mode="paired"),
        lambda q, k, t: exact(q, k, t, negatives),
        [q, k],
        temperature,
        kind,
    )


@pytest.mark.parametrize(("mode", "shape"), [("unpaired", (4, 3)), ("paired", (5, 4, 3))])
def test_rows_shorter_than_eps_are_divided_by_it(mode: str, shape: tuple[int, ...]) -> None:
    query, key, negatives = (torch.randn(*size, 3, dtype=torch.float64) for size in ((5,), (5,), shape[:-1]))
    q, k, n = (x / x.norm(dim=-1, keepdim=True).clamp_min(1.5) for x in (query, key, negatives))
    s_pos, s_neg = (q * k).sum(dim=1, keepdim=True) / 0.2, (q[:, None] * n).sum(dim=-1) / 0.2
    want = (torch.cat([s_pos, s_neg], dim=1).logsumexp(1) - s_pos[:, 0]).mean()
    assert relative_error(info_nce_loss(query, key, negatives, 0.2, negative_mode=mode, eps=1.5), want) <= 1e-12


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (7, 1), (5, 123)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_and_dtypes(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    check(
        lambda q, k, t: info_nce_loss(q, k, None, t, backend=backend),
        exact,
        list(embeddings("random", *shape, dtype)),
        0.1,
        "random" if shape[1] > 1 and shape[0] > 1 else "equal",
    )


def test_no_negatives_cost_nothing() -> None:
    q, k = torch.randn(2, 3, 4)
    q.requires_grad_()
    for negatives, mode in ((torch.empty(0, 4), "unpaired"), (torch.empty(3, 0, 4), "paired")):
        loss = info_nce_loss(q, k, negatives, negative_mode=mode)
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, q)[0], torch.zeros(3, 4))
    assert info_nce_loss(q[:1], k[:1]).item() == 0


@pytest.mark.parametrize("mode", ["implicit", "symmetric", "unpaired", "paired"])
def test_reductions_and_gradcheck(mode: str) -> None:
    q, k = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_().unbind()
    shapes = {"unpaired": (5, 3), "paired": (4, 2, 3)}
    negatives = torch.randn(shapes[mode], dtype=torch.float64, requires_grad=True) if mode in shapes else None
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(q: Tensor, k: Tensor, t: Tensor, *negatives: Tensor, reduction: str = "mean") -> Tensor:
        options = {"symmetric": mode == "symmetric", "reduction": reduction}
        if negatives:
            options |= {"negative_keys": negatives[0], "negative_mode": mode}
        return info_nce_loss(q, k, temperature=t, **options)

    inputs = (q, k, t) if negatives is None else (q, k, t, negatives)
    assert torch.autograd.gradcheck(loss, inputs)
    losses = loss(*inputs, reduction="none")
    assert losses.shape == (4,)
    assert relative_error(loss(*inputs, reduction="sum"), losses.sum()) <= 1e-14
    assert relative_error(loss(*inputs), losses.mean()) <= 1e-14


def test_compiles_for_all_batch_sizes() -> None:
    same_when_compiled(
        lambda q, k: info_nce_loss(q, k, None, 0.1, symmetric=True, backend="cpp"),
        [tuple(torch.randn(2, n, 5).unbind()) for n in (6, 9, 12)],
    )


def test_the_module_is_called_as_info_nce_pytorch_is() -> None:
    q, k, n = torch.randn(3, 5, 4)
    assert torch.equal(InfoNCELoss()(q, k), info_nce_loss(q, k, temperature=0.1))
    module = InfoNCELoss(temperature=0.2, reduction="sum", negative_mode="unpaired")
    expected = info_nce_loss(q, k, n, 0.2, reduction="sum")
    assert torch.equal(module(query=q, positive_key=k, negative_keys=n), expected)
    learned = InfoNCELoss(torch.nn.Parameter(torch.tensor(0.3)), symmetric=True)
    learned(q, k).backward()
    assert learned.temperature.grad.isfinite()


GOOD = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": [[1.0]]}, TypeError, "query is a list: pass a torch.Tensor"),
        ({"positive_key": [[1.0]]}, TypeError, "positive_key is a list: pass a torch.Tensor"),
        ({"negative_keys": GOOD.double()}, TypeError, "query is torch.float32 and negative_keys is torch.float64"),
        ({"positive_key": GOOD[:3]}, ValueError, r"query \(4, 3\) and positive_key \(3, 3\) differ in shape"),
        ({"positive_key": GOOD.double()}, TypeError, "query is torch.float32 and positive_key is torch.float64"),
        ({"negative_keys": torch.ones(5, 2)}, ValueError, r"negative_keys \(5, 2\) differ in width D"),
        ({"negative_keys": torch.ones(4, 5, 3)}, ValueError, r"negative_keys has shape \(4, 5, 3\): pass \[N, D\]"),
        ({"negative_keys": GOOD, "negative_mode": "paired"}, ValueError, r"pass \[N, M, D\], M keys for each of the N"),
        (
            {"negative_keys": torch.ones(3, 2, 3), "negative_mode": "paired"},
            ValueError,
            r"negative_keys \(3, 2, 3\) with negative_mode='paired' and query \(4, 3\) differ in N",
        ),
        ({"negative_keys": GOOD, "symmetric": True}, ValueError, "symmetric=True: negative_keys are of the queries"),
        (
            {"negative_keys": torch.ones(len(GOOD), 2, 3).to_sparse(), "negative_mode": "paired"},
            ValueError,
            "negative_keys has layout torch.sparse_coo: pass a dense tensor",
        ),
        ({"negative_mode": "pair"}, ValueError, "negative_mode='pair': choose one of 'unpaired', 'paired'"),
        ({"temperature": 0}, ValueError, "temperature=0: pass a positive"),
        ({"temperature": torch.ones((), device="meta")}, ValueError, "temperature is on meta and query is on cpu"),
        ({"eps": math.inf}, ValueError, "eps=inf: pass a positive, finite number"),
        ({"backend": "triton"}, RuntimeError, "backend='triton' cannot serve info_nce_loss on cpu"),
        ({"reduction": "avg"}, ValueError, "reduction='avg': choose one of"),
        ({"symmetric": "no"}, TypeError, "symmetric is a str: pass True or False"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' is unknown"),
        (
            {"backend": "cuda", "negative_keys": torch.ones(4, 5, 3), "negative_mode": "paired"},
            ValueError,
            "backend='cuda' is unknown",
        ),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        info_nce_loss(**{"query": GOOD, "positive_key": GOOD, **change})


def test_the_module_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="negative_mode='pair': choose one of"):
        InfoNCELoss(negative_mode="pair")
    with pytest.raises(TypeError, match="symmetric is a int: pass True or False"):
        InfoNCELoss(symmetric=1)
    with pytest.raises(ValueError, match="temperature=-1: pass a positive"):
        InfoNCELoss(-1)
