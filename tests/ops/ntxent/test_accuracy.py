"""NT-Xent against float64: every backend that runs on the CPU, every dtype, easy and hard embeddings."""

import pytest
import torch

from simclr_fast import ntxent_loss
from simclr_fast.ops.ntxent import ops
from simclr_fast.ops.ntxent.reference import ntxent_textbook
from tests.helpers import non_contiguous, relative_error, within
from tests.ntxent_truth import (
    KINDS,
    TEMPERATURES,
    embeddings,
    gradient_error,
    half_error,
    half_scale,
    mean_truth,
    run_steps,
    shards_of,
    truth,
)

SHAPES = [(1, 4), (2, 1), (7, 1), (5, 3), (33, 123), (150, 70), (300, 16)]


@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_truth_is_the_textbook_loss(world: int, temperature: float) -> None:
    """Cross-entropy of all logits, which nothing of the positive-anchored form goes into."""
    views = embeddings("random", 6 * world, 5, torch.float64)
    leaves = [z.clone().requires_grad_() for z in views]
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    loss = ntxent_textbook(*leaves, t)
    loss.backward()
    weights = torch.full((12 * world,), 1 / (12 * world), dtype=torch.float64)
    found = [truth(shards_of(views, world), rank, temperature, weights) for rank in range(world)]
    assert relative_error(torch.cat([one.losses for one in found]).mean(), loss) <= 1e-14
    assert relative_error(sum(one.dt for one in found), t.grad) <= 1e-12
    for name, leaf in zip(("dz0", "dz1"), leaves):
        assert relative_error(torch.cat([getattr(one, name) for one in found]), leaf.grad) <= 1e-12


def bounds(dtype: torch.dtype) -> tuple[float, float]:
    """Largest allowed relative errors of loss and gradient."""
    return (1e-12, 1e-10) if dtype == torch.float64 else (5e-6, 3e-5)


def truncation(d: int) -> float:
    """Error of u.u by Triton's full float32 on a GPU: tensor cores cut their sums off, toward zero.

    Three products of tf32 are added to one accumulator, 8 columns at a time; while that is below 1, each time by up to
    2^-24 too little. The compiled kernels add such sums up by rounding additions.
    """
    return 3 * d / 8 * 2.0**-24


def check(
    backend: str, kind: str, shape: tuple[int, int], dtype: torch.dtype, temperature: float, device: str = "cpu"
) -> None:
    z0, z1 = embeddings(kind, *shape, dtype)
    loss_true, dz_true, _ = mean_truth(z0, z1, temperature)
    leaves = [z.to(device).requires_grad_() for z in (z0, z1)]
    loss = ntxent_loss(*leaves, temperature, backend=backend)
    loss.backward()
    dz = torch.cat([z.grad for z in leaves]).cpu()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert dz.dtype == dtype
    assert loss >= 0
    assert dz.isfinite().all()
    loss_bound, gradient_bound = bounds(dtype)
    loss_error = (loss.detach().cpu().double() - loss_true).abs()
    underflow = torch.finfo(loss.dtype).tiny
    bound = loss_bound * loss_true + underflow
    if backend == "triton" and device == "cuda":  # dL_i = sigmoid(x) dx, and sigmoid(x) <= min(1, softplus(x) = L_i)
        bound += truncation(shape[1]) / temperature * min(1.0, loss_true.item())
    assert within("loss", loss_error, bound), f"loss off by {loss_error.item():.1e} of {loss_true.item():.3e}"
    error = gradient_error(dz, dz_true, torch.cat([z0, z1]), temperature, kind)
    assert within("gradient", error, gradient_bound), f"gradient off by {error:.1e}"


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_wide(backend: str, dtype: torch.dtype, kind: str, temperature: float) -> None:
    check(backend, kind, (256, 128), dtype, temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_half(backend: str, dtype: torch.dtype, kind: str, temperature: float) -> None:
    """Autograd returns a gradient of the inputs' type: rounding it (bfloat16: 1.7e-3) is no error of the loss's."""
    z0, z1 = embeddings(kind, 256, 128, dtype)
    loss_true, dz_true, _ = mean_truth(z0, z1, temperature)
    scale = half_scale(dz_true, kind)
    leaves = [z.clone().requires_grad_() for z in (z0, z1)]
    loss = ntxent_loss(*leaves, temperature, backend=backend)
    (loss * scale).backward()
    dz = torch.cat([z.grad for z in leaves])
    assert loss.dtype == torch.float32
    assert dz.dtype == dtype
    assert abs(loss.detach() - loss_true) <= 5e-6 * loss_true
    error = half_error(dz, dz_true * scale, torch.cat([z0, z1]), temperature / scale, kind)
    assert error <= (1e-3 if temperature >= 0.1 else 1e-2) / 3


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_before_the_gradient_is_rounded(dtype: torch.dtype, kind: str, temperature: float) -> None:
    """The operator's gradient is of its z's type, and these may be float32 where u was made of a half type."""
    z0, z1 = embeddings(kind, 256, 128, dtype)
    _, dz_true, _ = mean_truth(z0, z1, temperature)
    values = run_steps(ops.OPS["cpp"], z0, z1, temperature, need_dt=False, dz_dtype=torch.float32)
    dz = torch.cat([values.dz0, values.dz1])
    assert gradient_error(dz, dz_true, torch.cat([z0, z1]), temperature, kind) <= 3e-5


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.05, 0.01])
@pytest.mark.parametrize("d", [512, 1000, 100_000])
def test_long_rows(d: int, temperature: float) -> None:
    """Of equal rows, whose products all have one sign, every rounding of a long sum goes into the loss."""
    z0, z1 = embeddings("equal", 5, d, torch.float32)
    loss_true, _, _ = mean_truth(z0, z1, temperature)
    error = (ntxent_loss(z0, z1, temperature, backend="cpp").double() - loss_true).abs()
    assert error <= 5e-6 * max(1.0, 0.05 / temperature) * loss_true  # logits of 1/t: at 0.01 one rounding is 3e-6


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("kind", ["random", "aligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_odd_shapes(backend: str, shape: tuple[int, int], dtype: torch.dtype, kind: str, temperature: float) -> None:
    check(backend, kind, shape, dtype, temperature)


@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_temperature_gradient(backend: str, temperature: float) -> None:
    z0, z1 = embeddings("random", 40, 20, torch.float32)
    t = torch.tensor(temperature, requires_grad=True)
    ntxent_loss(z0, z1, t, backend=backend).backward()
    dt_true = mean_truth(z0, z1, t.item())[2]
    assert abs(t.grad - dt_true) <= 1e-5 * abs(dt_true)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_no_negatives_means_no_loss_and_no_gradient(backend: str) -> None:
    z0, z1 = (torch.randn(1, 5, requires_grad=True) for _ in range(2))
    loss = ntxent_loss(z0, z1, 0.1, backend=backend)
    loss.backward()
    assert loss == 0
    assert not z0.grad.any()
    assert not z1.grad.any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_strides_do_not_matter(reduction: str) -> None:
    z0, z1 = torch.randn(2, 19, 11)
    upstream = torch.randn(38) if reduction == "none" else torch.tensor(-3.0)
    results = []
    for spread in (torch.clone, non_contiguous, lambda z: z.T.contiguous().T):
        leaves = [z.clone().requires_grad_() for z in (z0, z1)]
        loss = ntxent_loss(*(spread(z) for z in leaves), 0.1, reduction=reduction, backend="cpp")
        loss.backward(upstream)
        results.append([loss, *(z.grad for z in leaves)])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_nan_in_gives_nan_out(dtype: torch.dtype, temperature: float, backend: str) -> None:
    z0, z1 = torch.randn(2, 9, 6, dtype=dtype)
    bits = {torch.float32: (torch.int32, 0x7FC12345), torch.float64: (torch.int64, 0x7FF8_1234_5678_9ABC)}
    integer, nan = bits[dtype]
    z0.view(integer)[4, 2] = nan  # a NaN whose payload is not zero
    z0.requires_grad_()
    loss = ntxent_loss(z0, z1, temperature, backend=backend)
    loss.backward()
    assert loss.isnan()
    assert z0.grad.isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [256, 1100])  # of C++ in one launch up to M = 2112 on an H100, then tile by tile
@pytest.mark.parametrize("backend", ["cpp", "triton", "reference"])
def test_wide_on_a_gpu(backend: str, n: int, kind: str, temperature: float) -> None:
    check(backend, kind, (n, 128), torch.float32, temperature, device="cuda")
