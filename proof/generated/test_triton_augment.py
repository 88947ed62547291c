"""The Triton augmentation's code: compiled ahead of time without spills, executed by ptxlab, right, and counted.

ptxlab lies outside the repository (../shared/ptxlab, or the environment variable PTXLAB); without it what needs it is
skipped.
"""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
import triton

from proof.generated import triton_augment_tables as tables
from proof.generated.augment_counts import (
    MAX_BANK_CONFLICTS,
    MIN_COALESCING,
    WORKLOADS,
    Row,
    Workload,
    by_call,
    check_bounds,
)
from proof.generated.triton_augment_tables import (
    COUNTED_ARCHS,
    aot_keys,
    aot_launches,
    aot_sample,
    aot_table,
    as_launched,
    committed,
    execute,
)
from proof.generated.triton_code import TABLES, check_digests, compare_with_committed, ptxlab, simulate
from simclr_fast.ops.augment.params import pack_window
from simclr_fast.ops.augment.triton_backend import TritonAugment
from simclr_fast.triton_launch import Launch
from tests.ops.augment.compare import noise
from tests.ops.augment.means import MEANS, errors_of_the_mean
from tests.ops.augment.triton_cases import FULL, drawn, error, views_of, views_of_batch

ARCH = 90  # whose code is executed, where both architectures' are not
needs_simulator = pytest.mark.skipif(ptxlab() is None, reason="needs ptxlab (at ../shared/ptxlab, or named by PTXLAB)")
SHARED_LIMIT = 99 * 1024  # what a program may use on sm_86, sm_89 and sm_120, the least of the devices served
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
MAX_UNIQUE = 1.5  # bytes of device memory over the floor
MAX_SECTORS = 2.2  # bytes asked of L1 and L2 over the floor: every output row loads its own source rows
LAUNCHES = {32: 1, 64: 1, 96: 2, 224: 2}  # by size


def check_aot(table: dict[str, Any]) -> None:
    for name, row in table["kernels"].items():
        assert row["stack"] == row["local"] == 0, name
        assert not {"STL", "LDL"} & set(row), name
        assert row["registers"] <= 255, name
        assert row["shared"] <= SHARED_LIMIT, name
    expected = committed("aot")
    for name, row in table["kernels"].items():
        compare_with_committed(row, expected["kernels"][name], expected)


def test_whole_kernel_compiles() -> None:
    assert not triton.knobs.runtime.interpret, "compilation needs a process without TRITON_INTERPRET"
    check_aot(aot_table(aot_sample()[:1]))


def test_every_row_is_of_the_code_as_it_is() -> None:
    check_aot(committed("aot"))
    check_digests(aot_launches, aot_keys(), committed("aot"))


@pytest.mark.proof
def test_every_variant_compiles() -> None:
    """Each for one architecture; the others' rows are made of the same code, see above."""
    check_aot(aot_table(aot_sample()))


def test_rendered_tables() -> None:
    assert (TABLES / "aot_triton_augment.md").read_text() == tables.aot_markdown(committed("aot"))
    assert (TABLES / "counts_triton_augment.md").read_text() == tables.counts_markdown(committed("counts"))


def check_reports(launched: list[tuple[Launch, Any]]) -> None:
    for launch, report in launched:
        name = launch.kernel.__name__
        assert report.ok, (name, report.issues)
        assert report.spill_bytes == 0, name
        assert report.bank_conflict_ratio <= MAX_BANK_CONFLICTS, name


@needs_simulator
def test_one_small_view() -> None:
    torch.manual_seed(0)
    outcome = execute(Workload("33 -> 32", 1, 33, 32, torch.float32, (("blur_kernel", 3),)), ARCH, seed=1)
    assert outcome.error <= TOLERANCE[torch.float32]
    check_reports(outcome.launched)


@pytest.mark.proof
@needs_simulator
class TestGeneratedCode:
    @pytest.mark.parametrize(("arch", "seed"), [(90, 0), (90, 1), (90, 2), (80, 1)])
    @pytest.mark.parametrize("workload", WORKLOADS, ids=str)
    def test_is_right_and_free_of_issues(self, workload: Workload, arch: int, seed: int) -> None:
        torch.manual_seed(seed)
        approx = "perturb" if seed == 2 else "accurate"
        # Perturbed, several warps may store one replicated value, each with an error of its own: no race.
        outcome = execute(workload, arch, seed=seed, approx=approx, check_races=seed != 2)
        assert len(outcome.launched) == LAUNCHES[workload.size]
        assert outcome.error <= TOLERANCE[workload.dtype]
        check_reports(outcome.launched)

    @pytest.mark.parametrize("channels_last", [True, False])
    def test_rows_that_begin_anywhere(self, channels_last: bool) -> None:
        """Rows of 333 bytes, or 999: a lane loads a byte, and a warp's 32 lie in two sectors, wherever a row begins."""
        images = noise(1, 250, 333, 3).permute(0, 3, 1, 2) if channels_last else noise(1, 3, 250, 333)

        def run(launch: Launch) -> None:
            report = simulate(as_launched(launch), arch=ARCH, strict=True)
            assert report.coalescing_load >= 0.5
            assert report.bank_conflict_ratio <= MAX_BANK_CONFLICTS
            if "mean" not in launch.kernel.__name__:
                assert report.coalescing_store >= MIN_COALESCING

        params = drawn(images, 224, seed=1, blur_kernel=23)
        assert error(TritonAugment(run), images, 224, params, 23) <= 1

    @pytest.mark.parametrize("channels_last", [True, False])
    @pytest.mark.parametrize("images", ["ragged", "gray", "strided", "float32", "one pixel wide"])
    @pytest.mark.parametrize("size", [(40, 17), (70, 80)])
    def test_other_inputs(self, size: tuple[int, int], images: str, channels_last: bool) -> None:
        batch = {
            "ragged": [noise(3, 50, 61), noise(3, 1, 1), noise(80, 33, 3).permute(2, 0, 1)],
            "gray": noise(2, 1, 45, 60),
            "strided": noise(2, 3, 90, 120)[:, :, 3::2, 5::3],
            "float32": noise(2, 3, 45, 60).float() / 255,
            "one pixel wide": noise(2, 3, 45, 1),
        }[images]
        launched: list[tuple[Launch, Any]] = []

        def run(launch: Launch) -> None:
            launch = as_launched(launch)
            launched.append((launch, simulate(launch, arch=ARCH)))

        params = drawn(batch, size, views=1, seed=3, blur_kernel=9, **FULL)
        assert error(TritonAugment(run), batch, size, params, 9, torch.float32, channels_last) <= 1
        check_reports(launched)

    @pytest.mark.parametrize("arch", COUNTED_ARCHS)
    @pytest.mark.parametrize(("case", "seed"), list(zip(MEANS, itertools.cycle([0, 1, 2]))))
    def test_the_mean_where_contrast_comes_first(self, case: str, seed: int, arch: int) -> None:
        launched: list[tuple[Launch, Any]] = []

        def run(launch: Launch) -> None:
            launch = as_launched(launch)
            launched.append((launch, simulate(launch, arch=arch, seed=seed)))

        error, of_reference = errors_of_the_mean(case, partial(views_of_batch, TritonAugment(run)))
        assert error <= 2 * of_reference + 1e-7
        check_reports(launched)

    @pytest.mark.parametrize("size", [(100, 1), (1, 1), (1, 90)])
    def test_outputs_one_pixel_wide(self, size: tuple[int, int]) -> None:
        """Sizes of 1 are constants of the code."""
        batch = noise(2, 3, 30, 1)
        backend = TritonAugment(lambda launch: simulate(as_launched(launch), arch=ARCH, strict=True))
        assert error(backend, batch, size, drawn(batch, size, views=1, blur_kernel=1, **FULL)) <= 1

    @pytest.mark.parametrize("sigma", [1.0, 20.0])
    def test_halos_of_several_regions(self, sigma: float) -> None:
        batch = noise(1, 3, 90, 70)
        settings = {"blur_kernel": 63, "blur_p": 1.0, "blur_sigma": (sigma, sigma), "jitter_p": 1.0}
        backend = TritonAugment(lambda launch: simulate(as_launched(launch), arch=ARCH, strict=True))
        assert error(backend, batch, (75, 70), drawn(batch, (75, 70), **settings), 63) <= 1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_types_round_as_torch_does(self, dtype: torch.dtype) -> None:
        """Finite values, halfway points and the floats beside them, and values out of range; no resize."""
        exact = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
        exact = exact[exact.isfinite()].sort().values.unique()
        halfway = exact[1:] / 2 + exact[:-1] / 2
        beside = [halfway.nextafter(torch.tensor(side)) for side in (-torch.inf, torch.inf)]
        beyond = torch.tensor([65519.0, 65520.0, 65521.0, 7e4, 1e-30, 3e38])
        values = torch.cat([exact, halfway, *beside])
        values = torch.cat([beyond, values[torch.randperm(len(values))[: 2**15 - len(beyond)]]]).reshape(8, 1, 64, 64)
        window = torch.tensor([[pack_window(64, 64, (0, 0), (0, 0))] * 8], dtype=torch.int32)
        backend = TritonAugment(lambda launch: simulate(as_launched(launch), arch=ARCH, strict=True))
        out = views_of(backend, values, 64, window, dtype=dtype)
        assert torch.equal((out + 0.0).view(torch.int16), (values.to(dtype) + 0.0).view(torch.int16))

    @pytest.mark.parametrize(("arch", "seed"), [(90, 0), (90, 1), (90, 2), (80, 1)])
    def test_sampling(self, arch: int, seed: int) -> None:
        params, truth, report = tables.sampled(seed, arch, seed=seed)
        assert torch.equal(params, truth)
        assert report.ok, report.issues
        assert report.spill_bytes == 0
        assert report.coalescing_store >= MIN_COALESCING
        assert report.bank_conflict_ratio <= MAX_BANK_CONFLICTS

    @pytest.mark.parametrize("arch", COUNTED_ARCHS)
    @pytest.mark.parametrize("workload", WORKLOADS, ids=str)
    def test_does_what_the_table_says(self, workload: Workload, arch: int) -> None:
        rows, table = tables.count(workload, arch), committed("counts")
        check_counts(rows, workload)
        compare_with_committed(rows, by_call(table[f"sm_{arch}"])[workload.name], table)


def check_counts(rows: list[Row], workload: Workload) -> None:
    """Bounds on the launches of a workload."""
    assert len(rows) == LAUNCHES[workload.size]
    check_bounds(rows, str(workload), MAX_UNIQUE, MAX_SECTORS)
    for row in rows:
        if row["kernel"] == "augment_mean_kernel":  # one number per program: 4 bytes of a sector
            assert row["coalescing_store"] == 4 / 32, workload


@pytest.mark.parametrize("arch", COUNTED_ARCHS)
def test_committed_counts_are_within_bounds(arch: int) -> None:
    """The gate on the committed table; the tests above hold the table to the code."""
    calls = by_call(committed("counts")[f"sm_{arch}"])
    assert list(calls) == [workload.name for workload in WORKLOADS]
    for workload in WORKLOADS:
        check_counts(calls[workload.name], workload)
