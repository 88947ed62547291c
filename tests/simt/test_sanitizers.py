"""Every CUDA kernel of the project under AddressSanitizer + UBSan and ThreadSanitizer, and that these see defects."""

import subprocess

import pytest

from tests.simt.build import ROOT, build
from tests.simt.sanitize import run_python

pytestmark = pytest.mark.proof

# The same tests that run plainly; those of defects abort under a sanitizer, and have cases of their own below.
SUITES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "tests/simt").glob("test_*.py")
    if path.stem not in ("test_sanitizers", "test_runtime_defects", "test_mutants", "test_build")
)


def report(run: subprocess.CompletedProcess[str]) -> str:
    return (run.stdout + run.stderr)[-6000:]


@pytest.mark.parametrize("flavour", ["asan", "tsan"])
def test_suites_are_clean(flavour: str) -> None:
    # --capture=sys leaves the file descriptor that the sanitizer reports on alone.
    run = run_python(flavour, "-m", "pytest", "-v", "-x", "--capture=sys", "-p", "no:cacheprovider", *SUITES)
    assert run.returncode == 0, report(run)
    assert " passed" in run.stdout


SYNC, MEMORY = "tests/simt/kernels/sync.cu", "tests/simt/kernels/memory.cu"


@pytest.mark.parametrize(
    ("flavour", "source", "call", "expected"),
    [
        ("asan", MEMORY, "copy(floats(1000), floats(1024), 1024)", "heap-buffer-overflow"),
        ("asan", MEMORY, "copy(floats(1024), floats(1000), 1024)", "heap-buffer-overflow"),
        ("asan", MEMORY, "shared_index(floats(1), 64)", "use-after-poison"),
        ("asan", MEMORY, "shared_index(floats(1), -1)", "use-after-poison"),
        ("asan", MEMORY, "shift(floats(1), 40)", "shift exponent 40 is too large"),
        ("tsan", SYNC, "reverse_without_barrier(floats(256), floats(256), 2)", "data race"),
        ("tsan", SYNC, "warp_neighbour_without_sync(floats(32), floats(32))", "data race"),
        ("tsan", MEMORY, "pipeline_early_refill(floats(2304), floats(64), 9)", "data race"),
        ("tsan", MEMORY, "racing_sum(floats(1), 4)", "data race"),  # between blocks, on global memory
    ],
)
def test_defect_is_seen(flavour: str, source: str, call: str, expected: str) -> None:
    # Plain ctypes: importing torch under a sanitizer takes longer than all of these together. Copies are eager.
    program = (
        "import ctypes, struct\n"
        f"kernels = ctypes.CDLL({str(build([source], flavour))!r})\n"
        "kernels.simt_configure(struct.pack('<Qiiii', 0, 1, 1, 101376, 4))\n"
        "floats = lambda n: (ctypes.c_float * n)()\n"
        f"kernels.{call}\n"
    )
    run = run_python(flavour, "-c", program)
    assert run.returncode != 0, report(run)
    assert expected in run.stderr, report(run)
