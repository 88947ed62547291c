"""What the host sides of the Triton NT-Xent and similarity backends share: operands, and how launches are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import triton

from simclr_fast.ops.ntxent import triton_tiles
from simclr_fast.ops.ntxent.limits import NTXENT
from simclr_fast.ops.ntxent.triton_common import CONSTANT_MAX_LIMIT
from simclr_fast.ops.ntxent.triton_tiles import Target, Tiles, backward_splits
from simclr_fast.triton_launch import Launch, LaunchPlan, aligned, keep_plans, launch_on_device

ROW_WARPS = 8  # warps of a program of the row-wise kernels
ROW_STAGES = 2
FINISH_ROWS = 16  # of a program of the forward's finish; with 64, a multiprocessor gets one, which waits for its loads
COEFFICIENT_ROWS = 128  # of a program that makes coefficients; each of them reads the statistics of all rows

Types = tuple[torch.dtype | None, ...]  # of the tensors that a plan is for


@dataclass(frozen=True)
class TritonBackend:
    """A choice of tiles, and a way to run a launch.

    It keeps its plans: where the tables of triton_tiles.py are changed, another one is to be made.
    """

    run: Callable[[Launch], None] = launch_on_device
    target: Callable[[torch.device], Target] = triton_tiles.target_of

    @cached_property
    def plan(self) -> Callable[..., Any]:
        """plan(make, *about): make(*about), or what it returned for the same before."""
        return keep_plans(lambda make, *about: make(*about))


def types_of(*tensors: torch.Tensor | None) -> Types:
    """The types of a call's tensors, which Triton compiles for; others' follow from theirs."""
    return tuple([None if tensor is None else tensor.dtype for tensor in tensors])


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv takes 7 us a call."""
    return -(-a // b)


def needs_online_max(temperature: float, temperature_tensor: torch.Tensor | None) -> bool:
    """Whether rows have maxima of their own: where 1/t is too large for all of them, or not known to the host."""
    return temperature_tensor is not None or 2.0 / temperature > CONSTANT_MAX_LIMIT


def new_unit_rows(z: torch.Tensor, rows: int) -> torch.Tensor:
    """Memory for this many unit rows of views like z [n, D], fp16: [rows, D] of half views, [rows, 2, D] of float32.

    TypeError where the kernels do not take z.
    """
    if z.dtype not in NTXENT.triton_takes:
        raise TypeError(f"backend='triton' takes no {z.dtype}, which z0 is: cast it, or use another backend")
    parts = (2,) if z.dtype == torch.float32 else ()
    return z.new_empty((rows, *parts, z.shape[1]), dtype=torch.float16)


def check_numbers(of_any_type: tuple[str, ...] = (), **numbers: tuple[torch.Tensor, int]) -> None:
    """ValueError where a tensor by name has not as many elements as it should, or others than float32."""
    for name, (x, count) in numbers.items():
        if x.numel() != count or (x.dtype != torch.float32 and name not in of_any_type):
            raise ValueError(f"{name} must have {count} elements of float32, it has {x.numel()} of {x.dtype}")


def operand_of(u: torch.Tensor, precision: str) -> str:
    """How unit rows are multiplied, by the names of the tile tables: "fp16", or of split rows "tf32" or "ieee"."""
    if u.dtype != torch.float16 or u.ndim not in (2, 3) or (u.ndim == 3 and u.shape[1] != 2):
        raise TypeError(f"backend='triton' takes u of float16, [.., D] or [.., 2, D], got {u.dtype} {tuple(u.shape)}")
    if precision not in ("ieee", "tf32"):
        raise ValueError(f"precision must be 'ieee' or 'tf32', got {precision!r}")
    return "fp16" if u.ndim == 2 else precision


def stride_unit(dim: int) -> int:
    """What strides are counted in; that it depends on D alone leaves one compiled variant for all rows of that D."""
    return 16 if dim % 16 == 0 else 1


def readable_rows(z: torch.Tensor) -> torch.Tensor:
    """z [n, D] or a copy: contiguous rows, a stride of whole units, an aligned start."""
    readable = z.stride(1) == 1 and z.stride(0) % stride_unit(z.shape[1]) == 0
    return aligned(z if readable else z.contiguous())


def row_blocks(dim: int) -> tuple[int, int]:
    """(rows, columns) that a program of the row-wise kernels holds: whole rows, and 4 elements a thread where they fit.

    With 4, a warp's float32 and float16 accesses both fill their sectors.
    """
    block_d = triton.next_power_of_2(dim)
    return max(1, 4 * 32 * ROW_WARPS // block_d), block_d


# Numbers that a buffer of the scratch is rounded up to, a line of 128 bytes: a row of partial sums that began within a
# sector would be stored as one sector more.
_LINE = 32


class ScratchSizes(NamedTuple):
    """Float32 numbers of buffers that lie one behind the other, each from a whole line on."""

    sizes: tuple[int, ...]
    parts: tuple[int, ...]  # the sizes rounded up
    total: int

    @staticmethod
    def of(*sizes: int) -> ScratchSizes:
        """For buffers of these sizes."""
        parts = tuple(ceil_div(size, _LINE) * _LINE for size in sizes)
        return ScratchSizes(sizes, parts, sum(parts))


def forward_tile_constants(
    tiles: Tiles, rows: int, columns: int, dim: int, symmetric: bool, online_max: bool, operand: str
) -> dict[str, Any]:
    """Compile-time constants of the forward's tiles, as add_band_sums and its callers name them."""
    return {
        "D": dim,
        "SYMMETRIC": symmetric,
        "ONLINE_MAX": online_max,
        "OPERAND": operand,
        "BLOCK_M": tiles.block_m,
        "BLOCK_D": tiles.block_d,
        "SLICES": ceil_div(dim, tiles.block_d),
        "HOLD_ROWS": tiles.holds_rows,
        "EVEN": columns % tiles.block_m == 0 and rows % tiles.block_m == 0,
        "EVEN_D": dim % tiles.block_d == 0,
    }


def scratch(like: torch.Tensor, plan: ScratchSizes) -> tuple[torch.Tensor, ...]:
    """The buffers on the device of a tensor: one allocation, since the parts of it cost a third of their own."""
    return like.new_empty(plan.total, dtype=torch.float32).split_with_sizes(plan.parts)


@dataclass(frozen=True)
class GradientCut:
    """How the gradient's sum of `rows` over columns is cut into programs, and what its launches are compiled with."""

    dim: int
    rows: int
    operand: str
    online_max: bool
    tiles: Tiles
    row_tiles: int
    splits: int  # parts of the columns
    owners: int  # programs that share out the columns of the gradient

    @staticmethod
    def of(target: Target, rows: int, columns: int, dim: int, operand: str, online_max: bool) -> GradientCut:
        """The cut for a device."""
        tiles = triton_tiles.backward_tiles(target, operand, dim, online_max)
        owners = ceil_div(dim, tiles.slices(dim) * tiles.block_d)
        row_tiles, column_tiles = ceil_div(rows, tiles.block_m), ceil_div(columns, tiles.block_n)
        splits = backward_splits(target, row_tiles * owners, column_tiles)
        return GradientCut(dim, rows, operand, online_max, tiles, row_tiles, splits, owners)

    @property
    def dt_parts(self) -> int:
        """Partials of dt."""
        return self.splits * self.row_tiles

    def tiles_plan(self, kernel: Any, numbers: dict[str, Any], need_dt: bool) -> LaunchPlan:
        """The tiles' launch (add_gradient)."""
        tiles = self.tiles
        constants = {
            "D": self.dim,
            "NEED_DT": need_dt,
            "ONLINE_MAX": self.online_max,
            "OPERAND": self.operand,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_D": tiles.block_d,
            "SLICES": tiles.slices(self.dim),
            "HOLD_ROWS": tiles.holds_rows,
            "EVEN_D": tiles.even(self.dim),
            "SPECIAL_FIRST": tiles.special_first,
            "SPECIAL": min(16, tiles.block_n),
        }
        grid = (self.row_tiles, self.splits, self.owners)
        how = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
        return LaunchPlan.of(kernel, grid, numbers, constants, **how)

    def finish_plan(self, kernel: Any, numbers: dict[str, Any], need_dt: bool) -> LaunchPlan:
        """The finish, whose programs own whole rows."""
        block_m, block_d = row_blocks(self.dim)
        constants = {
            "D": self.dim,
            "UNIT": stride_unit(self.dim),
            "NEED_DT": need_dt,
            "BLOCK_M": block_m,
            "BLOCK_D": block_d,
            "BLOCK_DT": 128,
        }
        numbers = numbers | {"splits": self.splits, "dt_parts": self.dt_parts}
        grid = (ceil_div(self.rows, block_m),)
        return LaunchPlan.of(kernel, grid, numbers, constants, num_warps=ROW_WARPS, num_stages=ROW_STAGES)
