"""Peak memory of SupCon and CLIP on the CPU, in a fresh process.

Of forward and backward, with the gradients, what joins two views, and the unit rows that the loss makes of them.
"""

import sys

import pytest

from tests.helpers import peak_mib

PEAK = """
import sys
from pathlib import Path
import torch
from simclr_fast import clip_loss, sup_con_loss

def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024

def sup_con(rows):
    z0, z1 = (torch.randn(rows // 2, 128, requires_grad=True) for _ in range(2))
    labels = torch.arange(rows) % 1000
    return lambda: sup_con_loss(torch.cat([z0, z1]), labels, 0.1, backend="cpp")

def clip(rows):
    x, y = (torch.randn(rows, 512, requires_grad=True) for _ in range(2))
    return lambda: clip_loss(x, y, 10.0, normalize=True, backend="cpp")

def extra_peak(loss):
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    loss().backward()
    return resident("VmHWM") - before

loss, rows = {"sup_con": sup_con, "clip": clip}[sys.argv[1]], int(sys.argv[2])
extra_peak(loss(64))  # threads and libraries
print(extra_peak(loss(rows)))
"""


@pytest.mark.proof
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("loss", "rows", "mib"), [("sup_con", 16384, 64), ("clip", 8192, 96)])
def test_memory_is_linear(loss: str, rows: int, mib: float) -> None:
    assert peak_mib(PEAK, loss, rows) <= mib
