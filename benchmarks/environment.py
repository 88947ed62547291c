"""What a figure was measured on: hardware, clocks, versions, commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from simclr_fast._extension import build_info

PACKAGES = (
    *("torch", "torchvision", "triton", "lightly", "pytorch-metric-learning", "info-nce-pytorch", "inf-cl", "memeff"),
    *("kornia", "albumentations", "nvidia-dali-cuda130"),
)


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(device: torch.device, threads: int) -> dict[str, object]:
    """Hardware, versions and commit, as JSON-ready values."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    found = {
        "device": str(device),
        "processor": _processor(),
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
