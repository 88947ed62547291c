"""Which backend serves which op on which device, and why one does not.

`cpp` is the compiled extension (CPU or CUDA by device), `triton` the Triton kernels (CUDA), `reference` plain PyTorch
(anywhere). `auto` takes the first of these that serves the device; where Triton's kernels were measured to be faster,
it asks them first.
"""

import importlib.util
import re
import warnings
from functools import cache

import torch

from simclr_fast import _extension

BACKENDS = ("cpp", "triton", "reference")
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
# What an op's Triton kernels cannot do: dtypes, and devices below a major compute capability.
_TRITON_REFUSES = {"ntxent_fwd": (torch.float64,)}
_TRITON_NEEDS = {"ntxent_fwd": 8}
# Major compute capabilities on which an op's Triton kernels are faster than the compiled ones for large inputs. Hopper:
# Triton multiplies by wgmma, the compiled NT-Xent by mma.sync (measured on an H200: docs/gpu.md).
_TRITON_IS_FASTER = {"ntxent_fwd": (9,)}


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def _compiled_for(capability: tuple[int, int], archs: str) -> bool:
    """Whether kernels built for `archs` ("8.0;9.0+PTX") run on a device of this compute capability.

    A binary runs on later minor versions of its own major version; PTX runs on anything later.
    """
    for arch in archs.split(";"):
        major, minor = (int(part) for part in re.match(r"(\d+)\.(\d+)", arch).groups())
        if major == capability[0] and minor <= capability[1]:
            return True
        if arch.endswith("+PTX") and (major, minor) <= capability:
            return True
    return False


def _triton_is_faster(op: str, device: torch.device) -> bool:
    """Whether op's Triton kernels are the faster ones on this device, where there is much to do."""
    majors = _TRITON_IS_FASTER.get(op, ())
    return device.type == "cuda" and bool(majors) and torch.cuda.get_device_capability(device)[0] in majors


def _has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"simclr_fast::{op}", key)


def why_not(backend: str, op: str, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why `backend` cannot serve `op` ("l2_normalize") for tensors of `dtype` on `device`; None if it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        if device.type != "cuda":
            return f"Triton kernels run on CUDA tensors, these are on {device.type}"
        if not has_triton():
            return "triton is not installed; pip install triton"
        if not _has_kernel(f"{op}_triton", "CUDA"):
            return f"{op} has no Triton kernel"
        if dtype in _TRITON_REFUSES.get(op, ()):
            return f"the Triton kernels of {op} take no {dtype}"
        needed = _TRITON_NEEDS.get(op, 0)
        if needed and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] < needed:
            return f"the Triton kernels of {op} need compute capability {needed}.0, this device has less"
        return None
    if _extension.missing_because:
        return f"the compiled extension is missing ({_extension.missing_because})"
    key = _DISPATCH_KEYS.get(device.type)
    if key is None or not _has_kernel(op, key):
        built = "without CUDA kernels" if device.type == "cuda" else "for cpu and cuda"
        return f"the compiled extension has no {op} kernel for {device.type} (it was built {built})"
    if device.type == "cuda":
        capability, archs = torch.cuda.get_device_capability(device), _extension.build_info()["cuda_archs"]
        if not _compiled_for(capability, archs):
            return f"the compiled extension was built for {archs}, this device is {'.'.join(map(str, capability))}"
    return None


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that is neither "auto" nor one of BACKENDS."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend={backend!r} is unknown; choose one of 'auto', {', '.join(map(repr, BACKENDS))}")


# Resolved while tracing: a graph is specialised on devices, so the answer is a constant of the graph.
@torch.compiler.assume_constant_result
def resolve_backend(
    backend: str, op: str, device: torch.device, dtype: torch.dtype | None = None, large: bool = False
) -> str:
    """The backend to use: `backend` itself, or for "auto" the first of cpp, triton, reference that serves.

    large: the op has so much to do that "auto" asks Triton first on devices where its kernels are faster.

    Raises ValueError for an unknown name, RuntimeError where an explicitly named backend cannot serve. "auto" warns
    once per op, device and dtype where only the reference is left.
    """
    return _resolve(backend, op, device, dtype, large)


@cache
def _resolve(backend: str, op: str, device: torch.device, dtype: torch.dtype | None, large: bool) -> str:
    check_backend(backend)
    if device.type == "meta":  # shapes alone, which the ops' fakes know without any kernel
        return "cpp" if backend == "auto" else backend
    if backend != "auto":
        if reason := why_not(backend, op, device, dtype):
            raise RuntimeError(f"backend={backend!r} cannot serve {op} on {device}: {reason}; or choose backend='auto'")
        return backend
    if large and _triton_is_faster(op, device) and why_not("triton", op, device, dtype) is None:
        return "triton"
    reasons = {}
    for candidate in BACKENDS:
        reasons[candidate] = why_not(candidate, op, device, dtype)
        if reasons[candidate] is None:
            break
    if candidate == "reference":
        missing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
        warnings.warn(f"simclr_fast.{op} runs as plain PyTorch on {device} ({missing})", RuntimeWarning, stacklevel=4)
    return candidate
