"""The CPU kernels' own 2^x against float64 and exact arithmetic, and their half conversions.

tests/ops/test_instruction_sets.py calls the checks of 2^x on every instruction set.
"""

import ctypes
import os
import shutil
import subprocess
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from proof.kept import digest, kept

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-Wall", "-Wno-psabi", "-shared", "-fPIC"]


@cache
def probe() -> Path:
    """The functions of the kernels' vectors as a library, kept under build/."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    sources = [HERE / "exp2_probe.cpp", ROOT / "csrc/cpu/isa.cpp"]
    made_of = digest(compiler, FLAGS, [path.read_text() for path in (sources[0], *sorted(ROOT.glob("csrc/**/*.h")))])
    command = [*compiler.split(), *FLAGS, f"-I{HERE}", *sources, "-o"]
    return kept(ROOT / "build/probe" / f"exp2-{made_of}.so", lambda made: subprocess.run([*command, made], check=True))


@pytest.fixture
def library() -> Path:
    return probe()


def call(library: Path, name: str, x: np.ndarray, y: np.ndarray, *arguments: int) -> np.ndarray:
    function = getattr(ctypes.CDLL(str(library)), name)
    x, pointer = np.ascontiguousarray(x), ctypes.c_void_p
    function(pointer(x.ctypes.data), pointer(y.ctypes.data), ctypes.c_int64(x.size), *arguments)
    return y


def ulps(y: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units in the last place of y's dtype; `exact` is of a wider dtype."""
    return float(np.max(np.abs(y.astype(exact.dtype) - exact) / np.spacing(exact.astype(y.dtype)).astype(exact.dtype)))


def check_float(library: Path) -> None:
    rng = np.random.default_rng(0)
    halves = np.arange(-252, 255, dtype=np.float32) / 2  # where rounding to an integer switches
    x = np.concatenate([rng.uniform(-126, 127, 1 << 20), rng.uniform(-1, 1, 1 << 20)]).astype(np.float32)
    near = np.concatenate([np.nextafter(halves, np.float32(-200)), halves, np.nextafter(halves, np.float32(200))])
    near = near[(near >= -126) & (near <= 127)]
    x = np.concatenate([x, near, np.zeros(-near.size % 64, np.float32)])
    for flushed in (0, 1):
        assert ulps(call(library, "exp2_float", x, np.empty_like(x), flushed), np.exp2(x.astype(np.float64))) <= 1.5
    x = np.tile(np.array([-126.5, -150, -1e30, -np.inf], np.float32), 16)
    assert not call(library, "exp2_float", x, np.empty_like(x), 1).any()
    x = np.tile(np.array([np.nan, 0, 127, -126], np.float32), 16)
    y = call(library, "exp2_float", x, np.empty_like(x), 1)
    np.testing.assert_array_equal(y[:4], np.array([np.nan, 1, 2.0**127, 2.0**-126], np.float32))


def exp2_exact(x: float) -> Fraction:
    """2^x to about 130 bits for |x| <= 1: the series of e^y, y = x ln 2, in exact arithmetic."""
    ln2 = sum(Fraction(1, k * 2**k) for k in range(1, 140))
    y, term, total = Fraction(x) * ln2, Fraction(1), Fraction(0)
    for k in range(1, 40):
        total, term = total + term, term * y / k
    return total


def check_double(library: Path) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-1, 1, 120), [0.5, -0.5, 0.25, 1 / 3, -1, 1, 0, 1e-17]])
    y = call(library, "exp2_double", x, np.empty_like(x), 0)
    for xi, yi in zip(x, y):
        assert abs(Fraction(float(yi)) - exp2_exact(float(xi))) <= Fraction(float(1.5 * np.spacing(yi)))
    shifted = call(library, "exp2_double", x - 1000, np.empty_like(x), 1)  # the exponent arithmetic is exact
    exact = np.exp2((x - 1000) + 1000) * 2.0**-1000
    assert np.all(np.abs(shifted - exact) <= 2 * np.spacing(exact))
    low = np.tile([-1022.5, -np.inf, np.nan, -1022], 16)
    np.testing.assert_array_equal(
        call(library, "exp2_double", low, np.empty_like(low), 1)[:4], [0, 0, np.nan, 2.0**-1022]
    )


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_half_conversions_agree_with_torch(library: Path, name: str) -> None:
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16}[name]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    wide = call(library, f"widen_{name}", every.numpy(), np.empty(every.numel(), np.float32))
    np.testing.assert_array_equal(wide, every.view(dtype).float().numpy())
    # Every finite value of the half type, its neighbours in float32, the midpoints between values, and a sample.
    finite = wide[np.isfinite(wide)]
    middle = (np.sort(finite)[1:] / 2 + np.sort(finite)[:-1] / 2).astype(np.float32)
    sample = np.random.default_rng(2).integers(0, 2**32, 1 << 18, dtype=np.uint32).view(np.float32)
    x = np.concatenate([f(v) for v in (finite, middle) for f in (np.copy, lambda v: np.nextafter(v, np.float32(9e9)))])
    x = np.concatenate([x, sample])
    narrow = call(library, f"narrow_{name}", x, np.empty(x.size, np.int16))
    expected = torch.from_numpy(x).to(dtype)
    actual = torch.from_numpy(narrow).view(dtype)
    assert torch.equal(actual.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(actual[number].view(torch.int16), expected[number].view(torch.int16))
