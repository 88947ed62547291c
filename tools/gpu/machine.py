"""Prints as JSON what a check runs on: versions, processor and card; the first of its steps, which needs no build."""

import json
import platform
import sys

from benchmarks.environment import cores, output_of, versions_of

PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "setuptools", "ninja", "pytest", "pytest-xdist"),
    *("pytest-timeout", "hypothesis", "tyro", "mlxtend", "datasets", "kornia", "lightly", "pytorch-metric-learning"),
)
NVIDIA_SMI = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


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
