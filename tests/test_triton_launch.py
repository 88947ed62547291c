"""Plans of Triton launches, and what is compiled anew or not: a kernel that notes its calls stands for Triton's."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simclr_fast.triton_launch import PLANS, Launch, LaunchPlan, keep_plans, launch_on_device


class Kernel:
    """scale_kernel(x_ptr, y_ptr, t, n, BLOCK), which notes how often it is compiled, and what it is launched with."""

    __name__ = "scale_kernel"
    arg_names = ("x_ptr", "y_ptr", "t", "n", "BLOCK")

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        def compile_and_launch(**arguments: Any) -> dict[tuple[int, ...], Any]:
            self.compiled.append(arguments)
            number = len(self.compiled)
            return Enqueuers(lambda grid: lambda *values: self.launched.append((number, grid, *values)))

        return compile_and_launch


class Enqueuers:
    """What Triton returns of a kernel that is compiled."""

    def __init__(self, of_grid) -> None:
        self.of_grid = of_grid

    def __getitem__(self, grid: tuple[int, ...]):
        return self.of_grid(grid)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def plan_of(kernel: Kernel, n: int = 32, **how) -> LaunchPlan:
    return LaunchPlan.of(kernel, (n,), {"n": n}, {"BLOCK": 16}, **how)


X, Y = torch.zeros(2, 8)


def test_later_launches_go_straight_to_the_compiled_kernel_with_values_of_their_own(kernel: Kernel) -> None:
    plan = plan_of(kernel)
    for t in (0.1, 0.2, 0.3):
        launch_on_device(plan.on(X, Y, t))
    how = {"num_warps": 4, "num_stages": 1}
    assert kernel.compiled == [{"x_ptr": X, "y_ptr": Y, "t": 0.1, "n": 32, "BLOCK": 16, **how}]
    assert kernel.launched == [(1, (32, 1, 1), X, Y, t, 32, 16) for t in (0.2, 0.3)]


def test_plans_share_what_is_compiled_for_both(kernel: Kernel) -> None:
    for n in (32, 48, 64):
        launch_on_device(plan_of(kernel, n).on(X, Y, 0.1))
    assert len(kernel.compiled) == 1
    assert [launched[1:] for launched in kernel.launched] == [((n, 1, 1), X, Y, 0.1, n, 16) for n in (48, 64)]


@pytest.mark.parametrize("n", [1, 33, 2**31], ids=["1", "not divisible by 16", "wide"])
def test_whole_numbers_that_triton_specialises_on_are_compiled_for(kernel: Kernel, n: int) -> None:
    for number in (32, n, 32, n):
        launch_on_device(plan_of(kernel, number).on(X, Y, 0.1))
    assert [call["n"] for call in kernel.compiled] == [32, n]
    assert [launched[0] for launched in kernel.launched] == [1, 2]


def test_tensors_that_start_elsewhere_are_compiled_for(kernel: Kernel) -> None:
    """A plan that is kept takes tensors of one alignment: test_triton_plans.py."""
    for x, y in [*2 * [(X, Y), (X[1:], Y), (X, Y[1:])], (X[2:], Y[4:])]:
        launch_on_device(plan_of(kernel).on(x, y, 0.1))
    assert len(kernel.compiled) == 3
    assert [launched[0] for launched in kernel.launched] == [1, 2, 3, 2]


def test_types_warps_and_options_are_compiled_for(kernel: Kernel) -> None:
    for plan in (plan_of(kernel), plan_of(kernel, num_warps=8), plan_of(kernel, num_stages=2), plan_of(kernel, more=1)):
        launch_on_device(plan.on(X, Y, 0.1))
    for x, t in ((X.half(), 0.1), (X, None)):
        launch_on_device(plan_of(kernel).on(x, Y, t))
    assert len(kernel.compiled) == 6
    assert kernel.launched == []


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    number: int

    def get_device(self) -> int:
        return self.number


def test_devices_have_compiled_kernels_of_their_own(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda number: nullcontext(entered.append(number)))
    plan = plan_of(kernel)
    for number in (0, 1, 0, 1):
        x = torch.zeros(8).as_subclass(OnDevice)
        x.number = number
        launch_on_device(plan.on(x, Y, 0.1))
    assert len(kernel.compiled) == 2
    assert [launched[0] for launched in kernel.launched] == [1, 2]
    assert entered == [1, 1]


def test_a_launch_names_its_arguments_in_the_kernels_order(kernel: Kernel) -> None:
    launch = Launch.of(kernel, (1,), {"n": 3, "t": 0.5, "y_ptr": Y, "x_ptr": X}, {"BLOCK": 16}, num_warps=2)
    assert list(launch.arguments) == ["x_ptr", "y_ptr", "t", "n"]
    assert launch.given == (X, Y, 0.5, 3)
    assert launch.how == {"num_warps": 2, "num_stages": 1}
    assert list(plan_of(kernel).on(X, Y, 0.1).arguments) == ["x_ptr", "y_ptr", "t", "n"]


def test_names_that_the_kernel_does_not_have_are_refused(kernel: Kernel) -> None:
    with pytest.raises(TypeError, match="scale_kernel does not end on"):
        LaunchPlan.of(kernel, (1,), {"t": 0.1}, {"BLOCK": 16})  # n, which follows it, is given later
    with pytest.raises(TypeError, match="scale_kernel does not end on"):
        LaunchPlan.of(kernel, (1,), {"n": 1}, {"BLOCKS": 16})
    with pytest.raises(TypeError, match="scale_kernel takes"):
        Launch.of(kernel, (1,), {"x_ptr": X, "y_ptr": Y, "t": 0.1, "m": 3}, {"BLOCK": 16})
    with pytest.raises(ValueError, match="shorter"):
        launch_on_device(plan_of(kernel).on(X, Y))


def test_plans_are_kept_but_not_without_bound() -> None:
    made: list[int] = []
    kept = keep_plans(lambda n: made.append(n) or SimpleNamespace(n=n))
    for n in (*range(PLANS), *range(PLANS)):
        assert kept(n).n == n
    assert made == [*range(PLANS)]
    kept(PLANS)
    kept(0)  # was dropped for it
    assert made[PLANS:] == [PLANS, 0]
