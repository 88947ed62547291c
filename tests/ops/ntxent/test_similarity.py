"""The primitive against float64: the backends that run on the CPU, every dtype, shape, exclusion and kind of rows."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.losses.similarity import similarity_logsumexp
from simclr_fast.ops.ntxent.similarity import similarity
from tests.helpers import non_contiguous, peak_mib, relative_error
from tests.similarity_truth import (
    CALLS,
    EPS,
    KINDS,
    errors,
    exact_logsumexp,
    rows_and_columns,
    same_bits,
    truth,
    upstream,
    values_of,
)

OPS = torch.ops.simclr_fast
SHAPES = [(1, 1), (2, 1), (5, 3), (33, 150), (150, 33), (300, 300)]  # rows, columns
WIDTHS = [1, 3, 123, 16]
# Errors beyond twice the reference's, in the units of `errors`: of results, and of gradients at temperature 1.
TINY = {torch.float64: (1e-14, 1e-14), torch.float32: (1e-6, 5e-7)}


def check(
    kind: str,
    shape: tuple[int, int],
    d: int,
    dtype: torch.dtype,
    temperature: float,
    call: tuple[str, bool, bool],
    rows_alone: bool = False,
) -> None:
    """err(kernel) <= 2 err(reference in the same dtype) + TINY, of every result and gradient.

    rows_alone: the columns want no gradient.
    """
    exclude, has_columns, both = call
    n, m = shape[0], shape[1] if has_columns else None
    if exclude == "pair":
        n += n % 2
    rows, columns = rows_and_columns(kind, n, m, d, dtype)
    weights, options = upstream(n, m, dtype), {"exclude": exclude, "both": both, "rows_alone": rows_alone}
    exact = truth(rows, columns, temperature, weights, **options)
    found, allowed = (
        errors(
            values_of(similarity_logsumexp, rows, columns, temperature, weights, backend=backend, **options),
            exact,
            (rows, columns),
            temperature,
        )
        for backend in ("cpp", "reference")
    )
    assert found.keys() == allowed.keys()
    for name, error in found.items():
        tiny = TINY[dtype][1] / temperature if name.startswith("d") else TINY[dtype][0]
        if name == "dt":  # the sum of n rows, each off by the rounding of its log-sum-exp, here a number up to 8
            tiny = max(tiny, TINY[dtype][1] * n**0.5 / 4)
        assert error <= 2 * allowed[name] + tiny, f"{name} of {n} x {m} x {d}: {error:.1e}, not {allowed[name]:.1e}"


def test_the_truth_is_the_cross_entropy_of_two_towers() -> None:
    rows, columns = rows_and_columns("aligned", 9, 9, 5, torch.float64)
    u, v = F.normalize(rows, dim=1), F.normalize(columns, dim=1)
    logits, labels = u @ v.T / 0.2, torch.arange(9)
    lse, column_lse = exact_logsumexp(rows, columns, torch.tensor(0.2, dtype=torch.float64), both=True)
    positive = (u * v).sum(1) / 0.2
    assert relative_error((lse - positive).mean(), F.cross_entropy(logits, labels)) <= 1e-14
    assert relative_error((column_lse - positive).mean(), F.cross_entropy(logits.T, labels)) <= 1e-14


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_shapes(call: tuple[str, bool, bool], dtype: torch.dtype, temperature: float) -> None:
    for k, shape in enumerate(SHAPES):
        for d in (WIDTHS[k % 4], WIDTHS[(k + 2) % 4]):
            check("random", shape, d, dtype, temperature, call)


@pytest.mark.parametrize("temperature", [0.5, 0.03, 0.01])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_rows(kind: str, temperature: float) -> None:
    for call in (CALLS[2], CALLS[3], CALLS[4]):
        for dtype in (torch.float32, torch.float64):
            check(kind, (70, 52), 24, dtype, temperature, call)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_half_rows(call: tuple[str, bool, bool], dtype: torch.dtype) -> None:
    """Results as exact as of float32; gradients as exact as their type."""
    exclude, has_columns, both = call
    for temperature in (0.5, 0.02):
        rows, columns = rows_and_columns("random", 40, 31 if has_columns else None, 20, dtype)
        weights, options = upstream(40, 31 if has_columns else None, dtype), {"exclude": exclude, "both": both}
        exact = truth(rows, columns, temperature, weights, **options)
        actual = values_of(similarity_logsumexp, rows, columns, temperature, weights, backend="cpp", **options)
        assert actual.lse.dtype == torch.float32
        assert actual.drows.dtype == dtype
        found = errors(actual, exact, (rows, columns), temperature)
        assert all(error <= 1e-6 for name, error in found.items() if name.endswith("lse"))
        for z, mine, gradient in ((rows, actual.drows, exact.drows), (columns, actual.dcolumns, exact.dcolumns)):
            if mine is not None:
                rounding = torch.finfo(dtype).eps / 2 * gradient.abs() + torch.finfo(dtype).smallest_normal * 1e-3
                tiny = 1e-5 / (temperature * z.double().norm(dim=1, keepdim=True))
                assert ((mine.double() - gradient).abs() <= 1.01 * rounding + tiny).all()


def both_ways(rows: Tensor, columns: Tensor | None, temperature: float | Tensor = 0.1, **options) -> list[Tensor]:
    """Results and gradients of the kernels, under fixed weights."""
    leaves = [x.detach().clone().requires_grad_() for x in (rows, columns) if x is not None]
    results = similarity_logsumexp(leaves[0], *(leaves[1:] or [None]), temperature, backend="cpp", **options)
    results = list(results) if isinstance(results, tuple) else [results]
    objective = sum((x * torch.linspace(-1, 2, x.numel(), dtype=x.dtype)).sum() for x in results)
    return [*results, *torch.autograd.grad(objective, leaves)]


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_a_temperature_tensor_gives_the_same(temperature: float) -> None:
    """To the bit where a float's logits, too, may be any; else but for the maxima, which a float makes needless."""
    rows, columns = rows_and_columns("random", 20, 31, 9, torch.float64)
    given = both_ways(rows, columns, temperature, both=True)
    tensor = both_ways(rows, columns, torch.tensor(temperature, dtype=torch.float64), both=True)
    assert all(relative_error(a, b) <= 1e-13 for a, b in zip(tensor, given))
    assert same_bits(given, tensor) == (temperature == 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # in float64 the order of all sums shows
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_the_number_of_threads_does_not_matter(temperature: float, dtype: torch.dtype) -> None:
    """Several strips of rows, and blocks that two, three and four threads share differently.

    So wide that four threads work: each wants 8e6 multiplications and additions.
    """
    rows, columns = rows_and_columns("random", 330, 290, 350, dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 4, 2):
            torch.set_num_threads(count)
            results.append(
                both_ways(rows, columns, temperature, both=True) + both_ways(rows, None, temperature, exclude="pair")
            )
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(results[0], other) for other in results[1:])


def test_strides_do_not_matter() -> None:
    rows, columns = rows_and_columns("random", 19, 23, 11, torch.float32)
    plain = both_ways(rows, columns, both=True)
    for spread in (non_contiguous, lambda x: x.T.contiguous().T, lambda x: torch.cat([x, x])[: x.shape[0]]):
        leaves = [x.clone().requires_grad_() for x in (rows, columns)]
        results = similarity_logsumexp(*(spread(x) for x in leaves), 0.1, both=True, backend="cpp")
        objective = sum((x * torch.linspace(-1, 2, x.numel())).sum() for x in results)
        assert same_bits(plain, [*results, *torch.autograd.grad(objective, leaves)])


@pytest.mark.parametrize("exclude", ["none", "self", "pair"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1.0, 6.0])
def test_rows_as_they_are(length: float, dtype: torch.dtype, exclude: str) -> None:
    """Also rows that are no unit rows, whose logits exceed 1 / t: here 360, of which float32 cannot take exp."""
    unit = (length * F.normalize(torch.randn(26, 10, dtype=torch.float64), dim=1)).to(dtype)
    columns = None if exclude == "pair" else torch.cat([unit[:7], -unit[7:14]])
    weights, options = upstream(26, 14, dtype), {"exclude": exclude, "both": exclude != "pair", "normalize": False}
    exact = truth(unit, columns, 0.1, weights, **options)
    actual = values_of(similarity_logsumexp, unit, columns, 0.1, weights, backend="cpp", **options)
    bound = {torch.float16: 1e-3, torch.float32: 5e-6, torch.float64: 1e-13}[dtype]
    # Logits of 360 are 36 times as coarse, and so is exp of them; a gradient is of 6 / t instead of at most 1 / (6 t).
    coarser = length**4 if dtype != torch.float16 else length**2
    assert max(errors(actual, exact, (unit, columns), 0.1).values()) <= coarser * bound
    t = torch.tensor(0.1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    numbers, tensors = (similarity_logsumexp(unit, columns, x, backend="cpp", **options) for x in (0.1, t))
    same = all(torch.equal(*pair) for pair in zip(numbers, tensors, strict=True))
    assert same, "a number bounds the logits of unit rows alone"


@pytest.mark.parametrize("both", [False, True])
def test_no_columns(both: bool) -> None:
    rows = torch.randn(4, 3, requires_grad=True)
    columns = torch.randn(0, 3, requires_grad=True)
    results = similarity_logsumexp(rows, columns, 0.1, both=both, backend="cpp")
    lse, *column_lse = results if both else (results,)
    assert lse.isneginf().all()
    assert [x.shape for x in column_lse] == [(0,)] * both
    objective = lse.masked_fill(lse.isinf(), 0).sum() + sum(x.sum() for x in column_lse)
    gradients = torch.autograd.grad(objective, (rows, columns))
    assert [g.shape for g in gradients] == [(4, 3), (0, 3)]
    assert not gradients[0].any()
    u = F.normalize(rows.detach(), dim=1)
    for sums in OPS.similarity_fwd(u, u[:0], 0, "none", both, True, 0.1, None, "ieee")[:2]:
        assert sums.isneginf().all()


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_nan_stands_where_the_reference_has_it(call: tuple[str, bool, bool], temperature: float) -> None:
    exclude, has_columns, both = call
    rows, columns = rows_and_columns("random", 10, 7 if has_columns else None, 6, torch.float32)
    rows.view(torch.int32)[4, 2] = 0x7FC12345  # a NaN whose payload is not zero
    weights, options = upstream(10, 7 if has_columns else None, torch.float32), {"exclude": exclude, "both": both}
    found, expected = (
        values_of(similarity_logsumexp, rows, columns, temperature, weights, backend=backend, **options)
        for backend in ("cpp", "reference")
    )
    for name in ("lse", "column_lse", "drows", "dcolumns", "dt"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None and b is None) or torch.equal(a.isnan(), b.isnan()), name


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("exclude", ["none", "self", "pair"])
def test_row_maxima(exclude: str, temperature: float) -> None:
    options = {"exclude": exclude, "eps": EPS, "precision": "ieee", "group": None, "need_max": True}
    for n, m in ((1, None), (2, None), (150, None), (5, 3), (40, 200)):
        if (exclude == "pair" and (n % 2 or m is not None)) or (exclude == "none" and n == 1):
            continue
        rows, columns = rows_and_columns("random", n, m, 9, torch.float32)
        both = m is not None
        found, expected = (
            similarity(rows, columns, temperature, both=both, backend=backend, **options)
            for backend in ("cpp", "reference")
        )
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.isinf(), b.isinf())
            assert relative_error(a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)) <= 1e-6


@pytest.mark.parametrize("eps", [EPS, None])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_fixed_columns_may_be_overwritten(backend: str, eps: float | None) -> None:
    rows, columns = (F.normalize(torch.randn(n, 3), dim=1) for n in (4, 7))
    rows.requires_grad_()
    options = {"exclude": "none", "both": False, "eps": eps, "precision": "ieee", "backend": backend, "group": None}
    expected = torch.autograd.grad(similarity(rows, columns.clone(), 0.1, **options)[0].sum(), rows)[0]
    lse = similarity(rows, columns, 0.1, fixed_columns=True, **options)[0]
    columns.zero_()
    assert torch.equal(torch.autograd.grad(lse.sum(), rows)[0], expected)


# Prints how many MiB the peak grows by in forward + backward of two towers, their gradients included.
PEAK = """
import sys
from pathlib import Path
import torch
from simclr_fast._extension import build_info
from simclr_fast.losses.similarity import similarity_logsumexp

def step(n, d):
    rows, columns = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    sum(x.sum() for x in similarity_logsumexp(rows, columns, 0.1, both=True, backend="cpp")).backward()
    return resident("VmHWM") - before

def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024

step(64, 8)  # threads and libraries
print(step(int(sys.argv[1]), int(sys.argv[2])))
"""


def check_peak(n: int, d: int, limit: int) -> None:
    """`limit` MiB beside the rows, the columns and their gradients."""
    gradients = 2 * n * d * 4 / 2**20
    assert peak_mib(PEAK, n, d) - gradients <= limit


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_is_linear() -> None:
    check_peak(4096, 64, 14)  # the logits would take 64


@pytest.mark.proof
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("n", "d", "limit"), [(16384, 128, 64), (8192, 512, 96)])
def test_memory_of_large_towers(n: int, d: int, limit: int) -> None:
    check_peak(n, d, limit)


def test_the_ops_refuse_rows_of_another_dtype_than_normalisation_gives() -> None:
    """They would be read as what they are not, beyond their end."""
    ops, z = torch.ops.simclr_fast, torch.randn(6, 4)
    u, inv_norm = ops.ntxent_normalize(z[:3], z[3:], 1e-8)
    numbers = (0, "none", 1e-8, 0.1, None, "ieee", True)
    for other in (u.half(), u.bfloat16(), u.double()):
        with pytest.raises(RuntimeError, match="unit rows have another dtype"):
            ops.similarity_bwd(u[:, 0], u[:, 0], z, other, inv_norm, other, inv_norm, inv_norm, *numbers)
        with pytest.raises(RuntimeError, match="unit rows have another dtype"):
            ops.ntxent_bwd(torch.ones(()), z[:3], z[3:], other, inv_norm, inv_norm, inv_norm, 0, "mean", *numbers[2:])
    for half in (u.half(), u.bfloat16()):
        with pytest.raises(RuntimeError, match="unit rows have another dtype"):
            ops.similarity_fwd(half, half, 0, "none", False, False, 0.1, None, "ieee")
        with pytest.raises(RuntimeError, match="unit rows have another dtype"):
            ops.ntxent_fwd(half, 3, 0, 0.1, None, "mean", "ieee")
