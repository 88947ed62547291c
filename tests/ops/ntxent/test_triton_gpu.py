"""The Triton backend of the NT-Xent loss: its registration, and on a GPU the same cases as in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from simclr_fast import ntxent_loss
from simclr_fast.losses import similarity_logsumexp
from simclr_fast.ops.ntxent import ops, triton_backend  # noqa: F401  (registers the kernels)
from tests import similarity_truth
from tests.helpers import relative_error, within
from tests.ntxent_truth import mean_truth
from tests.ops.ntxent.triton_cases import Case, views
from tests.streams import captured


@pytest.mark.parametrize("name", [f"ntxent_{name}" for name in ops._SCHEMAS] + ["similarity_fwd", "similarity_bwd"])
def test_registered_for_cuda(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"simclr_fast::{name}_triton", "CUDA")


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize(("n", "D"), [(1, 5), (100, 33), (512, 64), (512, 128), (300, 256), (200, 512), (100, 1030)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_matches_float64_on_the_device(n: int, D: int, temperature: float, dtype: torch.dtype) -> None:
    case = Case(n, D, temperature, dtype)
    z0, z1 = views(case)[0]
    leaves = [z.cuda().requires_grad_() for z in (z0, z1)]
    loss = ntxent_loss(*leaves, temperature, backend="triton", precision="ieee")
    loss.backward()
    loss_true, dz_true, _ = mean_truth(z0, z1, temperature)
    tolerance = 3e-5 if dtype == torch.float32 else 1e-3 if temperature >= 0.1 else 1e-2
    assert within("loss", relative_error(loss, loss_true), tolerance)
    assert within("gradient", relative_error(torch.cat([z.grad for z in leaves]), dz_true), tolerance)


@pytest.mark.gpu
def test_compiled_and_captured_in_a_graph() -> None:
    z0, z1 = (z.cuda().requires_grad_() for z in views(Case(256, 128, 0.1))[0])
    temperature = torch.tensor(0.1, device="cuda")

    def step() -> torch.Tensor:
        return torch.autograd.grad(ntxent_loss(z0, z1, temperature, backend="triton"), z0)[0]

    expected = step()
    assert torch.equal(torch.compile(step, fullgraph=False)(), expected)
    graph, gradient = captured(step)
    graph.replay()
    assert torch.equal(gradient, expected), "deterministic"


def on_the_device(rows: Tensor, columns: Tensor | None, temperature: Tensor, **options) -> tuple[Tensor, ...]:
    """similarity_logsumexp by Triton, of tensors on the CPU."""
    rows, columns, temperature = (None if x is None else x.cuda() for x in (rows, columns, temperature))
    results = similarity_logsumexp(rows, columns, temperature, backend="triton", precision="ieee", **options)
    return tuple(x.cpu() for x in (results if isinstance(results, tuple) else (results,)))


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
@pytest.mark.parametrize(("exclude", "columns", "both"), similarity_truth.CALLS)
@pytest.mark.parametrize(("n", "m", "D"), [(2, 1, 5), (100, 300, 33), (512, 300, 128), (300, 512, 256), (64, 100, 600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_similarities_match_float64_on_the_device(
    n: int, m: int, D: int, exclude: str, columns: bool, both: bool, temperature: float, dtype: torch.dtype
) -> None:
    m = m if columns else None
    inputs = similarity_truth.rows_and_columns("random", n, m, D, dtype)
    weights = similarity_truth.upstream(n, m, dtype)
    exact = similarity_truth.truth(*inputs, temperature, weights, exclude=exclude, both=both)
    actual = similarity_truth.values_of(
        on_the_device,
        *inputs, temperature, weights, exclude=exclude, both=both,
    )  # fmt: skip
    found = similarity_truth.errors(actual, exact, inputs, temperature)
    bounds = dict.fromkeys(found, 3e-5 if dtype == torch.float32 else 2e-3 if temperature >= 0.1 else 2e-2)
    sum_of_weights = sum(w.abs().sum().item() for w in weights)
    bounds["dt"] = 3e-5 * sum_of_weights
    if dtype == torch.float16:
        rounded = similarity_truth.values_of(
            similarity_truth.of_float16_rows,
            *inputs, temperature, weights, exclude=exclude, both=both,
        )  # fmt: skip
        of_rounded = similarity_truth.errors(rounded, exact, inputs, temperature)["dt"]
        # Besides, float32 rounds a logit, of up to 1 / t, and with it the probability that it makes.
        bounds["dt"] = 2 * of_rounded + 2e-7 / temperature * sum_of_weights
    for name, error in found.items():
        assert within(name, error, bounds[name]), name
