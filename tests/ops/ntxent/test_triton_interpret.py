"""The Triton NT-Xent kernels in Triton's interpreter, against the dense loss in float64."""

import pytest
import torch

from simclr_fast.ops.ntxent import ops, triton_tiles
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_tiles import Target
from tests.helpers import non_contiguous, relative_error
from tests.ntxent_truth import EPS, KINDS, embeddings, gradient_error, half_scale, mean_truth, run_steps
from tests.ops.ntxent.triton_cases import Case, errors, run, views

pytestmark = pytest.mark.interpret

FLOAT32 = {"loss": 5e-6, "lse_neg": 5e-6, "s_pos": 5e-6, "dz": 3e-5, "dt": 3e-5}
# Of half inputs: u is rounded to float16 (2^-12 of an entry that is at most 1), which moves a logit by up to 5e-4 / t.
HALF = {"loss": 1e-3, "lse_neg": 1e-3, "s_pos": 1e-3, "dz": 1e-3, "dt": 3e-3}
BF16_ROUNDING = 2.0**-8  # of dz itself: the interpreter truncates


def few(multiprocessors: int) -> TritonNtxent:
    """A backend that believes to run on so many multiprocessors, and splits its work accordingly."""
    return TritonNtxent(target=lambda device: Target(80, multiprocessors))


def check(case: Case, backend: TritonNtxent, tolerance: dict[str, float]) -> None:
    found = errors(case, run(case, backend))
    assert all(found[name] <= tolerance[name] for name in found), found


@pytest.mark.parametrize("temperature", [0.5, 0.01])  # 0.01: the running maximum
@pytest.mark.parametrize(("n", "D"), [(1, 5), (3, 1), (33, 7), (70, 33), (64, 128)])
def test_float32(n: int, D: int, temperature: float) -> None:
    check(Case(n, D, temperature), few(2), FLOAT32)


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("kind", ["aligned", "opposed", "equal", "zero rows", "extreme"])
def test_hard_inputs(kind: str, temperature: float) -> None:
    check(Case(20, 24, temperature, kind=kind), few(2), FLOAT32)


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_half_inputs(temperature: float, dtype: torch.dtype, reduce: bool) -> None:
    wider = 10 if temperature == 0.01 else 1
    tolerance = {name: wider * limit for name, limit in HALF.items()}
    tolerance["dz"] += BF16_ROUNDING if dtype == torch.bfloat16 else 0.0
    check(Case(60, 72, temperature, dtype=dtype, reduce=reduce), few(2), tolerance)


@pytest.mark.parametrize("temperature", [0.1, 0.01])  # the constant maximum, of which 0.5 asks less, and the running
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_inputs_before_the_gradient_is_rounded(dtype: torch.dtype, kind: str, temperature: float) -> None:
    """dz has the type of the z that bwd is given, which may be float32 where u was made of a half type."""
    z0, z1 = embeddings(kind, 64, 128, dtype)
    _, dz_true, _ = mean_truth(z0, z1, temperature)
    scale = half_scale(dz_true, kind)
    values = run_steps(few(2), z0, z1, temperature, scale, need_dt=False, dz_dtype=torch.float32)
    error = gradient_error(
        torch.cat([values.dz0, values.dz1]), dz_true * scale, torch.cat([z0, z1]), temperature / scale, kind
    )
    assert error <= (1e-3 if temperature >= 0.1 else 1e-2)


@pytest.mark.parametrize("n", [32, 35])  # 35: tiles of rows, of columns and the edge between views all ragged
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(("temperature", "reduce"), [(0.1, True), (0.02, False)])
def test_local_rows_against_global_columns(n: int, rank: int, temperature: float, reduce: bool) -> None:
    check(Case(n, 24, temperature, world=3, rank=rank, reduce=reduce), few(2), FLOAT32)


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.026, 0.02])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_one_pair_has_no_negatives_and_no_gradient(dtype: torch.dtype, reduction: str, temperature: float) -> None:
    """Its coefficient is 0 times what the smallest probability counts in a weight, 1e30, and exp(1/t - s_pos)."""
    for z1 in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]):
        z = [torch.tensor([row], dtype=dtype) for row in ([1.0, 0.0], z1)]
        values = run_steps(few(1), *z, temperature, reduction=reduction)
        assert (values.loss == 0).all()
        assert all((gradient == 0).all() for gradient in (values.dz0, values.dz1, values.dt))


def test_zero_weights_give_zero_gradients() -> None:
    z0, z1 = views(Case(9, 8, 0.1))[0]
    for reduction in ("none", "mean"):
        values = run_steps(few(1), z0, z1, 0.1, 0.0, reduction=reduction)
        assert all((gradient == 0).all() for gradient in (values.dz0, values.dz1, values.dt))


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_temperature_on_the_device(temperature: float) -> None:
    check(Case(20, 20, temperature, temperature_on_device=True), few(2), FLOAT32)


@pytest.mark.parametrize("D", [200, 300, 600])  # several parts of D; above 256 several programs
def test_wide_rows(D: int) -> None:
    check(Case(9, D, 0.1), few(1), FLOAT32)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_partial_sums_shared_by_row_tiles(temperature: float, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tiles, "MAX_SLOTS", 2)  # as with very many rows
    check(Case(150, 8, temperature, world=world), few(1), FLOAT32)


@pytest.mark.parametrize("multiprocessors", [3, 40])
def test_work_split_over_multiprocessors(multiprocessors: int) -> None:
    check(Case(90, 8, 0.1), few(multiprocessors), FLOAT32)


def test_plain_tiles_and_special_tiles_meet() -> None:
    """A row tile's own columns and its positives are apart, with plain tiles before, between and behind them."""
    check(Case(192, 8, 0.1, reduce=False), few(1), FLOAT32)


def test_strided_views() -> None:
    case = Case(9, 12, 0.2)
    (z0, z1), backend = views(case)[0], few(1)
    u, inv_norm = backend.normalize(z0, z1, EPS)
    wide = torch.full((9, 20), float("nan"))
    wide[:, 3:15] = z1
    u_strided, inv_norm_strided = backend.normalize(non_contiguous(z0), wide[:, 3:15], EPS)
    assert torch.equal(u, u_strided)
    assert torch.equal(inv_norm, inv_norm_strided)


def test_nan_in_nan_out() -> None:
    z0, z1 = views(Case(20, 8, 0.5))[0]
    z0[3, 2] = float("nan")
    for temperature in (0.5, 0.01):
        values = run_steps(few(1), z0, z1, temperature)
        assert values.loss.isnan()
        assert values.dz0.isnan().all()
        assert values.dz1.isnan().all()
        assert values.dt.isnan()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_public_loss(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the autograd function that serves every backend."""
    monkeypatch.setitem(ops.OPS, "triton", few(2))
    results = {}
    for backend in ("triton", "reference"):
        z0, z1 = (z.double().requires_grad_(backend == "reference") for z in views(Case(12, 10, 0.2))[0])
        if backend == "triton":
            z0, z1 = z0.float().requires_grad_(), z1.float().requires_grad_()
        temperature = torch.tensor(0.2, dtype=z0.dtype, requires_grad=True)
        loss = ops.ntxent(
            z0, z1, temperature, reduction=reduction, eps=EPS, precision="ieee", backend=backend, group=None
        )
        (loss * torch.arange(1.0, 1.0 + loss.numel()).reshape(loss.shape)).sum().backward()
        results[backend] = (loss, z0.grad, z1.grad, temperature.grad)
    for actual, exact in zip(results["triton"], results["reference"]):
        assert relative_error(actual, exact) <= 1e-5


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_loss_and_gradient_in_one_op(dtype: torch.dtype, learned: bool) -> None:
    """It is the three steps, and as right, with a gradient in float32 whatever the type of the views."""
    backend, t = few(2), torch.tensor(0.2) if learned else 0.2
    temperature = (0.0, t) if learned else (t, None)
    tolerance = FLOAT32 if dtype == torch.float32 else HALF
    random = torch.randn(2, 9, 123).to(dtype)
    strided = (non_contiguous(random[0, :, :12]), random[1, :, 5:17])
    shapes = (random[:, :1, :5], random[:, :, :1], random)
    for reduction, views_of_shape in (("mean", shapes[0]), ("sum", shapes[1]), ("mean", shapes[2]), ("sum", strided)):
        z0, z1 = views_of_shape
        loss, dz, dt = backend.fwd_bwd(z0, z1, EPS, *temperature, reduction, "ieee", learned)
        steps = run_steps(backend, z0, z1, t, reduction=reduction, need_dt=learned, dz_dtype=torch.float32)
        assert torch.equal(loss, steps.loss)
        assert torch.equal(dz, torch.stack([steps.dz0, steps.dz1]))
        assert not learned or torch.equal(dt, steps.dt)
        loss_true, dz_true, dt_true = (x * (2 * len(z0) if reduction == "sum" else 1) for x in mean_truth(z0, z1, 0.2))
        assert dz.dtype == torch.float32
        assert (loss - loss_true).abs() <= tolerance["loss"] * loss_true
        assert gradient_error(dz.flatten(0, 1), dz_true, torch.cat([z0, z1]), 0.2, "random") <= tolerance["dz"]
        assert not learned or (dt - dt_true).abs() <= tolerance["dt"] * dt_true.abs() + 1e-6
    with pytest.raises(ValueError, match="must be 'mean' or 'sum' where forward makes the gradient"):
        backend.fwd_bwd(z0, z1, EPS, *temperature, "none", "ieee", learned)


def test_what_cannot_be_served_is_named() -> None:
    z = torch.randn(4, 3)
    with pytest.raises(TypeError, match="float64"):
        few(1).normalize(z.double(), z.double(), EPS)
    with pytest.raises(TypeError, match="float16.*float32"):
        few(1).fwd(z, 2, 0, 0.1, None, "mean", "ieee")
    with pytest.raises(ValueError, match="precision.*'bf16'"):
        few(1).fwd(z.half(), 2, 0, 0.1, None, "mean", "bf16")


def test_the_op_of_both_steps_is_both_steps() -> None:
    z0, z1 = torch.randn(2, 5, 16)
    backend = few(2)
    u, inv_norm = backend.normalize(z0, z1, 1e-8)
    loss, *statistics = backend.fwd(u, 5, 0, 0.1, None, "mean", "ieee")
    both = backend.normalize_fwd(z0, z1, 1e-8, 0.1, None, "mean", "ieee")
    assert all(torch.equal(a, b) for a, b in zip(both, (loss, u, inv_norm, *statistics), strict=True))
