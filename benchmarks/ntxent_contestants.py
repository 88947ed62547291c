"""Who competes at NT-Xent: every backend of ours, plain PyTorch, and the peers, each as loss(z0, z1)."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Absent, Contestant, Laps
from simclr_fast import ntxent_loss
from simclr_fast.backends import why_not
from simclr_fast.ops.ntxent.reference import ntxent_textbook

OURS = ("cpp", "triton", "reference")
NAMES = (*OURS, "plain", "plain compiled", "lightly", "pytorch-metric-learning", "info-nce-pytorch", "inf-cl", "memeff")
# The last two compute the one-way loss of z0 against z1 (a quarter of the logits, no same-view negatives).
ONE_WAY = ("inf-cl", "memeff")
FEWEST_COMPILED = 128
MODULES = {
    "lightly": "lightly",
    "pytorch-metric-learning": "pytorch_metric_learning",
    "info-nce-pytorch": "info_nce",
    "inf-cl": "inf_cl",
    "memeff": "memeff",
}
Loss = Callable[[Tensor, Tensor], Tensor]


def extra_bytes(name: str, n: int, d: int) -> float:
    """About what the contestant needs beyond its inputs, in bytes, for one forward and backward pass in float32."""
    m = 2.0 * n
    if name == "pytorch-metric-learning":
        return 16 * m**3  # one row of all negatives for every positive pair, several times
    if name == "info-nce-pytorch":
        return 12 * m**2 * d  # its negatives are paired: [2N, 2N - 2, D]
    if name in ("plain", "plain compiled", "lightly", "reference"):
        return 16 * m**2
    return 64 * m * d


def _plain_compiled(temperature: float) -> Loss:
    return torch.compile(lambda z0, z1: ntxent_textbook(z0, z1, temperature), dynamic=False)


def _lightly(temperature: float) -> Loss:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=temperature)


def _metric_learning(temperature: float) -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss

    loss = NTXentLoss(temperature=temperature)

    def call(z0: Tensor, z1: Tensor) -> Tensor:
        labels = torch.arange(len(z0), device=z0.device)
        return loss(torch.cat([z0, z1]), torch.cat([labels, labels]))

    return call


def _info_nce(temperature: float) -> Loss:
    from info_nce import InfoNCE

    loss = InfoNCE(temperature=temperature, negative_mode="paired")

    def call(z0: Tensor, z1: Tensor) -> Tensor:
        n = len(z0)
        z = torch.cat([z0, z1])
        rows = torch.arange(2 * n, device=z.device)
        others = torch.ones(2 * n, 2 * n, dtype=torch.bool, device=z.device)
        others[rows, rows] = others[rows, (rows + n) % (2 * n)] = False
        negatives = others.nonzero()[:, 1].view(2 * n, 2 * n - 2)
        return loss(z, z.roll(n, 0), z[negatives])

    return call


def _inf_cl(temperature: float) -> Loss:
    import torch.nn.functional as F
    from inf_cl import cal_flash_loss

    return lambda z0, z1: cal_flash_loss(F.normalize(z0), F.normalize(z1), scale=1 / temperature).mean()


def _memeff(temperature: float) -> Loss:
    import torch.nn.functional as F
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss()
    scale = torch.tensor(1 / temperature)
    return lambda z0, z1: loss(F.normalize(z0), F.normalize(z1), scale.to(z0.device))


BUILDERS: dict[str, Callable[[float], Loss]] = {
    "plain": lambda t: lambda z0, z1: ntxent_textbook(z0, z1, t),
    "plain compiled": _plain_compiled,
    "lightly": _lightly,
    "pytorch-metric-learning": _metric_learning,
    "info-nce-pytorch": _info_nce,
    "inf-cl": _inf_cl,
    "memeff": _memeff,
    **{name: lambda t, name=name: lambda z0, z1: ntxent_loss(z0, z1, t, backend=name) for name in OURS},
}


def absent(name: str, n: int, d: int, device: torch.device, most_bytes: float) -> str | None:
    """Why this contestant does not take part in this case; None if it does."""
    if name in OURS and (reason := why_not(name, "ntxent_fwd", device)):
        return reason
    if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
        return "not installed"
    if name in ONE_WAY and device.type != "cuda":
        return "runs on CUDA only"
    if name == "plain compiled" and n < FEWEST_COMPILED:
        return f"compiled from N = {FEWEST_COMPILED} on"
    if (needs := extra_bytes(name, n, d)) > most_bytes:
        return f"needs about {needs / 2**30:.0f} GiB"
    return None


def views(n: int, d: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views as a half-trained network gives them: a positive pair shares a direction, with noise of its size."""
    generator = torch.Generator().manual_seed(1)
    base, a, b = (torch.randn(n, d, generator=generator) for _ in range(3))
    return tuple((base + noise).to(device, dtype).requires_grad_() for noise in (a, b))


def contestant(
    name: str, n: int, d: int, dtype: torch.dtype, temperature: float, device: torch.device, most_bytes: float
) -> Contestant | Absent:
    """The named contestant with its own copy of the views; run() returns (loss, dz0, dz1)."""
    if reason := absent(name, n, d, device, most_bytes):
        return Absent(name, reason)
    loss_function = BUILDERS[name](temperature)
    z0, z1 = views(n, d, dtype, device)

    def run(lap: Laps) -> tuple[Tensor, Tensor, Tensor]:
        loss = loss_function(z0, z1)
        lap("forward")
        gradients = torch.autograd.grad(loss, (z0, z1))
        lap("backward")
        return loss.detach(), *gradients

    return Contestant(name, run)


def memory_probe(name: str, n: int, d: int, dtype: str, temperature: float, device: str) -> Callable[[], object]:
    """For benchmarks.memory: one forward and backward pass, after a tiny one has initialised everything lazy."""
    at = torch.device(device)
    small = contestant(name, 8, d, getattr(torch, dtype), temperature, at, float("inf"))
    small.run(Laps(at))
    large = contestant(name, n, d, getattr(torch, dtype), temperature, at, float("inf"))
    return lambda: large.run(Laps(at))
