"""One forward and backward pass of the loss and one batch of views, between the marks that ncu profiles from and to.

ncu --profile-from-start off --set full --csv --page details python -m tools.gpu.profiled cpp|triton [--dry-run]
"""

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks.bench_augment import photographs
from benchmarks.ntxent_contestants import views
from simclr_fast import SimCLRAugment, ntxent_loss
from tools.gpu.bench import backend_of

CASES = ((4096, 128, torch.float16, "ieee"), (4096, 512, torch.float16, "ieee"), (4096, 128, torch.float32, "ieee"))


def calls(backend: str, device: torch.device, dry: bool) -> list[Callable[[], object]]:
    """What is profiled, on data that exists already."""

    def loss(n: int, d: int, dtype: torch.dtype, precision: str) -> Callable[[], object]:
        leaves = views(8 if dry else n, d, dtype, device)
        return lambda: torch.autograd.grad(ntxent_loss(*leaves, 0.1, backend=backend, precision=precision), leaves)

    batch, side, size = (2, 24, 20) if dry else (256, 256, 224)
    images = photographs(batch, side).to(device).contiguous(memory_format=torch.channels_last)
    augment = SimCLRAugment(size, dtype=torch.bfloat16, backend=backend)
    return [*(loss(*case) for case in CASES), lambda: augment(images, seed=1)]


def main() -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("backend", choices=("cpp", "triton"))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry_run else "cuda")
    backend = backend_of(options.backend, options.dry_run)
    work = calls(backend, device, options.dry_run)
    for call in work:  # compiles and initialises
        call()
    if options.dry_run:
        return 0
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for call in work:
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
