"""The model of the loss's time: its page is of the committed figures, its constants the fit, its counts true."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch

from proof.generated import model, model_counts, sm90
from proof.generated.model import FITTED, RANGES, Measured, fit, measured, page, residuals
from proof.generated.model_bars import BARS, alone, modelled, verdict
from proof.generated.ptx import cuda_home, toolkit
from proof.generated.triton_code import committed_table, is_of_this_release, ptxlab
from simclr_fast.ops.ntxent import limits

needs_simulator = pytest.mark.skipif(
    ptxlab() is None, reason="ptxlab is neither at ../shared/ptxlab nor named by PTXLAB"
)
WORST = 0.65  # |ln(modelled / measured)| of any measured figure
# What a multiply-add costs, in those of fp16: at the least (parts in fp16), at the most (parts in tf32).
PARTS = {"fp16": (1, 1), "tf32": (1, 2), "ieee": (3, 6)}


def test_page_is_of_the_committed_figures() -> None:
    assert model.PAGE.read_text() == page()


def test_errors_are_what_the_bars_assume() -> None:
    errors = residuals(measured())
    assert len(errors) >= 180
    assert np.sqrt((errors**2).mean()) <= 0.15
    assert np.abs(errors).max() <= WORST
    assert model.family_error(measured(), "triton", "both") <= 0.12
    assert model.held_out_error() <= 0.3


def test_constants_are_the_fit() -> None:
    assert np.allclose(astuple(fit(measured())), astuple(FITTED), rtol=0.02)
    for value, (_, least, most) in zip(astuple(FITTED), RANGES.values()):
        assert least <= value <= most


@pytest.mark.parametrize("left_out", model.HELD_OUT)
def test_held_out_constants_are_the_fit_to_the_rest(left_out: str) -> None:
    """By the errors of what was left out: an exponent p where one resource is all may be anything."""
    found = fit([case for case in measured() if not model.is_left_out(case, left_out)])
    assert np.allclose(model.held_out_residuals(left_out, found), model.held_out_residuals(left_out), atol=0.02)


def test_constants_on_an_edge_are_marked() -> None:
    marked = {name for name, value in zip(RANGES, astuple(FITTED)) if model.edge(name, value)}
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page().splitlines() if "**at the" in line]
    assert set(rows) == marked == {"exponentials", "mma_sync", "wgmma"}


def test_figures_left_out_are_those_that_the_page_names() -> None:
    counted = {(case.backend, case.n, case.d, case.operands) for case in measured()}
    left_out = 0
    for name, case in committed_table("gpu_check")["bench"]["ntxent"].items():
        n, d, operands = (part.split("=")[-1] for part in name.split())
        for backend in {"cpp", "triton"} & set(case["contestants"]):
            if (backend, int(n), int(d), operands) not in counted:
                left_out += 3
                large = n == "32768" and (d == "512" or operands != "fp16")
                assert operands == "bf16" or large or (n, operands) == ("16384", "ieee")
    assert left_out == model.timed_figures() - len(measured())


def test_one_launch_by_hand() -> None:
    """132 blocks of one resource each: nothing but c0, c1 and the weighted time of the tensor cores."""
    row = dict.fromkeys(("mma.sync", "instructions", "mufu", "wavefronts", "sectors", "unique"), 0)
    row |= {"kernel": "ntxent_fwd_kernel", "blocks": 132, "wgmma": int(model.FP16_PEAK * 1e-5)}
    case = Measured("triton", 1, 1, "fp16", "forward", [row], 1.0)
    assert math.isclose(case.modelled(), FITTED.c0 + FITTED.c1 + FITTED.wgmma * 10, rel_tol=1e-6)
    uneven = row | {"blocks": 133}
    assert math.isclose(model.launch_us(uneven, True), FITTED.c1 + FITTED.wgmma * 10 * 264 / 133, rel_tol=1e-6)


def test_bars() -> None:
    assert [round(bar.us, 1) for bar in BARS] == [91.3, 4638.6, 343.6]
    assert verdict(80, 100, 0.1) == "holds"
    assert verdict(95, 100, 0.1) == "holds, by less than the error"
    assert verdict(105, 100, 0.1) == "missed, by less than the error"
    assert verdict(120, 100, 0.1) == "missed"
    times = modelled(model.pass_us)
    assert len(times) == 2 * len(model_counts.COUNTED) + len(model_counts.AT_ONCE)
    assert all(time < times[case] for case, time in modelled(alone(model.pass_us)).items())
    nothing = {"kernel": "ntxent_fwd_kernel", "blocks": 132, "mma.sync": 0, "wgmma": int(model.FP16_PEAK * 1e-5)}
    busy = nothing | dict.fromkeys(("instructions", "mufu", "wavefronts", "sectors", "unique"), 10**9)
    assert math.isclose(alone(model.pass_us)([busy], True), FITTED.c0 + FITTED.c1 + FITTED.wgmma * 10, rel_tol=1e-6)


def test_auto_takes_what_is_modelled_where_the_model_is_sure() -> None:
    """Of Hopper's compiled kernels: where they are faster than Triton, in every size, by more than the model errs.

    That is its largest error of a pass of wgmma's code that its fit did not see. Triton's time is what was measured,
    or what is modelled now where that is less: its kernels may have changed since.
    """
    sure = math.exp(max(np.abs(model.held_out_residuals(left_out)).max() for left_out in model.HELD_OUT))
    timed = committed_table("gpu_check")["bench"]["ntxent"]
    found: dict[limits.Choice, list[bool]] = {}
    times = modelled(model.pass_us)
    for (backend, n, dim, operands, at_once), time in times.items():
        choice = limits.choice_for(9, "half" if operands == "fp16" else operands, (2 * n) ** 2 * dim)
        if backend == "cpp" and not at_once:
            triton = 1e3 * timed[f"N={n} D={dim} {operands}"]["contestants"]["triton"]["both ms"]
            triton = min(triton, times["triton", n, dim, operands, False])
            found.setdefault(choice, []).append(time * sure < triton)
    for choice, faster in found.items():
        if choice.better_by == "both ms":
            assert choice.backend == ("cpp" if all(faster) else "triton"), choice
    assert sum(choice.better_by == "both ms" for choice in found) == 2


@pytest.mark.parametrize("table", ["model_counts", "model_calibration"])
def test_products_are_those_of_the_formulas(table: str) -> None:
    """Where a part of a launch was counted: 2.5 M^2 D multiply-adds, and those of diagonal tiles and masked columns."""
    for case in committed_table(table)["cases"]:
        columns = 2 * case["n"]
        if columns >= 8192 and not case["at once"]:
            flops = sum(row["mma.sync"] + row["wgmma"] for row in case["launches"])
            products, (least, most) = flops / (5 * columns**2 * case["d"]), PARTS[case["operands"]]
            assert least <= products <= 4 * most, case  # Triton computes the logits once for every part of D


@pytest.mark.proof
@needs_simulator
def test_counts_of_triton() -> None:
    table = committed_table("counts_triton")
    if is_of_this_release(table):
        n, dim, operand = model_counts.COUNTED[0]
        torch.manual_seed(0)
        assert _without_rounding(model_counts.triton_rows(n, dim, operand)) == _without_rounding(_of("triton"))


@pytest.mark.proof
@needs_simulator
@pytest.mark.skipif(cuda_home() is None, reason="needs nvcc")
def test_counts_of_cpp() -> None:
    n, dim, operand = model_counts.COUNTED[0]
    torch.manual_seed(0)
    rows = model_counts.cpp_rows(sm90.program(), n, dim, operand)
    if committed_table("ptxlab_cuda")["nvcc"] == toolkit():
        assert _without_rounding(rows) == _without_rounding(_of("cpp"))


def _of(backend: str) -> list[dict]:
    """The committed counts of COUNTED's first case."""
    n, dim, operand = model_counts.COUNTED[0]
    key = (backend, n, dim, operand, False)
    for case in committed_table("model_counts")["cases"]:
        if (case["backend"], case["n"], case["d"], case["operands"], case["at once"]) == key:
            return case["launches"]
    raise AssertionError(f"docs/tables/model_counts.json lacks {key}")


def _without_rounding(rows: list[dict]) -> list[dict]:
    """Branches on values may take other ways with other random numbers: instructions to a thousandth."""
    return [row | {"instructions": round(row["instructions"], -3)} for row in rows]
