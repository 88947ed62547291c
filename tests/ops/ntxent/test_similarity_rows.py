"""Rows whose columns want no gradient: the derivatives that the kernels make with the log-sum-exps."""

import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from simclr_fast.losses.similarity import similarity_logsumexp
from simclr_fast.ops.ntxent.similarity import similarity
from tests.helpers import non_contiguous, peak_mib, relative_error
from tests.ops.ntxent.test_similarity import PEAK, SHAPES, WIDTHS, check
from tests.similarity_truth import EPS, KINDS, exact_logsumexp, rows_and_columns, same_bits, upstream, values_of

OPS = torch.ops.simclr_fast
CALLS = [("none", True, False), ("self", True, False)]


def is_made_with_the_sums(lse: Tensor) -> bool:
    return lse.grad_fn.name() == "_RowsBackward"


def test_when_the_gradient_is_made_with_the_sums() -> None:
    rows, columns = rows_and_columns("random", 6, 5, 4, torch.float32)
    leaf, fixed = rows.requires_grad_(), columns.clone()
    t = torch.tensor(0.1, requires_grad=True)
    assert is_made_with_the_sums(similarity_logsumexp(leaf, fixed, 0.1))
    assert is_made_with_the_sums(similarity_logsumexp(leaf, fixed, t, exclude="self"))
    assert is_made_with_the_sums(similarity_logsumexp(leaf, fixed, 0.1, normalize=False))
    for other in (
        similarity_logsumexp(leaf, columns.requires_grad_(), 0.1),
        similarity_logsumexp(leaf, fixed, 0.1, both=True)[0],
        similarity_logsumexp(leaf, None, 0.1),
        similarity_logsumexp(leaf.detach(), fixed, t),
        similarity_logsumexp(leaf, fixed, 0.1, backend="reference"),
    ):
        assert not is_made_with_the_sums(other)
    with torch.no_grad():
        assert torch.equal(similarity_logsumexp(leaf, fixed, 0.1), similarity_logsumexp(leaf.detach(), fixed, 0.1))


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_shapes(call: tuple[str, bool, bool], dtype: torch.dtype, temperature: float) -> None:
    for k, shape in enumerate(SHAPES):
        for d in (WIDTHS[k % 4], WIDTHS[(k + 2) % 4]):
            check("random", shape, d, dtype, temperature, call, rows_alone=True)


@pytest.mark.parametrize("temperature", [0.5, 0.03, 0.01])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_rows(kind: str, temperature: float) -> None:
    for call in CALLS:
        for dtype in (torch.float32, torch.float64):
            check(kind, (70, 152), 24, dtype, temperature, call, rows_alone=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_rows(dtype: torch.dtype) -> None:
    """The gradient is rounded once."""
    rows, columns = rows_and_columns("random", 40, 31, 20, dtype)
    weights = upstream(40, 31, dtype)
    half, single = (
        values_of(similarity_logsumexp, x, y, 0.1, weights, rows_alone=True)
        for x, y in ((rows, columns), (rows.float(), columns.float()))
    )
    assert half.drows.dtype == dtype
    assert same_bits([half.lse, half.drows], [single.lse, single.drows.to(dtype)])


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("exclude", ["none", "self", "pair"])
def test_the_op_against_autograd(exclude: str, temperature: float) -> None:
    """Rows of one process of several, also with the exclusion that no call of rows alone has."""
    x, columns = (torch.nn.functional.normalize(z, dim=1) for z in torch.randn(2, 200, 9, dtype=torch.float64))
    rows, offset = x[:70].clone(), 0 if exclude == "none" else 30
    inv_norm = torch.rand(70, dtype=torch.float64) + 1
    lse, largest, gradients, dt = OPS.similarity_fwd_bwd(
        rows, inv_norm, columns, offset, exclude, True, EPS, temperature, None
    )
    left_in = torch.ones(70, 200, dtype=torch.bool)
    index = torch.arange(70)
    if exclude != "none":
        left_in[index, offset + index] = False
    if exclude == "pair":
        left_in[index, offset + (index + 35) % 70] = False
    leaf, t = rows.clone().requires_grad_(), torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    s = (leaf @ columns.T / t).masked_fill(~left_in, -torch.inf)
    expected = torch.logsumexp(s, 1)
    du = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)[0]
    dz = inv_norm[:, None] * (du - rows * (rows * du).sum(1, keepdim=True))
    assert relative_error(lse, expected.detach()) <= 1e-14
    assert relative_error(largest, s.detach().amax(1)) <= 1e-14
    assert relative_error(gradients, dz) <= 1e-12
    for i in (0, 69):
        assert relative_error(dt[i], torch.autograd.grad(expected[i], t, retain_graph=True)[0]) <= 1e-12


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_nan_and_empty_sums_stand_where_the_reference_has_them(temperature: float) -> None:
    rows, columns = rows_and_columns("random", 10, 7, 6, torch.float32)
    rows.view(torch.int32)[4, 2] = 0x7FC12345  # a NaN whose payload is not zero
    weights = upstream(10, 7, torch.float32)
    found, expected = (
        values_of(similarity_logsumexp, rows, columns, temperature, weights, rows_alone=True, backend=backend)
        for backend in ("cpp", "reference")
    )
    for a, b in ((found.lse, expected.lse), (found.drows, expected.drows), (found.dt, expected.dt)):
        assert torch.equal(a.isnan(), b.isnan())
    one = rows[:1].clone().requires_grad_()
    lse = similarity_logsumexp(one, columns[:1], temperature, exclude="self", backend="cpp")
    assert lse.isneginf().all()
    assert not torch.autograd.grad(lse, one, torch.ones(1))[0].any()


def test_rows_as_they_are_and_a_temperature_on_the_device() -> None:
    """Logits far beyond 1 / t, which need their maxima; and the same bits by a tensor where a float needs them, too."""
    rows, columns = (6 * x for x in rows_and_columns("random", 26, 140, 10, torch.float64))
    weights = upstream(26, 140, torch.float64)
    options = {"normalize": False, "rows_alone": True}
    found = values_of(similarity_logsumexp, rows, columns, 0.1, weights, backend="cpp", **options)
    exact = values_of(exact_logsumexp, rows, columns, 0.1, weights, **options)
    assert relative_error(found.lse, exact.lse) <= 1e-14
    assert relative_error(found.drows, exact.drows) <= 1e-12
    assert relative_error(found.dt, exact.dt) <= 1e-12
    leaf = rows.clone().requires_grad_()
    by_float, by_tensor = (
        similarity_logsumexp(leaf, columns, t, backend="cpp") for t in (0.01, torch.tensor(0.01, dtype=torch.float64))
    )
    gradients = [torch.autograd.grad(lse, leaf, weights[0])[0] for lse in (by_float, by_tensor)]
    assert same_bits([by_float, gradients[0]], [by_tensor, gradients[1]])


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_threads_strides_and_the_maximum_do_not_matter(temperature: float) -> None:
    rows, columns = rows_and_columns("random", 330, 290, 350, torch.float32)  # so wide that four threads work
    options = {"exclude": "self", "both": False, "eps": EPS, "precision": "ieee", "backend": "cpp", "group": None}

    def of(rows: Tensor, columns: Tensor, need_max: bool = False) -> list[Tensor]:
        leaf = rows.clone().requires_grad_()
        lse, _, largest = similarity(leaf, columns, temperature, need_max=need_max, **options)
        return [lse, torch.autograd.grad(lse, leaf, torch.linspace(-1, 2, 330))[0], largest]

    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(of(rows, columns))
    finally:
        torch.set_num_threads(threads)
    results.append(of(non_contiguous(rows), columns.T.contiguous().T))
    assert all(same_bits(results[0], other) for other in results[1:])
    *with_max, largest = of(rows, columns, need_max=True)
    assert relative_error(with_max[0], results[0][0]) <= 1e-6
    assert relative_error(with_max[1], results[0][1]) <= 2e-6
    expected = similarity(rows, columns, temperature, need_max=True, **(options | {"backend": "reference"}))[2]
    assert relative_error(largest, expected) <= 1e-6


@pytest.mark.parametrize("factor", [-2.0, 1e-20, 1e30])
def test_upstream_gradients_scale_the_result(factor: float) -> None:
    rows, columns = rows_and_columns("random", 12, 9, 5, torch.float32)
    lse = similarity_logsumexp(rows.requires_grad_(), columns, 0.1, backend="cpp")
    plain, scaled = (
        torch.autograd.grad(lse, rows, torch.full_like(lse, f), retain_graph=True)[0] for f in (1.0, factor)
    )
    assert relative_error(scaled / factor, plain) <= 1e-6


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("exclude", ["none", "self"])
def test_gradcheck(exclude: str, temperature: float) -> None:
    rows, columns = rows_and_columns("random", 4, 5, 3, torch.float64)
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    function = lambda x, t: similarity_logsumexp(x, columns, t, exclude=exclude, backend="cpp")
    assert torch.autograd.gradcheck(function, (rows.requires_grad_(), t), eps=1e-6 * temperature, atol=1e-5)


def test_a_second_derivative_is_refused() -> None:
    """Also where what arrives from above is constant, and only the rows or the temperature could be differentiated."""
    rows, columns = rows_and_columns("random", 4, 5, 3, torch.float64)
    t = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    lse = similarity_logsumexp(rows.requires_grad_(), columns, t, backend="cpp")
    for by in (rows, t):
        gradient = torch.autograd.grad(lse.sum(), by, create_graph=True)[0]
        for other in (rows, t):
            with pytest.raises(RuntimeError, match="similarity_logsumexp is differentiable once.*backend='reference'"):
                torch.autograd.grad(gradient.sum(), other, retain_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("need_max", [False, True])
def test_opcheck(need_max: bool, dtype: torch.dtype) -> None:
    u, inv_norm = OPS.ntxent_normalize(torch.randn(6, 7, dtype=dtype), torch.randn(5, 7, dtype=dtype), EPS)
    t = torch.tensor(0.1, dtype=dtype) if need_max else None
    arguments = (u[:6], inv_norm[:6], u[6:].contiguous(), 0, "self", need_max, EPS, 0.1, t)
    torch.library.opcheck(OPS.similarity_fwd_bwd.default, arguments)


def test_the_op_refuses_what_it_would_misread() -> None:
    u, inv_norm = OPS.ntxent_normalize(torch.randn(6, 4), torch.randn(5, 4), EPS)
    options = (0, "none", False, EPS, 0.1, None)
    for rows, norms, message in (
        (u[:6], inv_norm, "inv_norm must have 6 elements"),
        (u[:6], inv_norm[:6].double(), "inv_norm must have 6 elements"),
        (u[:6].double(), inv_norm[:6], "of one dtype"),
        (u[:6, :3], inv_norm[:6], "of one width"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OPS.similarity_fwd_bwd(rows, norms, u[6:], *options)
    with pytest.raises(RuntimeError, match="unit rows have another dtype"):
        OPS.similarity_fwd_bwd(u[:6].half(), inv_norm[:6], u[6:].half(), *options)


def test_two_graphs_for_all_sizes() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    function = lambda rows, columns: similarity_logsumexp(rows, columns, 0.2, backend="cpp")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for n, m in ((5, 9), (7, 4), (12, 13), (3, 20)):
        rows, columns = rows_and_columns("random", n, m, 8, torch.float32)
        results = []
        for f in (compiled, function):
            leaf = rows.clone().requires_grad_()
            lse = f(leaf, columns)
            results.append([lse, torch.autograd.grad(lse.sum(), leaf)[0]])
        assert same_bits(*results)
    assert counter.frame_count <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_is_linear() -> None:
    """Of 4096 rows and columns the logits would take 64 MiB; a gradient more than the result's takes 1."""
    program = PEAK.replace("for _ in range(2))", "for _ in range(2))\n    columns.requires_grad_(False)")
    program = program.replace("x.sum() for x in ", "").replace("both=True, ", "").replace("sum(sim", "(sim")
    program = program.replace('backend="cpp")).backward()', 'backend="cpp").sum()).backward()')
    assert peak_mib(program, 4096, 64) <= 12
