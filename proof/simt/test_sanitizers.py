"""Every CUDA kernel of the project under AddressSanitizer + UBSan and ThreadSanitizer, and that these see defects."""

import subprocess

import pytest

from proof.simt.build import ROOT, build
from proof.simt.sanitize import run_python

pytestmark = pytest.mark.proof

# The same tests that run plainly; those of defects abort under a sanitizer, and have cases of their own below.
SUITES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "proof/simt").glob("test_*.py")
    if path.stem not in ("test_sanitizers", "test_runtime_defects", "test_mutants", "test_build")
)


def report(run: subprocess.CompletedProcess[str]) -> str:
    return (run.stdout + run.stderr)[-6000:]


# The race detector takes ten times as long, and sees a race in any schedule: small blocks of every kernel will do. It
# has no room for far memory, of which one block runs alone.
_NTXENT = "proof/simt/test_ntxent.py::test_every_schedule_gives_the_same_and_right_numbers"
_AT_ONCE = _NTXENT.replace("ntxent", "ntxent_fwd_bwd")
_SIMILARITY = _NTXENT.replace("ntxent", "similarity")
_AUGMENT = "proof/simt/test_augment.py::test_"
_SLOW = ("test_ntxent.py", "test_ntxent_fwd_bwd.py", "test_similarity.py", "test_augment.py", "test_far_memory.py")
RACE_SUITES = [
    *(suite for suite in SUITES if not suite.endswith(_SLOW)),
    f"{_NTXENT}[33x123-float16-t0.1-random-seed2-eager]",
    f"{_NTXENT}[20x200-float16-t0.1-random-seed1-lazy]",
    f"{_NTXENT}[24x40-float32-t0.1-random-seed2-eager]",
    f"{_NTXENT}[5x9-float64-t0.1-random-seed1-lazy]",
    f"{_AT_ONCE}[20x128-float32-t0.1-random-seed2-eager]",
    f"{_SIMILARITY}[70x66x33-float16-none-t0.1-both-seed2-eager]",
    f"{_SIMILARITY}[7x12x9-float64-self-t0.1-both-need_max-seed1-lazy]",
    f"{_AUGMENT}one_block_per_view[(1, 20, 15)-(24, 24)-3-seed1-lazy]",
    f"{_AUGMENT}tiles[(1, 230, 90)-(97, 20)-31-seed1-lazy]",
    f"{_AUGMENT}the_mean_where_contrast_comes_first[one channel-seed1-lazy]",
    f"{_AUGMENT}sampling_draws_what_the_reference_draws",
]


@pytest.mark.parametrize(("flavour", "suites"), [("asan", SUITES), ("tsan", RACE_SUITES)], ids=["asan", "tsan"])
def test_suites_are_clean(flavour: str, suites: list[str]) -> None:
    # --capture=sys leaves the file descriptor that the sanitizer reports on alone.
    run = run_python(flavour, "-m", "pytest", "-v", "-x", "--capture=sys", "-p", "no:cacheprovider", *suites)
    assert run.returncode == 0, report(run)
    assert " passed" in run.stdout


SYNC, MEMORY = "proof/simt/kernels/sync.cu", "proof/simt/kernels/memory.cu"


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
        ("tsan", SYNC, "ring_without_barrier(floats(24), 4, 5, -1)", "data race"),  # of blocks at once
    ],
)
def test_defect_is_seen(flavour: str, source: str, call: str, expected: str) -> None:
    # Plain ctypes: importing torch under a sanitizer takes longer than all of these together. Copies are eager.
    program = (
        "import ctypes, struct\n"
        f"kernels = ctypes.CDLL({str(build([source], flavour))!r})\n"
        "kernels.simt_configure(struct.pack('<Q5i4x', 0, 1, 1, 101376, 4, 0))\n"
        "floats = lambda n: (ctypes.c_float * n)()\n"
        f"kernels.{call}\n"
    )
    run = run_python(flavour, "-c", program)
    assert run.returncode != 0, report(run)
    assert expected in run.stderr, report(run)
