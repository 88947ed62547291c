"""Names for the phases of a training step, as the profiler shows them."""

import contextlib
from collections.abc import Iterator

import torch

_draining = False


def phase(name: str) -> contextlib.AbstractContextManager:
    """A named range in the profiler's trace; nothing inside a compiled graph."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _drained(name) if _draining else torch.profiler.record_function(name)


def drain_phases(on: bool) -> None:
    """Whether phases wait for the GPU at their end, so that their times are those of the work they queued."""
    global _draining
    _draining = on


@contextlib.contextmanager
def _drained(name: str) -> Iterator[None]:
    with torch.profiler.record_function(name):
        yield
        torch.cuda.synchronize()
