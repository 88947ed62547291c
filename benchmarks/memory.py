"""Peak memory of one call, in a fresh process, over what was there before it.

A probe is a function "module:name" that gets keyword arguments and returns the call to measure; only what that call
allocates is counted. On the CPU the process is forked from a server that has imported torch and started no thread, so
that a measurement takes no more than the probe itself.
"""

import ctypes
import gc
import importlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

THREADS = 2


def peak_bytes(probe: str, arguments: dict[str, object], preload: tuple[str, ...] = ()) -> int:
    """Runs the probe in a fresh process and returns the peak of its call in bytes above the baseline.

    `preload` names modules that the server imports once, for all probes.
    """
    # An import may ask for CUDA devices, after which a fork cannot use them.
    context = multiprocessing.get_context("spawn" if arguments.get("device") == "cuda" else "forkserver")
    if arguments.get("device") != "cuda":
        context.set_forkserver_preload([probe.split(":")[0], *preload])
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (THREADS,)) as fresh:
        try:
            return fresh.submit(_measure, probe, arguments).result()
        except Exception as error:
            raise RuntimeError(f"the memory probe {probe} failed with {arguments}: {error!r}") from error


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    """What the call allocates on the device at most, in bytes beyond what is held before it."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _measure(probe: str, arguments: dict[str, object]) -> int:
    module, function = probe.split(":")
    device = torch.device(arguments.get("device", "cpu"))
    call = getattr(importlib.import_module(module), function)(**arguments)
    gc.collect()
    if device.type == "cuda":
        return cuda_peak(call, device)
    # glibc's M_MMAP_THRESHOLD: all large memory goes back to the system when it is freed, in every run alike.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before the call must not hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)
