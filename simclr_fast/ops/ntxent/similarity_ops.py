"""simclr_fast::similarity_{fwd,bwd,fwd_bwd}: schemas and fakes of the ops, and the operands that they take.

The ops take unit rows as `ntxent_normalize` makes them (rows and columns of one operand width D'). fwd and bwd are
called once for each side that wants something; fwd_bwd, on the CPU alone, where only the rows want a gradient:

    fwd      rows [n, D'], columns [m, D'] -> lse [n], max [n], column_lse [m]
    bwd      drows [n], dcolumns [m], z [n, D] (the raw rows), ..., lse [n], column_lse [m] -> dz [n, D], dt []
    fwd_bwd  rows [n, D'], inv_norm [n], columns [m, D'] -> lse [n], max [n], dlse_dz [n, D'], dlse_dt [n]

Their formulas, and what `exclude` leaves out, stand in csrc/similarity_launch.h. max is empty unless `need_max`,
column_lse unless `both`. A side that has no upstream gradient passes zeros, and +inf for its log-sum-exps. Operands
without normalisation have inv_norm 1, and eps 1: clamped, which leaves du as it is.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.backends import describe, has_triton
from simclr_fast.ops.ntxent.limits import SIMILARITY
from simclr_fast.ops.ntxent.ops import OPS as NTXENT_OPS
from simclr_fast.ops.ntxent.ops import operand_dtype, split_rows
from simclr_fast.ops.ntxent.reference import compute_dtype

Exclude = Literal["none", "self", "pair"]
EXCLUDE = ("none", "self", "pair")

_SCHEMAS = {
    "fwd": "(Tensor rows, Tensor columns, SymInt row_offset, str exclude, bool both, bool need_max, "
    "float temperature, Tensor? temperature_tensor, str precision) -> (Tensor lse, Tensor max, Tensor column_lse)",
    "bwd": "(Tensor drows, Tensor dcolumns, Tensor z, Tensor rows, Tensor inv_norm, Tensor columns, Tensor lse, "
    "Tensor column_lse, SymInt row_offset, str exclude, float eps, float temperature, Tensor? temperature_tensor, "
    "str precision, bool need_dt) -> (Tensor dz, Tensor dt)",
}


class Ops(NamedTuple):
    """The operators that every backend has."""

    fwd: Callable
    bwd: Callable


def _define(suffix: str) -> Ops:
    for name, schema in _SCHEMAS.items():
        torch.library.define(f"simclr_fast::similarity_{name}{suffix}", schema)

    @torch.library.register_fake(f"simclr_fast::similarity_fwd{suffix}")
    def _(rows, columns, row_offset, exclude, both, need_max, *options):
        dtype = compute_dtype(rows.dtype)
        n, m = rows.shape[0], columns.shape[0]
        return tuple(rows.new_empty(size, dtype=dtype) for size in (n, n if need_max else 0, m if both else 0))

    @torch.library.register_fake(f"simclr_fast::similarity_bwd{suffix}")
    def _(drows, dcolumns, z, rows, inv_norm, *options):
        return z.new_empty(z.shape), inv_norm.new_empty(())

    return Ops(*(getattr(torch.ops.simclr_fast, f"similarity_{name}{suffix}").default for name in _SCHEMAS))


OPS = {"cpp": _define(""), "triton": _define("_triton")}
torch.library.define(
    "simclr_fast::similarity_fwd_bwd",
    "(Tensor rows, Tensor inv_norm, Tensor columns, SymInt row_offset, str exclude, bool need_max, float eps, "
    "float temperature, Tensor? temperature_tensor) -> (Tensor lse, Tensor max, Tensor dlse_dz, Tensor dlse_dt)",
)


@torch.library.register_fake("simclr_fast::similarity_fwd_bwd")
def _(rows, inv_norm, columns, row_offset, exclude, need_max, *options):
    n = rows.shape[0]
    return tuple(rows.new_empty(size) for size in (n, n if need_max else 0, rows.shape, n))


FWD_BWD = torch.ops.simclr_fast.similarity_fwd_bwd.default
describe("similarity_fwd", SIMILARITY)

if has_triton():
    from simclr_fast.ops.ntxent import triton_similarity

    for _name in _SCHEMAS:
        torch.library.register_kernel(
            f"simclr_fast::similarity_{_name}_triton", "cuda", getattr(triton_similarity, _name)
        )


class Options(NamedTuple):
    """What a call is made with beside its tensors. A temperature tensor counts, where there is one; eps None: as is.

    called: what users call, for messages.
    """

    temperature: float
    exclude: str
    both: bool
    need_max: bool
    fixed_columns: bool
    eps: float | None
    precision: str
    backend: str
    group: "torch.distributed.ProcessGroup | None"
    called: str


def operands(rows: Tensor, columns: Tensor | None, options: Options) -> tuple[Tensor, Tensor | None, Tensor]:
    """Operands of rows [n, D'] and of columns [m, D'], inv_norm [n + m]."""
    if options.eps is not None:
        other = rows.new_empty((0, rows.shape[1])) if columns is None else columns
        u, inv_norm = NTXENT_OPS[options.backend].normalize(rows, other, options.eps)
        return u[: rows.shape[0]], None if columns is None else u[rows.shape[0] :], inv_norm

    def as_they_are(z: Tensor) -> Tensor:
        """z itself, where it is of the operand dtype and dense."""
        u = z.detach().to(operand_dtype(z))
        on_cuda = z.device.type == "cuda"
        if on_cuda and options.backend == "cpp":
            u = F.pad(u, (0, -z.shape[1] % (2 if u.dtype == torch.float64 else 8)))
        split = u.dtype == torch.float32 and (on_cuda or options.backend == "triton")
        return split_rows(u) if split else u.contiguous()

    count = rows.shape[0] + (0 if columns is None else columns.shape[0])
    inv_norm = rows.new_ones(count, dtype=compute_dtype(rows.dtype))
    return as_they_are(rows), None if columns is None else as_they_are(columns), inv_norm
