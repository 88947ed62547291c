"""What a step of the Triton loss costs the host, with a stand-in for compiled kernels that does nothing.

python -m tests.triton_standin.host_time      prints microseconds of processor time, least of many rounds
"""

import itertools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from triton.runtime.jit import JITFunction

from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_tiles import Target

ROUNDS, CALLS = 40, 50
_ALLOCATE = {"new_empty", "empty", "empty_like", "split_with_sizes"}


class _Compiled:
    """A compiled kernel."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *values: None


class _Allocations(TorchFunctionMode):
    """Notes the calls that allocate, to make them again without the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Callable, tuple, dict[str, Any]]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in _ALLOCATE:
            self.noted.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    def again(self) -> None:
        """All of them."""
        for function, args, kwargs in self.noted:
            function(*args, **kwargs)


def microseconds(calls: list[Callable[[], object]]) -> list[float]:
    """Processor time of each call, taken in turns: the least of the rounds, for other programs only add to it."""
    least = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            start = time.process_time()
            for _ in range(CALLS):
                call()
            least[i] = min(least[i], (time.process_time() - start) / CALLS * 1e6)
    return least


def steps(dtype: torch.dtype, learned: bool) -> dict[str, Callable[[], object]]:
    """Forward and backward, of a batch so small that its buffers come of malloc's free lists."""
    target = Target(90, 132)
    backend = TritonNtxent(target=lambda device: target)
    z0, z1 = torch.ones(2, 64, 32, dtype=dtype)
    dloss = torch.ones(())
    temperature = (0.0, torch.tensor(0.1)) if learned else (0.1, None)
    how = (1e-8, *temperature, "mean", "ieee")

    def two_ops() -> None:
        _, *saved = backend.normalize_fwd(z0, z1, *how)
        backend.bwd(dloss, z0, z1, *saved, 0, "mean", 1e-8, *temperature, "ieee", learned)

    return {"forward and backward": two_ops, "both in one": lambda: backend.fwd_bwd(z0, z1, *how, learned)}


def main() -> None:
    torch.set_num_threads(1)
    with mock.patch.object(JITFunction, "__getitem__", return_value=lambda **_: _Compiled()), torch.no_grad():
        for dtype, learned in itertools.product((torch.float16, torch.float32), (False, True)):
            for name, run in steps(dtype, learned).items():
                run()
                with _Allocations() as allocations:
                    run()
                whole, alone = microseconds([run, allocations.again])
                print(f"{name}, {dtype}, temperature {'learned' if learned else 'fixed'}: {whole:.0f} us,", end=" ")
                print(f"{alone:.0f} of them for {len(allocations.noted)} allocations; {whole - alone:.0f} besides")


if __name__ == "__main__":
    main()
