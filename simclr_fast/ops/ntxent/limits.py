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
    # Below 2^33 (8192 rows of 128) Triton's kernels save up to 30 us of the device's time (cpp's mma.sync kernels at
    # half of it), but cost up to a millisecond more of Python, which no training step of this size hides.
    Choice(9, "half", 0, "cpp", "host us", _H200),
    Choice(9, "half", 2**33, "triton", "both ms", _H200 + ": 0.38 to 0.59 of the time of cpp's mma.sync kernels"),
    Choice(9, "tf32", 0, "cpp", "host us", _H200),
    Choice(9, "tf32", 2**33, "triton", "both ms", _H200 + ", both multiplying in tf32: 0.66 to 0.77 of cpp's time"),
    Choice(9, "ieee", 0, "cpp", "gradient error", _H200 + ": up to 18 times as exact, in 0.36 to 1.6 of the time"),
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
    fitting = [c for c in CHOICES if (c.major, c.operands) == (major, operands) and c.least <= multiply_adds]
    return max(fitting, key=lambda choice: choice.least, default=None)


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
    least = _least_of_triton(z.device, operands_of(z.dtype, precision))
    if least is None:
        return False
    rows, columns = (2 * z.shape[0],) * 2 if sizes is None else sizes
    world = distributed.rank_and_size(group)[1]
    # torch.compile makes a constant of a condition on sizes, but not of bool() of one.
    return True if rows * columns * world * z.shape[1] >= least else False  # noqa: SIM210


# Resolved while tracing, as the backend is.
@torch.compiler.assume_constant_result
@cache
def _least_of_triton(device: torch.device, operands: str) -> int | None:
    """The multiply-adds from which Triton is asked first on this device; None: never."""
    if not torch.cuda.is_available():
        return None  # tensors that are fake, of a device that no machine has
    major = torch.cuda.get_device_capability(device)[0]
    of_triton = [c.least for c in CHOICES if (c.major, c.operands, c.backend) == (major, operands, "triton")]
    return min(of_triton, default=None)
