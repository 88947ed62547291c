"""Who competes at NT-Xent: every backend of ours, plain PyTorch, and the peers, each as loss(z0, z1)."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Absent, Check, Contestant, Laps, installed
from benchmarks.ntxent_truth import clip_loss_and_sampled_gradients, loss_and_sampled_gradients
from simclr_fast import ntxent_loss
from simclr_fast.backends import BACKENDS, why_not
from simclr_fast.ops.ntxent.reference import ntxent_textbook

NAMES = (
    *(*BACKENDS, "plain", "plain compiled"),
    *("lightly", "pytorch-metric-learning", "info-nce-pytorch", "inf-cl", "memeff"),
)
# These have no NT-Xent, only the loss of one view against the other, and are checked against that.
CLIP_LOSSES = {
    "inf-cl": "one-way loss of view 0 against view 1, a quarter of the logits",
    "memeff": "CLIP loss of the two views, a quarter of the logits",
}
MODULES = {
    "lightly": "lightly.loss",
    "pytorch-metric-learning": "pytorch_metric_learning.losses",
    "info-nce-pytorch": "info_nce",
    "inf-cl": "inf_cl",
    "memeff": "memeff",
}
# Loss and gradient, relative to float64 of the same inputs: a contestant above this computed something else.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 3e-2}
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
        steps = torch.cat([rows[1:n], rows[n + 1 :]])  # from a row to its negatives: all but 0 and n
        return loss(z, z.roll(n, 0), z[(rows[:, None] + steps) % (2 * n)])

    return call


def _inf_cl(temperature: float) -> Loss:
    import torch.nn.functional as F
    from inf_cl import cal_flash_loss

    def call(z0: Tensor, z1: Tensor) -> Tensor:
        u0, u1 = F.normalize(z0), F.normalize(z1)
        return cal_flash_loss(u0, u1, scale=1 / temperature, head_dim=z0.shape[1]).mean()

    return call


def _memeff(temperature: float) -> Loss:
    from memeff import MemoryEfficientCLIPLoss

    return MemoryEfficientCLIPLoss(temperature, stable=False)  # "stable" returns another gradient


BUILDERS: dict[str, Callable[[float], Loss]] = {
    "plain": lambda t: lambda z0, z1: ntxent_textbook(z0, z1, t),
    "plain compiled": lambda t: torch.compile(lambda z0, z1: ntxent_textbook(z0, z1, t), dynamic=False),
    "lightly": _lightly,
    "pytorch-metric-learning": _metric_learning,
    "info-nce-pytorch": _info_nce,
    "inf-cl": _inf_cl,
    "memeff": _memeff,
    **{name: lambda t, name=name: lambda z0, z1: ntxent_loss(z0, z1, t, backend=name) for name in BACKENDS},
}


def absent(name: str, n: int, d: int, dtype: torch.dtype, device: torch.device, most_bytes: float) -> str | None:
    """Why this contestant does not take part in this case; None if it does."""
    if name in BACKENDS and (reason := why_not(name, "ntxent_fwd", device, dtype)):
        return reason
    if name in CLIP_LOSSES and device.type != "cuda":
        return "needs a CUDA GPU"
    if name in MODULES and not installed(MODULES[name]):
        return "not installed"
    if (needs := extra_bytes(name, n, d)) > most_bytes:
        return f"needs about {needs / 2**30:.0f} GiB"
    return None


def views(n: int, d: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two views as a half-trained network gives them: a positive pair shares a direction, with noise of its size."""
    generator = torch.Generator().manual_seed(1)
    base, a, b = (torch.randn(n, d, generator=generator) for _ in range(3))
    return tuple((base + noise).to(device, dtype).requires_grad_() for noise in (a, b))


Truth = tuple[Tensor, Tensor, Tensor]


def errors(result: tuple[Tensor, ...], truth: Truth, scale: float = 1.0) -> tuple[float, float]:
    """Relative errors of (loss, scale * dz0, scale * dz1), of the loss and of the gradient in the truth's rows.

    truth: (loss, rows, gradient of the rows).
    """
    loss, rows, gradients = truth
    off = (result[0].double() - loss).abs() / loss
    difference = torch.cat(result[1:])[rows].double() / scale - gradients
    return off.item(), (difference.norm() / gradients.norm()).item()


def check_against(truth: Truth, dtype: torch.dtype) -> Check:
    """check((loss, dz0, dz1)) gives the larger relative error and the tolerance."""
    return lambda result: (max(errors(result, truth)), TOLERANCE[dtype])


def check_ntxent(z0: Tensor, z1: Tensor, temperature: float) -> Check:
    """The check of everybody who computes NT-Xent of these views."""
    return check_against(loss_and_sampled_gradients(z0, z1, temperature), z0.dtype)


def contestant(
    name: str, n: int, d: int, dtype: torch.dtype, temperature: float, device: torch.device, most_bytes: float
) -> Contestant | Absent:
    """The named contestant with its own copy of the views; run() returns (loss, dz0, dz1)."""
    if reason := absent(name, n, d, dtype, device, most_bytes):
        return Absent(name, reason)
    loss_function = BUILDERS[name](temperature)
    z0, z1 = views(n, d, dtype, device)

    def run(lap: Laps) -> tuple[Tensor, Tensor, Tensor]:
        loss = loss_function(z0, z1)
        lap("forward")
        gradients = torch.autograd.grad(loss, (z0, z1))
        lap("backward")
        return loss.detach(), *gradients

    check = None
    if name in CLIP_LOSSES:
        check = check_against(clip_loss_and_sampled_gradients(z0, z1, temperature, name == "memeff"), dtype)
    return Contestant(name, run, check, CLIP_LOSSES.get(name, ""))


def memory_probe(name: str, n: int, d: int, dtype: str, temperature: float, device: str) -> Callable[[], object]:
    """For benchmarks.memory: one forward and backward pass, after one that has initialised everything lazy.

    That one is tiny, but for the compiled contestant, which would compile again for another shape.
    """
    at = torch.device(device)
    made = lambda samples: contestant(name, samples, d, getattr(torch, dtype), temperature, at, float("inf"))
    made(n if "compiled" in name else 8).run(Laps(at))
    large = made(n)
    if "compiled" in name:
        large.run(Laps(at))
    return lambda: large.run(Laps(at))
