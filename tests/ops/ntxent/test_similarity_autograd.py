"""The primitive as an operator: derivatives, opcheck, torch.compile, torch.export, and what it refuses."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from simclr_fast.losses.similarity import similarity_logsumexp
from tests.helpers import relative_error
from tests.similarity_truth import CALLS, EPS, rows_and_columns, same_bits

OPS = torch.ops.simclr_fast


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_a_side_without_gradient_counts_nothing(temperature: float) -> None:
    rows, columns = rows_and_columns("random", 21, 13, 8, torch.float64)
    leaves = [x.clone().requires_grad_() for x in (rows, columns)]
    weights = torch.randn(21, dtype=torch.float64)
    alone = torch.autograd.grad(similarity_logsumexp(*leaves, temperature, backend="cpp"), leaves, weights)
    lse, column_lse = similarity_logsumexp(*leaves, temperature, both=True, backend="cpp")
    assert same_bits(alone, torch.autograd.grad(lse, leaves, weights, retain_graph=True))
    of_columns = torch.autograd.grad(column_lse, leaves, torch.ones_like(column_lse))
    swapped = [x.clone().requires_grad_() for x in (columns, rows)]
    expected = torch.autograd.grad(similarity_logsumexp(*swapped, temperature, backend="cpp").sum(), swapped)
    assert all(relative_error(a, e) <= 1e-12 for a, e in zip(of_columns, reversed(expected)))


@pytest.mark.parametrize("factor", [-2.0, 1e-20, 1e30])
def test_upstream_gradients_scale_the_result(factor: float) -> None:
    rows, columns = (x.requires_grad_() for x in rows_and_columns("random", 12, 9, 5, torch.float32))
    for temperature in (0.1, 0.02):
        results = similarity_logsumexp(rows, columns, temperature, both=True, backend="cpp")
        plain, scaled = (
            torch.autograd.grad(results, rows, [torch.full_like(x, f) for x in results], retain_graph=True)[0]
            for f in (1.0, factor)
        )
        assert relative_error(scaled / factor, plain) <= 1e-6


def test_only_what_wants_a_gradient_gets_one() -> None:
    rows, columns = rows_and_columns("random", 8, 6, 5, torch.float32)
    t = torch.tensor(0.2)
    full = [x.clone().requires_grad_() for x in (rows, columns, t)]
    expected = torch.autograd.grad(sum(x.sum() for x in similarity_logsumexp(*full, both=True, backend="cpp")), full)
    for k in range(3):
        some = [x.clone().requires_grad_(j == k) for j, x in enumerate((rows, columns, t))]
        results = similarity_logsumexp(*some, both=True, backend="cpp")
        assert torch.equal(torch.autograd.grad(sum(x.sum() for x in results), some[k])[0], expected[k])


@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_gradcheck(call: tuple[str, bool, bool], temperature: float) -> None:
    exclude, has_columns, both = call
    rows, columns = rows_and_columns("random", 4, 5 if has_columns else None, 3, torch.float64)
    leaves = [x.requires_grad_() for x in (rows, columns) if x is not None]
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    function = lambda *x: similarity_logsumexp(
        x[0], x[1] if has_columns else None, x[-1], exclude=exclude, both=both, backend="cpp"
    )
    assert torch.autograd.gradcheck(function, (*leaves, t), eps=1e-6 * temperature, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_opcheck(call: tuple[str, bool, bool], dtype: torch.dtype) -> None:
    exclude, has_columns, both = call
    rows, columns = rows_and_columns("random", 6, 5 if has_columns else None, 7, dtype)
    x, inv_norm = OPS.ntxent_normalize(rows, rows[:0] if columns is None else columns, EPS)
    x, y = (x, x) if columns is None else (x[:6], x[6:].contiguous())
    t = torch.tensor(0.1, dtype=x.dtype) if both else None
    arguments = (x, y, 0, exclude, both, both, 0.1, t, "ieee")
    torch.library.opcheck(OPS.similarity_fwd.default, arguments)
    lse, _, _ = OPS.similarity_fwd(*arguments)
    column_lse = torch.full_like(y[:, 0], torch.inf)
    sides = (torch.ones_like(lse), torch.zeros_like(column_lse), rows, x, inv_norm[:6], y, lse, column_lse)
    torch.library.opcheck(OPS.similarity_bwd.default, (*sides, 0, exclude, EPS, 0.1, t, "ieee", True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": torch.ones(4, 3)}, "of one width"),
        ({"columns": torch.ones(4)}, "of one width"),
        ({"columns": torch.ones(4, 2).double()}, "of one dtype"),
        ({"exclude": "all"}, "exclude must be 'none', 'self' or 'pair', got 'all'"),
        ({"exclude": "pair"}, "an even number of rows"),
        ({"precision": "fast"}, "precision must be"),
        (
            {"temperature_tensor": torch.tensor(0.1, dtype=torch.float64)},
            "the temperature tensor must have one element",
        ),
        ({"temperature_tensor": torch.ones(2)}, "the temperature tensor must have one element"),
    ],
    ids=str,
)
def test_the_op_refuses(changes: dict, message: str) -> None:
    call = {"rows": torch.randn(5, 2), "columns": torch.randn(4, 2), "row_offset": 0, "exclude": "none", "both": False}
    call |= {"need_max": False, "temperature": 0.1, "temperature_tensor": None, "precision": "ieee"}
    with pytest.raises(RuntimeError, match=message):
        OPS.similarity_fwd(**(call | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("z", r"z must be \[n, D\], the rows before normalisation"),
        *((name, f"{name} must have {n} elements") for n, name in ((5, "drows"), (4, "dcolumns"), (5, "lse"))),
        *((name, f"{name} must have {n} elements") for n, name in ((4, "column_lse"), (5, "inv_norm"))),
    ],
)
def test_the_backward_op_refuses(change: str, message: str) -> None:
    rows, columns = torch.randn(5, 2), torch.randn(4, 2)
    call = {"drows": rows[:, 0], "dcolumns": columns[:, 0], "z": rows, "rows": rows, "inv_norm": torch.ones(5)}
    call |= {"columns": columns, "lse": rows[:, 0], "column_lse": columns[:, 0], "row_offset": 0, "exclude": "none"}
    call |= {"eps": EPS, "temperature": 0.1, "temperature_tensor": None, "precision": "ieee", "need_dt": False}
    assert OPS.similarity_bwd(**call)[0].shape == (5, 2)
    others = [call[change][1:], torch.cat([call[change]] * 2), *([torch.randn(5, 3)] if change == "z" else [])]
    for other in others if change == "z" else [*others, call[change].double()]:
        with pytest.raises(RuntimeError, match=message):
            OPS.similarity_bwd(**(call | {change: other}))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("call", [CALLS[2], CALLS[3]], ids=str)
def test_two_graphs_for_all_sizes(call: tuple[str, bool, bool], backend: str) -> None:
    exclude, has_columns, both = call
    function = lambda rows, columns: similarity_logsumexp(
        rows, columns, 0.2, exclude=exclude, both=both, backend=backend
    )
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for n, m in ((5, 9), (7, 4), (12, 13), (3, 20), (16, 8)):
        inputs = rows_and_columns("random", n, m if has_columns else None, 8, torch.float32)
        pairs = zip(compiled(*inputs), function(*inputs)) if both else [(compiled(*inputs), function(*inputs))]
        assert all(torch.equal(a, b) for a, b in pairs)
    assert counter.frame_count <= 2


def test_export_with_dynamic_rows_and_columns() -> None:
    class Towers(torch.nn.Module):
        def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            return similarity_logsumexp(rows, columns, 0.2, both=True)

    example = rows_and_columns("random", 6, 9, 8, torch.float32)
    sizes = ({0: torch.export.Dim("n")}, {0: torch.export.Dim("m")})
    exported = torch.export.export(Towers(), example, dynamic_shapes=sizes).module()
    for n, m in ((3, 5), (20, 4)):
        inputs = rows_and_columns("random", n, m, 8, torch.float32)
        assert same_bits(list(exported(*inputs)), list(Towers()(*inputs)))


def test_what_does_not_work_says_so() -> None:
    rows, columns = rows_and_columns("random", 6, 4, 3, torch.float64)
    loss = lambda z: similarity_logsumexp(z, columns, 0.1, backend="cpp").sum()
    exact = lambda z: similarity_logsumexp(z, columns, 0.1, backend="reference").sum()
    assert relative_error(torch.func.grad(loss)(rows), torch.func.grad(exact)(rows)) <= 1e-12
    for transform, message in (
        (lambda f: torch.func.vmap(f)(torch.stack([rows, rows])), "similarity_logsumexp cannot be vmapped"),
        (lambda f: torch.func.jacrev(f)(rows), "the gradient of similarity_logsumexp cannot be vmapped"),
        (lambda f: torch.func.grad(lambda z: torch.func.grad(f)(z).sum())(rows), "differentiable once"),
    ):
        with pytest.raises(RuntimeError, match=f"{message}.*backend='reference'"):
            transform(loss)
        transform(exact)
