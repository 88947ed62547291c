"""Peak memory of one call, in a fresh process, over what was there before it.

    python -m benchmarks.memory benchmarks.ntxent_contestants:memory_probe '{"name": "cpp", "n": 512, "d": 128}'

The probe gets the JSON's arguments and returns a function; only what that function allocates is counted.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import torch


def peak_bytes(probe: str, arguments: dict[str, object]) -> int:
    """Runs the probe in a fresh process and returns the peak of its call in bytes above the baseline."""
    command = [sys.executable, "-m", "benchmarks.memory", probe, json.dumps(arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"the memory probe {probe} failed with {arguments}: {run.stderr.strip().splitlines()[-1:]}")
    return int(run.stdout)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def _measure(probe: str, arguments: dict[str, object]) -> int:
    module, function = probe.split(":")
    device = torch.device(arguments.get("device", "cpu"))
    call = getattr(importlib.import_module(module), function)(**arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.stdout.write(f"{_measure(sys.argv[1], json.loads(sys.argv[2]))}\n")
