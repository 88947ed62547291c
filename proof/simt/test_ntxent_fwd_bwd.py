"""NT-Xent's loss and gradient at once, by one launch or by those of the three steps, executed on the CPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from proof.simt.library import FLAVOUR, SCHEDULES, Kernels, Schedule, SimtError, of_values
from proof.simt.ntxent_accuracy import SOURCES
from proof.simt.test_ntxent import BFLOAT, DOUBLE, FLOAT, HALF, ROUNDINGS, Case, gradient_differs
from tests import ntxent_truth as inputs
from tests.helpers import spread
from tests.ntxent_launchers import Device, NtxentLaunchers, statistics_dtype
from tests.ntxent_truth import EPS, embeddings, mean_truth

# A multiprocessor for every 16 rows of the cases, and too few for 17 of them: then the three steps are launched.
ROOM, CRAMPED = Device(16, 163 * 1024), Device(1, 99 * 1024)
IN_ORDER = Schedule()


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


def ops_of(kernels: Kernels, device: Device, schedule: Schedule = IN_ORDER) -> NtxentLaunchers:
    options = replace(schedule, shared_bytes=device.max_shared_bytes, multiprocessors=device.multiprocessors)
    return NtxentLaunchers(kernels, device, {"schedule": options})


def fwd_bwd(
    kernels: Kernels, case: Case, views: Tensor, schedule: Schedule = IN_ORDER, **options: object
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss, dz [2, n, d] and dt of the mean."""
    options = {"temperature": case.temperature, "precision": case.precision, **options}
    return ops_of(kernels, case.device, schedule).fwd_bwd(*views, scale=1 / (2 * case.n), eps=EPS, **options)


def check(case: Case, views: Tensor, loss: Tensor, dz: Tensor, dt: Tensor) -> None:
    want, dz_want, dt_want = mean_truth(*views, case.temperature)
    assert dz.dtype == loss.dtype == statistics_dtype(case.dtype)
    assert (loss - want).abs() <= case.loss_error
    if case.n == 1 or case.d == 1:  # a gradient of 0, which rounding makes noise of
        natural = inputs.gradient_error(dz.flatten(0, 1), dz_want, views.flatten(0, 1), case.temperature, case.kind)
        assert natural <= case.gradient_error
    else:
        assert not gradient_differs(dz.flatten(0, 1), dz_want, case.gradient_error)
    assert (dt - dt_want).abs() <= case.gradient_error * want.clamp(1e-6, 1) / case.temperature**2


SCHEDULED = (
    Case(33, 123, HALF, device=ROOM),
    Case(70, 40, HALF, temperature=0.01, device=ROOM),
    Case(20, 128, FLOAT, device=ROOM),
    Case(20, 40, BFLOAT, device=CRAMPED),
)
SHAPES = (
    *(Case(n, 5, HALF, temperature=0.5, device=ROOM) for n in (1, 2, 7, 8, 9, 16, 65, 128)),
    *(Case(11, d, HALF, device=ROOM) for d in (1, 8, 63, 64, 65, 123, 128)),
    *(Case(11, d, FLOAT, device=ROOM) for d in (1, 31, 33, 64, 97, 123, 128)),
    *(Case(n, 20, FLOAT, "tf32", device=ROOM) for n in (1, 72)),
    *(Case(n, d, dtype, device=CRAMPED) for n, d, dtype in ((11, 128, HALF), (11, 123, FLOAT), (1, 1, FLOAT))),
    *(Case(9, d, dtype, device=ROOM) for d, dtype in ((129, HALF), (130, FLOAT), (1030, BFLOAT), (33, DOUBLE))),
)
INPUTS = tuple(
    Case(21, 48, dtype, precision, t, kind, ROOM)
    for dtype, precision in ((HALF, "ieee"), (BFLOAT, "ieee"), (FLOAT, "ieee"), (FLOAT, "tf32"))
    for t, kind in ((0.1, "aligned"), (0.5, "opposed"), (0.02, "random"), (0.1, "extreme"))
)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("case", SCHEDULED, ids=str)
def test_every_schedule_gives_the_same_and_right_numbers(kernels: Kernels, case: Case, schedule: Schedule) -> None:
    views = embeddings(case.kind, case.n, case.d, case.dtype)
    got = fwd_bwd(kernels, case, views, schedule)
    check(case, views, *got)
    for value, first in zip(got, fwd_bwd(kernels, case, views)):
        assert torch.equal(value, first)


@ROUNDINGS
@pytest.mark.parametrize("case", [*SHAPES, *INPUTS], ids=str)
def test_matches_float64(kernels: Kernels, case: Case, truncating: bool) -> None:
    views = embeddings(case.kind, case.n, case.d, case.dtype)
    schedule = replace(SCHEDULES[(case.n + case.d) % len(SCHEDULES)], truncating=truncating)
    check(case, views, *fwd_bwd(kernels, case, views, schedule))


@ROUNDINGS
@pytest.mark.parametrize("temperature", of_values(0.5, 0.03, 0.01))
@pytest.mark.parametrize("kind", of_values(*inputs.KINDS))
def test_full_float32_is_as_exact_as_on_the_cpu(
    kernels: Kernels, kind: str, temperature: float, truncating: bool
) -> None:
    """The bounds of tests/ops/ntxent/test_accuracy.py."""
    case = Case(40, 128, FLOAT, temperature=temperature, kind=kind, device=ROOM)
    views = embeddings(kind, case.n, case.d, FLOAT)
    loss, dz, _ = fwd_bwd(kernels, case, views, Schedule(truncating=truncating))
    want, dz_want, _ = mean_truth(*views, temperature)
    assert (loss / want - 1).abs() <= 5e-6
    assert inputs.gradient_error(dz.flatten(0, 1), dz_want, views.flatten(0, 1), temperature, kind) <= 3e-5


@ROUNDINGS
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("kind", of_values("random", "aligned", "opposed"))
@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
def test_half_gradients(kernels: Kernels, dtype: torch.dtype, kind: str, temperature: float, truncating: bool) -> None:
    """dz is float32: nothing is lost to the inputs' type, however small the gradient of a mean."""
    case = Case(70, 128, dtype, temperature=temperature, kind=kind, device=ROOM)
    views = embeddings(kind, case.n, case.d, dtype)
    _, dz, _ = fwd_bwd(kernels, case, views, Schedule(truncating=truncating))
    want = mean_truth(*views, temperature)[1]
    error = inputs.gradient_error(dz.flatten(0, 1), want, views.flatten(0, 1), temperature, kind)
    assert error <= (1e-3 if temperature >= 0.1 else 1e-2)


@pytest.mark.parametrize("device", [ROOM, CRAMPED], ids=["one launch", "steps"])
@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_options(kernels: Kernels, dtype: torch.dtype, device: Device) -> None:
    """A temperature that the device alone knows, strided rows, no dt, a sum: the same numbers."""
    case = Case(20, 40, dtype, temperature=0.3, device=device)
    wide = embeddings("random", case.n, 3 * case.d, dtype)
    views = wide[:, :, case.d : 2 * case.d]
    loss, dz, dt = fwd_bwd(kernels, case, views)
    check(case, views, loss, dz, dt)
    packed = fwd_bwd(kernels, case, views.contiguous())
    assert all(torch.equal(*pair) for pair in zip((loss, dz, dt), packed))
    on_device = fwd_bwd(kernels, case, views, temperature=torch.tensor(case.temperature))
    check(case, views, *on_device)
    loss_alone, dz_alone, no_dt = fwd_bwd(kernels, case, views, need_dt=False)
    assert no_dt is None
    assert torch.equal(loss_alone, loss)
    assert torch.equal(dz_alone, dz)
    summed = ops_of(kernels, device).fwd_bwd(*views, temperature=case.temperature)
    for value, of_mean in zip(summed, (loss, dz, dt)):
        torch.testing.assert_close(value, of_mean * 2 * case.n, rtol=1e-6, atol=1e-6 * value.abs().max().item())


@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_nan_rows_show(kernels: Kernels, dtype: torch.dtype) -> None:
    case = Case(12, 12, dtype, device=ROOM)
    views = embeddings("random", case.n, case.d, dtype)
    views[1, 2, 3] = torch.nan
    assert all(value.isnan().all() for value in fwd_bwd(kernels, case, views))


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_one_pair_has_no_negatives_and_no_gradient(kernels: Kernels, dtype: torch.dtype, temperature: float) -> None:
    case = Case(1, 2, dtype, temperature=temperature, device=ROOM)
    for z1 in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]):
        got = fwd_bwd(kernels, case, torch.tensor([[[1.0, 0.0]], [z1]], dtype=dtype))
        assert all((value == 0).all() for value in got)


def test_views_of_large_strides(kernels: Kernels) -> None:
    case = Case(20, 9, FLOAT, device=ROOM)
    z0, z1 = embeddings("random", case.n, case.d, FLOAT)
    options = {"temperature": case.temperature}
    near = ops_of(kernels, ROOM).fwd_bwd(z0, z1, **options)
    far = ops_of(kernels, ROOM).fwd_bwd(spread(z0, (2**28, 1)), z1, **options)
    assert all(torch.equal(*pair) for pair in zip(near, far))


def test_warps_take_several_panels_of_columns(kernels: Kernels) -> None:
    """M = 960: 60 blocks, whose warps have seven or eight panels each; three panels under a sanitizer, for memory."""
    n = 480 if FLAVOUR == "plain" else 136
    case = Case(n, 8, HALF, device=Device(60, 99 * 1024))
    views = embeddings("random", case.n, case.d, HALF)
    check(case, views, *fwd_bwd(kernels, case, views, Schedule(1)))


def test_sizes_that_cannot_be_are_refused(kernels: Kernels) -> None:
    with pytest.raises(SimtError, match="returned 1"):
        ops_of(kernels, ROOM).fwd_bwd(torch.zeros(0, 8, dtype=HALF), torch.zeros(0, 8, dtype=HALF))
