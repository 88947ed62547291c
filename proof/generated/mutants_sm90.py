"""Mistakes in Hopper's kernels, each of which its case must notice: wrong results, or an issue that ptxlab reports."""

from dataclasses import dataclass

from proof.generated.ptx import Program, load_ptxlab
from proof.generated.sm90 import FLOAT, Case, Change, Step, mutant, worst

FORWARD = Case(256, 128, multiprocessors=1, only_fwd=True)  # four steps a tile, strips of one tile and of two
HELD = Case(100, 200, multiprocessors=1, only_fwd=True)  # four slices of the columns
STREAMED = Case(100, 700, multiprocessors=1, only_fwd=True)  # eleven slices of 64 columns, of rows and of columns
SPLIT = Case(40, 200, FLOAT, multiprocessors=1, only_fwd=True)  # four slices of three products
DEEP = Case(256, 64, FLOAT, multiprocessors=1, only_fwd=True)  # six stages, none of them under way
ONLINE = Case(130, 40, temperature=0.01, multiprocessors=1, only_fwd=True)


# The kernels that a case does not launch are not compiled.
_FWD = "ntxent_fwd_sm90.cu"
ONE_PRODUCT = (_FWD, "== 3 ? run<3, Statistics, AnyPlan>", "== 3 ? run<1, Statistics, AnyPlan>")
THREE_PRODUCTS = (_FWD, ": run<1, Statistics, AnyPlan>", ": run<3, Statistics, AnyPlan>")
CONSTANT_ONLY = (_FWD, "online_max ? run<OnlineMax>", "online_max ? run<ConstantMax>")
ONLINE_ONLY = (_FWD, ": run<ConstantMax>", ": run<OnlineMax>")


@dataclass(frozen=True)
class Mutant:
    """A mistake in `source`, or in what it includes: the first of the changes. The others leave out what the case does
    not launch."""

    name: str
    source: str
    changes: tuple[Change, ...]
    case: Step

    def __str__(self) -> str:
        return self.name

    def noticed(self) -> bool:
        """Whether one of the schedules shows a wrong result, an issue, or an error of ptxlab."""
        kernels = mutant(self.changes, self.source)
        return any(self._fails(kernels, seed, timing) for seed, timing in ((0, "lazy"), (1, "eager")))

    def _fails(self, kernels: Program, seed: int, timing: str) -> bool:
        try:
            found, reports = worst(self.case.errors, kernels, seed, timing)
        except load_ptxlab().Error:
            return True
        return not all(error <= 1 for error in found.values()) or not all(report.ok for report in reports)


def _in(file: str, name: str, old: str, new: str, case: Case) -> Mutant:
    products = THREE_PRODUCTS if case.dtype == FLOAT else ONE_PRODUCT
    maximum = ONLINE_ONLY if case == ONLINE else CONSTANT_ONLY
    return Mutant(name, _FWD, ((file, old, new), products, maximum), case)


def _fwd(name: str, old: str, new: str, case: Case = FORWARD) -> Mutant:
    return _in(_FWD, f"forward: {name}", old, new, case)


MUTANTS = (
    _fwd("no fence between the copies and the products", "    wgmma::fence_proxy_async();\n", ""),
    _fwd(
        "a copy is waited for too late", "wait_copies(plan().copies_ahead() - 1)", "wait_copies(plan().copies_ahead())"
    ),
    _fwd(
        "copies of the most stages are not waited for", "kMost = kFwdMaxStages - 2", "kMost = kFwdMaxStages - 3", DEEP
    ),
    _fwd("no barrier behind the copies", "    __syncthreads();\n    copy_item();", "    copy_item();"),
    _fwd("products are not waited for", "      wgmma::wait<0>();\n", ""),
    _in(
        "ntxent_fwd_sm90_plan.h",
        "plan: a stage is refilled while it is multiplied",
        "return stages - 1 - under_way()",
        "return stages - under_way()",
        HELD,
    ),
    _fwd("no barrier before the next strip's copies", "      __syncthreads();\n      more", "      more"),
    _fwd("tiles unmasked", "if (task_.pairing.needs_mask(", "if (row < 0 && task_.pairing.needs_mask("),
    _fwd("column sums kept over the end of a band", "    sums_.clear();\n", ""),
    _fwd("partials in one place for all steps", "    parity_ ^= 1;\n", ""),
    _fwd("columns streamed to where rows are", "stage + plan().step_slice_bytes(), task_", "stage, task_", STREAMED),
    _fwd("two products of three", "column_part = product == 1", "column_part = product == 4", SPLIT),
    _in(
        "ntxent_statistics_sm90.cuh",
        "statistics: columns' maxima of half of the rows",
        "fmaxf(block[k % 2], block[2 + k % 2])",
        "block[k % 2] * 3",
        ONLINE,
    ),
    _in(
        "wgmma.cuh",
        "wgmma: swizzle missing where rows are copied",
        "(chunk ^ (first & 7)) * 16",
        "chunk * 16",
        FORWARD,
    ),
    _in("wgmma.cuh", "wgmma: rows past the matrix are not zero", "r + k * stride < rows_inside ? 16 : 0", "16", ONLINE),
)
