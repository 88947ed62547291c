"""The runtime's ldmatrix, mma.sync, tf32 rounding, ex2.approx and half arithmetic, against plain loops."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.simt.library import Kernels, Schedule, SimtError, unwritten

SOURCES = ("tests/simt/kernels/tensor_core.cu",)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ldmatrix(kernels: Kernels, seed: int) -> None:
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = unwritten(6, 32, 4, dtype=torch.int32)
    kernels.call("ldmatrix", torch.from_numpy(x.view(np.int16)), out, schedule=Schedule(seed))
    got = out.numpy().view(np.uint16).reshape(6, 32, 4, 2)
    for variant, (count, transposed) in enumerate(
        [(1, False), (1, True), (2, False), (2, True), (4, False), (4, True)]
    ):
        for lane in range(32):
            for i in range(count):
                matrix = x[i].T if transposed else x[i]
                assert got[variant, lane, i].tolist() == matrix[lane // 4, lane % 4 * 2 :][:2].tolist()


def test_matrix_instructions_used_wrongly_are_reported(kernels: Kernels) -> None:
    with pytest.raises(SimtError, match=r"a row is not aligned to 16 bytes .*thread \(\d+,0,0\)"):
        kernels.call("ldmatrix_misaligned", unwritten(32, dtype=torch.int32))
    with pytest.raises(SimtError, match=r"mma.m16n8k16 f16: needs all 32 lanes, .*thread \(32,0,0\)"):
        kernels.call("mma_half_warp", unwritten(48, dtype=torch.float32))


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_mma_16_bit(kernels: Kernels, name: str, dtype: torch.dtype) -> None:
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    a[0, :3] = torch.tensor([6e-8, 3e-5, 0.0]).to(dtype)  # subnormal in fp16
    d = unwritten(16, 8, dtype=torch.float32)
    kernels.call(f"mma_{name}", a, b, c, d)
    torch.testing.assert_close(d.double(), c.double() + a.double() @ b.double(), rtol=0, atol=1e-5)


def to_tf32(x: Tensor) -> Tensor:
    """Nearest multiple of 2^(exponent - 10), ties away from zero, by arithmetic on float64."""
    fraction, exponent = torch.frexp(x.double())  # fraction in [0.5, 1)
    steps = (fraction.abs() * 2048 + 0.5).floor() / 2048
    return torch.ldexp(steps, exponent).copysign(x.double()).float()


def test_tf32_rounding(kernels: Kernels) -> None:
    x = torch.randn(4000) * 10.0 ** torch.randint(-20, 20, (4000,))
    x[:3] = torch.tensor([1 + 2.0**-11, -(1 + 2.0**-11), 1 + 2.0**-11 - 2.0**-23])  # ties go away from zero
    y = unwritten(4000, dtype=torch.float32)
    kernels.call("round_to_tf32", x, y, 4000)
    assert torch.equal(y, to_tf32(x))
    assert y[:3].tolist() == [1 + 2.0**-10, -(1 + 2.0**-10), 1.0]


@pytest.mark.parametrize("rounded", [True, False])
def test_mma_tf32(kernels: Kernels, rounded: bool) -> None:
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    d = unwritten(16, 8, dtype=torch.float32)
    kernels.call("mma_tf32" if rounded else "mma_tf32_unrounded", a, b, d)

    def operand(x: Tensor) -> Tensor:  # an operand that was not rounded loses its low 13 bits
        return to_tf32(x) if rounded else (x.view(torch.int32) & ~0x1FFF).view(torch.float32)

    torch.testing.assert_close(d.double(), operand(a).double() @ operand(b).double(), rtol=0, atol=2e-6)
    assert (d.double() - a.double() @ b.double()).abs().max() > 1e-4  # it is tf32, not fp32


def test_exp2_flushes_what_is_subnormal(kernels: Kernels) -> None:
    x = torch.tensor([0.0, 1.5, -125.5, -126.5, -200.0, 127.5, 129.0, 1e-40, float("-inf"), float("nan")])
    y = unwritten(len(x), dtype=torch.float32)
    kernels.call("exp2_of", x, y, len(x))
    expected = torch.exp2(x)
    expected[3] = 0.0
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=3e-7, atol=0)


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat", torch.bfloat16)])
def test_half_arithmetic(kernels: Kernels, name: str, dtype: torch.dtype) -> None:
    a, b = torch.randn(500).to(dtype), torch.randn(500).to(dtype)
    y = unwritten(6, 500, dtype=dtype)
    kernels.call(f"{name}_arithmetic", a, b, y, 500)
    wide_a, wide_b = a.double(), b.double()
    fma = (wide_a * wide_b + wide_a).to(dtype)
    for got, wanted in zip(y, [a + b, a * b, a - b, a / b, fma, fma]):
        assert torch.equal(got, wanted)
