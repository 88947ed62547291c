"""Calls kernels built for the CPU: a launcher by name, on torch CPU tensors, under a chosen schedule."""

import ctypes
import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proof.simt.build import build
from proof.simt.mutants import defect_of

# proof/simt/sanitize.py sets this to run the same tests on instrumented kernels.
FLAVOUR = os.environ.get("SIMT_FLAVOUR", "plain")


class SimtError(AssertionError):
    """What the runtime found wrong in a launch: a refused launch, a deadlock, a divergent barrier, ..."""


@dataclass(frozen=True)
class Schedule:
    """How the threads of a launch are interleaved.

    seed: 0 takes threads and blocks in order, odd seeds let one warp run as far ahead as it can, even seeds shuffle the
    threads in every round. eager: cp.async lands when it is issued, instead of when it is waited for. host_threads:
    blocks run on so many host threads (one under a sanitizer). shared_bytes: the device's shared memory per block; the
    default is the least among sm_80 and newer. multiprocessors: what the launcher is told. truncating: mma adds as the
    tensor cores do (runtime/fused_sum.h), instead of rounding every sum to nearest. last_block_only: of every launch,
    for launches that a test could not wait for.
    """

    seed: int = 0
    eager: bool = False
    host_threads: int = 1
    shared_bytes: int = 99 * 1024
    multiprocessors: int = 4
    truncating: bool = False
    last_block_only: bool = False

    def __str__(self) -> str:
        return f"seed{self.seed}-{'eager' if self.eager else 'lazy'}{'-truncating' if self.truncating else ''}"


# Three schedules of different kinds, each with both timings of cp.async; two do under a sanitizer, which sees a defect
# in whatever schedule.
SCHEDULES = tuple(Schedule(seed, eager) for seed, eager in itertools.product((0, 1, 2), (False, True)))
if FLAVOUR != "plain":
    SCHEDULES = (Schedule(1, eager=False), Schedule(2, eager=True))


def of_values(*values: object) -> tuple[object, ...]:
    """Parameters of a test that no address depends on: all of them, or under a sanitizer the first and the last."""
    return values if FLAVOUR == "plain" else (values[0], values[-1])


class _Options(ctypes.Structure):
    """Mirrors SimtOptions in runtime/options.h."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("eager_copies", ctypes.c_int32),
        ("host_threads", ctypes.c_int32),
        ("shared_bytes_optin", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("truncating_tensor_cores", ctypes.c_int32),
        ("last_block_only", ctypes.c_int32),
    )


class Kernels:
    """Launchers of some kernel files.

    Args:
        sources: kernel files (and .cpp files with plain C entry points), by path from the root of the repository.
        flavour: see build(); SIMT_FLAVOUR by default.
        replaced, among: see build().
    """

    def __init__(
        self,
        sources: Iterable[str],
        flavour: str = FLAVOUR,
        replaced: Mapping[str, str] | None = None,
        among: Iterable[str] | None = None,
    ) -> None:
        mutant = os.environ.get("SIMT_MUTANT")  # proof/simt/test_mutants.py runs tests on kernels with a defect
        self.path = build(sources, flavour, replaced, among, defect_of(mutant) if mutant else None)
        self._library = ctypes.CDLL(str(self.path))
        self._library.simt_take_error.restype = ctypes.c_char_p

    def call(self, launcher: str, *args: object, schedule: Schedule = Schedule()) -> None:
        """Calls an extern "C" launcher that returns a cudaError_t.

        Args:
            launcher: its name.
            args: tensors (their data pointer is passed; they must be contiguous and on the CPU), None, ints, or ctypes
                values, which floats must be: ctypes.c_float(x) or ctypes.c_double(x).
            schedule: how to interleave.

        Raises:
            SimtError: the launch failed; the message says where and why.
        """
        options = _Options(
            schedule.seed,
            schedule.eager,
            schedule.host_threads,
            schedule.shared_bytes,
            schedule.multiprocessors,
            schedule.truncating,
            schedule.last_block_only,
        )
        self._library.simt_configure(ctypes.byref(options))
        code = getattr(self._library, launcher)(*map(_argument, args))
        message = self._library.simt_take_error().decode()
        if code != 0 or message:
            raise SimtError(f"{launcher} returned {code}: {message or 'no message'}")

    def value(self, function: str, *args: object, restype: type = ctypes.c_int64) -> int:
        """Calls an extern "C" function that launches nothing (a workspace size, say) and returns its value."""
        f = getattr(self._library, function)
        f.restype = restype
        return f(*map(_argument, args))


def _argument(value: object) -> object:
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or not value.is_contiguous():
            raise ValueError(
                f"a launcher takes contiguous CPU tensors, got {value.device} with stride {value.stride()}"
            )
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return value


def unwritten(*shape: int, dtype: torch.dtype) -> Tensor:
    """An output for a kernel to fill: NaN for floats and -1 bits for integers wherever it does not write."""
    out = torch.empty(*shape, dtype=dtype)
    out.view(torch.uint8).fill_(0xFF) if out.numel() else None
    return out
