"""A stand-in for CUDA graphs on a CPU: records the operations of some work, and does them again on the same memory.

As a graph does, a replay reads and writes the tensors of the recording and runs no Python: a number that the host
computed stays what it was. Recording leaves all that was there before as it was, as a capture, which executes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_fast.training.step_graph import Recorded, Work
from tests.host_reads import HostReadError, reads


class _Recording(TorchDispatchMode):
    """Collects the operations below autograd, and copies of the memory that was there before them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if reads(func, args):
            raise HostReadError(f"{func} waits for the device")
        for storage in map(Tensor.untyped_storage, _tensors((args, kwargs))):
            if storage._cdata not in self.made and storage._cdata not in self.before:
                self.before[storage._cdata] = storage, storage.clone()
        outputs = func(*args, **kwargs)
        for storage in map(Tensor.untyped_storage, _tensors(outputs)):
            if storage._cdata not in self.before:
                self.made[storage._cdata] = storage
        self.calls.append((func, args, kwargs, outputs))
        return outputs

    def undo(self) -> None:
        for storage, copy in self.before.values():
            storage.copy_(copy)


class Recorder:
    """`Capture` on a CPU."""

    def __init__(self) -> None:
        self.records = 0
        self.replays = 0

    def eager(self, work: Work) -> Any:
        return work()

    def record(self, works: Sequence[Work]) -> list[Recorded]:
        return [self._record(work) for work in works]

    def _record(self, work: Work) -> Recorded:
        generator = torch.get_rng_state()
        recording = _Recording()
        with recording:
            result = work()
        recording.undo()
        torch.set_rng_state(generator)
        self.records += 1

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, outputs in recording.calls:
                    again = func(*args, **kwargs)
                    for old, new in zip(_tensors(outputs), _tensors(again), strict=True):
                        if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                            assert (old.shape, old.stride(), old.dtype) == (new.shape, new.stride(), new.dtype)
                            old.untyped_storage().copy_(new.untyped_storage())

        return replay, result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
