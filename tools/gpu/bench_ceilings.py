"""What the machine can do at best: bandwidth of a copy, rate of a large product per kind of operand, a launch."""

from dataclasses import asdict

import torch

from tools.gpu.bench import Bench
from tools.gpu.device import MIB, Device, Timing
from tools.gpu.machine import output_of

# The kinds of NT-Xent that are measured: (dtype of the views, `precision`, torch's float32 matmul precision).
KINDS = {
    "fp16": (torch.float16, "ieee", "highest"),
    "bf16": (torch.bfloat16, "ieee", "highest"),
    "tf32": (torch.float32, "tf32", "high"),
    "ieee": (torch.float32, "ieee", "highest"),
}
# A product with float32's accuracy on tensor cores takes three of tf32.
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
PRODUCT_OF = {"fp16": ("fp16", 1), "bf16": ("bf16", 1), "tf32": ("tf32", 1), "ieee": ("tf32", 3)}


def copy_timing(device: Device, moved: int) -> Timing:
    """Of a copy on the device that reads and writes so many bytes together.

    By a kernel, which is what others are compared with: copy_ in a CUDA graph is a copy node, two thirds as fast.
    """
    source = torch.randint(0, 2**31 - 1, (moved // 8,), dtype=torch.int32, device=device.torch)
    target = torch.empty_like(source)
    return device.timed(lambda: torch.bitwise_not(source, out=target))


def product_tflops(bench: Bench, kind: str) -> float:
    """TFLOP/s of a large product of this kind, measured once."""
    rates = bench.found.setdefault("ceilings", {}).setdefault("product TFLOP/s", {})
    if kind not in rates:
        dtype, _, precision = KINDS[kind]
        side = 64 if bench.dry else 8192
        torch.set_float32_matmul_precision(precision)
        x, y = (torch.randn(side, side, device=bench.device.torch).to(dtype) for _ in range(2))
        rates[kind] = 2 * side**3 / bench.device.called(lambda: x @ y, 0.1).ms / 1e9
    return rates[kind]


def limit_ms(bench: Bench, kind: str, rows: int, columns: int) -> float:
    """Milliseconds of 2.5 M^2 D multiply-adds at the product's rate, M = rows, D = columns."""
    product, times = PRODUCT_OF[kind]
    return times * 5.0 * rows**2 * columns / product_tflops(bench, product) / 1e9


def run(bench: Bench) -> None:
    """found["ceilings"]."""
    device, found = bench.device, bench.found.setdefault("ceilings", {})
    moved = MIB if bench.dry else 2048 * MIB
    copy = copy_timing(device, moved)
    found["copy GB/s"] = moved / copy.ms / 1e6
    found["copy"] = asdict(copy)
    for kind in KINDS:
        product_tflops(bench, kind)
    found["clocks after the products"] = output_of("nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader")
    one = torch.zeros(1, device=device.torch)
    found["host us of one torch op"] = device.host_us(lambda: one.add_(1))
    found["empty launch us"] = 1e3 * device.replayed(lambda: one.add_(1)).ms
