"""What belongs to the whole process, and to whoever calls us: put back when a training or an evaluation has ended."""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from simclr_fast.errors import ConfigError
from simclr_fast.process import stop_process

PACKAGE_LOG = logging.getLogger("simclr_fast")
# How long work waits for that of another thread (seconds): longer than a backbone takes to load.
PATIENCE = 10.0
_AT_WORK = threading.RLock()


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as in a fresh program, whatever the caller has set around the call.

    Gradients are recorded, nothing is autocast, and new tensors are float32 and on the CPU.
    """
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextlib.contextmanager
def callers_state(work: str) -> Iterator[None]:
    """Work alone, in plain torch; put back threads, precisions, CUDA device and generators; leave a joined group.

    Float32 products and convolutions are exact on the CPU meanwhile, and products on CUDA, as in a fresh program.
    Generators of GPUs are put back where CUDA was in use before. work: as `alone` takes it, which may raise.
    """
    with alone(work):
        put_back_precisions = _precisions()
        threads, generators = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
        cuda = (torch.cuda.current_device(), torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else None
        joined = dist.is_initialized()
        try:
            with plain_torch():
                torch.set_float32_matmul_precision("highest")
                for place in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn):
                    place.fp32_precision = "ieee"
                yield
        finally:
            if not joined:
                stop_process()
            if cuda is not None:
                torch.cuda.set_device(cuda[0])
                torch.cuda.set_rng_state_all(cuda[1])
            random.setstate(generators[0])
            np.random.set_state(generators[1])
            torch.set_rng_state(generators[2])
            torch.set_num_threads(threads)
            put_back_precisions()


@contextlib.contextmanager
def alone(work: str) -> Iterator[None]:
    """Work that no other thread of the process does at the same time, since torch's settings and generators are shared.

    Within it the same thread may begin such work again. Short work of another thread is waited for; raises ConfigError,
    which names the work, where that takes long.
    """
    if not _AT_WORK.acquire(timeout=PATIENCE):
        raise ConfigError(
            f"{work}: another thread of this process trains or evaluates, and torch's random generators and settings "
            "belong to the whole process; wait for its end, or start another process"
        )
    try:
        yield
    finally:
        _AT_WORK.release()


def _precisions() -> Callable[[], None]:
    """What puts back the precisions of float32 products and convolutions, by torch's older and newer names of them."""
    backends = torch.backends
    newer = backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
    newer += backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn
    precisions = [place.fp32_precision for place in newer]
    try:
        matmul, cudnn = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # torch refuses to tell where the caller has set what the older names cannot say
        matmul = cudnn = None

    def put_back() -> None:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
            backends.cudnn.allow_tf32 = cudnn
        for place, value in zip(newer, precisions):
            place.fp32_precision = value

    return put_back


@contextlib.contextmanager
def log_shown(level: int) -> Iterator[None]:
    """Show the package's log on stderr, from this level on, where the caller has set up no logging of its own."""
    if PACKAGE_LOG.hasHandlers():
        yield
        return
    handler, before = logging.StreamHandler(), PACKAGE_LOG.level
    handler.setFormatter(logging.Formatter("simclr_fast: %(message)s"))
    PACKAGE_LOG.addHandler(handler)
    PACKAGE_LOG.setLevel(level)
    try:
        yield
    finally:
        PACKAGE_LOG.removeHandler(handler)
        PACKAGE_LOG.setLevel(before)
