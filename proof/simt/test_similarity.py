"""The primitive's CUDA kernels, executed on the CPU, against float64."""

import ctypes
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from proof.simt.build import ROOT
from proof.simt.library import SCHEDULES, Kernels, Schedule, SimtError
from proof.simt.ntxent_accuracy import SOURCES
from proof.simt.similarity_cases import BFLOAT, DOUBLE, FLOAT, HALF, Case, Problem, operand
from tests.ntxent_launchers import Device, operand_dtype
from tests.similarity_launchers import FwdArgs, SimilarityLaunchers

LARGE = Device(16, 227 * 1024)
IN_ORDER = Schedule()


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


def run(kernels: Kernels, problem: Problem, schedule: Schedule = IN_ORDER) -> dict[str, Tensor]:
    device = problem.case.device
    schedule = replace(schedule, shared_bytes=device.max_shared_bytes)
    return problem.run(SimilarityLaunchers(kernels, device, {"schedule": schedule}))


# Rows that are the columns and rectangles, both maxima, column sums, one to eight slices, every operand.
SCHEDULED = (
    Case(70, None, 64, HALF, "self"),
    Case(66, None, 123, HALF, "pair", need_max=True),
    Case(70, 66, 33, HALF, both=True),
    Case(40, 150, 200, HALF, "self", 0.01, both=True, need_max=True),
    Case(20, 35, 600, BFLOAT, both=True),
    Case(35, 50, 40, FLOAT, both=True),
    Case(30, 140, 130, FLOAT, precision="tf32", both=True, on_device=True),
    Case(7, 12, 9, DOUBLE, "self", both=True, need_max=True),
)
SHAPES = (
    *(Case(n, m, 5, HALF, both=True) for n, m in ((1, 1), (2, 5), (5, 2), (40, 40), (130, 70), (64, 65))),
    *(Case(n, None, 5, HALF, exclude) for n in (1, 2, 3, 129) for exclude in ("none", "self")),
    *(Case(n, None, 5, dtype, "pair") for n in (2, 4, 130) for dtype in (HALF, FLOAT)),
    *(Case(11, 20, d, dtype, both=True) for d in (1, 33, 128, 257, 1024) for dtype in (HALF, FLOAT)),
    Case(260, 390, 16, HALF, both=True, device=LARGE),
    *(Case(6, 9, 1100, dtype, "self", both=True) for dtype in (HALF, FLOAT)),
    *(Case(n, m, d, DOUBLE, "self", both=True) for n, m, d in ((1, 1, 1), (2, 5, 33), (40, 3, 20))),
    *(Case(n, None, 20, DOUBLE, exclude, need_max=True) for n in (2, 40) for exclude in ("none", "self", "pair")),
)
INPUTS = (
    *(
        Case(21, m, 48, dtype, exclude, t, precision, both=m is not None, kind="mixed", on_device=on_device)
        for dtype, precision in ((HALF, "ieee"), (BFLOAT, "ieee"), (FLOAT, "ieee"), (FLOAT, "tf32"), (DOUBLE, "ieee"))
        for m, exclude, t, on_device in (
            (30, "none", 0.5, True),
            (30, "self", 0.03, False),
            (None, "self", 0.02, False),
        )
    ),
    *(
        Case(21, 30, 48, dtype, "self", t, both=True, upstream=upstream)
        for dtype in (HALF, FLOAT, DOUBLE)
        for t in (0.1, 0.02)
        for upstream in ("rows", "columns", "")
    ),
    Case(21, 30, 48, HALF, temperature=0.02),
    *(Case(9, 40, 24, dtype, exclude, row_offset=13) for dtype in (HALF, DOUBLE) for exclude in ("self", "none")),
    *(Case(10, 40, 24, dtype, "pair", t, row_offset=20, both=True) for dtype in (HALF, DOUBLE) for t in (0.1, 0.01)),
    *(Case(14, 20, 24, dtype, both=True, eps=None, temperature=4.0) for dtype in (HALF, FLOAT, DOUBLE)),
)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("case", SCHEDULED, ids=str)
def test_every_schedule_gives_the_same_and_right_numbers(kernels: Kernels, case: Case, schedule: Schedule) -> None:
    problem = Problem.of(case)
    got = run(kernels, problem, schedule)
    problem.check(got)
    first = run(kernels, problem, Schedule(host_threads=2))
    for name, value in got.items():
        assert torch.equal(value, first[name]), f"{name} depends on the schedule"


@pytest.mark.parametrize("case", [*SHAPES, *INPUTS], ids=str)
def test_matches_float64(kernels: Kernels, case: Case) -> None:
    problem = Problem.of(case)
    schedule = SCHEDULES[(case.n + case.d) % len(SCHEDULES)]
    problem.check(run(kernels, problem, replace(schedule, truncating=case.dtype == HALF)))


@pytest.fixture(scope="module")
def two_slots(kernels: Kernels) -> Kernels:
    """Two bands of rows and of columns instead of 64: a CTA then takes several tiles already in small problems."""
    path, limit = "csrc/cuda/ntxent_plan.h", "kFwdMaxSlots = 64"
    text = (ROOT / path).read_text()
    assert limit in text
    # Plans are made where the launches begin, and handed on.
    made = Kernels(SOURCES, replaced={path: text.replace(limit, "kFwdMaxSlots = 2")}, among=["csrc/cuda/similarity.cu"])
    assert slots_of(made) < slots_of(kernels)
    return made


def slots_of(kernels: Kernels) -> int:
    """Bytes of the forward's workspace, nearly all of them partials."""
    args = FwdArgs(row_count=2**14, column_count=2**14, u_columns=128, temperature=0.1, column_lse=1, rows=1)
    return kernels.value("simclr_similarity_fwd_workspace_bytes", ctypes.byref(args))


@pytest.mark.parametrize(("n", "m"), [(390, 520), (520, 130), (130, 390), (390, None)])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_a_cta_adds_up_the_tiles_of_its_bands(two_slots: Kernels, n: int, m: int | None, temperature: float) -> None:
    case = Case(n, m, 10, HALF, "self", temperature, both=m is not None)
    problem = Problem.of(case)
    ops = SimilarityLaunchers(two_slots, case.device, {"schedule": Schedule(1, host_threads=2)})
    x, y = operand(problem.z, case.eps)[0], operand(problem.y, case.eps)[0]
    y = x if m is None else y
    lse, _, column_lse = ops.fwd(x, y, exclude="self", both=True, temperature=temperature)
    for got, want in ((lse, problem.truth["lse"]), (column_lse, problem.truth["column_lse"])):
        assert (got - want).abs().max() <= case.lse_error


def test_the_workspace_is_linear(kernels: Kernels) -> None:
    """At most 64 partials of 4 bytes a row and a column, and one counter."""
    for rows, columns in ((2**14, 2**14), (2**16, 2**10), (2**10, 2**20)):
        args = FwdArgs(row_count=rows, column_count=columns, u_columns=128, temperature=0.1, column_lse=1, rows=1)
        bytes_needed = kernels.value("simclr_similarity_fwd_workspace_bytes", ctypes.byref(args))
        assert bytes_needed <= 4 * 64 * (rows + columns) + 16


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [HALF, FLOAT, DOUBLE], ids=str)
def test_rows_without_a_column_have_no_part_in_the_gradient(
    kernels: Kernels, dtype: torch.dtype, temperature: float
) -> None:
    """Row 0 leaves the only column out."""
    case = Case(3, 1, 12, dtype, "self", temperature, both=True, need_max=True)
    problem = Problem.of(case)
    got = run(kernels, problem)
    problem.check(got)
    assert got["lse"][0] == got["max"][0] == -torch.inf
    assert torch.count_nonzero(got["dz"][0]) == 0


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [HALF, FLOAT, DOUBLE], ids=str)
def test_sides_without_a_gradient_give_none(kernels: Kernels, dtype: torch.dtype, temperature: float) -> None:
    got = run(kernels, Problem.of(Case(9, 14, 20, dtype, "none", temperature, both=True, upstream="")))
    assert all(torch.count_nonzero(got[name]) == 0 for name in ("dz", "dy", "dt"))


@pytest.mark.parametrize("dtype", [HALF, FLOAT, DOUBLE], ids=str)
def test_nan_rows_show(kernels: Kernels, dtype: torch.dtype) -> None:
    problem = Problem.of(Case(6, 9, 12, dtype, both=True, need_max=True))
    problem.z[2, 3] = torch.nan
    got = run(kernels, problem)
    assert got["lse"].isnan().tolist() == got["max"].isnan().tolist() == [i == 2 for i in range(6)]
    assert got["column_lse"].isnan().all()
    assert got["dz"][2].isnan().all()
    assert got["dy"].isnan().all()
    assert got["dt"].isnan()


def test_a_gradient_that_is_not_finite_shows(kernels: Kernels) -> None:
    for weight in (torch.nan, torch.inf):
        problem = Problem.of(Case(6, 9, 12, HALF, both=True))
        problem.drows[1] = weight
        got = run(kernels, problem)
        assert not got["dz"][1].isfinite().any()
        assert not got["dy"].isfinite().any()


@pytest.mark.parametrize("multiprocessors", [1, 3, 64])
def test_splits_of_the_columns_change_only_the_rounding(kernels: Kernels, multiprocessors: int) -> None:
    problem = Problem.of(Case(75, 150, 20, FLOAT, both=True, device=Device(multiprocessors, 99 * 1024)))
    problem.check(run(kernels, problem))


def test_rows_may_be_strided(kernels: Kernels) -> None:
    problem = Problem.of(Case(15, 20, 24, HALF, both=True))
    wide = torch.full((15, 50), torch.nan, dtype=HALF)
    wide[:, 3:27] = problem.z
    strided = replace(problem, z=wide[:, 3:27])
    assert torch.equal(run(kernels, strided)["dz"], run(kernels, problem)["dz"])


@pytest.mark.parametrize("dtype", [HALF, FLOAT, DOUBLE], ids=str)
def test_the_gradient_is_the_same_without_dt(kernels: Kernels, dtype: torch.dtype) -> None:
    problem = Problem.of(Case(15, 20, 24, dtype, both=True))
    x, inv_norm = operand(problem.z, 1e-2)
    y, _ = operand(problem.y, 1e-2)
    ops = SimilarityLaunchers(kernels)
    lse, _, column_lse = ops.fwd(x, y, both=True)
    arguments = (problem.drows, problem.dcolumns, problem.z, x, inv_norm, y, lse, column_lse)
    with_dt, without = ops.bwd(*arguments), ops.bwd(*arguments, need_dt=False)
    assert without[1] is None
    assert torch.equal(with_dt[0], without[0])


def test_arguments_that_cannot_be_are_refused(kernels: Kernels) -> None:
    ops = SimilarityLaunchers(kernels)
    u = torch.zeros(3, 8, dtype=operand_dtype(HALF))
    with pytest.raises(SimtError, match="returned 1"):
        ops.fwd(u, u, exclude="pair")  # three rows are no pairs
    with pytest.raises(SimtError, match="returned 1"):
        ops.fwd(u, u, row_offset=-1, exclude="self")
    with pytest.raises(SimtError, match="returned 1"):
        ops.fwd(u[:0], u)
