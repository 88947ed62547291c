"""The CUDA C++ NT-Xent on a device. The same kernels run on the CPU in proof/simt/test_ntxent.py."""

import pytest
import torch
from torch import Tensor

from simclr_fast.losses import ntxent_loss
from tests.helpers import non_contiguous, relative_error, within
from tests.ntxent_truth import embeddings, truth
from tests.streams import captured, keep_busy, side_stream

pytestmark = pytest.mark.gpu
HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
TOLERANCE = {HALF: 6e-3, BFLOAT: 8e-3, FLOAT: 1e-5, DOUBLE: 1e-11}


def step(views: Tensor, temperature: float | Tensor, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of the device's kernels."""
    z0, z1 = (z.detach().clone().requires_grad_() for z in views.cuda())
    loss = ntxent_loss(z0, z1, temperature, backend="cpp", **options)
    return loss.detach(), *torch.autograd.grad(loss, (z0, z1))


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (33, 123), (300, 128), (700, 64), (130, 257), (64, 1024), (20, 1100)])
def test_matches_float64(n: int, d: int, dtype: torch.dtype, temperature: float) -> None:
    views = embeddings("random", n, d, dtype)
    loss, dz0, dz1 = step(views, temperature, precision="ieee")
    weights = torch.full((2 * n,), 1 / (2 * n), dtype=DOUBLE)  # in float32 they would be off by more than the gradient
    want = truth([tuple(views)], 0, temperature, weights)
    operand = 2e-3 if dtype in (HALF, BFLOAT) else 2e-6
    assert within("loss", (loss.cpu() - want.losses.mean()).abs(), operand / temperature)
    for actual, wanted in ((dz0, want.dz0), (dz1, want.dz1)):
        wanted = wanted.to(dtype)
        assert wanted.abs().max() < 1e-12 or within("gradient", relative_error(actual, wanted), TOLERANCE[dtype])


@pytest.mark.parametrize(("n", "d"), [(1100, 128), (1100, 40), (150, 200)])
def test_each_loss_in_full_float32(n: int, d: int) -> None:
    """At t = 0.01, of sizes that are too large for one launch, and on Hopper take its own kernels."""
    views, weights = embeddings("random", n, d, FLOAT), torch.randn(2 * n)
    leaves = [z.cuda().requires_grad_() for z in views]
    losses = ntxent_loss(*leaves, 0.01, reduction="none", backend="cpp", precision="ieee")
    gradients = torch.autograd.grad(losses, leaves, weights.cuda())
    want = truth([tuple(views)], 0, 0.01, weights)
    assert within("loss", relative_error(losses, want.losses), 5e-6)
    for actual, wanted in zip(gradients, (want.dz0, want.dz1)):
        assert within("gradient", relative_error(actual, wanted), 3e-5)


def test_tf32_is_used_where_it_is_allowed() -> None:
    views = embeddings("random", 256, 128, FLOAT)
    exact, rounded = (step(views, 0.1, precision=precision)[1] for precision in ("ieee", "tf32"))
    assert 1e-6 < relative_error(rounded, exact) < 6e-3


def test_is_deterministic() -> None:
    views = embeddings("random", 1000, 128, HALF)
    for first, second in zip(step(views, 0.1), step(views, 0.1)):
        assert torch.equal(first, second)


def test_strided_rows_and_a_learned_temperature() -> None:
    views = embeddings("random", 50, 40, FLOAT).cuda()
    strided = [non_contiguous(z).requires_grad_() for z in views]
    temperature = torch.tensor(0.2, device="cuda", requires_grad=True)
    loss = ntxent_loss(*strided, temperature, backend="cpp", precision="ieee")
    dt, *gradients = torch.autograd.grad(loss, (temperature, *strided))
    want = truth([tuple(views.cpu())], 0, 0.2, torch.full((100,), 0.01))
    assert within("loss", relative_error(loss, want.losses.mean()), 1e-5)
    assert within("dt", relative_error(dt, want.dt), 1e-4)
    for actual, wanted in zip(gradients, (want.dz0, want.dz1)):
        assert within("gradient", relative_error(actual, wanted), TOLERANCE[FLOAT])


def test_runs_on_the_current_stream_without_synchronising() -> None:
    views = embeddings("random", 64, 32, HALF).cuda()
    expected = step(views, 0.1)
    z0, z1 = (torch.full_like(z, float("nan")) for z in views)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with side_stream():
            keep_busy()
            leaves = [z.copy_(view).requires_grad_() for z, view in zip((z0, z1), views)]
            loss = ntxent_loss(*leaves, 0.1, backend="cpp")
            gradients = torch.autograd.grad(loss, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    for actual, wanted in zip((loss, *gradients), expected):
        assert torch.equal(actual, wanted)


def test_can_be_captured_in_a_graph() -> None:
    views = embeddings("random", 64, 32, HALF).cuda()
    z0, z1 = (z.clone().requires_grad_() for z in views)
    graph, gradients = captured(lambda: torch.autograd.grad(ntxent_loss(z0, z1, 0.1, backend="cpp"), (z0, z1)))
    other = embeddings("random", 64, 32, HALF).cuda()
    for batch in (views, other):  # a replay reads what the leaves hold by then
        with torch.no_grad():
            z0.copy_(batch[0])
            z1.copy_(batch[1])
        graph.replay()
        for actual, wanted in zip(gradients, step(batch, 0.1)[1:]):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize(("n", "d"), [(1, 5), (64, 32), (500, 128), (700, 64), (64, 200)])
def test_two_streams_at_once(n: int, d: int) -> None:
    """Blocks that wait for each other count in the workspace of their own call."""
    batches = [embeddings("random", n, d, HALF).cuda() for _ in range(2)]
    alone = [step(views, 0.1) for views in batches]
    streams = [torch.cuda.Stream() for _ in batches]
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for stream, views in zip(streams, batches):
            with torch.cuda.stream(stream):
                results.append(step(views, 0.1))
        torch.cuda.synchronize()
        for got, expected in zip(results, alone):
            assert all(torch.equal(*pair) for pair in zip(got, expected))


@pytest.mark.parametrize(("n", "d", "dtype", "at_once"), [(256, 128, HALF, 1), (64, 129, HALF, 0), (64, 32, DOUBLE, 0)])
def test_a_small_batch_is_one_launch(n: int, d: int, dtype: torch.dtype, at_once: int) -> None:
    views = embeddings("random", n, d, dtype).cuda()
    step(views, 0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        step(views, 0.1)
        torch.cuda.synchronize()
    kernels = [event.name for event in recorded.events() if "ntxent_" in event.name and "_kernel" in event.name]
    assert sum("ntxent_resident_kernel" in name for name in kernels) == at_once
    assert len(kernels) == 1 or not at_once


def test_memory_is_linear_in_the_rows() -> None:
    peaks = []
    for n in (4096, 8192):
        views = embeddings("random", n, 64, HALF).cuda()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(views, 0.1)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 2.5 * peaks[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_tensors_device() -> None:
    views = embeddings("random", 64, 32, HALF)
    with torch.cuda.device(0):
        loss = ntxent_loss(*views.to("cuda:1"), 0.1, backend="cpp")
    assert loss.device.index == 1
    assert torch.equal(loss.cpu(), step(views, 0.1)[0].cpu())
