"""Which backend serves which op on which device, and why one does not.

`cpp` is the compiled extension (CPU or CUDA by device), `triton` the Triton kernels (CUDA), `reference` plain PyTorch
(anywhere). `auto` takes the first of these that serves the device; where Triton's kernels were measured to be faster,
it asks them first.
"""

import importlib.util
import re
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from simclr_fast import _extension

BACKENDS = ("cpp", "triton", "reference")
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


@dataclass(frozen=True)
class Op:
    """What the choice of a backend has to know of an op beside its registered kernels.

    called: what users call to run it, for messages. Of its Triton kernels: the dtypes they take (None: all), the least
    major compute capability they need, and those on which they are faster than the compiled ones on large inputs.
    """

    called: str
    triton_takes: tuple[torch.dtype, ...] | None = None
    triton_needs: int = 0
    triton_is_faster_on: tuple[int, ...] = ()


_ops: dict[str, Op] = {}


def describe(name: str, op: Op) -> None:
    """Tells of the op simclr_fast::NAME; every op's module does so when it is imported."""
    _ops[name] = op


def described(op: str) -> Op:
    """What was told of simclr_fast::OP; of one that nobody described, its own name."""
    return _ops.get(op, Op(op))


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def _compiled_for(capability: tuple[int, int], archs: str) -> bool:
    """Whether kernels built for `archs` ("8.0;9.0a;10.0+PTX") run on a device of this compute capability.

    A binary runs on later minor versions of its own major version, with a letter ("9.0a") on its own version alone;
    PTX runs on anything later, since setup.py makes it without the letter. RuntimeError where `archs` is none of this.
    """
    for arch in archs.split(";"):
        known = re.fullmatch(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", arch)
        if known is None:
            raise RuntimeError(
                f"the compiled extension says it was built for {archs!r}, which is unreadable; rebuild it"
            )
        major, minor, letter, ptx = known.groups()
        version = (int(major), int(minor))
        same = version == capability if letter else version[0] == capability[0] and version <= capability
        if same or (ptx and version <= capability):
            return True
    return False


def _triton_is_faster(op: str, device: torch.device) -> bool:
    """Whether op's Triton kernels are the faster ones on this device, where there is much to do."""
    majors = described(op).triton_is_faster_on
    return device.type == "cuda" and bool(majors) and torch.cuda.get_device_capability(device)[0] in majors


def _has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"simclr_fast::{op}", key)


def why_not(backend: str, op: str, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why `backend` cannot serve `op` ("augment") for tensors of `dtype` on `device`; None if it can."""
    if backend == "reference":
        return None
    facts = described(op)
    if backend == "triton":
        if device.type != "cuda":
            return f"Triton kernels run on CUDA tensors, these are on {device.type}"
        if not has_triton():
            return "triton is not installed; pip install triton"
        if not _has_kernel(f"{op}_triton", "CUDA"):
            return f"{facts.called} has no Triton kernel"
        if facts.triton_takes is not None and dtype not in (None, *facts.triton_takes):
            return f"the Triton kernels of {facts.called} take no {dtype}"
        needed = facts.triton_needs
        if needed and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] < needed:
            return f"the Triton kernels of {facts.called} need compute capability {needed}.0, this device has less"
        return None
    if _extension.missing_because:
        return f"the compiled extension is missing ({_extension.missing_because})"
    key = _DISPATCH_KEYS.get(device.type)
    if key is None or not _has_kernel(op, key):
        built = "without CUDA kernels" if device.type == "cuda" else "for cpu and cuda"
        return f"the compiled extension has no {facts.called} kernel for {device.type} (it was built {built})"
    if device.type == "cuda":
        capability, archs = torch.cuda.get_device_capability(device), _extension.build_info()["cuda_archs"]
        if not _compiled_for(capability, archs):
            return f"the compiled extension was built for {archs}, this device is {'.'.join(map(str, capability))}"
    return None


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that is neither "auto" nor one of BACKENDS."""
    if not isinstance(backend, str) or backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend={backend!r} is unknown; choose one of 'auto', {', '.join(map(repr, BACKENDS))}")


# Resolved while tracing: a graph is specialised on devices, so the answer is a constant of the graph.
@torch.compiler.assume_constant_result
def resolve_backend(
    backend: str,
    op: str,
    device: torch.device,
    dtype: torch.dtype | None = None,
    large: bool = False,
    called: str | None = None,
) -> str:
    """The backend to use: `backend` itself, or for "auto" the first of cpp, triton, reference that serves.

    large: the op has so much to do that "auto" asks Triton first on devices where its kernels are faster. called: what
    users call, for messages, where it is not what the op itself is described to be called.

    Raises ValueError for an unknown name, RuntimeError where an explicitly named backend cannot serve. "auto" warns
    once where only the reference is left, and again where the reasons are others.
    """
    if not isinstance(backend, str):  # which could not be looked up
        check_backend(backend)
    return _resolve(backend, op, device, dtype, large, called or described(op).called)


@cache
def _resolve(backend: str, op: str, device: torch.device, dtype: torch.dtype | None, large: bool, called: str) -> str:
    check_backend(backend)
    if device.type == "meta":  # shapes alone, which the ops' fakes know without any kernel
        return "cpp" if backend == "auto" else backend
    if backend != "auto":
        if reason := why_not(backend, op, device, dtype):
            raise RuntimeError(
                f"backend={backend!r} cannot serve {called} on {device}: {reason}; or choose backend='auto'"
            )
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
        _warn_once(f"{called} runs as plain PyTorch on {device} ({missing})")
    return candidate


@cache
def _warn_once(message: str) -> None:
    """Of a call that runs several ops, as SimCLRAugment's does, they say the same."""
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def forget_choices() -> None:
    """Chooses, and warns, anew from here on: for tests, which change what the machine has."""
    _resolve.cache_clear()
    _warn_once.cache_clear()
