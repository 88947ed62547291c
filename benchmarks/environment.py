"""What a figure was measured on: hardware, clocks, versions, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from simclr_fast._extension import build_info

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("torch", "torchvision", "triton", "lightly", "pytorch-metric-learning", "info-nce-pytorch", "inf-cl", "memeff"),
    *("kornia", "albumentations", "nvidia-dali-cuda130"),
)


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()
    except FileNotFoundError:
        return ""


def _cpuinfo(field: str) -> str:
    """The first core's value of a field of /proc/cpuinfo; empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith(field):
            return line.split(":", 1)[1].strip()
    return ""


def environment(device: torch.device, threads: int, scale: str) -> dict[str, object]:
    """Hardware, versions, commit and the extent of the run, as JSON-ready values."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    found = {
        "device": str(device),
        "scale": scale,
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cpu_mhz": float(_cpuinfo("cpu MHz") or 0) or None,
        # Beyond the threads of the run itself, others were working too and the figures are noisier.
        "load_before": round(os.getloadavg()[0], 1),
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "extension": build_info(),
        "versions": versions,
        "commit": _command("git", "rev-parse", "--short", "HEAD"),
        "modified": bool(_command("git", "status", "--porcelain", "--untracked-files=no")),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,driver_version"
        found["clocks"] = _command("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return found
