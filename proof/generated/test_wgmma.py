"""The products of csrc/cuda/wgmma.cuh, as nvcc compiles them, against float64: descriptors, swizzle, fences."""

import pytest
import torch

from proof.generated.ptx import NEEDS_SIMULATOR, ROOT, Program

pytestmark = [pytest.mark.proof, *NEEDS_SIMULATOR]
FORMS = {"shared": 0, "transposed": 1, "registers": 2}


@pytest.fixture(scope="module")
def program() -> Program:
    return Program([ROOT / "proof/generated/kernels/wgmma_entry.cu"], arch="90a")


@pytest.mark.parametrize("timing", ["lazy", "eager", "random"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", [32, 64, 128, 256])
def test_product(program: Program, columns: int, form: str, timing: str) -> None:
    """Tiles that rows and depth do not fill: what is missing counts as zero."""
    seed = list(FORMS).index(form)
    generator = torch.Generator().manual_seed(seed)
    rows, depth, width = 61, 104, columns - 8
    a = torch.randn(rows, depth, generator=generator).half()
    b = torch.randn(*((width, depth) if form == "shared" else (depth, width)), generator=generator).half()
    out = torch.full((64, columns), torch.nan)
    with program.simulated(lambda: [a, b, out], seed=seed, cp_async=timing) as reports:
        program.call("wgmma_case", *map(int, (columns, FORMS[form])), a, *a.shape, b, *b.shape, out)
    (report,) = reports
    assert report.ok, report.issues
    want = torch.zeros(64, columns, dtype=torch.float64)
    want[:rows, :width] = a.double() @ (b.double().T if form == "shared" else b.double())
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
