"""The Triton kernels of similarities in Triton's interpreter, against dense logits in float64."""

import dataclasses
import functools
import itertools

import pytest
import torch

from simclr_fast.ops.ntxent import similarity_ops, triton_tiles
from simclr_fast.ops.ntxent.ops import split_rows
from simclr_fast.ops.ntxent.similarity import similarity
from simclr_fast.ops.ntxent.similarity_ops import Ops
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_similarity import TritonSimilarity
from simclr_fast.ops.ntxent.triton_tiles import Target
from tests import similarity_truth
from tests.helpers import non_contiguous, relative_error
from tests.ops.ntxent.triton_similarity_cases import Case, Values, errors, inputs, run, truth, upstream
from tests.similarity_truth import EPS, KINDS, rows_and_columns, values_of

pytestmark = pytest.mark.interpret

FLOAT32 = {"lse": 5e-6, "max": 5e-6, "column_lse": 5e-6, "dz": 3e-5, "dt": 3e-5}
# Of half inputs: u is rounded to float16 (2^-12 of an entry that is at most 1), which moves a logit by up to 5e-4 / t.
HALF = {"lse": 1e-3, "max": 1e-3, "column_lse": 1e-3, "dz": 1e-3, "dt": 3e-3}
WIDTHS = {(1, 1): 1, (2, 5): 33, (130, 70): 123, (70, 130): 128}


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autograd function that serves every backend finds the interpreted kernels under "triton"."""
    normalize = TritonNtxent(target=few(2).target).normalize
    monkeypatch.setitem(similarity_ops.OPS, "triton", Ops(few(2).fwd, few(2).bwd))
    monkeypatch.setitem(
        similarity_ops.NTXENT_OPS, "triton", similarity_ops.NTXENT_OPS["triton"]._replace(normalize=normalize)
    )


def few(multiprocessors: int) -> TritonSimilarity:
    """A backend that believes to run on so many multiprocessors, and splits its work accordingly."""
    return TritonSimilarity(target=lambda device: Target(80, multiprocessors))


def check(case: Case, backend: TritonSimilarity, tolerance: dict[str, float] = FLOAT32) -> Values:
    values = run(case, backend)
    found = errors(case, values)
    assert all(found[name] <= tolerance[name] for name in found), found
    return values


@pytest.mark.parametrize(
    ("shape", "exclude", "temperature"),
    [
        *itertools.product([(1, 1), (2, 5)], ["none", "self"], [0.5, 0.01]),  # 0.01: the running maximum
        *(((130, 70), "none", 0.5), ((130, 70), "self", 0.01), ((70, 130), "self", 0.5), ((70, 130), "none", 0.01)),
    ],
)
def test_rows_and_columns(shape: tuple[int, int], exclude: str, temperature: float) -> None:
    check(Case(*shape, WIDTHS[shape], temperature, exclude=exclude), few(2))


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("exclude", ["none", "self", "pair"])
@pytest.mark.parametrize(("n", "D"), [(2, 1), (6, 33), (130, 24)])
def test_rows_alone(n: int, D: int, exclude: str, temperature: float) -> None:
    check(Case(n, None, D, temperature, exclude=exclude), few(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize(("m", "exclude"), [(70, "self"), (None, "pair")])
def test_half_inputs(m: int | None, exclude: str, temperature: float, dtype: torch.dtype) -> None:
    wider = 10 if temperature == 0.01 else 1
    tolerance = {name: wider * limit for name, limit in HALF.items()}
    tolerance["dz"] += 2.0**-8 if dtype == torch.bfloat16 else 0.0  # of dz itself: the interpreter truncates
    case = Case(60, m, 72, temperature, dtype=dtype, exclude=exclude)
    values = check(case, few(2), tolerance)

    # Of dt no more than twice what rounding the unit rows costs anyway, which is far less than that.
    (z, y), weights = inputs(case), upstream(case)
    rounded = values_of(
        similarity_truth.of_float16_rows, z, None if m is None else y, temperature, weights, exclude=exclude
    )
    exact = truth(case).dt
    tiny = 1e-7 / temperature * weights[0].abs().sum() / temperature**2  # float32 rounds logits of up to 1 / t
    assert (values.dt - exact).abs() <= 2 * (rounded.dt - exact).abs() + tiny


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("m", [40, None])
def test_maximum_and_temperature_on_the_device(m: int | None, on_device: bool) -> None:
    check(Case(70, m, 16, 0.5, exclude="self", need_max=True, temperature_on_device=on_device), few(2))


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("sides", [("rows",), ("columns",), ()], ids=str)
def test_a_side_without_gradient_adds_exactly_nothing(sides: tuple[str, ...], temperature: float) -> None:
    case = Case(33, 70, 16, temperature, exclude="self", sides=sides)
    values = check(case, few(2))
    if "rows" not in sides:
        assert values.dt == 0
    if not sides:
        assert (values.dz == 0).all()


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_large_weights_of_either_side(side: str) -> None:
    """Coefficients are float16, which holds 65504."""
    check(Case(20, 30, 8, 0.1, dtype=torch.float16, sides=(side,), weight=500.0), few(1), HALF | {"dz": 5e-3})


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("shape", [(1, None), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_nothing_left_to_sum_over(dtype: torch.dtype, shape: tuple, temperature: float) -> None:
    """A single row that leaves out its single column: -inf, and no gradient."""
    values = run(Case(*shape, 3, temperature, dtype=dtype, exclude="self", need_max=True), few(1))
    for value in (values.lse, values.max):
        assert (value == -torch.inf).all()
    assert (values.dz == 0).all()
    assert values.dt == 0


@pytest.mark.parametrize("exclude", ["self", "pair"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_local_rows_against_columns_of_all_processes(rank: int, exclude: str) -> None:
    check(Case(34, None, 24, 0.1, exclude=exclude, world=3, rank=rank), few(2))


def test_columns_of_all_processes() -> None:
    check(Case(34, 34, 24, 0.02, exclude="self", world=2, rank=1), few(2))
    check(Case(20, 50, 24, 0.1, world=2, rank=1), few(2))


@pytest.mark.parametrize(("multiprocessors", "temperature"), [(1, 0.5), (1, 0.01), (40, 0.1)])
def test_many_bands_and_splits(multiprocessors: int, temperature: float) -> None:
    check(Case(150, 200, 8, temperature, exclude="self"), few(multiprocessors))
    check(Case(200, None, 8, temperature, exclude="pair"), few(multiprocessors))


@pytest.mark.parametrize(("m", "temperature"), [(130, 0.1), (130, 0.01), (None, 0.01)])
def test_partial_sums_shared_by_row_tiles(temperature: float, m: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tiles, "MAX_SLOTS", 2)  # as with very many rows
    check(Case(200, m, 8, temperature, exclude="self"), few(1))


@pytest.mark.parametrize("D", [200, 600])  # several parts of D; above 256 several programs
def test_wide_rows(D: int) -> None:
    check(Case(9, 14, D, 0.1), few(1))


def test_a_row_of_zeros_and_rows_as_they_are() -> None:
    check(Case(9, 14, 12, 0.1, zero_row=True), few(1))
    check(Case(9, 14, 12, 0.1, normalize=False), few(1))


def test_operands_that_start_anywhere() -> None:
    """Rows and columns are parts of one tensor, and may be strided."""
    case = Case(9, 14, 5, 0.2)
    z, y = inputs(case)
    u, inv_norm = TritonNtxent(target=few(1).target).normalize(z, y, EPS)
    apart = [few(1).fwd(*x, 0, "none", True, False, 0.2, None, "ieee") for x in (
        (u[:9], u[9:]), tuple(non_contiguous(part.flatten(1)).unflatten(1, (2, 5)) for part in (u[:9], u[9:])),
    )]  # fmt: skip
    for first, second in zip(*apart):
        assert torch.equal(first, second)
    lse, _, column_lse = apart[0]
    ones = [torch.ones(k) for k in (9, 14)]
    gradients = [
        few(1).bwd(*ones, z_form, u[:9], inv_norm[:9], u[9:], lse, column_lse, 0, "none", EPS, 0.2, None, "ieee", True)
        for z_form in (z, non_contiguous(z))
    ]
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_no_rows_or_no_columns() -> None:
    z, none = torch.randn(3, 4), torch.empty(0, 4)
    for rows, columns in ((z, none), (none, z)):
        n, m = rows.shape[0], columns.shape[0]
        u, v = split_rows(rows), split_rows(columns)
        lse, row_max, column_lse = few(1).fwd(u, v, 0, "none", True, True, 0.5, None, "ieee")
        assert (len(lse), len(row_max), len(column_lse)) == (n, n, m)
        assert all((x == -torch.inf).all() for x in (lse, row_max, column_lse))
        dz, dt = few(1).bwd(
            lse, column_lse, rows, u, torch.ones(n), v, lse, column_lse, 0, "none", EPS, 0.5, None, "ieee",
            True,
        )  # fmt: skip
        assert dz.shape == rows.shape
        assert not dz.any()
        assert dt == 0


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_nan_in_nan_out(temperature: float) -> None:
    z, y = inputs(Case(20, 30, 8, temperature))
    z[3, 2] = float("nan")
    u, inv_norm = TritonNtxent(target=few(1).target).normalize(z, y, EPS)
    rows, columns = u[:20], u[20:]
    lse, row_max, column_lse = few(1).fwd(rows, columns, 0, "none", True, True, temperature, None, "ieee")
    assert lse[3].isnan()
    assert row_max[3].isnan()
    assert lse.isnan().sum() == row_max.isnan().sum() == 1
    assert column_lse.isnan().all()
    dz, dt = few(1).bwd(
        torch.ones(20), torch.ones(30), z, rows, inv_norm[:20], columns, lse, column_lse, 0, "none", EPS, temperature,
        None, "ieee", True,
    )  # fmt: skip
    assert dz.isnan().all()
    assert dt.isnan()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("columns", [True, False])
def test_maxima_and_rows_as_they_are(columns: bool, normalize: bool, interpreted: None) -> None:
    results = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        z, y = (x.to(dtype).requires_grad_() for x in inputs(Case(12, 15, 10, 0.2, normalize=normalize)))
        lse, _, largest = similarity(
            z, y if columns else None, 0.2, exclude="self", both=columns, eps=EPS if normalize else None,
            precision="ieee", backend=backend, group=None, need_max=True,
        )  # fmt: skip
        results[backend] = (largest, torch.autograd.grad(lse.square().sum(), z)[0])
    for actual, exact in zip(results["triton"], results["reference"]):
        assert relative_error(actual, exact) <= 1e-5


@pytest.mark.parametrize(
    ("of_rows", "of_columns", "temperature"),
    [
        (1e-6, None, 2e-13),
        (3e3, None, 2e6),
        (1e15, None, 2e29),
        (1e3, 1e-3, 0.2),
        (1e5, 1e-5, 1.0),
        (10.0, 1e-3, 0.01),
        (1e-5, 1e18, 1e13),
        (1e18, 1e18, 1e36),
        (1e-18, 1e-18, 1e-36),
        (1e-7, 1e-7, 0.5),
    ],
)
def test_rows_as_they_are_of_any_length(
    of_rows: float, of_columns: float | None, temperature: float, interpreted: None
) -> None:
    results = {}
    alone = of_columns is None
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        z, y = inputs(Case(12, 15, 10, 0.2, normalize=False))
        z, y = ((x * length).to(dtype).requires_grad_() for x, length in ((z, of_rows), (y, of_columns or 1.0)))
        t = torch.tensor(temperature).to(dtype).requires_grad_()
        sums = similarity(
            z, None if alone else y, t, exclude="self", both=not alone, eps=None, precision="ieee",
            backend=backend, group=None,
        )[:2]  # fmt: skip
        wanted = (z, t) if alone else (z, y, t)
        results[backend] = (*sums, *torch.autograd.grad(sum(x.square().sum() for x in sums), wanted))
    for actual, exact in zip(results["triton"], results["reference"]):
        assert not exact.numel() or relative_error(actual, exact) <= 1e-5


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("kind", KINDS)
def test_hard_inputs_through_the_autograd_function(kind: str, temperature: float, interpreted: None) -> None:
    rows, columns = rows_and_columns(kind, 12, 20, 24, torch.float32)
    weights = similarity_truth.upstream(12, 20, torch.float32)

    def ours(rows, columns, temperature, *, exclude, both):
        options = {"eps": EPS, "precision": "ieee", "backend": "triton", "group": None}
        return similarity(rows, columns, temperature, exclude=exclude, both=both, **options)[:2]

    for exclude in ("none", "self"):
        values, exact = (
            of(rows, columns, temperature, weights, exclude=exclude, both=True)
            for of in (functools.partial(values_of, ours), similarity_truth.truth)
        )
        found = similarity_truth.errors(values, exact, (rows, columns), temperature)
        limits = {"lse": 5e-6, "column_lse": 5e-6, "drows": 3e-5, "dcolumns": 3e-5, "dt": 3e-4}
        assert all(found[name] <= limits[name] for name in limits), found


def test_same_bits_again() -> None:
    case = Case(130, 70, 16, 0.1, need_max=True)
    first, second = (dataclasses.astuple(run(case, few(3))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
