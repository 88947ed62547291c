"""Defects put into the real kernels, each of which must make a test fail. proof/simt/test_mutants.py runs them."""

from proof.simt import mutants_augment
from proof.simt.mutant import Mutant


def _ntxent(file: str, name: str, old: str, new: str, judge: str = "test_matches_float64", source: str = "") -> Mutant:
    judges = (f"proof/simt/test_ntxent.py::{judge}",)
    return Mutant(f"ntxent {file.partition('.')[0]}: {name}", f"csrc/cuda/ntxent_{file}", old, new, judges, source)


def _similarity(
    file: str, name: str, old: str, new: str, judge: str = "test_matches_float64", source: str = ""
) -> Mutant:
    judges = (f"proof/simt/test_similarity.py::{judge}",)
    return Mutant(f"similarity: {name}", f"csrc/{file}", old, new, judges, source)


def _rule(name: str, old: str, new: str, source: str = "") -> Mutant:
    judges = ("proof/simt/test_ntxent.py::test_matches_float64",)
    return Mutant(f"ntxent rule: {name}", "csrc/ntxent.h", old, new, judges, source)


_BANDS = "test_a_cta_adds_up_the_tiles_of_its_bands"
_NO_COLUMN = "test_rows_without_a_column_have_no_part_in_the_gradient"
_SCHEDULES = "test_every_schedule_gives_the_same_and_right_numbers"
_PRODUCTS = ((1, 0), (0, 1), (0, 0))  # parts of a and b
_FLOAT32 = "test_full_float32_is_as_exact_as_on_the_cpu"
_ONCE = "test_rows_of_float32_keep_22_bits_and_their_positives_are_rounded_once"


def _at_once(file: str, name: str, old: str, new: str, judge: str = _SCHEDULES) -> Mutant:
    judges = (f"proof/simt/test_ntxent_fwd_bwd.py::{judge}",)
    return Mutant(f"ntxent at once: {name}", f"csrc/cuda/ntxent_{file}", old, new, judges)


MUTANTS = (
    Mutant(
        "reduce: warp sum without its last step",
        "csrc/cuda/reduce.cuh",
        "offset > 0; offset /= 2) value +=",
        "offset > 1; offset /= 2) value +=",
        (f"proof/simt/test_ntxent.py::{_ONCE}",),
    ),
    _rule("a loss without its positive in the sum", "return softplus(lse_neg - s_pos);", "return lse_neg - s_pos;"),
    _rule(
        "a log-sum-exp of the negatives alone",
        "return log_add_exp(lse_neg, s_pos);",
        "return lse_neg;",
        "ntxent_bwd.cu",
    ),
    _rule(
        "a positive that always pulls fully", "return sigmoid(lse_neg - s_pos);", "return T(1);", "ntxent_bwd_finish.cu"
    ),
    _ntxent(
        *("fwd.cu", "no barrier before a stage is refilled"),
        *("    __syncthreads();  // every warp is done with the stage\n", "", _SCHEDULES),
    ),
    _ntxent("fwd.cu", "wait off by one", "wait_group<kStages - 1>", "wait_group<kStages>", _SCHEDULES),
    _ntxent(
        *("fwd.cu", "no barrier after the wait"),
        *("wait_group<kStages - 1>();\n    __syncthreads();", "wait_group<kStages - 1>();", _SCHEDULES),
    ),
    _ntxent(
        *("fwd.cu", "no barrier before the warps' partials are read"),
        *("kTile + warp_column);\n    __syncthreads();", "kTile + warp_column);", _SCHEDULES),
    ),
    _rule("diagonal unmasked", "inside && column != own &&", "inside &&"),
    _rule("ragged edge unmasked", "return inside && column", "return column"),
    _rule("positive counted as a negative", " && column != positive;", ";"),
    _ntxent("fwd.cu", "columns left out of a ragged tile", "8 * n >= columns_inside", "8 * n + 16 > columns_inside"),
    _ntxent("fwd.cu", "tiles unmasked", "if (task.pairing.needs_mask(row, kTile, column, kTile))", "if (false)"),
    _ntxent(
        *("fwd.cu", "diagonal tiles counted twice"),
        *("!counted && c <", "c <", "test_a_cta_adds_up_the_tiles_of_a_band"),
    ),
    _ntxent("fwd.cuh", "positives of one view only", "task.s_pos[row] =", "if (view == 0) task.s_pos[row] ="),
    _ntxent("fwd.cuh", "a pair's product over half of its lanes", "lanes > 0; lanes /= 2", "lanes > 1; lanes /= 2"),
    _ntxent(
        *("fwd.cuh", "no barrier before the pairs' logits are read"),
        *("product * inverse_temperature;\n  __syncthreads();", "product * inverse_temperature;", _SCHEDULES),
    ),
    _ntxent("fwd.cu", "a band's first tile is added to nothing", "            first_of_row);", "            false);"),
    _ntxent("tiles.cuh", "swizzle missing where tiles are written", "(chunk ^ (row & 7)) * k", "chunk * k"),
    _ntxent("tiles.cuh", "swizzle adds where it should exclude", "(base_ ^ ((chunk & 7)", "(base_ + ((chunk & 7)"),
    _ntxent(
        "tiles.cuh", "B operand read as an A operand", "lane % 8 + lane / 16 * 8, lane / 8 % 2", "lane % 16, lane / 16"
    ),
    _ntxent("tiles.cuh", "fp32 with two products", "      multiply(sum, a, 0, b, 1, half);\n", ""),
    _ntxent("tiles.cuh", "hi copied for lo", "run % kParts * matrix.part_bytes + column", "column"),
    _ntxent(
        *("tiles.cuh", "logits of full fp32 added by the tensor cores"),
        "".join(f"      multiply(sum, a, {i}, b, {j}, half);\n" for i, j in _PRODUCTS) + "      promote(d, sum);\n",
        "".join(f"      multiply(d, a, {i}, b, {j}, half);\n" for i, j in _PRODUCTS),
        _FLOAT32,
    ),
    _ntxent(
        *("fwd.cuh", "the scale's rounding left in the log-sum-exps"),
        *("inverse_temperature / static_cast<W>(task.temperature.base_2_scale())", "log(W(2))"),
        "test_rounding_of_the_scale_to_base_2_does_not_show",
    ),
    _ntxent("fwd.cuh", "pairs' logits in float32", "using type = double;", "using type = float;", _ONCE),
    _ntxent(
        "unit_rows.cuh",
        "lo of the row without its scale",
        "(scaled - static_cast<W>(hi.x[i]))",
        "(u[i] - static_cast<W>(hi.x[i]))",
        _ONCE,
    ),
    _ntxent("unit_rows.cuh", "entries behind a row", "return k + 4 <= d &&", "return"),
    _ntxent(
        *("normalize.cuh", "norms in float32"),
        *("struct NormOf<float> {\n  using type = double;", "struct NormOf<float> {\n  using type = float;", _ONCE),
    ),
    _ntxent(
        *("tiles.cuh", "coefficients of fp32 without what hi leaves"),
        *("(low - rounded.x, high - rounded.y)", "(0.0f, 0.0f)", _FLOAT32, "ntxent_bwd.cu"),
    ),
    _ntxent(
        "statistics.cuh",
        "lanes send what they keep",
        "upper ? v[i] : v[kCount / 2 + i]",
        "upper ? v[kCount / 2 + i] : v[i]",
    ),
    _ntxent(
        *("statistics.cuh", "column maximum of some lanes"),
        *("lanes = 4; lanes <= 16", "lanes = 4; lanes < 16", _SCHEDULES),
    ),
    _ntxent("statistics.cuh", "infinity less infinity", "max == -INFINITY ? 0.0f : max", "max"),
    _ntxent(
        *("bwd.cu", "no barrier before a stage is refilled"),
        *("    __syncthreads();  // every warp is done with the stage\n", "", _SCHEDULES),
    ),
    _ntxent("bwd.cu", "wait off by one", "cp_async_wait_group<1>", "cp_async_wait_group<2>", _SCHEDULES),
    _ntxent(
        *("bwd.cu", "no barrier after slices are added up"),
        *("ptx::named_barrier_sync(1 + row_group, 32 * slices);  // and", "// and", _SCHEDULES),
    ),
    _ntxent(
        "bwd.cu", "last slice left out", "for (int k = 0; k < slices; ++k)", "for (int k = 0; k + 1 < slices; ++k)"
    ),
    _ntxent("bwd.cu", "panels unmasked", "if (masked) mask_panel", "if (false) mask_panel"),
    _ntxent("bwd.cu", "columns' weights missing", "(own_row.weight + column_weight)", "own_row.weight"),
    _ntxent(
        *("bwd_terms.cuh", "fp16 coefficients scaled by the largest weight alone"),
        *("fmaxf(ceilf(log2f(most)), kLeastPullLog2)", "0.0f", "test_half_gradients"),
    ),
    _ntxent(
        *("bwd_finish.cu", "the pull of the row itself"),
        *("gradient.positive = task.row_of(partner)", "gradient.positive = task.row_of(row)"),
    ),
    _ntxent(
        "bwd.cu",
        "second half of the columns left out",
        "if (slice_columns > kBwdSlice / 2) multiply_rows",
        "if (false) multiply_rows",
    ),
    _ntxent(
        *("row_gradient.cuh", "Jacobian term missing"),
        *("(du[j] - u[j] * projected)", "du[j]"),
    ),
    _ntxent("row_gradient.cuh", "long rows kept in registers", "is_long = d > 128", "is_long = d > 256"),
    _ntxent("row_gradient.cuh", "clamped rows keep the Jacobian", "inv_norm >= clamped_inv_norm ? S(0) : ", ""),
    _ntxent(
        "bwd_finish.cu",
        "pull of one side only",
        "own_pull + task.pull_of(positive)",
        "own_pull",
    ),
    _ntxent("bwd_finish.cu", "dt without the positive", "row_logits -= own_pull * task.side.s_pos[own];", ";"),
    _ntxent("row_gradient.cuh", "last split left out", "i < count; ++i, part", "i < 1; ++i, part"),
    _rule("positive of the second view", "row < n ? row + n : row - n", "row + n"),
    _rule("tiles with a positive left of the diagonal unmasked", " || meets(own - n)", "", "ntxent_bwd.cu"),
    _ntxent("normalize.cuh", "rows squared as they are", "peak > W(0) ? W(1) / peak : W(1)", "W(1)"),
    _at_once(
        *("resident.cu", "nobody waits for the unit rows"),
        *("finished = 0;\n  cooperative_groups::this_grid().sync();", "finished = 0;"),
    ),
    _at_once(
        *("resident.cu", "nobody waits for the columns' statistics"),
        *("= loss;\n  }\n  cooperative_groups::this_grid().sync();", "= loss;\n  }\n  __syncthreads();"),
    ),
    _at_once(
        *("resident.cu", "the blocks' sums counted from what the memory holds"),
        *("  if (blockIdx.x == 0 && threadIdx.x == 0) *task.dt_sums.finished = 0;\n", ""),
    ),
    _at_once("resident.cu", "one place for two sums of a block", "floats(plan.losses_at)", "floats(plan.dt_sums_at)"),
    _at_once("resident.cu", "the pull of one side only", "task.side.pull(partner))", "task.side.pull(row))"),
    _at_once(
        "resident.cu", "the partner's row in the row's length", "{z_of(row), inv_norm[row]}", "{z_of(row), inv_norm[0]}"
    ),
    _at_once("resident.cu", "the row multiplied by itself", "(u, row, task.pairing.positive_of(row))", "(u, row, row)"),
    _at_once(
        "resident.cu", "the last warp's du left out", "count = kWarps;", "count = kWarps - 1;", "test_matches_float64"
    ),
    _at_once("resident.cu", "maxima that are not in base 2", "    max[h] *= scale;\n", "", _FLOAT32),
    _at_once(
        *("resident.cu", "du written over logits that are still read"),
        *(
            "  make_gradient<Operand>(task, shared, shifts, du);\n  __syncthreads();\n",
            "  make_gradient<Operand>(task, shared, shifts, du);\n",
        ),
    ),
    _at_once("resident.cu", "dt of every pair twice", "-0.5f * task.temperature", "-1.0f * task.temperature"),
    _at_once("direct.cuh", "du stored in the order of the columns", "out += chunk_of(2 *", "out += (2 *"),
    _at_once("direct.cuh", "halves of two rows exchanged", "a >> 16 |", "a << 16 |"),
    _at_once(
        *("resident_plan.h", "the workspace 16 bytes short"),
        *("plan.bytes = plan.finished_at + 16;", "plan.bytes = plan.finished_at;", "test_options"),
    ),
    _ntxent(
        *("plan.h", "the forward's workspace 16 bytes short"),
        *(
            "sizeof(double), 16);\n  plan.bytes = plan.finished_at + 16;",
            "sizeof(double), 16);\n  plan.bytes = plan.finished_at;",
        ),
        "test_zero_weights_give_zero_gradients",
    ),
    _ntxent(
        *("plan.h", "the backward's workspace 16 bytes short"),
        *(
            "statistic, 16);\n  plan.bytes = plan.finished_at + 16;",
            "statistic, 16);\n  plan.bytes = plan.finished_at;",
        ),
        "test_zero_weights_give_zero_gradients",
        source="ntxent_bwd_finish.cu",
    ),
    _similarity(
        *("cuda/ntxent_fwd.cu", "column sums in the slot of the columns' band"),
        *("int64_t>(bands.row) * task.pairing.columns", "int64_t>(bands.column) * task.pairing.columns", _BANDS),
    ),
    _similarity("cuda/ntxent_fwd.cu", "column sums missing", "task.partials.of_column != nullptr && ", "false && "),
    _similarity(
        *("cuda/ntxent_fwd.cu", "columns of the last tile up to the number of rows"),
        *("!counted && c < task.pairing.columns", "!counted && c < task.pairing.rows"),
    ),
    _similarity(
        *("cuda/ntxent_fwd.cu", "rows copied from the columns"),
        *("kRunBytes>(stage, task.rows,", "kRunBytes>(stage, task.columns,"),
    ),
    _similarity(
        *("cuda/ntxent_plan.h", "bands of rows without a limit"),
        *("ceil_div(plan.row_tiles, kFwdMaxSlots)", "1", "test_the_workspace_is_linear", "similarity.cu"),
    ),
    _similarity("cuda/similarity.cu", "one slot of the columns", "nullptr, plan.row_bands,", "nullptr, 1,", _BANDS),
    _similarity(
        *("cuda/similarity.cu", "the unit of the coefficients from the columns alone"),
        *("args.drows == args.dcolumns && args.row_count == args.column_count;", "true;"),
    ),
    _similarity(
        *("cuda/similarity.cu", "float64 columns not transposed"),
        *("nullptr, finished, true}", "nullptr, finished, false}"),
    ),
    _similarity(
        *("cuda/ntxent_bwd.cu", "columns' weights of the rows"),
        *("term_of<kOnline>(task.of_columns,", "term_of<kOnline>(task.of_rows,"),
    ),
    _similarity(
        *("cuda/ntxent_math.cuh", "the log-sum-exp of nothing as it is"),
        *("lse == -INFINITY ? INFINITY : lse", "lse", _NO_COLUMN),
    ),
    _similarity(
        *("cuda/ntxent_statistics.cuh", "maxima in base 2"),
        *(": static_cast<W>(p.x) * per_unit;", ": static_cast<W>(p.x);", _SCHEDULES, "similarity.cu"),
    ),
    _similarity("similarity_launch.h", "pairs at no distance", "EXCLUDE_PAIR ? rows / 2 : 0", "EXCLUDE_PAIR ? 0 : 0"),
    _similarity("cuda/ntxent_problem.h", "a rectangle taken for symmetric", "rows == columns && ", ""),
    *mutants_augment.MUTANTS,
)


def defect_of(name: str) -> tuple[str, dict[str, str]]:
    """The source and the file text of the mutant of that name, as build() takes them."""
    mutant = next(m for m in MUTANTS if m.name == name)
    return mutant.compiled_in, {mutant.file: mutant.text()}
