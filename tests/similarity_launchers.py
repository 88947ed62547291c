"""csrc/similarity_launch.h for Python: the CUDA launchers of the primitive on CPU tensors, whatever executes them."""

import ctypes
from dataclasses import dataclass

from torch import Tensor

from simclr_fast.ops.ntxent.similarity_ops import EXCLUDE
from tests.ntxent_launchers import (
    DOUBLE,
    DTYPES,
    INT,
    INT64,
    POINTER,
    PRECISIONS,
    Device,
    Launchers,
    filled,
    operand_dtype_of,
    statistics_dtype,
)


class FwdArgs(ctypes.Structure):
    _fields_ = [
        ("rows", POINTER), ("columns", POINTER), ("lse", POINTER), ("max", POINTER), ("column_lse", POINTER),
        ("workspace", POINTER), ("temperature_ptr", POINTER), ("row_count", INT64), ("column_count", INT64),
        ("row_offset", INT64), ("u_columns", INT64), ("temperature", DOUBLE), ("exclude", INT), ("u_dtype", INT),
        ("precision", INT), ("device", Device),
    ]  # fmt: skip


class BwdArgs(ctypes.Structure):
    _fields_ = [
        ("drows", POINTER), ("dcolumns", POINTER), ("z", POINTER), ("rows", POINTER), ("inv_norm", POINTER),
        ("columns", POINTER), ("lse", POINTER), ("column_lse", POINTER), ("dz", POINTER), ("dt", POINTER),
        ("workspace", POINTER), ("temperature_ptr", POINTER), ("z_stride", INT64), ("d", INT64), ("row_count", INT64),
        ("column_count", INT64), ("row_offset", INT64), ("u_columns", INT64), ("temperature", DOUBLE),
        ("eps", DOUBLE), ("exclude", INT), ("z_dtype", INT), ("precision", INT), ("device", Device),
    ]  # fmt: skip


@dataclass
class SimilarityLaunchers(Launchers):
    """Both directions of the primitive, called as its ops are."""

    family = "similarity"

    def fwd(self, rows: Tensor, columns: Tensor, row_offset: int = 0, exclude: str = "none", both: bool = False,
            need_max: bool = False, temperature: float | Tensor = 0.5,
            precision: str = "ieee") -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        self.tensors = []
        n, m, dtype = rows.shape[0], columns.shape[0], statistics_dtype(rows.dtype)
        lse, largest = filled(n, dtype=dtype), filled(n, dtype=dtype) if need_max else None
        column_lse = filled(m, dtype=dtype) if both else None
        on_device = isinstance(temperature, Tensor)
        args = FwdArgs(
            rows=self._pointer(rows), columns=self._pointer(columns), lse=self._pointer(lse),
            max=self._pointer(largest), column_lse=self._pointer(column_lse),
            temperature_ptr=self._pointer(temperature) if on_device else None, row_count=n, column_count=m,
            row_offset=row_offset, u_columns=rows.shape[-1], temperature=0.0 if on_device else temperature,
            exclude=EXCLUDE.index(exclude), u_dtype=DTYPES[operand_dtype_of(rows)], precision=PRECISIONS[precision],
            device=self.device,
        )  # fmt: skip
        workspace = self._workspace("fwd", args)
        args.workspace = self._pointer(workspace.data)
        self._launch("fwd", args, workspace)
        return lse, largest, column_lse

    def bwd(self, drows: Tensor, dcolumns: Tensor, z: Tensor, rows: Tensor, inv_norm: Tensor, columns: Tensor,
            lse: Tensor, column_lse: Tensor, row_offset: int = 0, exclude: str = "none", eps: float = 1e-8,
            temperature: float | Tensor = 0.5, precision: str = "ieee",
            need_dt: bool = True) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        self.tensors = []
        (n, d), m = z.shape, columns.shape[0]
        dz, dt = filled(n, d, dtype=z.dtype), filled(dtype=statistics_dtype(z.dtype)) if need_dt else None
        on_device = isinstance(temperature, Tensor)
        args = BwdArgs(
            drows=self._pointer(drows), dcolumns=self._pointer(dcolumns), z=self._pointer(z),
            rows=self._pointer(rows), inv_norm=self._pointer(inv_norm), columns=self._pointer(columns),
            lse=self._pointer(lse), column_lse=self._pointer(column_lse), dz=self._pointer(dz), dt=self._pointer(dt),
            temperature_ptr=self._pointer(temperature) if on_device else None, z_stride=z.stride(0), d=d,
            row_count=n, column_count=m, row_offset=row_offset, u_columns=rows.shape[-1],
            temperature=0.0 if on_device else temperature, eps=eps, exclude=EXCLUDE.index(exclude),
            z_dtype=DTYPES[z.dtype], precision=PRECISIONS[precision], device=self.device,
        )  # fmt: skip
        workspace = self._workspace("bwd", args)
        args.workspace = self._pointer(workspace.data)
        self._launch("bwd", args, workspace)
        return dz, dt
