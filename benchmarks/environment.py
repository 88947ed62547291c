"""What a figure was measured on: hardware, clocks, versions, commit."""

import os
import platform
import re
from pathlib import Path

import torch

from simclr_fast._extension import build_info
from tools.gpu.machine import commit_of_checkout, cores, output_of, versions_of

PACKAGES = (
    *("torch", "torchvision", "triton", "lightly", "pytorch-metric-learning", "info-nce-pytorch", "inf-cl", "memeff"),
    *("kornia", "albumentations", "nvidia-dali-cuda130"),
)


def _cpuinfo(field: str) -> str:
    """The first core's value of a field of /proc/cpuinfo; empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    value = re.search(rf"^{field}.*?:\s*(.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return value[1].strip() if value else ""


def environment(device: torch.device, threads: int, scale: str) -> dict[str, object]:
    """Hardware, versions, commit and the extent of the run, as JSON-ready values."""
    commit, modified = commit_of_checkout()
    found = {
        "device": str(device),
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
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,driver_version"
        found["clocks"] = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return found
