"""The processes of a program: started alone or by torchrun, telling each other, asked to stop, and how they end."""

import dataclasses
import datetime
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

import torch
import torch.distributed as dist

from simclr_fast.errors import ConfigError, status_and_message

# How long processes wait for each other: longer than the main process takes for an evaluation.
PATIENCE = datetime.timedelta(hours=1)


@dataclasses.dataclass(frozen=True)
class Process:
    """One of `world_size` processes and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world_size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process; every process must call it at the same step."""
        if self.world_size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.item() > 0


def start_process(device: str, threads: int = 0) -> Process:
    """Join torchrun's process group if torchrun started this process, and choose the device.

    device: auto, cpu or cuda; threads: CPU threads, 0 for torch's choice. Raises ConfigError without the device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; pass --device cpu")
    if threads > 0:
        torch.set_num_threads(threads)
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(f"--nproc-per-node: this host has only {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(local_rank)
        chosen = torch.device("cuda", local_rank)
    else:
        chosen = torch.device("cpu")
    if "RANK" in os.environ and not dist.is_initialized():
        backend, device_id = ("nccl", chosen) if device == "cuda" else ("gloo", None)
        dist.init_process_group(backend, device_id=device_id, timeout=PATIENCE)
    return Process(rank, world_size, chosen)


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for --amp-dtype, None for no autocast. Raises ConfigError where the GPU has no bfloat16."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("--amp-dtype bfloat16: this GPU has none; pass float16")
    return None if name == "float32" else getattr(torch, name)


def compile_backend(name: str, device: torch.device) -> str | None:
    """torch.compile's backend for --torchcompile, None to compile nothing."""
    if name == "auto":
        return "inductor" if device.type == "cuda" else None
    return None if name == "off" else name


class StopSignals:
    """Context in which the first SIGTERM or SIGINT is only noted; a second one acts as it would have outside.

    The loop honours the request between two steps. In a thread other than the main one, to which Python brings no
    signal, it notes nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT) if in_main_thread else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def exit_status(program: str, work: Callable[[], int]) -> int:
    """Do a program's work, leave the process group that it joined, and return the exit status.

    That is what `work` returns, or for an error that its user can mend the one in `errors.EXIT_STATUS`, after one line
    on stderr instead of a traceback. Any other exception is a defect and passes through.
    """
    try:
        return work()
    except Exception as error:
        ending = status_and_message(error)
        if ending is None:
            raise
        status, message = ending
        print(f"{program}: error: {message}", file=sys.stderr)
        return status
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        stop_process()


def stop_process() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
