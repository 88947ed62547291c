"""csrc/ntxent_launch.h for Python: the CUDA launchers on CPU tensors, whatever executes the kernels."""

import ctypes
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
PRECISIONS = {"ieee": 0, "tf32": 1}
POINTER, INT64, DOUBLE, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int


class Device(ctypes.Structure):
    """capability: 10 major + minor; 0, where none is given, is that of no device with kernels of its own."""

    _fields_ = [("multiprocessors", INT), ("max_shared_bytes", INT), ("capability", INT)]


class NormalizeArgs(ctypes.Structure):
    _fields_ = [
        ("z", POINTER * 2), ("z_stride", INT64 * 2), ("u", POINTER), ("inv_norm", POINTER),
        ("n", INT64 * 2), ("d", INT64), ("u_columns", INT64), ("eps", DOUBLE), ("z_dtype", INT),
    ]  # fmt: skip


class FwdArgs(ctypes.Structure):
    _fields_ = [
        ("u", POINTER), ("loss", POINTER), ("lse_neg", POINTER), ("s_pos", POINTER), ("workspace", POINTER),
        ("temperature_ptr", POINTER), ("n", INT64), ("columns", INT64), ("row_offset", INT64), ("u_columns", INT64),
        ("temperature", DOUBLE), ("scale", DOUBLE), ("reduce", INT), ("u_dtype", INT), ("precision", INT),
        ("device", Device),
    ]  # fmt: skip


class BwdArgs(ctypes.Structure):
    _fields_ = [
        ("dloss", POINTER), ("z", POINTER * 2), ("u", POINTER), ("inv_norm", POINTER), ("lse_neg", POINTER),
        ("s_pos", POINTER), ("dz", POINTER * 2), ("dt", POINTER), ("workspace", POINTER), ("temperature_ptr", POINTER),
        ("z_stride", INT64 * 2), ("n", INT64), ("d", INT64), ("columns", INT64), ("row_offset", INT64),
        ("u_columns", INT64), ("temperature", DOUBLE), ("scale", DOUBLE), ("eps", DOUBLE), ("reduce", INT),
        ("z_dtype", INT), ("precision", INT), ("device", Device),
    ]  # fmt: skip


class FwdBwdArgs(ctypes.Structure):
    _fields_ = [
        ("z", POINTER * 2), ("loss", POINTER), ("dz", POINTER), ("dt", POINTER), ("workspace", POINTER),
        ("temperature_ptr", POINTER), ("z_stride", INT64 * 2), ("n", INT64), ("d", INT64), ("temperature", DOUBLE),
        ("scale", DOUBLE), ("eps", DOUBLE), ("z_dtype", INT), ("precision", INT), ("device", Device),
    ]  # fmt: skip


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the launchers' u: float32 stands for split rows, which are tensors [rows, 2, columns] of float16."""
    return torch.float16 if dtype in (torch.float16, torch.bfloat16) else dtype


def operand_dtype_of(u: Tensor) -> torch.dtype:
    return torch.float32 if u.ndim == 3 else u.dtype


def filled(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor whose unwritten elements show up."""
    return torch.full(shape, torch.nan, dtype=dtype)


class Guarded:
    """A workspace `data` of so many bytes, full of NaN, and behind it bytes that no kernel may write."""

    def __init__(self, size: int) -> None:
        self._all = torch.full((size + 256,), 0xA5, dtype=torch.uint8)
        self.data = self._all[:size].fill_(0xFF)
        self._guard = self._all[size:]

    def check(self, what: str) -> None:
        written = (self._guard != 0xA5).nonzero()
        assert written.numel() == 0, f"{what} wrote {written[0].item()} bytes behind its workspace"


class Library(Protocol):
    """Runs launchers: Kernels of proof.simt.library (g++, fibers), Program of proof.generated.ptx (nvcc, ptxlab)."""

    def call(self, launcher: str, *args: object, **options: object) -> None: ...
    def value(self, function: str, *args: object) -> int: ...


@dataclass
class Launchers:
    """The C++ functions of one family of arguments; `tensors` is everything the last call's pointers reach.

    `options` go to every call of the library: proof.simt's schedule.
    """

    library: Library
    device: Device = field(default_factory=lambda: Device(132, 232448, 80))
    options: dict = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    family: ClassVar[str]

    def _launch(self, step: str, args: ctypes.Structure, workspace: Guarded | None = None) -> None:
        self.library.call(f"simclr_{self.family}_{step}", ctypes.byref(args), None, **self.options)
        if workspace is not None:
            workspace.check(step)

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def _workspace(self, kind: str, args: ctypes.Structure) -> Guarded:
        return Guarded(self.library.value(f"simclr_{self.family}_{kind}_workspace_bytes", ctypes.byref(args)))


@dataclass
class NtxentLaunchers(Launchers):
    """The three steps of the loss, and all at once."""

    family = "ntxent"

    def normalize(self, z0: Tensor, z1: Tensor, eps: float = 1e-8) -> tuple[Tensor, Tensor]:
        self.tensors = []
        rows, d = z0.shape[0] + z1.shape[0], z0.shape[1]
        dtype = operand_dtype(z0.dtype)
        columns = self.library.value("simclr_ntxent_operand_columns", d, ctypes.c_int(DTYPES[dtype]))
        u = (
            filled(rows, 2, columns, dtype=torch.float16)
            if dtype == torch.float32
            else filled(rows, columns, dtype=dtype)
        )
        inv_norm = filled(rows, dtype=statistics_dtype(z0.dtype))
        args = NormalizeArgs(
            z=(POINTER * 2)(self._pointer(z0), self._pointer(z1)), z_stride=(INT64 * 2)(z0.stride(0), z1.stride(0)),
            u=self._pointer(u), inv_norm=self._pointer(inv_norm), n=(INT64 * 2)(z0.shape[0], z1.shape[0]), d=d,
            u_columns=columns, eps=eps, z_dtype=DTYPES[z0.dtype],
        )  # fmt: skip
        self._launch("normalize", args)
        return u, inv_norm

    def fwd(self, u: Tensor, n: int, row_offset: int = 0, temperature: float | Tensor = 0.5, reduce: bool = True,
            scale: float = 1.0, precision: str = "ieee") -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        self.tensors = []
        dtype = statistics_dtype(u.dtype)
        loss = filled(*([] if reduce else [2 * n]), dtype=dtype)
        lse_neg, s_pos = filled(2 * n, dtype=dtype), filled(2 * n, dtype=dtype)
        on_device = isinstance(temperature, Tensor)
        args = FwdArgs(
            u=self._pointer(u), loss=self._pointer(loss), lse_neg=self._pointer(lse_neg), s_pos=self._pointer(s_pos),
            temperature_ptr=self._pointer(temperature) if on_device else None, n=n, columns=u.shape[0],
            row_offset=row_offset, u_columns=u.shape[-1], temperature=0.0 if on_device else temperature, scale=scale,
            reduce=reduce, u_dtype=DTYPES[operand_dtype_of(u)], precision=PRECISIONS[precision], device=self.device,
        )  # fmt: skip
        workspace = self._workspace("fwd", args)
        args.workspace = self._pointer(workspace.data)
        self._launch("fwd", args, workspace)
        return loss, lse_neg, s_pos

    def bwd(self, dloss: Tensor, z0: Tensor, z1: Tensor, u: Tensor, inv_norm: Tensor, lse_neg: Tensor, s_pos: Tensor,
            row_offset: int = 0, scale: float = 1.0, eps: float = 1e-8, temperature: float | Tensor = 0.5,
            precision: str = "ieee", need_dt: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        self.tensors = []
        n, d = z0.shape
        dz0, dz1 = filled(n, d, dtype=z0.dtype), filled(n, d, dtype=z0.dtype)
        dt = filled(dtype=statistics_dtype(z0.dtype)) if need_dt else None
        on_device = isinstance(temperature, Tensor)
        args = BwdArgs(
            dloss=self._pointer(dloss), z=(POINTER * 2)(self._pointer(z0), self._pointer(z1)), u=self._pointer(u),
            inv_norm=self._pointer(inv_norm), lse_neg=self._pointer(lse_neg), s_pos=self._pointer(s_pos),
            dz=(POINTER * 2)(self._pointer(dz0), self._pointer(dz1)), dt=self._pointer(dt),
            temperature_ptr=self._pointer(temperature) if on_device else None,
            z_stride=(INT64 * 2)(z0.stride(0), z1.stride(0)), n=n, d=d, columns=u.shape[0], row_offset=row_offset,
            u_columns=u.shape[-1], temperature=0.0 if on_device else temperature, scale=scale, eps=eps,
            reduce=dloss.ndim == 0, z_dtype=DTYPES[z0.dtype], precision=PRECISIONS[precision], device=self.device,
        )  # fmt: skip
        workspace = self._workspace("bwd", args)
        args.workspace = self._pointer(workspace.data)
        self._launch("bwd", args, workspace)
        return dz0, dz1, dt

    def fwd_bwd(self, z0: Tensor, z1: Tensor, scale: float = 1.0, eps: float = 1e-8,
                temperature: float | Tensor = 0.5, precision: str = "ieee",
                need_dt: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        self.tensors = []
        n, d = z0.shape
        dtype = statistics_dtype(z0.dtype)
        loss, dz, dt = filled(dtype=dtype), filled(2, n, d, dtype=dtype), filled(dtype=dtype) if need_dt else None
        on_device = isinstance(temperature, Tensor)
        args = FwdBwdArgs(
            z=(POINTER * 2)(self._pointer(z0), self._pointer(z1)), loss=self._pointer(loss), dz=self._pointer(dz),
            dt=self._pointer(dt), temperature_ptr=self._pointer(temperature) if on_device else None,
            z_stride=(INT64 * 2)(z0.stride(0), z1.stride(0)), n=n, d=d,
            temperature=0.0 if on_device else temperature, scale=scale, eps=eps, z_dtype=DTYPES[z0.dtype],
            precision=PRECISIONS[precision], device=self.device,
        )  # fmt: skip
        workspace = self._workspace("fwd_bwd", args)
        args.workspace = self._pointer(workspace.data)
        self._launch("fwd_bwd", args, workspace)
        return loss, dz, dt
