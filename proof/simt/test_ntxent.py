"""The CUDA NT-Xent kernels, executed on the CPU, against float64."""

import ctypes
import functools
import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from proof.simt.build import ROOT
from proof.simt.library import FLAVOUR, SCHEDULES, Kernels, Schedule, SimtError, of_values
from proof.simt.ntxent_accuracy import SOURCES, float32_errors
from tests import ntxent_truth as inputs
from tests.helpers import relative_error, spread
from tests.ntxent_launchers import BwdArgs, Device, FwdArgs, NtxentLaunchers, statistics_dtype
from tests.ntxent_truth import EPS, embeddings, shards_of, truth

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
# The least shared memory among the architectures, and more than fp32 rows of 1024 need for two stages.
SMALL, LARGE = Device(4, 99 * 1024), Device(16, 227 * 1024)


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    dtype: torch.dtype
    precision: str = "ieee"
    temperature: float = 0.1
    kind: str = "random"
    device: Device = SMALL

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.") + ("-tf32" if self.precision == "tf32" else "")
        return f"{self.n}x{self.d}-{name}-t{self.temperature}-{self.kind}"

    @property
    def loss_error(self) -> float:
        """Absolute: logits are products of rounded rows, divided by the temperature."""
        operand = 1e-3 if self.dtype in (HALF, BFLOAT) or self.precision == "tf32" else 3e-7
        return 1e-13 if self.dtype == DOUBLE else 2e-6 + operand / self.temperature

    @property
    def gradient_error(self) -> float:
        """Relative to the largest entry."""
        if self.precision == "tf32" or self.dtype == HALF:
            return 6e-3
        return {BFLOAT: 8e-3, FLOAT: 1e-5, DOUBLE: 1e-12}[self.dtype]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


def run(
    kernels: Kernels, case: Case, schedule: Schedule, views: Tensor, weights: Tensor, **kwargs
) -> dict[str, Tensor]:
    """All three steps in one process; weights are [2n], or [] for the sum of the losses times a scale of 1."""
    schedule = replace(schedule, shared_bytes=case.device.max_shared_bytes)
    ops = NtxentLaunchers(kernels, case.device, {"schedule": schedule})
    z0, z1 = views.unbind()
    temperature = kwargs.pop("temperature", case.temperature)
    u, inv_norm = ops.normalize(z0, z1, EPS)
    loss, lse_neg, s_pos = ops.fwd(u, case.n, 0, temperature, weights.ndim == 0, precision=case.precision)
    dz0, dz1, dt = ops.bwd(
        weights,
        z0,
        z1,
        u,
        inv_norm,
        lse_neg,
        s_pos,
        eps=EPS,
        temperature=temperature,
        precision=case.precision,
        **kwargs,
    )
    return {"loss": loss, "lse_neg": lse_neg, "s_pos": s_pos, "dz0": dz0, "dz1": dz1, "dt": dt}


def gradient_differs(got: Tensor, want: Tensor, error: float) -> bool:
    """Whether the error is above `error` of the largest entry; a gradient that is 0 may come out as rounding noise."""
    return relative_error(got, want) > error and not (got.abs().max() < 1e-12 and want.abs().max() < 1e-12)


def check(case: Case, got: dict[str, Tensor], views: Tensor, weights: Tensor) -> None:
    z0, z1 = views.unbind()
    want = truth([(z0, z1)], 0, case.temperature, weights.expand(2 * case.n), EPS)
    losses = want.losses if weights.ndim else want.losses.sum()
    rows = 1 if weights.ndim else 2 * case.n
    assert (got["loss"] - losses).abs().max() <= rows * case.loss_error
    for name, dz in (("dz0", want.dz0), ("dz1", want.dz1)):
        assert not gradient_differs(got[name], dz.to(case.dtype), case.gradient_error), name
    scale = (weights.double().abs() * want.losses.exp().sub(1).clamp(max=1)).sum() / case.temperature**2
    assert (got["dt"] - want.dt).abs() <= case.gradient_error * scale.clamp_min(1e-6)


def weights_of(case: Case) -> Tensor:
    return torch.randn(2 * case.n, dtype=statistics_dtype(case.dtype))


# Every branch of the launch plans: one to eight slices, ragged tiles, one tile and several, both kinds of maximum.
SCHEDULED = (
    Case(33, 123, HALF),
    Case(70, 64, HALF, temperature=0.01),
    Case(20, 200, HALF, device=LARGE),
    Case(9, 1024, BFLOAT),
    Case(24, 40, FLOAT),
    Case(20, 130, FLOAT, "tf32", temperature=0.01),
    Case(130, 24, HALF, device=Device(1, 99 * 1024)),  # more tiles per CTA than stages: they are filled again
    Case(5, 9, DOUBLE),
)
SHAPES = (
    *(Case(n, 5, HALF, temperature=0.5) for n in (1, 2, 3, 8, 64, 65, 128)),
    *(Case(11, d, HALF) for d in (1, 2, 8, 63, 65, 128, 129, 256, 257, 500, 513, 1000)),
    *(Case(11, d, FLOAT) for d in (1, 3, 65, 129, 300, 600, 1024)),
    Case(11, 1024, FLOAT, device=LARGE),
    Case(6, 1100, HALF),
    Case(6, 1030, FLOAT),
    *(Case(n, d, DOUBLE) for n, d in ((1, 1), (40, 33))),
)
INPUTS = (
    *(
        Case(21, 48, dtype, precision, t, kind)
        for dtype, precision in ((HALF, "ieee"), (BFLOAT, "ieee"), (FLOAT, "ieee"), (FLOAT, "tf32"), (DOUBLE, "ieee"))
        for t, kind in ((0.1, "aligned"), (0.5, "opposed"), (0.02, "random"), (0.1, "extreme"))
    ),
    Case(21, 48, FLOAT, temperature=0.03, kind="aligned"),
)


@functools.cache
def in_order(kernels: Kernels, number: int) -> dict[str, Tensor]:
    """What comes of a case of SCHEDULED where threads and blocks run in order, on two host threads."""
    case = SCHEDULED[number]
    torch.manual_seed(0)
    views, weights = embeddings(case.kind, case.n, case.d, case.dtype), weights_of(case)
    return run(kernels, case, Schedule(host_threads=2), views, weights)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("case", SCHEDULED, ids=str)
def test_every_schedule_gives_the_same_and_right_numbers(kernels: Kernels, case: Case, schedule: Schedule) -> None:
    views, weights = embeddings(case.kind, case.n, case.d, case.dtype), weights_of(case)
    got = run(kernels, case, schedule, views, weights)
    check(case, got, views, weights)
    first = in_order(kernels, SCHEDULED.index(case))
    for name, value in got.items():
        assert torch.equal(value, first[name]), f"{name} depends on the schedule"


# Tensor cores that round to nearest, and those that truncate as the hardware does (proof/simt/runtime/fused_sum.h).
# Sums that differ take no kernel to another address, so that a sanitizer sees all with one of the two.
_ROUNDINGS = {"rounding": False, "truncating": True} if FLAVOUR == "plain" else {"truncating": True}
ROUNDINGS = pytest.mark.parametrize("truncating", _ROUNDINGS.values(), ids=_ROUNDINGS)


@ROUNDINGS
@pytest.mark.parametrize("case", [*SHAPES, *INPUTS], ids=str)
def test_matches_float64(kernels: Kernels, case: Case, truncating: bool) -> None:
    views, weights = embeddings(case.kind, case.n, case.d, case.dtype), weights_of(case)
    schedule = replace(SCHEDULES[(case.n + case.d) % len(SCHEDULES)], truncating=truncating)
    check(case, run(kernels, case, schedule, views, weights), views, weights)


def test_rows_of_float32_keep_22_bits_and_their_positives_are_rounded_once(kernels: Kernels) -> None:
    """Where pairs are aligned, the loss hangs on their logits, and on these the norms."""
    z0, z1 = embeddings("aligned", 40, 123, FLOAT)
    ops = NtxentLaunchers(kernels, SMALL)
    u, inv_norm = ops.normalize(z0, z1, EPS)
    s_pos = ops.fwd(u, 40, 0, 0.01)[2]
    z, half_unit = torch.cat([z0, z1]).double(), 2.0**-24
    norms = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    hi, lo = u.double().unbind(1)
    assert (lo.abs() <= hi.abs() * 2.0**-11).all()  # half a unit of hi
    u = (hi + lo) / 2**8
    # Below 2^-11 lo is subnormal, and rounded to 2^-24 of 2^8 u.
    torch.testing.assert_close(u[:, :123], z / norms, rtol=2.0**-22, atol=2.0**-33)
    torch.testing.assert_close(inv_norm.double(), 1 / norms[:, 0], rtol=half_unit, atol=0)
    products = (u[:40] * u[40:]).sum(1).repeat(2)
    torch.testing.assert_close(s_pos.double(), products / 0.01, rtol=half_unit, atol=0)


@pytest.mark.parametrize("temperature", [0.011, 0.0275])
def test_rounding_of_the_scale_to_base_2_does_not_show(kernels: Kernels, temperature: float) -> None:
    """At these temperatures log2(e) / t in float32 is off by 9e-8, which would shift all losses by over 1e-6."""
    views = embeddings("aligned", 40, 123, FLOAT)
    losses = run(kernels, Case(40, 123, FLOAT, temperature=temperature), Schedule(), views, torch.ones(80))["loss"]
    want = truth([tuple(views)], 0, temperature, torch.ones(80), EPS).losses
    assert abs((losses / want).mean() - 1) <= 1e-6


@ROUNDINGS
@pytest.mark.parametrize("temperature", of_values(0.5, 0.1, 0.03, 0.01))
@pytest.mark.parametrize("kind", of_values(*inputs.KINDS))
def test_full_float32_is_as_exact_as_on_the_cpu(
    kernels: Kernels, kind: str, temperature: float, truncating: bool
) -> None:
    """The bounds of tests/ops/ntxent/test_accuracy.py."""
    loss_error, gradient_error = float32_errors(kernels, kind, 72, temperature, truncating)
    assert loss_error <= 5e-6
    assert gradient_error <= 3e-5


@pytest.mark.parametrize(
    ("kind", "temperature"),
    of_values(*itertools.product(("random", "aligned", "opposed"), (0.5, 0.1, 0.01))),
)
@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
@ROUNDINGS
def test_half_gradients(kernels: Kernels, dtype: torch.dtype, kind: str, temperature: float, truncating: bool) -> None:
    """Norms of errors, relative: of the gradient rounded to the inputs' type, and without that rounding."""
    case = Case(96, 128, dtype, temperature=temperature)
    z0, z1 = embeddings(kind, case.n, case.d, dtype)
    want = inputs.mean_truth(z0, z1, temperature)[1]
    scale = inputs.half_scale(want, kind)
    schedule = Schedule(host_threads=2, truncating=truncating)
    got = run(kernels, case, schedule, torch.stack([z0, z1]), torch.tensor(scale / (2 * case.n)))
    dz = torch.cat([got["dz0"], got["dz1"]])
    most = 1e-3 if temperature >= 0.1 else 1e-2
    assert inputs.error_beside_rounding(dz, want * scale) <= most
    if kind == "random":
        assert inputs.half_error(dz, want * scale, torch.cat([z0, z1]), temperature / scale, kind) <= most


@pytest.mark.parametrize("case", [Case(40, 24, HALF), Case(13, 24, FLOAT), Case(13, 24, DOUBLE)], ids=str)
def test_reduces_to_one_loss(kernels: Kernels, case: Case) -> None:
    views, dloss = embeddings(case.kind, case.n, case.d, case.dtype), weights_of(case)[0]
    check(case, run(kernels, case, Schedule(), views, torch.ones_like(dloss)), views, torch.ones_like(dloss))
    scaled = NtxentLaunchers(kernels, case.device)
    u, inv_norm = scaled.normalize(*views, EPS)
    loss, lse_neg, s_pos = scaled.fwd(u, case.n, 0, case.temperature, True, scale=0.25)
    total = scaled.fwd(u, case.n, 0, case.temperature, True)[0]
    assert torch.equal(loss, 0.25 * total)
    dz0, _, dt = scaled.bwd(
        dloss, *views, u, inv_norm, lse_neg, s_pos, scale=0.25, eps=EPS, temperature=case.temperature
    )
    want = truth([tuple(views)], 0, case.temperature, (0.25 * dloss).expand(2 * case.n), EPS)
    assert relative_error(dz0, want.dz0.to(case.dtype)) <= case.gradient_error
    assert relative_error(dt, want.dt) <= case.gradient_error


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    "case", [Case(20, 40, HALF), Case(9, 150, FLOAT, temperature=0.01), Case(4, 7, DOUBLE)], ids=str
)
def test_local_rows_against_the_columns_of_all_processes(kernels: Kernels, case: Case, world: int) -> None:
    shards = shards_of(embeddings("random", world * case.n, case.d, case.dtype), world)
    ops = NtxentLaunchers(kernels, case.device, {"schedule": Schedule(2)})
    normalized = [ops.normalize(*shard, EPS) for shard in shards]
    u = torch.cat([rows for rows, _ in normalized])
    weights = torch.randn(u.shape[0], dtype=statistics_dtype(case.dtype))
    options = {"temperature": case.temperature, "precision": case.precision}
    offsets = [rank * 2 * case.n for rank in range(world)]
    steps = [ops.fwd(u, case.n, offset, reduce=False, **options) for offset in offsets]
    lse_neg, s_pos = (torch.cat([step[i] for step in steps]) for i in (1, 2))
    for rank, (shard, offset) in enumerate(zip(shards, offsets)):
        want = truth(shards, rank, case.temperature, weights, EPS)
        assert (steps[rank][0] - want.losses).abs().max() <= case.loss_error
        got = ops.bwd(weights, *shard, u, normalized[rank][1], lse_neg, s_pos, row_offset=offset, eps=EPS, **options)
        for value, wanted in zip(got, (want.dz0.to(case.dtype), want.dz1.to(case.dtype))):
            assert relative_error(value, wanted) <= case.gradient_error
        assert (got[2] - want.dt).abs() <= case.gradient_error * weights.abs().sum() / case.temperature**2


@pytest.mark.parametrize("case", [Case(20, 40, HALF, temperature=0.3), Case(20, 40, DOUBLE, temperature=0.3)], ids=str)
def test_temperature_may_be_known_to_the_device_only(kernels: Kernels, case: Case) -> None:
    views, weights = embeddings("random", case.n, case.d, case.dtype), weights_of(case)
    temperature = torch.tensor(case.temperature, dtype=statistics_dtype(case.dtype))
    check(case, run(kernels, case, Schedule(1, True), views, weights, temperature=temperature), views, weights)


@pytest.mark.parametrize("case", [Case(20, 40, HALF), Case(20, 40, FLOAT, temperature=0.01)], ids=str)
def test_gradient_is_the_same_without_dt(kernels: Kernels, case: Case) -> None:
    views, weights = embeddings("random", case.n, case.d, case.dtype), weights_of(case)
    with_dt = run(kernels, case, Schedule(), views, weights)
    without = run(kernels, case, Schedule(), views, weights, need_dt=False)
    assert without["dt"] is None
    assert torch.equal(with_dt["dz0"], without["dz0"])
    assert torch.equal(with_dt["dz1"], without["dz1"])


@pytest.mark.parametrize("dtype", [HALF, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("first", [20, 3], ids=["aligned", "unaligned"])
def test_rows_may_be_strided(kernels: Kernels, dtype: torch.dtype, first: int) -> None:
    case = Case(15, 20, dtype)
    wide = embeddings("random", case.n, 3 * case.d, case.dtype)
    views, weights = wide[:, :, first : first + case.d], weights_of(case)
    strided = run(kernels, case, Schedule(), views, weights)
    packed = run(kernels, case, Schedule(), views.contiguous(), weights)
    assert torch.equal(strided["loss"], packed["loss"])
    assert torch.equal(strided["dz0"], packed["dz0"])


@pytest.mark.parametrize("multiprocessors", [1, 3, 64])
def test_splits_of_the_columns_change_only_the_rounding(kernels: Kernels, multiprocessors: int) -> None:
    case = Case(75, 20, FLOAT, device=Device(multiprocessors, 99 * 1024))
    views, weights = embeddings("random", case.n, case.d, case.dtype), weights_of(case)
    check(case, run(kernels, case, Schedule(), views, weights), views, weights)


@pytest.mark.parametrize(("rows", "splits"), [(1024, 8), (8192, 4), (17408, 3), (65536, 1)])
def test_the_columns_are_split_where_multiprocessors_would_wait(kernels: Kernels, rows: int, splits: int) -> None:
    """Two row blocks of 128 on each of 132 multiprocessors; 136 blocks alone would leave half of the places empty."""
    args = BwdArgs(n=rows // 2, d=128, columns=rows, u_columns=128, temperature=0.1, device=Device(132, 232448))
    du, statistics = rows * 128 * 4, rows * 4
    bytes_needed = kernels.value("simclr_ntxent_bwd_workspace_bytes", ctypes.byref(args))
    assert splits * (du + statistics) <= bytes_needed <= splits * (du + statistics) + statistics + 64


@pytest.fixture(scope="module")
def two_slots(kernels: Kernels) -> Kernels:
    """The forward with two partials per row instead of 64: a CTA then takes several tiles already in small problems."""
    path = "csrc/cuda/ntxent_plan.h"
    text, limit = (ROOT / path).read_text(), "kFwdMaxSlots = 64"
    assert limit in text
    # The plan is made where the launches begin, and handed on.
    made = Kernels(SOURCES, replaced={path: text.replace(limit, "kFwdMaxSlots = 2")}, among=["csrc/cuda/ntxent_fwd.cu"])
    args = FwdArgs(n=2**13, columns=2**14, u_columns=128, temperature=0.1)
    bytes_of = lambda library: library.value("simclr_ntxent_fwd_workspace_bytes", ctypes.byref(args))
    assert bytes_of(made) < bytes_of(kernels)
    return made


@pytest.mark.parametrize("n", [70, 200, 330])
def test_a_cta_adds_up_the_tiles_of_a_band(two_slots: Kernels, n: int) -> None:
    case = Case(n, 10, HALF)
    views = embeddings("random", n, case.d, case.dtype)
    ops = NtxentLaunchers(two_slots, case.device, {"schedule": Schedule(1, host_threads=2)})
    u, _ = ops.normalize(*views, EPS)
    for temperature in (0.1, 0.01):
        losses = ops.fwd(u, n, 0, temperature, reduce=False)[0]
        want = truth([tuple(views)], 0, temperature, torch.ones(2 * n), EPS).losses
        assert (losses - want).abs().max() <= 1e-3 / temperature


@pytest.mark.parametrize("dtype", [HALF, FLOAT, DOUBLE], ids=str)
def test_nan_rows_show(kernels: Kernels, dtype: torch.dtype) -> None:
    case = Case(6, 12, dtype)
    views, weights = embeddings("random", case.n, case.d, dtype), weights_of(case)
    views[1, 2, 3] = torch.nan
    got = run(kernels, case, Schedule(), views, weights)
    assert got["loss"].isnan().all()
    assert got["dz0"].isnan().all()
    assert got["dt"].isnan()


@pytest.mark.parametrize("strides", [(2**31 + 16, 1), (2**28, 1)], ids=str)
def test_views_of_large_strides(kernels: Kernels, strides: tuple[int, int]) -> None:
    case = Case(20, 9, FLOAT)
    z0, z1 = embeddings("random", case.n, case.d, FLOAT)
    ops, results = NtxentLaunchers(kernels, SMALL), []
    for first in (z0, spread(z0, strides)):
        u, inv_norm = ops.normalize(first, z1, EPS)
        _, *statistics = ops.fwd(u, case.n, 0, case.temperature)
        results.append((u, *ops.bwd(torch.ones(()), first, z1, u, inv_norm, *statistics, eps=EPS, temperature=0.1)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_weight_that_is_not_finite_shows(kernels: Kernels) -> None:
    """A gradient scaler finds its overflow in the gradients."""
    case = Case(6, 12, HALF)
    views = embeddings("random", case.n, case.d, HALF)
    for weight in (torch.nan, torch.inf):
        got = run(kernels, case, Schedule(), views, torch.tensor(weight))
        assert not got["dz0"].isfinite().any()


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.026, 0.02])
@pytest.mark.parametrize("dtype", [HALF, FLOAT, DOUBLE], ids=str)
def test_one_pair_has_no_negatives_and_no_gradient(kernels: Kernels, dtype: torch.dtype, temperature: float) -> None:
    case = Case(1, 2, dtype, temperature=temperature)
    for z1 in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]):
        views = torch.tensor([[[1.0, 0.0]], [z1]], dtype=dtype)
        for weights in (torch.ones((), dtype=statistics_dtype(dtype)), weights_of(case)):
            got = run(kernels, case, Schedule(), views, weights)
            assert all((got[name] == 0).all() for name in ("loss", "dz0", "dz1", "dt"))


def test_zero_weights_give_zero_gradients(kernels: Kernels) -> None:
    case = Case(6, 12, HALF)
    views = embeddings("random", case.n, case.d, HALF)
    got = run(kernels, case, Schedule(), views, torch.zeros(2 * case.n))
    assert torch.count_nonzero(got["dz0"]) == 0
    assert got["dt"] == 0


def test_sizes_that_cannot_be_are_refused(kernels: Kernels) -> None:
    ops = NtxentLaunchers(kernels, SMALL)
    u = torch.zeros(4, 8, dtype=HALF)
    with pytest.raises(SimtError, match="returned 1"):
        ops.fwd(u, 3)  # six rows of four columns
    with pytest.raises(SimtError, match="returned 1"):
        ops.fwd(u, 1, row_offset=3)


def test_operand_rows_are_whole_16_bytes(kernels: Kernels) -> None:
    for dtype, per_chunk in ((0, 8), (2, 8), (3, 2)):
        for d in (1, per_chunk, per_chunk + 1, 1000):
            columns = kernels.value("simclr_ntxent_operand_columns", d, ctypes.c_int(dtype))
            assert columns == -(-d // per_chunk) * per_chunk
