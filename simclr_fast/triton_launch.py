"""A Triton launch as data, so that it can be enqueued on a device, compiled ahead of time, or run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """One kernel launch: run-time arguments and compile-time constants by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a contiguous copy of it, that starts at a multiple of 16 bytes.

    For an argument that does not, Triton compiles a kernel again: seconds in mid-run, where a copy takes microseconds.
    """
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone(memory_format=torch.contiguous_format)


# Compiled kernels by _variant_of a launch.
_compiled: dict[tuple, Any] = {}


def launch_on_device(launch: Launch) -> None:
    """Enqueue on the current stream of the device that the tensors are on.

    Triton binds and specialises the arguments of the first launch of a variant, and compiles it. Later ones go straight
    to the compiled kernel: the binder takes 100 us of a launch's 105 (H200's host, Triton 3.6).
    """
    tensor = next(a for a in launch.arguments.values() if isinstance(a, torch.Tensor))
    device = tensor.get_device()
    if device < 0 or device == torch.cuda.current_device():  # -1: the CPU, where Triton's interpreter runs
        _enqueue(launch, device)
    else:
        with torch.cuda.device(device):
            _enqueue(launch, device)


def _enqueue(launch: Launch, device: int) -> None:
    variant = _variant_of(launch, device)
    compiled = _compiled.get(variant)
    if compiled is None:
        _compiled[variant] = launch.kernel[launch.grid](
            **launch.arguments,
            **launch.constants,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            **launch.options,
        )
        return
    arguments, constants = launch.arguments, launch.constants
    values = [arguments[name] if name in arguments else constants[name] for name in launch.kernel.arg_names]
    compiled[(*launch.grid, 1, 1)[:3]](*values)


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
    launched = (launch.kernel, device, launch.num_warps, launch.num_stages)
    return (*launched, *forms, *launch.constants.values(), *launch.options.values())
