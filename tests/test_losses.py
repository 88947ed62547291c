"""The public loss: arguments it accepts and refuses, the module, determinism, memory."""

import math
import sys

import numpy as np
import pytest
import torch

from simclr_fast import NTXentLoss, ntxent_loss
from simclr_fast.ops.ntxent.reference import ntxent_textbook
from tests.helpers import peak_mib, relative_error

GOOD = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z0": [[1.0]]}, TypeError, "z0 is a list: pass a torch.Tensor"),
        ({"z1": GOOD.long()}, TypeError, "z1 has dtype torch.int64: pass float16"),
        ({"z0": GOOD[0]}, ValueError, r"z0 has shape \(3,\): pass \[N, D\]"),
        ({"z0": GOOD[None]}, ValueError, r"z0 has shape \(1, 4, 3\): pass \[N, D\]"),
        ({"z0": GOOD[:0]}, ValueError, r"z0 has shape \(0, 3\): it is empty"),
        ({"z0": GOOD[:, :0]}, ValueError, r"z0 has shape \(4, 0\): it is empty"),
        ({"z1": GOOD[:3]}, ValueError, r"z0 \(4, 3\) and z1 \(3, 3\) differ in shape"),
        ({"z1": GOOD.double()}, TypeError, "z0 is torch.float32 and z1 is torch.float64: convert one"),
        ({"z1": GOOD.to("meta")}, ValueError, "z0 is on cpu and z1 is on meta: move one"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0: pass a positive, finite number"),
        ({"temperature": -0.1}, ValueError, "temperature=-0.1: pass a positive, finite number"),
        ({"temperature": math.nan}, ValueError, "temperature=nan: pass a positive, finite number"),
        ({"temperature": math.inf}, ValueError, "temperature=inf: pass a positive, finite number"),
        ({"temperature": "0.1"}, TypeError, "temperature is a str: pass a float or a 0-dim tensor"),
        ({"temperature": torch.tensor([0.1])}, ValueError, r"temperature has shape \(1,\) and dtype torch.float32"),
        ({"temperature": torch.tensor(1)}, ValueError, r"temperature has shape \(\) and dtype torch.int64"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature=-1.0: pass a positive, finite number"),
        ({"temperature": torch.tensor(1.0, device="meta")}, ValueError, "temperature is on meta and z0 is on cpu"),
        ({"reduction": "avg"}, ValueError, "reduction='avg': choose one of 'mean', 'sum', 'none'"),
        ({"precision": "fp16"}, ValueError, "precision='fp16': choose one of 'ieee', 'tf32'"),
        ({"reduction": GOOD[0].numpy()}, ValueError, "reduction=array.*: choose one of"),
        ({"decoupled": "yes"}, TypeError, "decoupled is a str: pass True or False"),
        ({"return_stats": 1}, TypeError, "return_stats is a int: pass True or False"),
        ({"backend": ["cpp"]}, ValueError, r"backend=\['cpp'\] is unknown; choose one of 'auto', 'cpp'"),
        ({"z0": GOOD.to_sparse()}, ValueError, "z0 has layout torch.sparse_coo: pass a dense tensor"),
        ({"temperature": True}, TypeError, "temperature is a bool: pass a float or a 0-dim tensor"),
        ({"eps": "1e-8"}, TypeError, "eps is a str: pass a float"),
        ({"eps": math.nan}, ValueError, "eps=nan: pass a positive, finite number"),
        ({"eps": math.inf}, ValueError, "eps=inf: pass a positive, finite number"),
        ({"eps": 0.0}, ValueError, "eps=0.0: pass a positive, finite number"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' is unknown; choose one of 'auto', 'cpp'"),
        ({"backend": "triton"}, RuntimeError, "backend='triton' cannot serve ntxent_loss on cpu"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ntxent_loss(**{"z0": GOOD, "z1": GOOD, **change})


def test_module_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="temperature=0: pass a positive, finite number"):
        NTXentLoss(temperature=0)
    with pytest.raises(ValueError, match="reduction='avg': choose one of 'mean', 'sum', 'none'"):
        NTXentLoss(reduction="avg")
    with pytest.raises(ValueError, match="eps=0: pass a positive, finite number"):
        NTXentLoss(eps=0)
    for name in ("decoupled", "return_stats"):
        with pytest.raises(TypeError, match=f"{name} is a int: pass True or False"):
            NTXentLoss(**{name: 1})
    with pytest.raises(ValueError, match="precision='fp16': choose one of 'ieee', 'tf32'"):
        NTXentLoss(precision="fp16")
    with pytest.raises(ValueError, match="backend='cuda' is unknown; choose one of 'auto', 'cpp'"):
        NTXentLoss(backend="cuda")


def test_it_is_called_as_lightly_is() -> None:
    z0, z1 = torch.randn(2, 5, 3)
    assert torch.equal(NTXentLoss(0.2)(out0=z0, out1=z1), ntxent_loss(z0, z1, 0.2))


@pytest.mark.filterwarnings("error")  # NumPy's, of a comparison with numbers that its float32 does not hold
@pytest.mark.parametrize("number", [np.float32(0.2), np.float64(0.2), np.int64(1)], ids=lambda x: type(x).__name__)
def test_temperatures_of_numpy(number: np.number) -> None:
    z0, z1 = torch.randn(2, 5, 3)
    expected = ntxent_loss(z0, z1, float(number))
    assert torch.equal(ntxent_loss(z0, z1, number), expected)
    assert torch.equal(NTXentLoss(number, eps=np.float32(1e-8))(z0, z1), expected)
    with pytest.raises(ValueError, match="temperature=0.0: pass a positive, finite number"):
        ntxent_loss(z0, z1, np.float32(0))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_tensors_made_under_inference_mode(backend: str) -> None:
    """As a frozen teacher's view is."""
    with torch.inference_mode():
        z1, temperature = torch.randn(6, 4), torch.tensor(0.2)
    z0 = torch.randn(6, 4, requires_grad=True)
    loss = ntxent_loss(z0, z1, temperature, backend=backend)
    expected = ntxent_loss(z0, z1.clone(), 0.2, backend="reference")
    assert relative_error(loss, expected) <= 1e-6
    assert relative_error(*(torch.autograd.grad(value, z0)[0] for value in (loss, expected))) <= 1e-5
    with torch.inference_mode():
        assert relative_error(ntxent_loss(z1, z1, temperature, backend=backend), ntxent_loss(z1, z1, 0.2)) <= 1e-6


def test_views_of_two_dtypes_under_autocast() -> None:
    z0 = torch.randn(6, 4, dtype=torch.bfloat16, requires_grad=True)
    z1 = torch.randn(6, 4, requires_grad=True)
    with pytest.raises(TypeError, match="z0 is torch.bfloat16 and z1 is torch.float32: convert one"):
        ntxent_loss(z0, z1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ntxent_loss(z0, z1, 0.2)
    expected = ntxent_loss(z0.float(), z1, 0.2)
    assert torch.equal(loss, expected)
    gradients, wanted = (torch.autograd.grad(value, (z0, z1)) for value in (loss, expected))
    assert gradients[0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["auto", "cpp", "triton", "reference"])
def test_meta_tensors_have_a_loss_of_their_shape(backend: str) -> None:
    z0, z1 = (torch.empty(6, 4, device="meta", requires_grad=True) for _ in range(2))
    loss = ntxent_loss(z0, z1, 0.2, reduction="none", backend=backend)
    assert (loss.shape, loss.device.type) == ((12,), "meta")
    assert torch.autograd.grad(loss.sum(), z0)[0].shape == (6, 4)


@pytest.mark.parametrize("size", [1e154, 1e200, 1e300])
def test_float64_rows_whose_squares_overflow(size: float) -> None:
    z0, z1 = torch.randn(2, 8, 5, dtype=torch.float64)
    mixed = torch.tensor([size, 1.0], dtype=torch.float64).repeat(4)[:, None]
    expected = ntxent_loss(z0, z1, 0.1)
    wide = (z0 * size).requires_grad_()
    for first, second in ((wide, z1 * size), (z0 * mixed, z1), (z0, z1 * mixed)):
        assert relative_error(ntxent_loss(first, second, 0.1, backend="cpp"), expected) <= 1e-14
    gradient = torch.autograd.grad(ntxent_loss(wide, z1, 0.1, backend="cpp"), wide)[0]
    plain = z0.clone().requires_grad_()
    assert relative_error(gradient * size, torch.autograd.grad(ntxent_loss(plain, z1, 0.1), plain)[0]) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_nan_reaches_the_loss_and_every_gradient(dtype: torch.dtype) -> None:
    z0, z1 = torch.randn(2, 6, 12).to(dtype)
    z1[2, 3] = torch.nan
    z0.requires_grad_()
    loss = ntxent_loss(z0, z1, 0.1, backend="cpp")
    assert loss.isnan()
    assert torch.autograd.grad(loss, z0)[0].isnan().all()


def test_precision_follows_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("simclr_fast.losses.ntxent.ntxent", lambda *_, precision, **__: seen.append(precision))
    before = torch.get_float32_matmul_precision()
    try:
        for name in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(name)
            ntxent_loss(GOOD, GOOD)
            ntxent_loss(GOOD, GOOD, precision="ieee")
            ntxent_loss(GOOD, GOOD, precision="tf32")
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["ieee", "ieee", "tf32", *["tf32", "ieee", "tf32"] * 2]


def test_no_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match="gather_distributed=True needs torch.distributed"):
        NTXentLoss(gather_distributed=True)


def test_alone_gather_distributed_changes_nothing() -> None:
    z0, z1 = torch.randn(2, 5, 3)
    assert torch.equal(NTXentLoss(0.2, gather_distributed=True)(z0, z1), ntxent_loss(z0, z1, 0.2))


def test_module_agrees_with_the_textbook() -> None:
    z0, z1 = torch.randn(2, 50, 16)
    for backend in ("auto", "cpp", "reference"):
        assert relative_error(NTXentLoss(0.2, backend=backend)(z0, z1), ntxent_textbook(z0, z1, 0.2)) <= 1e-6


def test_default_temperature_and_chance_level() -> None:
    z = torch.ones(8, 4)
    assert abs(NTXentLoss()(z, z).item() - math.log(15)) <= 1e-6
    z0, z1 = torch.randn(2, 8, 4)
    assert torch.equal(NTXentLoss()(z0, z1), ntxent_loss(z0, z1, 0.5))


def test_a_parameter_is_learned_and_a_tensor_moves() -> None:
    learned = NTXentLoss(temperature=torch.nn.Parameter(torch.tensor(0.3)))
    learned(*torch.randn(2, 6, 4)).backward()
    assert [name for name, p in learned.named_parameters() if p.grad is not None] == ["temperature"]
    moved = NTXentLoss(temperature=torch.tensor(0.3)).to(torch.float64)
    assert moved.temperature.dtype == torch.float64
    assert "temperature=0.3" in repr(NTXentLoss(0.3))


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("shape", [(300, 350), (1200, 24)], ids=str)  # both block sizes; work for seven threads
def test_results_do_not_depend_on_the_number_of_threads(shape: tuple[int, int], temperature: float) -> None:
    z0, z1 = (torch.randn(shape, requires_grad=True) for _ in range(2))
    t = torch.tensor(temperature, requires_grad=True)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            loss = ntxent_loss(z0, z1, t, backend="cpp")
            results.append([loss, *torch.autograd.grad(loss, (z0, z1, t))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


# Peak memory of forward + backward beyond the embeddings, gradients included.
PEAK = """
import sys
from pathlib import Path
import torch
from simclr_fast import ntxent_loss

torch.set_num_threads(2)  # each has a tile of its own

def step(n):
    z0, z1 = (torch.randn(n, 128, requires_grad=True) for _ in range(2))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    ntxent_loss(z0, z1, 0.1, backend="cpp").backward()
    return resident("VmHWM") - before

def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024

step(64)  # threads and libraries
print(step(int(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_is_linear() -> None:
    assert peak_mib(PEAK, 4096) <= 20


@pytest.mark.proof
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_of_a_large_batch() -> None:
    assert peak_mib(PEAK, 16384) <= 80
