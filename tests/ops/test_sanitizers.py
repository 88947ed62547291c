"""The CPU kernels under AddressSanitizer and UBSan, on random sizes, layouts and values: never out of bounds."""

from pathlib import Path

import pytest

from tests.ops.cpu_fuzzer import Fuzzer

FOLDER = Path(__file__).parent
FUZZERS = {
    "augment": Fuzzer(FOLDER / "augment/fuzz_cpu.cpp", ("augment.cpp",), cases=4000),
    "ntxent": Fuzzer(FOLDER / "ntxent/fuzz_cpu.cpp", ("ntxent.cpp",), cases=80, typed=True),
    "similarity": Fuzzer(FOLDER / "ntxent/fuzz_similarity.cpp", ("similarity.cpp",), cases=120, typed=True),
    "visits": Fuzzer(FOLDER / "ntxent/fuzz_visits.cpp", (), cases=80),
}
# (op, what is wrong, the line of its sources, what stands there instead)
MUTANTS = (
    ("augment", "box outside the image", "p.left = clamp_int(p.left, 0, image_width - p.width);", ""),
    ("augment", "taps past the crop", "return end < axis.in ? end : axis.in;", "return end;"),
    ("augment", "vector past the row",
     "i = i + kLanes <= n ? i : n - kLanes;  // the last vector overlaps the one before", ""),
    ("augment", "vector past the output",
     "store(out + c * plane + pixel + x, v, width - x < kLanes ? width - x : kLanes);",
     "store(out + c * plane + pixel + x, v, kLanes);"),
    ("ntxent", "factors of a ragged block", "round_up(args.columns, kPanel<T>) + kPanel<T>;",
     "round_up(args.columns, kPanel<T>);"),
    ("ntxent", "padding read from u",
     "const int64_t filled = row < count ? width : 0;", "const int64_t filled = width;"),
    ("ntxent", "rows of the second view", "(i - view * args.n[0]) * args.z_stride[view]", "i * args.z_stride[view]"),
    ("similarity", "columns' sums of a strip", "row_sums.from(0), of_strips.from(strip * padded));",
     "row_sums.from(0), of_strips.from((strip + 1) * padded));"),
    ("similarity", "gradients of a block",
     "du(x.row_block * task.columns.dim_padded());", "du(x.row_block * x.dim);"),
    ("similarity", "strips not added", "total.sum[j] += part.sum[j];", "total.sum[j] = part.sum[j];"),
    ("similarity", "partner in place of itself",
     "SIMCLR_EXCLUDE_PAIR ? rows / 2 : 0", "SIMCLR_EXCLUDE_PAIR ? 0 : rows / 2"),
    ("similarity", "averages of a block", "a(x.row_block * dim_padded);", "a(x.row_block * x.dim);"),
    ("similarity", "averages of a smaller maximum", "if (shrink[i] == 1) continue;", "continue;"),
    ("similarity", "sums of a smaller maximum", "row_sums.sum[rows.begin + i] * factor +",
     "row_sums.sum[rows.begin + i] +"),
    ("similarity", "averages of the block before",
     "std::memset(a.data(), 0, x.row_block * dim_padded * sizeof(T));", ""),
    ("visits", "a visit before one that it waits for", "--before_[next] == 0", "--before_[next] >= 0"),
    ("visits", "a round that meets nobody", "round < circle; ++round", "round + 1 < circle; ++round"),
    ("visits", "a group without its last block", "(index + 1) * blocks_.count() / groups_}",
     "(index + 1) * (blocks_.count() - 1) / groups_}"),
    ("ntxent", "padding not masked", "row + height > rows || column + width", "column + width"),
)  # fmt: skip

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("vector_bytes", [16, 64])
@pytest.mark.parametrize("op", FUZZERS)
def test_no_access_out_of_bounds(tmp_path: Path, op: str, vector_bytes: int) -> None:
    FUZZERS[op].assert_clean(FUZZERS[op].build(tmp_path, vector_bytes))


@pytest.mark.parametrize(("op", "what", "line", "defect"), MUTANTS, ids=[f"{op}: {what}" for op, what, *_ in MUTANTS])
def test_the_fuzzer_sees_a_broken_kernel(tmp_path: Path, op: str, what: str, line: str, defect: str) -> None:
    FUZZERS[op].assert_seen(FUZZERS[op].build(tmp_path, break_kernel=(line, defect)))
