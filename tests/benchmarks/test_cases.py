"""What the scales consist of: every case can be constructed, and together they cover what a reader wants compared."""

import pytest
import torch

from benchmarks import (
    augment_contestants,
    bench_augment,
    bench_host,
    bench_loading,
    bench_losses,
    bench_ntxent,
    bench_scaling,
    bench_train_step,
    bench_train_step_files,
    ntxent_contestants,
)
from benchmarks.conftest import SCALES
from benchmarks.harness import Absent, Contestant
from simclr_fast.ops.ntxent.reference import ntxent_textbook

CPU = torch.device("cpu")


@pytest.mark.parametrize("scale", SCALES)
def test_every_case_can_be_constructed(scale: str) -> None:
    cases = bench_ntxent.CASES[scale] + bench_ntxent.MEMORY_CASES[scale]
    for case in cases:
        dtype = getattr(torch, case.dtype)
        most = 2**30 if case.n <= 4096 else 0  # the views of the largest are not made here
        for name in ntxent_contestants.NAMES:
            made = ntxent_contestants.contestant(name, case.n, case.d, dtype, case.temperature, CPU, most)
            assert isinstance(made, Contestant | Absent)
    for case in bench_augment.CASES[scale]:
        recipe = augment_contestants.Recipe(case.size, **bench_augment.OPS[case.ops])
        for name in augment_contestants.NAMES:
            if augment_contestants.absent(name, recipe, CPU) is None:
                assert callable(augment_contestants.build(name, recipe, CPU, case.channels_last))
    for case in bench_train_step.CASES[scale]:
        images = bench_augment.photographs(2, 8)
        for name in bench_train_step.NAMES[:1] + bench_train_step.NAMES[-2:]:
            made = bench_train_step.contestant(name, case.model, images, 2, 8, CPU)
            assert isinstance(made, Contestant | Absent)
    for case in bench_scaling.CASES[scale]:
        assert all(n % processes == 0 for n in case.sizes for processes in case.processes)
    modules = (bench_ntxent, bench_host, bench_losses, bench_augment, bench_loading, bench_train_step, bench_scaling)
    modules += (bench_train_step_files,)
    for module in modules:
        names = [str(case) for case in module.CASES[scale]]
        assert len({*names}) == len(names)


def test_the_scales_cover_what_is_to_be_compared() -> None:
    full = bench_ntxent.CASES["full"]
    assert {2**k for k in range(7, 17)} <= {case.n for case in full if case.in_main_series}
    assert {case.d for case in full} == {64, 128, 256, 512, 1024}
    assert {case.dtype for case in full} == {"float64", "float32", "float16", "bfloat16"}
    assert {case.temperature for case in full} >= {0.5, 0.1, 0.01}
    for scale in ("quick", "full"):
        cases = bench_augment.CASES[scale]
        assert {case.size for case in cases} == {32, 96, 224}
        assert {case.ops for case in cases} == {*bench_augment.OPS}
        assert {case.channels_last for case in cases} == {True, False}
        assert {256, 2048, 4096} <= {case.n for case in bench_ntxent.CASES[scale] if case.in_main_series}


def test_peers_that_need_a_gpu_are_named_so() -> None:
    for name in ntxent_contestants.CLIP_LOSSES:
        assert ntxent_contestants.absent(name, 256, 128, torch.float32, CPU, 2**30) == "needs a CUDA GPU"


def test_the_check_of_a_contestant_sees_a_wrong_loss_and_a_wrong_gradient() -> None:
    z0, z1 = ntxent_contestants.views(16, 8, torch.float32, CPU)
    check = ntxent_contestants.check_ntxent(z0, z1, 0.1)
    loss = ntxent_textbook(z0, z1, 0.1)
    dz0, dz1 = torch.autograd.grad(loss, (z0, z1))
    good = loss.detach()
    for result, agrees in (((good, dz0, dz1), True), ((1.01 * good, dz0, dz1), False), ((good, dz0, -dz1), False)):
        error, tolerance = check(result)
        assert (error <= tolerance) is agrees
