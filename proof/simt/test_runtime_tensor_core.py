"""The runtime's ldmatrix, mma.sync, ex2.approx and half arithmetic, against plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from proof.simt.library import Kernels, Schedule, SimtError, unwritten

SOURCES = ("proof/simt/kernels/tensor_core.cu",)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(SOURCES)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ldmatrix(kernels: Kernels, seed: int) -> None:
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = unwritten(2, 32, 4, dtype=torch.int32)
    kernels.call("ldmatrix", torch.from_numpy(x.view(np.int16)), out, schedule=Schedule(seed))
    got = out.numpy().view(np.uint16).reshape(2, 32, 4, 2)
    for transposed in (False, True):
        for lane in range(32):
            for i in range(4):
                matrix = x[i].T if transposed else x[i]
                assert got[int(transposed), lane, i].tolist() == matrix[lane // 4, lane % 4 * 2 :][:2].tolist()


def test_matrix_instructions_used_wrongly_are_reported(kernels: Kernels) -> None:
    with pytest.raises(SimtError, match=r"a row is not aligned to 16 bytes .*thread \(\d+,0,0\)"):
        kernels.call("ldmatrix_misaligned", unwritten(32, dtype=torch.int32))
    with pytest.raises(SimtError, match=r"mma.m16n8k16 f16: needs all 32 lanes, .*thread \(32,0,0\)"):
        kernels.call("mma_half_warp", unwritten(48, dtype=torch.float32))


def test_mma_float16(kernels: Kernels) -> None:
    a, b, c = torch.randn(16, 16).half(), torch.randn(16, 8).half(), torch.randn(16, 8)
    a[0, :3] = torch.tensor([6e-8, 3e-5, 0.0])  # subnormal
    d = unwritten(16, 8, dtype=torch.float32)
    kernels.call("mma_float16", a, b, c, d)
    torch.testing.assert_close(d.double(), c.double() + a.double() @ b.double(), rtol=0, atol=1e-5)


TRUNCATING = Schedule(truncating=True)
LEAST_EXPONENT = -14  # of the smallest normal half, which subnormal ones share


def cut(x: Fraction, unit: Fraction) -> Fraction:
    return math.trunc(x / unit) * unit


def hardware_sum(c: float, a: list[float], b: list[float], least: int) -> float:
    """c + a . b with exact products, halves of k in turn: terms cut off 24 bits below the largest, the sum to fp32."""

    def exponent(x: float, least: int) -> int:
        return max(math.frexp(x)[1] - 1, least)

    total, half = Fraction(c), len(a) // 2
    for begin in (0, half):
        pairs = [(x, y) for x, y in zip(a[begin : begin + half], b[begin : begin + half]) if x * y != 0]
        terms = [(Fraction(x) * Fraction(y), exponent(x, least) + exponent(y, least)) for x, y in pairs]
        terms += [(total, exponent(float(total), -126))] if total else []
        if not terms:
            continue
        unit = Fraction(2) ** (max(of_term for _, of_term in terms) - 24)
        total = sum(cut(term, unit) for term, _ in terms)
        if total:
            total = cut(total, Fraction(2) ** (exponent(float(total), -126) - 23))
    return float(total)


def random_operand(*shape: int) -> Tensor:
    """Numbers of many sizes, some of them zero, one subnormal."""
    x = torch.randn(*shape) * 2.0 ** torch.randint(-9, 3, shape)
    x[0, :3] = torch.tensor([0.0, 6e-6, 1.0])
    return x.half()


def test_truncating_mma_adds_as_the_hardware_does(kernels: Kernels) -> None:
    for scale in (0.0, 2.0**-12, 1.0, 2.0**12):
        a, b, c = random_operand(16, 16), random_operand(16, 8), scale * torch.randn(16, 8)
        d, nearest = unwritten(16, 8, dtype=torch.float32), unwritten(16, 8, dtype=torch.float32)
        kernels.call("mma_float16", a, b, c, d, schedule=TRUNCATING)
        kernels.call("mma_float16", a, b, c, nearest)
        for i in range(16):
            for j in range(8):
                want = hardware_sum(c[i, j].item(), a[i].tolist(), b[:, j].tolist(), LEAST_EXPONENT)
                assert d[i, j].item() == want, (i, j)
        assert not torch.equal(d, nearest)


def test_what_truncation_loses(kernels: Kernels) -> None:
    """Known answers: 1 plus k small terms, to which rounding to nearest would add up."""
    a, unit, c = torch.zeros(16, 16), 2.0**12, torch.ones(16, 8)
    a[0] = 2.0**-25  # each below the last bit that is kept beside 1
    a[1, 0] = 1.5 * 2.0**-23  # rounds to 2 units in the last place, and is cut to 1
    a[2, 0] = -(2.0**-25)
    a[3, :4] = 2.0**-24  # four of the 24th bit make two units: their sum is exact
    c[4], a[4, 0], a[4, 8] = 0, 1, -1
    a[4, 1] = 2.0**-25  # lost beside the 1 of its own half,
    a[4, 9] = 2.0**-24  # and kept
    a, b = (a * unit).half(), torch.full((16, 8), 1 / unit).half()  # 2^-25 itself is no half
    d = unwritten(16, 8, dtype=torch.float32)
    kernels.call("mma_float16", a, b, c, d, schedule=TRUNCATING)
    assert d[:6, 0].tolist() == [1, 1 + 2.0**-23, 1, 1 + 2.0**-22, 2.0**-24, 1]
    a[5, 1], a[6, 1], a[7, 1] = torch.inf, -torch.inf, torch.nan
    kernels.call("mma_float16", a, b, c, d, schedule=TRUNCATING)
    assert d[5:7, 0].tolist() == [torch.inf, -torch.inf]
    assert d[7].isnan().all()


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
