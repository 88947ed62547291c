"""The losses above the primitive, by every backend on its device, against float64; the CPU's kernels by the same tests.

By the rule of the project: an error is at most twice that of plain PyTorch with operands of the same type, and a bit.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_fast import NTXentLoss, clip_loss, info_nce_loss, ntxent_loss, sup_con_loss
from simclr_fast.ops.ntxent.reference import normalize_rows
from tests.helpers import relative_error, within
from tests.ntxent_truth import embeddings
from tests.streams import captured

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (HALF, BFLOAT, FLOAT, DOUBLE)
CASES = [
    pytest.param(device, backend, dtype, marks=[pytest.mark.gpu] * (device == "cuda"), id=f"{device}-{backend}-{dtype}")
    for device, backend in (("cpu", "cpp"), ("cuda", "cpp"), ("cuda", "triton"))
    for dtype in (DTYPES if backend == "cpp" else DTYPES[:3])
]
PLACES = [pytest.param(*case.values[:2], marks=case.marks) for case in CASES if case.values[2] == HALF]
# Beyond twice the reference's error, in the units of `errors`: of the losses of rows; of dx and dy, which are rounded
# to their type, and of whose coefficients kernels that multiply halves round, too; of dt.
TINY = {HALF: (2e-5, 1e-3, 1e-4), BFLOAT: (2e-5, 3e-3, 1e-4), FLOAT: (2e-5, 1e-5, 1e-5), DOUBLE: (1e-12, 1e-12, 1e-12)}
N, D = 45, 72


def with_bank(x: Tensor, y: Tensor, t: Tensor, weights: Tensor, bank: Tensor, options: dict) -> Tensor:
    module = NTXentLoss(0.5, len(bank), **options).to(x.device)
    module.temperature = t
    module.memory_bank.bank = bank.clone()
    return module(x, y, weights=weights)


def labels(x: Tensor) -> Tensor:
    return (torch.arange(len(x), device=x.device) * 7) % 11


# The losses of rows, of two views x, y [N, D], a temperature, weights [N], a bank of unit rows, and options.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "InfoNCE": lambda x, y, t, w, bank, o: info_nce_loss(x, y, None, t, **o),
    "symmetric": lambda x, y, t, w, bank, o: info_nce_loss(x, y, None, t, symmetric=True, **o),
    "unpaired": lambda x, y, t, w, bank, o: info_nce_loss(x, y, y.flip(1), t, **o),
    "CLIP": lambda x, y, t, w, bank, o: clip_loss(x, y, 1 / t, normalize=True, **o),
    "SupCon": lambda x, y, t, w, bank, o: sup_con_loss(torch.stack([x, y], 1), labels(x), t, weights=w, **o),
    "views": lambda x, y, t, w, bank, o: ntxent_loss(torch.stack([x, y, y.flip(1)]), None, t, **o),
    "decoupled": lambda x, y, t, w, bank, o: ntxent_loss(x, y, t, decoupled=True, **o),
    "weights": lambda x, y, t, w, bank, o: ntxent_loss(x, y, t, weights=w, **o),
    "statistics": lambda x, y, t, w, bank, o: ntxent_loss(x, y, t, return_stats=True, **o)[0],
    "bank": with_bank,
}


def rounded(z: Tensor) -> Tensor:
    """Unit rows as kernels that multiply halves take them, with the gradient of unrounded ones."""
    u = normalize_rows(z)
    return u + (u.half().float() - u).detach()


def results(
    name: str, inputs: list[Tensor], backend: str, operands: Callable[[Tensor], Tensor] = lambda z: z
) -> list[Tensor]:
    """The losses of rows, and the gradients of their sum by x, y and t, in float64 on the CPU."""
    x, y, t = (z.detach().clone().requires_grad_() for z in inputs[:3])
    options = {"backend": backend, "precision": "ieee", "reduction": "none"}
    losses = LOSSES[name](operands(x), operands(y), t, *inputs[3:], options)
    return [z.double().cpu() for z in (losses.detach(), *torch.autograd.grad(losses.sum(), (x, y, t)))]


def inputs_of(dtype: torch.dtype, temperature: float) -> list[Tensor]:
    x, y = embeddings("random", N, D, dtype)
    wide = torch.promote_types(dtype, FLOAT)
    return [x, y, torch.tensor(temperature, dtype=wide), torch.rand(N, dtype=wide), normalize_rows(torch.randn(130, D))]


def errors(found: list[Tensor], truth: list[Tensor], temperature: float) -> list[float]:
    """Of losses of rows, absolute; of gradients by x and y, relative; of dt, beside a tenth of its largest terms."""
    dt_scale = truth[3].abs().clamp_min(0.1 * truth[0].numel() / temperature**2)
    scales = [1, truth[1].norm(), truth[2].norm(), dt_scale]
    return [((a - b).norm() / scale).item() for a, b, scale in zip(found, truth, scales)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("device", "backend", "dtype"), CASES)
def test_matches_float64(name: str, device: str, backend: str, dtype: torch.dtype) -> None:
    temperature = 0.1
    inputs = inputs_of(dtype, temperature)
    truth = results(name, [z.double() for z in inputs], "reference")
    halves = device == "cuda" and dtype in (HALF, BFLOAT)
    wide = [z.to(torch.promote_types(dtype, FLOAT)) for z in inputs]
    allowed = errors(results(name, wide, "reference", rounded if halves else lambda z: z), truth, temperature)
    found = errors(results(name, [z.to(device) for z in inputs], backend), truth, temperature)
    of_loss, of_rows, of_t = TINY[dtype]
    for what, error, least, tiny in zip(("loss", "dx", "dy", "dt"), found, allowed, (of_loss, of_rows, of_rows, of_t)):
        assert within(f"{name} {what}", error, 2 * least + tiny), f"{what}: {error:.1e}, the reference's is {least:.1e}"


@pytest.mark.parametrize("name", ["weights", pytest.param("symmetric", marks=pytest.mark.gpu)])  # here: test_info_nce
@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_under_autocast_and_compiled(name: str, device: str, backend: str) -> None:
    """Of two towers, one of which autocast leaves in float32."""
    torch._dynamo.reset()
    x, y, t, *others = (z.to(device) for z in inputs_of(FLOAT, 0.1))
    weight = torch.randn(D, D, device=device, requires_grad=True)
    options = {"backend": backend, "precision": "ieee", "reduction": "none"}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device, BFLOAT):
            return LOSSES[name](x @ weight, y, t, *others, options).mean()

    made = [of(x, y) for of in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))]
    eager, compiled = ((value, torch.autograd.grad(value, weight)[0]) for value in made)
    assert eager[0].dtype == FLOAT
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(compiled, eager))


def test_nothing_of_a_cuda_tensor_is_read_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have no values: to read one, or a shape that depends on one, raises. So graphs can be captured."""
    for module in ("ntxent", "similarity"):
        monkeypatch.setattr(f"simclr_fast.losses.{module}.resolve_backend", lambda *_: "triton")
    with FakeTensorMode():
        x, y, t, w, bank = (torch.empty(z.shape, device="cuda", requires_grad=True) for z in inputs_of(FLOAT, 0.1))
        for loss in LOSSES.values():
            rows = loss(x, y, t, w, bank.detach(), {"backend": "auto", "reduction": "none"})
            assert (rows.device.type, rows.dtype) == ("cuda", FLOAT)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["CLIP", "SupCon"])
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_can_be_captured_in_a_graph(name: str, backend: str) -> None:
    x, y, t, *others = (z.cuda() for z in inputs_of(HALF, 0.1))
    x.requires_grad_()
    options = {"backend": backend, "reduction": "mean"}
    step = lambda: torch.autograd.grad(LOSSES[name](x, y, t, *others, options), x)[0]
    graph, gradient = captured(step)
    with torch.no_grad():
        x.copy_(torch.randn(N, D))
    graph.replay()
    assert torch.equal(gradient, step())
