"""The correctness table: known faults are found and named, ours has none, and the page says what was measured."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import correctness, correctness_implementations
from benchmarks.correctness_cases import LOSSES, TEMPERATURES, Case, cases, inputs, truth
from benchmarks.correctness_implementations import IMPLEMENTATIONS, Implementation, of_loss, plain
from benchmarks.correctness_measures import graph_breaks, outcome, peak_mib
from benchmarks.correctness_page import Row, ddp, fails, page, worst
from benchmarks.correctness_ranks import Scale, part, scale_of, scales, whole
from simclr_fast.ops.ntxent.reference import ntxent_textbook

CPU = torch.device("cpu")
OURS = [made for made in IMPLEMENTATIONS if made.backend and made.absent(CPU) is None]
named = lambda made: f"{made.loss}-{made.name}".replace("*", "").replace(" ", "")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_truth_is_the_loss_as_usually_written(loss: str) -> None:
    for kind in ("random", "one sample", *LOSSES[loss].more_kinds):
        for t in (0.5, 0.1):
            z0, z1, *extra = inputs(LOSSES[loss], Case(kind, "float64", t))
            extra = [F.normalize(x) if x.is_floating_point() else x for x in extra]
            leaves = [z.requires_grad_() for z in (z0, z1)]
            value = plain(loss).build(t)(*leaves, *extra)
            gradient = torch.cat(torch.autograd.grad(value, leaves))
            true_value, true_gradient = truth(LOSSES[loss], (z0, z1, *extra), t)
            assert value.item() == pytest.approx(true_value, rel=1e-12, abs=1e-14)
            torch.testing.assert_close(gradient, true_gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("made", OURS, ids=named)
def test_ours_has_no_fault(made: Implementation) -> None:
    for case in cases(LOSSES[made.loss], temperatures=(0.5, 0.01)):
        if "unit rows" in made.name and case.dtype != "float64":  # whose rounding to the type is not the loss's
            continue
        found = outcome(made.loss, case, made.build, CPU)
        assert not found.fault, (case, found)
        bounds = {"float64": (1e-10, 1e-10), "float32": (5e-6, 3e-5)}.get(case.dtype, (5e-6, 5e-3))
        assert found.loss_error <= bounds[0], (case, found)
        assert found.gradient_error <= bounds[1], (case, found)


def test_known_faults_of_formulas_are_named() -> None:
    def found(formula, kind: str, dtype: str, t: float) -> str:
        return outcome("ntxent", Case(kind, dtype, t), lambda t: lambda z0, z1: formula(z0, z1, t), CPU).fault

    solo_learn = correctness_implementations.solo_learn
    assert found(ntxent_textbook, "random", "float32", 0.1) == ""
    assert found(ntxent_textbook, "zero rows", "float16", 0.5) == "NaN"  # F.normalize's eps underflows
    assert found(ntxent_textbook, "aligned", "float32", 0.03) == "wrong"
    assert found(solo_learn, "random", "float32", 0.1) == ""
    assert found(solo_learn, "random", "float32", 0.01) == "NaN"  # exp(100)
    assert found(solo_learn, "random", "float16", 0.05) == "NaN"
    assert found(lambda z0, z1, t: 2 * ntxent_textbook(z0, z1, t), "random", "float32", 0.1) == "wrong"
    assert found(lambda z0, z1, t: ntxent_textbook(z0, z1.detach(), t), "random", "float32", 0.1) == "wrong"
    assert found(lambda z0, z1, t: ntxent_textbook(z0, z1, t) + 1e38 * 1e38, "random", "float32", 0.1) == "inf"
    assert found(lambda z0, z1, t: z0 @ z1, "random", "float32", 0.1).startswith("raises RuntimeError: ")


def test_the_scale_of_a_gradient_under_ddp() -> None:
    made = whole("ntxent")
    value, gradient = truth(LOSSES["ntxent"], made, 0.1)
    own = [torch.cat(part("ntxent", tuple(gradient.chunk(2)), rank)) for rank in (0, 1)]
    ranks = lambda factor: [(value, factor * own[rank]) for rank in (0, 1)]
    assert [round(scale_of("ntxent", ranks(f)).gradient, 9) for f in (2, 1, 4)] == [1, 0.5, 2]
    assert scale_of("ntxent", ranks(1)).value == pytest.approx(1)
    assert scale_of("ntxent", ranks(1)).direction < 1e-12
    assert scale_of("ntxent", [(value, own[1]), (value, own[0])]).direction > 0.4
    assert scale_of("ntxent", [(value, own[0]), "raises ValueError: no"]).reason == "raises ValueError: no"
    assert ddp(Scale(1.0, 1.0, 0.0)) == "1"
    assert ddp(Scale(0.5, 1.0, 0.0)) == "**0.5**"
    assert ddp(Scale(1.0, 2.0, 0.0)) == "1, value x 2"
    assert ddp(Scale(0.1, 1.0, 0.5)) == "**another gradient** (0.1 of the true one, 0.5 beside it)"
    assert ddp(Scale(reason="raises ValueError: no")) == "raises ValueError"
    assert ddp(None) == "own rows only"


def test_two_processes() -> None:
    """Ours gives the gradient of the whole batch, Spijkervet's gather 1/W of it."""
    found = scales(tuple(LOSSES), CPU)
    for made in OURS:
        scale = found[made.loss, made.name]
        assert not scale.reason
        assert scale.gradient == pytest.approx(1, abs=1e-5)
        assert scale.value == pytest.approx(1, abs=1e-5)
        assert scale.direction < 1e-5
    assert found["ntxent", "Spijkervet, formula"].gradient == pytest.approx(0.5, abs=1e-5)
    assert found["ntxent", "solo-learn, formula"].gradient == pytest.approx(1, abs=1e-5)


def test_graph_breaks_and_memory_are_counted() -> None:
    made = inputs(LOSSES["ntxent"], Case("random", "float32", 0.1))
    broken = lambda z0, z1: ntxent_textbook(z0, z1, float(0.1 + 0 * z0.detach().sum()))
    assert graph_breaks(lambda z0, z1: ntxent_textbook(z0, z1, 0.1), made) == 0
    assert graph_breaks(broken, made) >= 1
    one_matrix = 4 * 1024**2 / 2**20
    assert peak_mib("ntxent", "plain PyTorch", 512, 16, "cpu", ()) >= 2 * one_matrix
    assert peak_mib("ntxent", "**simclr_fast**, cpp", 512, 16, "cpu", ()) < one_matrix


def test_the_page_says_what_was_found() -> None:
    field = [made for made in of_loss("ntxent") if made in OURS or made.name == "plain PyTorch"]
    rows = [correctness.measure(made, CPU, ("float32", "float16"), (0.5, 0.03), False) for made in field]
    usual = next(row for row in rows if row.name == "plain PyTorch")
    usual.scale, usual.memory, usual.breaks = Scale(0.5, 1.0, 0.0), (128, 12.34), 3
    missing = replace(next(made for made in of_loss("ntxent") if made.module), module="no_such_module")
    rows.append(correctness.measure(missing, CPU))
    assert rows[-1] == Row("ntxent", missing.name, "not installed")
    text = page(rows, "Of today.", 512, 128)
    assert "\nOf today.\n" in text
    assert f"Not measured, not installed: {missing.name}." in text
    lines = text.splitlines()
    for row in rows[:-1]:
        line = next(line for line in lines if line.startswith(f"| {row.name} | "))
        cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
        assert cells[1:4] == [worst(row, "float32"), worst(row, "float16"), "fails"]  # of bfloat16 nothing was measured
        assert cells[-1] == fails(row)
        if row is usual:
            assert cells[4:7] == ["**0.5**", "12 (N = 128)", "3"]
            assert "**fp32** wrong: aligned t = .03; huge row t = .5, .03" in cells[-1]
            assert "**fp16** NaN: zero rows t = .5, .03" in cells[-1]
        else:
            assert cells[-1] == "nowhere"


def test_failures_are_told_by_dtype_rows_and_temperature() -> None:
    row = Row("ntxent", "somebody")
    assert fails(row) == "nowhere"
    for case in cases(LOSSES["ntxent"], ("float32", "float16", "bfloat16")):
        fault = "NaN" if case.kind == "zero rows" or case.temperature == 0.01 else ""
        fault = "raises ValueError: why" if case.dtype == "bfloat16" else fault
        if case.kind == "aligned" and case.temperature in (0.05, 0.5) and not fault:
            fault = "wrong"
        row.outcomes[case] = replace(outcome("ntxent", case, plain("ntxent").build, CPU), fault=fault)
    assert set(TEMPERATURES) == {0.5, 0.1, 0.05, 0.03, 0.01}
    assert fails(row) == (
        "**fp32, fp16** NaN: random, aligned, opposed, equal, huge row, one column, one sample t = .01; zero rows; "
        "wrong: aligned t = .5, .05<br>**bf16** raises ValueError: every input"
    )
