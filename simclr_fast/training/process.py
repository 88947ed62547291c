"""The training processes: started alone or by torchrun, with their device and what they tell each other."""

import dataclasses
import datetime
import os

import torch
import torch.distributed as dist

from simclr_fast.config import ConfigError

# How long processes wait for each other: longer than the main process takes for an evaluation.
PATIENCE = datetime.timedelta(hours=1)


@dataclasses.dataclass(frozen=True)
class Process:
    """One of `world_size` training processes and its device."""

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


def stop_process() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
