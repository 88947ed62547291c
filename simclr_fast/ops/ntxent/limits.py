"""What the Triton kernels of NT-Xent cannot serve, and which backend "auto" asks first, with what says so."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.backends import Op


@dataclass(frozen=True)
class Choice:
    """What "auto" asks first on devices of major compute capability `major`, and why.

    operands: "half" for float16 and bfloat16 views, else the precision, "tf32" or "ieee". least: from so many
    multiply-adds of one product of rows and columns on, up to the next choice for these operands. better_by: the
    figure of docs/tables/gpu_check.json by which the backend is the better one in every measured case of that size.
    """

    major: int
    operands: str
    least: int
    backend: str
    better_by: str
    source: str


_H200 = "measured: H200, commit 529d4ebe8917, docs/gpu.md"
# Elsewhere, where no device was timed, the compiled kernels come first. Those for Hopper that multiply by wgmma are
# modelled (docs/tables/model.md), not measured: while the model gives them less of an advantage over Triton than it
# errs by at worst where its fit did not look (1.7 times), what was measured stays; to let them have a size, write
# "cpp" in its line.
CHOICES = (
    # Below 2^33 (8192 rows of 128) Triton's kernels save up to 57 us of the device's time (2048 rows of 512 in tf32; 55
    # in fp16), but cost 0.2 to 1 ms more of Python, which no training step of this size hides.
    Choice(9, "half", 0, "cpp", "host us", _H200),
    Choice(9, "half", 2**33, "triton", "both ms", _H200 + ": 0.38 to 0.59 of the time of cpp's mma.sync kernels"),
    Choice(9, "tf32", 0, "cpp", "host us", _H200),
    Choice(9, "tf32", 2**33, "triton", "both ms", _H200 + ", both multiplying in tf32: 0.66 to 0.77 of cpp's time"),
    # The kernels that were measured are neither backend's: both multiply fp16 parts of float32 views instead, and how
    # exact and how fast they are beside each other no device has said.
    Choice(9, "ieee", 0, "cpp", "gradient error", _H200 + ": 1.1 to 18 times as exact, in 0.36 to 1.6 of the time"),
)
NTXENT = Op(
    called="ntxent_loss",
    triton_takes=(torch.float16, torch.bfloat16, torch.float32),  # the kernels add up in float32
    # Before Ampere there is neither tf32 nor cp.async, and no entry in triton_tiles.py.
    triton_needs=8,
    triton_is_faster_on=tuple(sorted({choice.major for choice in CHOICES if choice.backend == "triton"})),
)
# Neither kind of its kernels was timed on a device.
SIMILARITY = replace(NTXENT, called="similarity_logsumexp", triton_is_faster_on=())


def choice_for(major: int, operands: str, multiply_adds: int) -> Choice | None:
    """The choice that says what "auto" asks first; None where nothing does, and it asks the compiled kernels."""
    fitting = None
    for choice in _choices_of(major, operands):  # a loop, which torch.compile traces with sizes that are symbols
        if choice.least <= multiply_adds:
            fitting = choice
    return fitting


# What a graph is specialised on makes a constant of the graph, as in backends.resolve_backend.
@torch.compiler.assume_constant_result
def _choices_of(major: int, operands: str) -> tuple[Choice, ...]:
    """The choices for these operands, by size: each holds up to the next one."""
    fitting = [choice for choice in CHOICES if (choice.major, choice.operands) == (major, operands)]
    return tuple(sorted(fitting, key=lambda choice: choice.least))


def operands_of(dtype: torch.dtype, precision: str) -> str:
    """How CHOICES calls the operands of views of this dtype."""
    return "half" if dtype in (torch.float16, torch.bfloat16) else precision


def is_large(
    z: Tensor,
    precision: str,
    group: "torch.distributed.ProcessGroup | None",
    sizes: tuple[int, int] | None = None,
) -> bool:
    """Whether views like z [n, D] make so large a problem that "auto" asks Triton first, on devices where it may.

    sizes: how many rows and columns like z's a process has, where they are not 2n each.
    """
    if not z.is_cuda or torch.compiler.is_exporting():
        return False  # nothing to choose, and no condition on the sizes in a graph that is to serve all of them
    rows, columns = (2 * z.shape[0],) * 2 if sizes is None else sizes
    world = distributed.rank_and_size(group)[1]
    choice = choice_for(_major_of(z.device), operands_of(z.dtype, precision), rows * columns * world * z.shape[1])
    return choice is not None and choice.backend == "triton"


@torch.compiler.assume_constant_result
def _major_of(device: torch.device) -> int:
    """The major compute capability of a CUDA device; 0 of a fake one, which no machine has."""
    return _asked_major(device)


@cache  # within a plain function: torch.compile would trace into a cached one, and warn at every call
def _asked_major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if torch.cuda.is_available() else 0
