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


def launch_on_device(launch: Launch) -> None:
    """Enqueue on the current stream of the device that the tensors are on."""
    tensor = next(a for a in launch.arguments.values() if isinstance(a, torch.Tensor))
    with torch.cuda.device_of(tensor):
        launch.kernel[launch.grid](
            **launch.arguments,
            **launch.constants,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            **launch.options,
        )
