"""Refuses, on a CPU, the operations that on a GPU would make the host wait for the device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Their results are numbers of the host, or have a size that the values decide.
READS = {
    "_local_scalar_dense",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}


class HostReadError(AssertionError):
    """An operation that waits for the device, where none may."""


def reads(func: torch._ops.OpOverload, args: tuple) -> bool:
    """Whether the host has to know values of the operation's tensors."""
    name = func.overloadpacket.__name__
    if name == "repeat_interleave":
        return len(args) == 1  # without output_size the host adds the repeats up
    if name in ("index", "index_put", "index_put_", "_unsafe_index"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in READS


class NoHostReads(TorchDispatchMode):
    """Context that raises HostReadError for such an operation, in the calling thread and its backward passes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if reads(func, args):
            raise HostReadError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))
