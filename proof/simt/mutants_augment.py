"""Defects put into the augmentation's kernels."""

from proof.simt.mutant import Mutant


def _augment(name: str, file: str, old: str, new: str, judge: str) -> Mutant:
    path = f"csrc/cuda/augment{file}"
    return Mutant(f"augment: {name}", path, old, new, (f"proof/simt/test_augment.py::{judge}",))


def _mean(name: str, old: str, new: str) -> Mutant:
    judge = "test_the_mean_where_contrast_comes_first"
    return _augment(f"where contrast comes first, the {name}", "_mean.cuh", old, new, judge)


MUTANTS = (
    _augment(
        "no barrier between staging and resizing",
        *("_resize.cuh", "stage(block, s, chunk);\n      __syncthreads();", "stage(block, s, chunk);"),
        "test_one_block_per_view",
    ),
    _augment(
        "no barrier between the two directions of the resize",
        *("_resize.cuh", "      __syncthreads();\n    }\n    resize_vertically", "    }\n    resize_vertically"),
        "test_one_block_per_view",
    ),
    _augment(
        "a row's sum starts anew in every chunk",
        *(
            "_resize.cuh",
            "sum[s][c] = starts || !inside(s) ? 0.0f : out[s * kWarp + c * block.plane()]",
            "sum[s][c] = 0.0f",
        ),
        "test_tiles",
    ),
    _augment(
        "staged bytes keep the wrong alignment",
        *("_resize.cuh", "address % kSectorBytes", "address % 16"),
        "test_source_types_and_layouts",
    ),
    _augment(
        "parameters are read before all lanes have stored them",
        *("_tile.cuh", "  __syncwarp();\n  if (lane_index() != 0) return;", "  if (lane_index() != 0) return;"),
        "test_one_block_per_view",
    ),
    _augment(
        "the test-time window starts at column 0",
        *("_resize.cuh", "(flip ? mirror - x : x) + p.shift_x", "flip ? mirror - x : x"),
        "test_the_test_time_transform",
    ),
    _augment(
        "operations before contrast are lost",
        *("_filter.cuh", "if (keep && view.contrast_at > 0)", "if (keep && view.contrast_at > 4)"),
        "test_every_order_of_the_jitter",
    ),
    Mutant(
        "augment: a NaN pixel clamped to a number",
        "csrc/cuda/augment_tile.cuh",
        *("ptx::min_or_nan(x, 1.0f)", "fminf(x, 1.0f)"),
        ("proof/simt/test_augment.py::test_nan_pixels_stay_nan",),
    ),
    _augment("the blur repeats the edge", *("_filter.cuh", "reflected(x, width)", "x"), "test_each_operation_alone"),
    _augment(
        "rows are blurred in place before all lanes have read them",
        *("_filter.cuh", "    __syncwarp();\n    if (active) {\n      *", "    if (active) {\n      *"),
        "test_each_operation_alone",
    ),
    _augment(
        "contrast's mean is that of the first tile",
        *(".cu", "k < sums_per_view", "k < 1"),
        "test_every_order_of_the_jitter",
    ),
    _augment(
        "the mean before contrast ignores the operations that clamp",
        *(".cu", "view.contrast_at == 0", "view.contrast_at <= 1"),
        "test_every_order_of_the_jitter",
    ),
    _augment(
        "a view without jitter takes its factors",
        *("_tile.cuh", "if (p.flags & kJitter) {", "{"),
        "test_each_operation_alone",
    ),
    _mean("last output's weights left out", "ceilf(at + reach) + 1.0f", "ceilf(at + reach) - 1.0f"),
    _mean("last output column left out", "block.region.width(), [&]", "block.region.width() - 1, [&]"),
    _mean("window of the resized crop ignored", "block.region.left + view.params.shift_x", "block.region.left"),
    _mean("crop read as if it were flipped", "fill_tap_tables(block, false)", "fill_tap_tables(block, true)"),
    _mean("every chunk of rows weighs what the first does", "weight_in_sum(view.y, row + k", "weight_in_sum(view.y, k"),
    _mean("every piece of a row weighs what the first does", "view.x, column + k", "view.x, reach.first_column + k"),
    _mean(
        "chunk read before it is staged",
        *("      __syncthreads();\n      with_pixel_type", "      with_pixel_type"),
    ),
    _mean(
        "chunk staged before the last one is read",
        *("      });\n      __syncthreads();", "      });"),
    ),
    _augment(
        "parameters are read without the swizzle they were written with",
        *("_sample.cu", "quads[quad_slot(k / kQuads, k % kQuads)]", "quads[k]"),
        "test_sampling_draws_what_the_reference_draws",
    ),
)
