"""Prints as JSON what a check runs on: versions, processor and card; the first of its steps, which needs no build."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "setuptools", "ninja", "pybind11", "pytest", "pytest-xdist"),
    *("pytest-timeout", "hypothesis", "tyro", "mlxtend", "datasets", "kornia", "lightly", "pytorch-metric-learning"),
)
NVIDIA_SMI = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


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


def describe() -> dict:
    """The machine."""
    import torch

    found = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "cores": cores(),
        "versions": versions_of(PACKAGES),
        "torch's CUDA": torch.version.cuda,
        "nvcc": output_of("nvcc", "--version").split("\n")[-1],
        "compiler": output_of("c++", "--version").split("\n")[0],
        "nvidia-smi": output_of("nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader"),
        "gpu": None,
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": card.name,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory GiB": round(card.total_memory / 2**30, 1),
            "L2 MiB": round(getattr(card, "L2_cache_size", 0) / 2**20, 1),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(describe()))
