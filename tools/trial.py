"""Calls an installed simclr_fast: loss and augmentation by its compiled kernels, beside plain PyTorch; prints JSON.

Run by its path with the Python to be tried, which needs the package and torch alone: python tools/trial.py
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import simclr_fast
from simclr_fast import SimCLRAugment, ntxent_loss
from simclr_fast._extension import build_info


def error(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((one - other).abs().max() / other.abs().max()).item()


def loss_and_gradients(backend: str) -> list[Tensor]:
    """The loss of 24 pairs of 20 features, and its derivatives by both views."""
    generator = torch.Generator().manual_seed(1)
    z0, z1 = (torch.randn(24, 20, generator=generator).requires_grad_() for _ in range(2))
    loss = ntxent_loss(z0, z1, temperature=0.2, backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss, (z0, z1))]


def views(backend: str) -> list[Tensor]:
    """Two augmented views of three images."""
    images = torch.randint(0, 256, (3, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return [SimCLRAugment(24, backend=backend)(images, seed=5)]


def compare(make: Callable[[str], list[Tensor]]) -> float:
    """The largest error of the compiled kernels' results."""
    return max(error(one, other) for one, other in zip(make("cpp"), make("reference")))


if __name__ == "__main__":
    answer = {
        "package": str(Path(simclr_fast.__file__).parent),
        "version": simclr_fast.__version__,
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": torch.__version__,
        "build": build_info(),
        "loss_error": compare(loss_and_gradients),
        "views_error": compare(views),
    }
    sys.stdout.write(json.dumps(answer) + "\n")
