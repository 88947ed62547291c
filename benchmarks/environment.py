"""What a figure was measured on: hardware, clocks, versions, commit.

The GPU check asks here, too, before anything is built: only `environment` needs torch and the package.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("torch", "torchvision", "triton", "lightly", "pytorch-metric-learning", "info-nce-pytorch", "inf-cl", "memeff"),
    *("open-clip-torch", "simclr", "siglip-kernel"),
    *("kornia", "albumentations", "nvidia-dali-cuda130"),
)


def output_of(*command: str) -> str:
    """What a command prints, or nothing where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else ""


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of every package, None where it is not installed."""
    there = {name: next(iter(importlib.metadata.distributions(name=name)), None) for name in packages}
    return {name: None if found is None else found.version for name, found in there.items()}


def cores() -> int | None:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def commit_of_checkout(short: str = "--short") -> tuple[str, bool]:
    """The checkout's commit, "" where git cannot say, and whether files were changed since."""
    git = ("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT))
    changed = output_of(*git, "status", "--porcelain", "--untracked-files=no")
    return output_of(*git, "rev-parse", short, "HEAD"), bool(changed)


def _cpuinfo(field: str) -> str:
    """The first core's value of a field of /proc/cpuinfo; empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    value = re.search(rf"^{field}.*?:\s*(.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return value[1].strip() if value else ""


def environment(device: str, threads: int, scale: str) -> dict[str, object]:
    """Hardware, versions, commit and the extent of the run, as JSON-ready values."""
    import torch

    from simclr_fast._extension import build_info

    commit, modified = commit_of_checkout()
    found = {
        "device": device,
        "scale": scale,
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cpu_mhz": float(_cpuinfo("cpu MHz") or 0) or None,
        # Beyond the threads of the run itself, others were working too and the figures are noisier.
        "load_before": round(os.getloadavg()[0], 1),
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "extension": build_info(),
        "versions": versions_of(PACKAGES),
        "commit": commit,
        "modified": modified,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,driver_version"
        found["clocks"] = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return found
