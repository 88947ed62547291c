"""SupCon against eq. 2 of its paper with masks: values, gradients, classes of every size, what it refuses."""

import pytest
import torch
from torch import Tensor

from simclr_fast import SupConLoss, ntxent_loss, sup_con_loss
from tests.helpers import relative_error
from tests.losses.compare import BACKENDS, anchored, check, same_when_compiled, unit
from tests.ntxent_truth import KINDS, embeddings


def exact(z: Tensor, labels: Tensor, t: Tensor) -> Tensor:
    """The losses [M] of rows [M, D]: eq. 2 with masks, where one positive is alone as a cross-entropy."""
    u = unit(z)
    s = (u @ u.T / t).fill_diagonal_(-torch.inf)
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(dim=1)
    many = torch.logsumexp(s, dim=1) - s.masked_fill(~positive, 0).sum(dim=1) / count.clamp_min(1)
    losses = torch.where(count > 1, many, 0)
    single = count == 1
    losses[single] = anchored(s[single], positive[single], itself[single])
    return losses


def mean(z: Tensor, labels: Tensor, t: Tensor) -> Tensor:
    """Over the rows that have a positive."""
    counted = ((labels[:, None] == labels).sum(dim=1) > 1).sum()
    return exact(z, labels, t).sum() / counted.clamp_min(1)


# Of M rows in two views: classes of several samples, of one, some of either, and one of a single row.
CLASSES = {
    "many": lambda m: (torch.arange(m) % (m // 2)) % 6,
    "pairs": lambda m: torch.arange(m) % (m // 2),
    "mixed": lambda m: (torch.arange(m) % (m // 2)).clamp_min(m // 4),
    "one": lambda m: torch.zeros(m, dtype=torch.long),
    "a row alone": lambda m: torch.where(torch.arange(m) == m - 1, 99, torch.arange(m) % (m // 2)),
}


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.01])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend: str, classes: str, kind: str, temperature: float) -> None:
    z = embeddings(kind, 60, 48, torch.float32).flatten(0, 1)
    labels = CLASSES[classes](120)
    check(
        lambda z, t: sup_con_loss(z, labels, t, backend=backend),
        lambda z, t: mean(z, labels, t),
        [z],
        temperature,
        kind,
        dt_scale=0.1 / temperature**2,  # of the mean positive's logit and of the log-sum-exp: 1 / t^2 each
    )


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("classes", ["pairs", "many"])
def test_an_odd_number_of_rows(classes: str, temperature: float) -> None:
    z = embeddings("aligned", 31, 48, torch.float32).flatten(0, 1)[:61]
    labels = CLASSES[classes](62)[:61]
    order = torch.randperm(61)
    z, labels = z[order], labels[order]
    t = torch.tensor(temperature)
    leaf, exact_leaf = z.clone().requires_grad_(), z.double().requires_grad_()
    loss, expected = sup_con_loss(leaf, labels, t), mean(exact_leaf, labels, t.double())
    assert relative_error(loss, expected) <= 5e-6
    assert relative_error(*(torch.autograd.grad(x, y)[0] for x, y in ((loss, leaf), (expected, exact_leaf)))) <= 3e-5


@pytest.mark.parametrize("shape", [(2, 4), (4, 1), (14, 1), (10, 123)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_and_dtypes(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    m, d = shape
    labels = torch.arange(m) % max(1, m // 3)
    check(
        lambda z, t: sup_con_loss(z, labels, t, backend=backend),
        lambda z, t: mean(z, labels, t),
        [torch.randn(m, d).to(dtype)],
        0.1,
        "random" if d > 1 and m > 2 else "equal",
    )


def test_no_row_with_a_positive_is_no_loss() -> None:
    for m in (1, 2, 3, 4):
        z = torch.randn(m, 5, requires_grad=True)
        for reduction in ("mean", "sum", "none"):
            loss = sup_con_loss(z, torch.arange(m), reduction=reduction)
            assert torch.equal(loss, torch.zeros(m if reduction == "none" else ()))
            assert torch.equal(torch.autograd.grad(loss.sum(), z)[0], torch.zeros(m, 5))


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_views_without_labels(views: int, temperature: float) -> None:
    z = torch.randn(7, views, 16)
    z = (z[:, :1] + 0.3 * z).requires_grad_()
    losses = sup_con_loss(z, temperature=temperature, reduction="none")
    rows, labels = z.double().flatten(0, 1), torch.arange(7).repeat_interleave(views)
    expected = exact(rows, labels, torch.tensor(temperature, dtype=torch.float64)).view(7, views)
    assert losses.shape == (7, views)
    assert relative_error(losses, expected) <= 1e-5
    loss = sup_con_loss(z, temperature=temperature)
    assert relative_error(loss, sup_con_loss(z, torch.arange(7) + 3, temperature)) <= 1e-6
    assert relative_error(loss, expected.mean()) <= 5e-6
    if views == 2:
        assert relative_error(loss, ntxent_loss(z[:, 0], z[:, 1], temperature)) <= 5e-6


def test_labels_of_samples_and_weights() -> None:
    z = torch.randn(8, 2, 5)
    labels = torch.tensor([3, 3, -7, 0, 0, 0, 2**40, 9])
    t = torch.tensor(0.2, dtype=torch.float64)
    expected = exact(z.transpose(0, 1).flatten(0, 1), labels.repeat(2), t).view(2, 8).T
    assert relative_error(sup_con_loss(z, labels, 0.2, reduction="none"), expected) <= 1e-6
    weights = torch.rand(8, requires_grad=True)
    loss = sup_con_loss(z, labels, 0.2, weights=weights)
    assert relative_error(loss, (expected * weights[:, None]).mean()) <= 1e-6
    assert relative_error(torch.autograd.grad(loss, weights)[0], expected.mean(dim=1) / 8) <= 1e-6
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        small = labels.clamp(0, 100)
        assert torch.equal(sup_con_loss(z, small.to(dtype)), sup_con_loss(z, small))


def test_only_rows_with_a_positive_count() -> None:
    z, labels = torch.randn(6, 4), torch.tensor([1, 1, 2, 3, 3, 3])
    t = torch.tensor(0.1, dtype=torch.float64)
    losses = exact(z, labels, t)
    assert losses[2] == 0
    assert relative_error(sup_con_loss(z, labels), losses.sum() / 5) <= 1e-6
    assert relative_error(sup_con_loss(z, labels, reduction="sum"), losses.sum()) <= 1e-6
    assert relative_error(sup_con_loss(z, labels, reduction="none"), losses) <= 1e-6


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("m", [7, 8])
def test_gradcheck(m: int, backend: str) -> None:
    z = torch.randn(m, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(m, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0, 2])[:m]

    def loss(z: Tensor, t: Tensor, weights: Tensor) -> Tensor:
        return sup_con_loss(z, labels, t, weights=weights, backend=backend)

    assert torch.autograd.gradcheck(loss, (z, t, weights))
    if backend == "reference":
        assert torch.autograd.gradgradcheck(loss, (z, t, weights))


def test_compiles_for_all_batch_sizes() -> None:
    calls = [(torch.randn(m, 5), torch.arange(m) % 3) for m in (6, 8)]
    same_when_compiled(lambda z, labels: sup_con_loss(z, labels, 0.1, backend="cpp"), calls)


@pytest.mark.parametrize("views", [False, True])
def test_one_exported_graph_for_odd_and_even_numbers_of_rows(views: bool) -> None:
    class Loss(torch.nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            return ntxent_loss(z.unflatten(0, (3, -1)), temperature=0.1) if views else sup_con_loss(z, labels, 0.1)

    def example(n: int) -> tuple[Tensor, Tensor]:
        m = 3 * n if views else n
        return embeddings("aligned", m, 5, torch.float32)[0], torch.arange(m) // 2

    n = torch.export.Dim("n", min=2)
    rows = {0: 3 * n if views else n}
    exported = torch.export.export(Loss(), example(6), dynamic_shapes=(rows, rows)).module()
    for count in (2, 3, 4, 5, 7):
        inputs = example(count)
        assert (exported(*inputs) - Loss()(*inputs)).abs() <= 1e-7 / 0.1


def test_the_module() -> None:
    z, labels = torch.randn(6, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.equal(SupConLoss()(z, labels), sup_con_loss(z, labels, 0.1))
    assert torch.equal(
        SupConLoss(0.07)(z[:, None].expand(6, 2, 5)), sup_con_loss(z[:, None].expand(6, 2, 5), None, 0.07)
    )
    learned = SupConLoss(torch.nn.Parameter(torch.tensor(0.3)))
    learned(z, labels).backward()
    assert learned.temperature.grad.isfinite()


GOOD, LABELS = torch.ones(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": [[1.0]]}, TypeError, "features is a list: pass a torch.Tensor"),
        ({"features": GOOD[0]}, ValueError, r"features has shape \(3,\): pass \[M, D\] with labels, or \[N, V, D\]"),
        ({"features": torch.ones(4, 0, 3)}, ValueError, r"features has shape \(4, 0, 3\): it is empty"),
        ({"features": torch.ones(4, 2, 0)}, ValueError, r"features has shape \(4, 2, 0\): it is empty"),
        (
            {"features": torch.ones(4, 2, 3).to_sparse()},
            ValueError,
            "features has layout torch.sparse_coo: pass a dense",
        ),
        ({"labels": LABELS.to_sparse()}, ValueError, "labels has layout torch.sparse_coo: pass a dense tensor"),
        ({"labels": LABELS.to("meta")}, ValueError, "labels is on meta and features is on cpu: pass labels that have"),
        ({"labels": None}, ValueError, r"features has shape \(4, 3\) and labels is None: without classes no row"),
        ({"labels": None, "features": GOOD[:, None]}, ValueError, r"pass labels, or at least two views \[N, V, D\]"),
        ({"labels": [0, 1, 2, 3]}, TypeError, "labels is a list: pass a tensor of integers, one for each of 4 rows"),
        ({"labels": LABELS.float()}, TypeError, "labels has dtype torch.float32: pass integers, e.g. labels.long()"),
        ({"labels": LABELS > 1}, TypeError, "labels has dtype torch.bool: pass integers"),
        ({"labels": LABELS[:3]}, ValueError, r"labels has shape \(3,\): pass one label for each of 4 rows"),
        ({"labels": LABELS[:, None]}, ValueError, r"labels has shape \(4, 1\): pass one label for each of 4 rows"),
        ({"weights": torch.ones(3)}, ValueError, r"weights has shape \(3,\): pass \[N\], one factor for each of the 4"),
        (
            {"weights": torch.ones(4).to_sparse()},
            ValueError,
            "weights has layout torch.sparse_coo: pass a dense tensor",
        ),
        ({"weights": torch.ones(4, device="meta")}, ValueError, "weights is on meta and features is on cpu: move one"),
        ({"weights": 2.0}, TypeError, "weights is a float: pass a torch.Tensor"),
        ({"temperature": 0}, ValueError, "temperature=0: pass a positive"),
        ({"temperature": torch.ones((), device="meta")}, ValueError, "temperature is on meta and features is on cpu"),
        ({"backend": "triton"}, RuntimeError, "backend='triton' cannot serve sup_con_loss on cpu"),
        ({"reduction": "avg"}, ValueError, "reduction='avg': choose one of"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' is unknown"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sup_con_loss(**{"features": GOOD, "labels": LABELS, **change})
