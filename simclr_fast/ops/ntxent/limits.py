"""What the Triton kernels of NT-Xent cannot serve, and from what size on "auto" takes them."""

from dataclasses import replace

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.backends import Op

NTXENT = Op(
    called="ntxent_loss",
    triton_takes=(torch.float16, torch.bfloat16, torch.float32),  # the kernels add up in float32
    # Before Ampere there is neither tf32 nor cp.async, and no entry in triton_tiles.py.
    triton_needs=8,
    # Hopper: Triton multiplies by wgmma, the compiled kernels by mma.sync (measured on an H200: docs/gpu.md).
    triton_is_faster_on=(9,),
)
# Neither kind of its kernels was timed on a device.
SIMILARITY = replace(NTXENT, called="similarity_logsumexp", triton_is_faster_on=())
# Multiply-adds of one product of rows and columns (8192 rows of 128 on one device) from which "auto" takes Triton on
# Hopper. On an H200 its kernels need 0.59 of the compiled ones' time there (docs/gpu.md), but a millisecond more of
# Python, which the rest of a training step hides from about this size on; at a quarter of it they would save 27 us.
LARGE = 2**33


def is_large(
    z: Tensor,
    precision: str,
    group: "torch.distributed.ProcessGroup | None",
    sizes: tuple[int, int] | None = None,
) -> bool:
    """Whether views like z [n, D] make so large a problem that Triton is faster, on devices where it may be.

    sizes: how many rows and columns like z's a process has, where they are not 2n each.
    """
    if not z.is_cuda or torch.compiler.is_exporting():
        return False  # nothing to choose, and no condition on the sizes in a graph that is to serve all of them
    if precision == "ieee" and z.dtype not in (torch.float16, torch.bfloat16):
        return False  # the compiled kernels are ten times as exact in full float32, and about as fast
    rows, columns = (2 * z.shape[0],) * 2 if sizes is None else sizes
    world = distributed.rank_and_size(group)[1]
    # torch.compile makes a constant of a condition on sizes, but not of bool() of one.
    return True if rows * columns * world * z.shape[1] >= LARGE else False  # noqa: SIM210
