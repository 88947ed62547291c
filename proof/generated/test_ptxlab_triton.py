"""The code that Triton emits for sm_80, executed by ptxlab against the dense loss in float64, and counted.

ptxlab lies outside the repository (../shared/ptxlab, or the environment variable PTXLAB); without it these are skipped.
"""

import dataclasses
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
from proof.generated.triton_tables import TILE_KERNELS, committed, counts_markdown, counts_table
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
CASES = {
    "half": Case(200, 128, 0.1, dtype=torch.float16),
    "half, ragged, online max": Case(75, 72, 0.02, dtype=torch.float16, reduce=False),
    "half, D = 384": Case(20, 384, 0.1, dtype=torch.float16),
    "bfloat16": Case(60, 64, 0.1, dtype=torch.bfloat16),
    "tf32": Case(96, 64, 0.1, precision="tf32"),
    "full float32": Case(96, 128, 0.1),
    "full float32, wide, online max": Case(40, 256, 0.02),
    "full float32, ragged, three processes": Case(35, 33, 0.05, world=3, rank=1, reduce=False),
}


def run_launch(options: dict[str, Any], launch: Launch) -> None:
    """By ptxlab, with a look at its report."""
    report = simulate(launch, strict=True, **options)
    name = launch.kernel.__name__
    assert report.spill_bytes == 0, name
    # Other releases lay out the few numbers of the row-wise kernels otherwise (3.6: up to 1.5 in the reduction).
    if name in TILE_KERNELS or is_of_this_release(committed("counts")):
        assert report.bank_conflict_ratio <= BANK_CONFLICTS, (name, report.bank_conflict_ratio)


def simulated(case: Case, need_dt: bool = True, **options) -> Values:
    """The case, with every launch executed by ptxlab; any issue it finds raises."""

    kind = "half" if case.dtype != torch.float32 else case.precision
    backend = TritonNtxent(partial(run_launch, options), lambda device: Target(80, 2))
    with scratch_apart():
        values = run(case, backend, need_dt)
    tolerance = TOLERANCE[kind]
    if case.dtype == torch.bfloat16:
        tolerance = tolerance | {"dz": tolerance["dz"] + 2.0**-9}  # dz is rounded
    wider = max(1.0, 0.1 / case.temperature)
    found = errors(case, values, need_dt)
    assert all(found[name] <= wider * tolerance[name] for name in found), found
    if kind == "half":
        assert error_beside_rounding(values.dz, truth(case)[0].dz) <= wider * 1e-3
    return values


def same_bits(first: Values, second: Values) -> bool:
    pairs = zip(dataclasses.astuple(first), dataclasses.astuple(second))
    return all(torch.equal(a, b) for a, b in pairs)


def test_one_schedule() -> None:
    simulated(Case(40, 64, 0.1, dtype=torch.float16), need_dt=False)


@pytest.mark.proof
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_gradient_in_forward(dtype: torch.dtype) -> None:
    """All kernels of the op of both, two of which are compiled otherwise: for dloss = 1, and a gradient in float32."""
    z0, z1 = embeddings("random", 39, 72, dtype)
    backend = TritonNtxent(partial(run_launch, {"seed": 1, "block_order": "random"}), lambda device: Target(80, 2))
    with scratch_apart():
        loss, dz, dt = backend.fwd_bwd(z0, z1, EPS, 0.1, None, "mean", "ieee", True)
    loss_true, dz_true, dt_true = mean_truth(z0, z1, 0.1)
    tolerance = TOLERANCE["half" if dtype == torch.float16 else "ieee"]
    assert relative_error(loss, loss_true) <= tolerance["loss"]
    assert relative_error(dz.flatten(0, 1), dz_true) <= tolerance["dz"]
    assert relative_error(dt, dt_true) <= tolerance["dt"]


@pytest.mark.proof
@pytest.mark.parametrize("name", CASES)
def test_schedules_agree(name: str) -> None:
    """Right against float64, and bit-identical, whatever the order of warps and programs and the time copies land."""
    results = [
        simulated(CASES[name], seed=seed, cp_async=cp_async, block_order=order)
        for seed, order in ((0, "linear"), (1, "random"), (2, "random"))
        for cp_async in ("lazy", "eager")
    ]
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.proof
def test_approximate_functions_at_their_documented_error() -> None:
    """Not looking for races: several warps may store one replicated value, and here each has an error of its own."""
    simulated(CASES["full float32"], approx="perturb", check_races=False)


@pytest.mark.proof
def test_counts() -> None:
    table = counts_table()
    for name, row in (table["kernels"] | table["other operands"]).items():
        assert row["spill bytes"] == 0, name
        if name.split(", ")[0] in TILE_KERNELS or is_of_this_release(committed("counts")):
            assert row["bank-conflict ratio"] <= BANK_CONFLICTS, name
        assert row["coalescing of loads"] >= 0.9, name
        assert row["coalescing of stores"] >= LEAST_COALESCING_OF_STORES.get(name.split(", ")[0], 0.9), name
    multiply_adds = sum(row["tensor-core FLOPs"] for row in table["kernels"].values()) / 2
    size = table["size"]
    tiles = size["columns"] // 128
    assert multiply_adds <= (2.5 + 0.5 / tiles) * size["columns"] ** 2 * size["D"]  # 1 / tiles: the diagonal tiles
    assert table["modelled microseconds"] <= 2.0 * table["tensor-core microseconds"]
    compare_with_committed(table, committed("counts"), committed("counts"))


def test_rendered_table() -> None:
    assert (TABLES / "counts_triton.md").read_text() == counts_markdown(committed("counts"))
