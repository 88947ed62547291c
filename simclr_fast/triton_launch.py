"""A Triton launch as data, so that it can be enqueued on a device, compiled ahead of time, or run elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

# Plans that a backend keeps, a few kilobytes each. A training run has two or three shapes; to make a plan
# takes some hundred microseconds, and the first launch of each 100 more.
PLANS = 256


def keep_plans(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, with what it returned for the last PLANS different arguments kept."""
    return lru_cache(maxsize=PLANS)(make)


@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """A launch without its first arguments, the tensors: what shapes, types and options decide, once for many calls."""

    kernel: Any
    grid: tuple[int, ...]
    given: tuple[str, ...]  # names of the first arguments
    numbers: dict[str, Any]  # all other arguments, in the kernel's order
    constants: dict[str, Any]  # of compilation, in the kernel's order
    how: dict[str, Any]  # num_warps, num_stages, and what else Triton is told beside the kernel's own parameters
    fixed: tuple = field(init=False, repr=False)  # the values of numbers and constants
    # What enqueues the plan's launches, by device.
    enqueuers: dict[int, Callable[..., None]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", (*self.numbers.values(), *self.constants.values()))

    @staticmethod
    def of(kernel: Any, grid: tuple[int, ...], numbers: dict[str, Any], constants: dict[str, Any], **how) -> LaunchPlan:
        """The plan of a kernel whose last arguments are these numbers. how: 4 warps and 1 stage unless it says else."""
        names = [name for name in kernel.arg_names if name not in constants]
        first, last = names[: len(names) - len(numbers)], names[len(names) - len(numbers) :]
        if {*last, *constants} != {*numbers, *constants} or len(names) + len(constants) != len(kernel.arg_names):
            raise TypeError(f"{kernel.__name__} does not end on {[*numbers, *constants]}")
        numbers = {name: numbers[name] for name in last}
        constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        return LaunchPlan(kernel, grid, tuple(first), numbers, constants, {"num_warps": 4, "num_stages": 1} | how)

    def on(self, *given: Any) -> Launch:
        """A launch on these tensors (and floats), whose types are the same at every call.

        All tensors start at a multiple of 16 bytes (`aligned`), but for those that the kernel promises not to care
        about (do_not_specialize_on_alignment): what was compiled for the first call is launched unasked later on.
        """
        return Launch(self, given)


@dataclass(eq=False, slots=True)
class Launch:
    """One kernel launch: a plan, and the first arguments."""

    plan: LaunchPlan
    given: tuple[Any, ...]

    @staticmethod
    def of(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], constants: dict[str, Any], **how) -> Launch:
        """A launch that is planned for this call alone, of arguments by name."""
        plan = LaunchPlan.of(kernel, grid, {}, constants, **how)
        if {*plan.given} != {*arguments}:
            raise TypeError(f"{kernel.__name__} takes {plan.given}, got {[*arguments]}")
        return plan.on(*[arguments[name] for name in plan.given])

    @property
    def kernel(self) -> Any:
        return self.plan.kernel

    @property
    def grid(self) -> tuple[int, ...]:
        return self.plan.grid

    @property
    def arguments(self) -> dict[str, Any]:
        """Run-time arguments by name, in the kernel's order."""
        return dict(zip(self.plan.given, self.given, strict=True)) | self.plan.numbers

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time constants by name."""
        return self.plan.constants

    @property
    def how(self) -> dict[str, Any]:
        """num_warps, num_stages and other options of Triton's."""
        return self.plan.how


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a contiguous copy of it, that starts at a multiple of 16 bytes.

    For an argument that does not, Triton compiles a kernel again: seconds in mid-run, where a copy takes microseconds.
    """
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone(memory_format=torch.contiguous_format)


# Compiled kernels by _variant_of a launch.
_compiled: dict[tuple, Any] = {}


def launch_on_device(launch: Launch) -> None:
    """Enqueue on the current stream of the device that the tensors are on, the first argument among them.

    Triton binds and specialises the arguments of the first launch of a variant, and compiles it. Later ones go straight
    to the compiled kernel: the binder takes 100 us of a launch's 105 (H200's host, Triton 3.6).
    """
    device = launch.given[0].get_device()
    if device < 0 or device == torch.cuda.current_device():  # -1: the CPU, where Triton's interpreter runs
        _enqueue(launch, device)
    else:
        with torch.cuda.device(device):
            _enqueue(launch, device)


def _enqueue(launch: Launch, device: int) -> None:
    plan = launch.plan
    enqueue = plan.enqueuers.get(device)
    if enqueue is None:
        variant = _variant_of(launch, device)
        compiled = _compiled.get(variant)
        if compiled is None:
            _compiled[variant] = plan.kernel[plan.grid](**launch.arguments, **plan.constants, **plan.how)
            return
        enqueue = plan.enqueuers[device] = compiled[(*plan.grid, 1, 1)[:3]]
    enqueue(*launch.given, *plan.fixed)


def _variant_of(launch: Launch, device: int) -> tuple:
    """Whatever Triton's compiled code may depend on.

    Of a tensor its type and whether it starts at a multiple of 16 bytes; of a whole number its width, whether it is 1
    and whether 16 divides it; the types of all other arguments, and the constants themselves.
    """
    forms = []
    for value in launch.arguments.values():
        if isinstance(value, torch.Tensor):
            forms.append((value.dtype, value.data_ptr() % 16 == 0))
        elif type(value) is int:
            forms.append((-(2**31) <= value < 2**31, value < 2**63, value == 1, value % 16 == 0))
        else:
            forms.append(type(value))
    return (launch.kernel, device, *forms, *launch.constants.values(), *launch.how.values())
