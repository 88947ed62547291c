"""The CPU kernel under AddressSanitizer and UBSan, on random sizes, layouts and parameters: never out of bounds."""

from pathlib import Path

import pytest

from tests.ops.cpu_fuzzer import Fuzzer

FUZZER = Fuzzer(Path(__file__).parent / "fuzz_cpu.cpp", ("augment.cpp",), cases=4000)

pytestmark = pytest.mark.proof


def test_no_access_out_of_bounds(tmp_path: Path) -> None:
    program = FUZZER.build(tmp_path)
    for isa in (None, "portable"):
        FUZZER.assert_clean(program, isa)


def test_no_access_out_of_bounds_with_the_widest_vectors(tmp_path: Path) -> None:
    FUZZER.assert_clean(FUZZER.build(tmp_path, portable=64))


@pytest.mark.parametrize(
    "mutant",
    [
        ("p.left = clamp_int(p.left, 0, image_width - p.width);", ""),
        ("return end < axis.in ? end : axis.in;", "return end;"),
        ("i = i + kLanes <= n ? i : n - kLanes;  // the last vector overlaps the one before", ""),
        ("store(out + c * plane + pixel + x, v, width - x < kLanes ? width - x : kLanes);",
         "store(out + c * plane + pixel + x, v, kLanes);"),
    ],
    ids=["box outside the image", "taps past the crop", "vector past the row", "vector past the output"],
)  # fmt: skip
def test_the_fuzzer_sees_a_broken_kernel(tmp_path: Path, mutant: tuple[str, str]) -> None:
    FUZZER.assert_seen(FUZZER.build(tmp_path, break_kernel=mutant, portable=16))
