"""The CPU loss under AddressSanitizer and UBSan, on random sizes, strides and rows: never out of bounds."""

from pathlib import Path

import pytest

from tests.ops.cpu_fuzzer import Fuzzer

FUZZER = Fuzzer(Path(__file__).parent / "fuzz_cpu.cpp", ("ntxent.cpp",), cases=160)

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
        ("weight(columns_padded + kPanel<T>), lse(columns_padded + kPanel<T>)",
         "weight(columns_padded), lse(columns_padded)"),
        ("const int64_t filled = row < rows ? width : 0;", "const int64_t filled = width;"),
        ("(i - view * args.n) * args.row_stride[view]", "i * args.row_stride[view]"),
        ("row + kRows > rows ||\n           column", "column"),
    ],
    ids=["factors of a ragged block", "padding read from u", "rows of the second view", "padding not masked"],
)  # fmt: skip
def test_the_fuzzer_sees_a_broken_kernel(tmp_path: Path, mutant: tuple[str, str]) -> None:
    FUZZER.assert_seen(FUZZER.build(tmp_path, break_kernel=mutant, portable=16))
