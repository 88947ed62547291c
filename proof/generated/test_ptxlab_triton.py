"""The code that Triton emits for sm_80 and sm_90, executed by ptxlab against the dense loss in float64, and counted.

ptxlab lies outside the repository (../shared/ptxlab, or the environment variable PTXLAB); without it these are skipped.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from proof.generated.triton_code import (
    TABLES,
    compare_with_committed,
    is_of_this_release,
    ptxlab,
    scratch_apart,
    simulate,
)
from proof.generated.triton_tables import COUNTED_ARCHS, TILE_KERNELS, committed, counts_markdown, counts_of
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_tiles import Target
from simclr_fast.triton_launch import Launch
from tests.helpers import relative_error
from tests.ntxent_truth import EPS, embeddings, error_beside_rounding, mean_truth
from tests.ops.ntxent.triton_cases import Case, Values, errors, run, truth

pytestmark = pytest.mark.skipif(ptxlab() is None, reason="ptxlab is neither at ../shared/ptxlab nor named by PTXLAB")

TOLERANCE = {
    "ieee": {"loss": 5e-6, "lse_neg": 5e-6, "s_pos": 5e-6, "dz": 3e-5, "dt": 3e-5},
    "tf32": {"loss": 5e-3, "lse_neg": 5e-3, "s_pos": 5e-6, "dz": 5e-3, "dt": 5e-3},
    "half": {"loss": 1e-3, "lse_neg": 1e-3, "s_pos": 1e-3, "dz": 1e-3, "dt": 3e-3},
}
BANK_CONFLICTS = 1.1  # shared-memory wavefronts over the fewest possible
# Every 16 rows, a program stores its part of the loss, one number in a sector. With 64 rows a program, stores are
# better filled, but on an H200 the kernel then takes 10 us instead of 7: too few programs wait at once.
LEAST_COALESCING_OF_STORES = {"ntxent_fwd_finish_kernel": 0.8}


@dataclass(frozen=True)
class Execution:
    """A case by the code for sm_{arch}. The fewer multiprocessors, the more tiles a program of the forward kernel has.

    prefetches: each has several, so that the loop over them fetches one while another is multiplied.
    """

    arch: int
    case: Case
    multiprocessors: int = 2
    need_dt: bool = True
    prefetches: bool = False


HALF, BFLOAT = torch.float16, torch.bfloat16
MOST_OF_TENSOR_CORES = {80: 2.0, 90: 1.6}  # modelled time over that of 2.5 M^2 D multiply-adds at the peak
# D = 128 of one forward program's several tiles, then entries of the tables of tiles, with masked columns and without.
EXECUTIONS = {
    "sm_80, half": Execution(80, Case(200, 128, 0.1, dtype=HALF)),
    "sm_80, half, ragged, online max": Execution(80, Case(75, 72, 0.02, dtype=HALF, reduce=False)),
    "sm_80, half, D = 384": Execution(80, Case(20, 384, 0.1, dtype=HALF)),
    "sm_80, tf32": Execution(80, Case(96, 64, 0.1, precision="tf32")),
    "sm_80, full float32": Execution(80, Case(96, 128, 0.1)),
    "sm_80, full float32, ragged, three processes": Execution(80, Case(35, 33, 0.05, world=3, rank=1, reduce=False)),
    "sm_90, half": Execution(90, Case(400, 128, 0.1, dtype=HALF), 1, prefetches=True),
    "sm_90, half, ragged, online max": Execution(90, Case(75, 72, 0.02, dtype=HALF, reduce=False)),
    "sm_90, half, D = 33, two processes": Execution(90, Case(100, 33, 0.1, dtype=HALF, world=2, rank=1), need_dt=False),
    "sm_90, half, D = 256, online max": Execution(90, Case(100, 256, 0.02, dtype=HALF)),
    "sm_90, half, D = 512": Execution(90, Case(70, 512, 0.1, dtype=HALF), need_dt=False),
    "sm_90, half, D = 700, online max": Execution(90, Case(70, 700, 0.02, dtype=HALF, reduce=False)),
    "sm_90, half, D = 1024": Execution(90, Case(70, 1024, 0.1, dtype=HALF)),
    "sm_90, tf32": Execution(90, Case(130, 64, 0.1, precision="tf32")),
    "sm_90, tf32, D = 512, two processes": Execution(90, Case(40, 512, 0.1, precision="tf32", world=2, rank=1)),
    "sm_90, full float32": Execution(90, Case(200, 128, 0.1), 1),
    "sm_90, full float32, ragged, three processes": Execution(90, Case(35, 33, 0.02, world=3, rank=1, reduce=False)),
    "sm_90, full float32, D = 200, online max": Execution(90, Case(70, 200, 0.02)),
    "sm_90, full float32, D = 1024": Execution(90, Case(40, 1024, 0.1), need_dt=False),
    "sm_90, bfloat16": Execution(90, Case(130, 64, 0.1, dtype=BFLOAT)),
}
ORDERS = ((0, "linear"), (1, "random"), (2, "random"))  # seed, and order of the programs
SCHEDULES = (*((*order, copies) for order in ORDERS for copies in ("lazy", "eager")), (3, "random", "random"))
# What differs from an entry above in D or type alone is the same code with other tiles: each order and each time once.
FEWER_SCHEDULES = ((0, "linear", "lazy"), (1, "random", "eager"), (3, "random", "random"))
IN_EVERY_SCHEDULE = {
    *("sm_80, half", "sm_80, tf32", "sm_80, full float32", "sm_90, half", "sm_90, half, ragged, online max"),
    *("sm_90, half, D = 512", "sm_90, tf32", "sm_90, full float32"),
}


def run_launch(how: Execution, options: dict[str, Any], launch: Launch) -> None:
    """By ptxlab, with a look at its report."""
    report = simulate(launch, arch=how.arch, strict=True, **options)
    name = launch.kernel.__name__
    assert report.spill_bytes == 0, name
    if name in TILE_KERNELS and how.arch == 90:
        assert sum(report.wgmma_flops_by_type.values()) == report.mma_flops > 0, name
    # Other releases lay out the few numbers of the row-wise kernels otherwise (3.6: up to 1.5 in the reduction).
    if name in TILE_KERNELS or is_of_this_release(committed("counts")):
        assert report.bank_conflict_ratio <= BANK_CONFLICTS, (name, report.bank_conflict_ratio)
    if how.prefetches and name == "ntxent_fwd_kernel":
        assert launch.constants["HOLD_ROWS"]
        assert launch.arguments["band_n"] >= 3


def backend_of(how: Execution, **options) -> TritonNtxent:
    """Runs every launch by ptxlab; any issue it finds raises."""
    return TritonNtxent(partial(run_launch, how, options), lambda device: Target(how.arch, how.multiprocessors))


def simulated(how: Execution, **options) -> Values:
    """The case, right against float64."""
    case, need_dt = how.case, how.need_dt
    kind = "half" if case.dtype != torch.float32 else case.precision
    with scratch_apart():
        values = run(case, backend_of(how, **options), need_dt)
    tolerance = TOLERANCE[kind]
    if case.dtype == BFLOAT:
        tolerance = tolerance | {"dz": tolerance["dz"] + 2.0**-9}  # dz is rounded
    wider = max(1.0, 0.1 / case.temperature)
    found = errors(case, values, need_dt)
    assert all(found[name] <= wider * tolerance[name] for name in found), found
    if kind == "half":
        assert error_beside_rounding(values.dz, truth(case)[0].dz) <= wider * 1e-3
    return values


def same_bits(first: Values, second: Values, need_dt: bool) -> bool:
    """dt is not written where it is not needed."""
    names = [field.name for field in dataclasses.fields(Values) if need_dt or field.name != "dt"]
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_one_schedule() -> None:
    simulated(Execution(90, Case(40, 64, 0.1, dtype=HALF), need_dt=False))


@pytest.mark.proof
@pytest.mark.parametrize(("arch", "dtype"), [(80, HALF), (80, torch.float32), (90, HALF), (90, torch.float32)], ids=str)
def test_gradient_in_forward(arch: int, dtype: torch.dtype) -> None:
    """All kernels of the op of both, two of which are compiled otherwise: for dloss = 1, and a gradient in float32."""
    case = Case(39, 72, 0.1, dtype)
    z0, z1 = embeddings("random", case.n, case.D, dtype)
    with scratch_apart():
        backend = backend_of(Execution(arch, case), seed=1, block_order="random")
        loss, dz, dt = backend.fwd_bwd(z0, z1, EPS, case.temperature, None, "mean", "ieee", True)
    loss_true, dz_true, dt_true = mean_truth(z0, z1, case.temperature)
    tolerance = TOLERANCE["half" if dtype == HALF else "ieee"]
    assert relative_error(loss, loss_true) <= tolerance["loss"]
    assert relative_error(dz.flatten(0, 1), dz_true) <= tolerance["dz"]
    assert relative_error(dt, dt_true) <= tolerance["dt"]


@pytest.mark.proof
@pytest.mark.parametrize("name", EXECUTIONS)
def test_schedules_agree(name: str) -> None:
    """Right against float64, and bit-identical, whatever the order of warps and programs and the time copies land.

    Copies are those of cp.async, and on sm_90 what wgmma reads and adds.
    """
    schedules = SCHEDULES if name in IN_EVERY_SCHEDULE else FEWER_SCHEDULES
    results = [
        simulated(EXECUTIONS[name], seed=seed, block_order=order, cp_async=copies) for seed, order, copies in schedules
    ]
    assert all(same_bits(results[0], other, EXECUTIONS[name].need_dt) for other in results[1:])


@pytest.mark.proof
@pytest.mark.parametrize("name", ["sm_80, full float32", "sm_90, half", "sm_90, full float32"])
def test_approximate_functions_at_their_documented_error(name: str) -> None:
    """Not looking for races: several warps may store one replicated value, and here each has an error of its own."""
    simulated(EXECUTIONS[name], approx="perturb", check_races=False)


@pytest.mark.proof
@pytest.mark.parametrize("arch", COUNTED_ARCHS)
def test_counts(arch: int) -> None:
    counts, table = counts_of(arch), committed("counts")
    for name, row in (counts["kernels"] | counts["other operands"]).items():
        assert row["spill bytes"] == 0, name
        if name.split(", ")[0] in TILE_KERNELS or is_of_this_release(committed("counts")):
            assert row["bank-conflict ratio"] <= BANK_CONFLICTS, name
        assert row["coalescing of loads"] >= 0.9, name
        assert row["coalescing of stores"] >= LEAST_COALESCING_OF_STORES.get(name.split(", ")[0], 0.9), name
    multiply_adds = sum(row["tensor-core FLOPs"] for row in counts["kernels"].values()) / 2
    size = table["size"]
    tiles = size["columns"] // 128
    assert multiply_adds <= (2.5 + 0.5 / tiles) * size["columns"] ** 2 * size["D"]  # 1 / tiles: the diagonal tiles
    assert counts["modelled microseconds"] <= MOST_OF_TENSOR_CORES[arch] * table["tensor-core microseconds"]
    compare_with_committed(counts, table[f"sm_{arch}"], table)


def test_rendered_table() -> None:
    assert (TABLES / "counts_triton.md").read_text() == counts_markdown(committed("counts"))
