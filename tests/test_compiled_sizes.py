"""torch.compile and torch.export over changing batch sizes, image sizes and temperatures: how many graphs there are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from simclr_fast import LearnedTemperature, NTXentLoss, SimCLRAugment, SimCLREval, ntxent_loss
from tests.helpers import relative_error

# More than the eight recompilations that torch allows; none is a number of channels, which torch would take for it.
SIZES = (5, 7, 4, 9, 10, 11, 12, 13, 14, 15, 16)


def graphs(function: Callable, calls: list[tuple], **options) -> int:
    """How many graphs the calls need; each must give what the uncompiled function does."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, fullgraph=True, **options)
    for call in calls:
        assert relative_error(compiled(*call), function(*call)) <= 1e-6
    return counter.frame_count


def views(n: int) -> tuple[Tensor, Tensor]:
    z0, z1 = torch.randn(2, n, 8)
    return z0, z1


def images(n: int, side: int = 20) -> tuple[Tensor]:
    return (torch.randint(0, 256, (n, 3, side, side + 4), dtype=torch.uint8),)


# The op that makes loss and gradient at once, the one that does not, and plain PyTorch.
@pytest.mark.parametrize(("reduction", "backend"), [("mean", "cpp"), ("none", "cpp"), ("sum", "reference")])
def test_one_graph_of_the_loss_for_all_batch_sizes(reduction: str, backend: str) -> None:
    loss = lambda z0, z1: ntxent_loss(z0, z1, 0.2, reduction=reduction, backend=backend)
    calls = [views(n) for n in SIZES]
    assert graphs(loss, calls) == 2  # one for the first size, one for all others
    assert graphs(loss, calls, dynamic=True) == 1
    for z in calls[0]:
        torch._dynamo.mark_dynamic(z, 0)
    assert graphs(loss, calls) == 1


def test_gradients_of_changing_batch_sizes() -> None:
    compiled = torch.compile(ntxent_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in SIZES[:3]:
        z0, z1 = (z.requires_grad_() for z in views(n))
        expected = torch.autograd.grad(ntxent_loss(z0, z1, 0.2), (z0, z1))
        actual = torch.autograd.grad(compiled(z0, z1, 0.2), (z0, z1))
        assert all(relative_error(a, e) <= 1e-6 for a, e in zip(actual, expected))


@pytest.mark.parametrize("transform", [SimCLRAugment(12, blur_p=1.0, blur_kernel=3), SimCLREval(12, resize=14)])
def test_one_graph_of_a_transform_for_all_sizes(transform: nn.Module) -> None:
    function = (lambda x: transform(x, seed=3)) if isinstance(transform, SimCLRAugment) else transform
    assert graphs(function, [images(n) for n in SIZES]) == 2
    assert graphs(function, [images(n) for n in SIZES], dynamic=True) == 1
    assert graphs(function, [images(n, 20 + n) for n in SIZES]) == 2


def test_export_with_a_dynamic_batch() -> None:
    size = torch.export.Dim("size")
    loss = torch.export.export(NTXentLoss(0.2), views(5), dynamic_shapes=({0: size}, {0: size})).module()
    transform = SimCLREval(12)
    resized = torch.export.export(transform, images(5), dynamic_shapes=({0: size},)).module()
    for n in (2, 9):
        z, x = views(n), images(n)
        assert torch.equal(loss(*z), ntxent_loss(*z, 0.2))
        assert torch.equal(resized(*x), transform(*x))
    augment = SimCLRAugment(12, views=3)
    exported = torch.export.export(augment, images(5), dynamic_shapes=({0: size},)).module()
    assert exported(*images(9)).shape == (27, 3, 12, 12)


def test_two_graphs_for_a_schedule_of_temperatures() -> None:
    z0, z1 = views(6)
    schedule = [0.5 - 0.03 * step for step in range(12)]
    assert graphs(ntxent_loss, [(z0, z1, t) for t in schedule]) == 2

    class Scheduled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = NTXentLoss(0.5)

        def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
            return self.loss(z0, z1)

    torch._dynamo.reset()
    counter, module = CompileCounterWithBackend("aot_eager"), Scheduled()
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for t in schedule:
        module.loss.temperature = t
        assert relative_error(compiled(z0, z1), ntxent_loss(z0, z1, t)) <= 1e-6
    assert counter.frame_count == 2
    compiled_loss = torch.compile(ntxent_loss, backend="aot_eager")
    with pytest.raises(ValueError, match="temperature=-0.5: pass a positive, finite number"):
        compiled_loss(z0, z1, -0.5)


def test_a_learned_temperature_compiles() -> None:
    loss = NTXentLoss(LearnedTemperature(0.2))
    z0, z1 = views(6)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(z0, z1), loss.parameters())
    assert relative_error(torch.autograd.grad(compiled(z0, z1), loss.parameters())[0], eager[0]) <= 1e-6
