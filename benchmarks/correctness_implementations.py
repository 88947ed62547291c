"""Who is measured: ours by backend, the formulas as usually written, and the packages, each as call(z0, z1, *extra)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ntxent_contestants
from benchmarks.correctness_cases import BANK, LOSSES
from benchmarks.harness import installed
from simclr_fast import NTXentLoss, clip_loss, distributed, info_nce_loss, sup_con_loss
from simclr_fast.backends import BACKENDS, why_not
from simclr_fast.ops.ntxent.reference import ntxent_textbook, unit_rows

Build = Callable[[float], Callable[..., Tensor]]  # of a temperature


@dataclass(frozen=True)
class Implementation:
    """One way to compute a loss. `gathered` builds its form for several processes, called on a process's own rows.

    module: what must be importable; op: of ours, which must serve the device.
    """

    loss: str
    name: str
    build: Build
    gathered: Build | None = None
    module: str = ""
    backend: str = ""
    op: str = ""
    needs_cuda: bool = False

    def absent(self, device: torch.device) -> str | None:
        """Why it is not measured; None if it is."""
        if self.backend and (reason := why_not(self.backend, self.op, device)):
            return reason
        if self.module and not installed(self.module):
            return "not installed"
        return "needs a CUDA GPU" if self.needs_cuda and device.type != "cuda" else None


def _diagonal(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def plain_info_nce(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the cosines of z0 against those of z1."""
    return F.cross_entropy(F.normalize(z0) @ F.normalize(z1).T / temperature, _diagonal(z0))


def plain_clip(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The pseudocode of the CLIP paper (Radford et al. 2021, figure 3)."""
    logits = F.normalize(z0) @ F.normalize(z1).T / temperature
    return (F.cross_entropy(logits, _diagonal(z0)) + F.cross_entropy(logits.T, _diagonal(z0))) / 2


def plain_bank(z0: Tensor, z1: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """The pseudocode of the MoCo paper (He et al. 2020, algorithm 1), without its momentum encoder."""
    q, k = F.normalize(z0), F.normalize(z1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ bank.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(_diagonal(z0)))


def plain_sup_con(z0: Tensor, z1: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L_out of Khosla et al. 2020 (equation 2), the mean over the rows that have a positive."""
    u = F.normalize(torch.cat([z0, z1]))
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    log_p = (u @ u.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    positives = (labels[:, None] == labels) & ~itself
    count = positives.sum(1)
    return -(log_p.masked_fill(~positives, 0).sum(1) / count.clamp_min(1)).sum() / (count > 0).sum()


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward sums what the ranks make of them (`summed`), or takes this rank's part alone."""

    @staticmethod
    def forward(ctx, x: Tensor, summed: bool) -> Tensor:
        ctx.summed = summed
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.summed:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()], None


def solo_learn(z0: Tensor, z1: Tensor, temperature: float, gather=lambda x: x, first: int = 0) -> Tensor:
    """-log of the positive's share in sums of exp that nothing is subtracted from, as solo-learn's SimCLR has it."""
    u0, u1 = F.normalize(z0), F.normalize(z1)
    rows, columns = torch.cat([u0, u1]), torch.cat([gather(u0), gather(u1)])
    n, mine = len(columns) // 2, torch.arange(len(u0), device=z0.device) + first
    e = (rows @ columns.T / temperature).exp()
    itself, positive = torch.cat([mine, mine + n]), torch.cat([mine + n, mine])
    e_positive = e.gather(1, positive[:, None])[:, 0]
    others = torch.ones_like(e).scatter(1, torch.stack([itself, positive], 1), 0.0)
    return -(e_positive / (e_positive + (e * others).sum(1))).log().mean()


def spijkervet(z0: Tensor, z1: Tensor, temperature: float, gather=lambda x: x) -> Tensor:
    """Cross-entropy of nn.CosineSimilarity over all pairs of broadcast rows, as Spijkervet's repository has it."""
    z = torch.cat([gather(z0), gather(z1)])
    cosines = F.cosine_similarity(z[:, None], z[None], dim=2) / temperature
    cosines = cosines.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    return F.cross_entropy(cosines, _diagonal(z).roll(len(z) // 2))


def _gathered_solo_learn(temperature: float):
    gather = lambda x: _Gather.apply(x, True)
    return lambda z0, z1: solo_learn(z0, z1, temperature, gather, dist.get_rank() * len(z0))


def _spijkervet_package(temperature: float, world: Callable[[], int] = lambda: 1):
    from simclr.modules import NT_Xent

    made = {}  # by batch size, which it wants to be told when it is made

    def call(z0: Tensor, z1: Tensor) -> Tensor:
        if len(z0) not in made:
            made[len(z0)] = NT_Xent(len(z0), temperature, world())
        return made[len(z0)](z0, z1)

    return call


def _lightly_gathered(temperature: float):
    from lightly.loss import NTXentLoss as Theirs

    return Theirs(temperature, gather_distributed=True)


def _lightly_bank(temperature: float, gathered: bool = False):
    from lightly.loss import NTXentLoss as Theirs

    made = {}  # by the bank's shape, which it wants to be told when it is made

    def call(z0: Tensor, z1: Tensor, bank: Tensor) -> Tensor:
        if bank.shape not in made:
            made[bank.shape] = Theirs(temperature, tuple(bank.shape), gather_distributed=gathered).to(z0.device)
        made[bank.shape].memory_bank.bank.copy_(bank)
        return made[bank.shape](z0, z1)

    return call


def _metric_learning(temperature: float, which: str, gathered: bool = False):
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    loss = getattr(losses, which)(temperature=temperature)
    loss = DistributedLossWrapper(loss) if gathered else loss

    def call(z0: Tensor, z1: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            own = _diagonal(z0) + (dist.get_rank() * len(z0) if gathered else 0)
            labels = torch.cat([own, own])
        return loss(torch.cat([z0, z1]), labels)

    return call


def _info_nce_package(temperature: float):
    from info_nce import InfoNCE

    return InfoNCE(temperature=temperature)


def _unit(z: Tensor) -> Tensor:
    """Unit rows as exact as z's dtype holds them, for losses that take rows as they are."""
    return unit_rows(z).to(z.dtype)


def _clip_of_unit_rows(temperature: float, backend: str, group=None):
    return lambda z0, z1: clip_loss(_unit(z0), _unit(z1), 1 / temperature, group=group, backend=backend)


def _open_clip(temperature: float, **options: bool):
    """Its features come normalised from the model."""
    from open_clip import ClipLoss

    def call(z0: Tensor, z1: Tensor) -> Tensor:
        ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()} if options else {}
        return ClipLoss(**options, **ranks)(_unit(z0), _unit(z1), 1 / temperature)

    return call


def _our_bank(temperature: float, backend: str, gathered: bool = False):
    made = {}  # by the bank's shape

    def call(z0: Tensor, z1: Tensor, bank: Tensor) -> Tensor:
        if bank.shape not in made:
            loss = NTXentLoss(temperature, tuple(bank.shape), gather_distributed=gathered, backend=backend)
            made[bank.shape] = loss.to(z0.device)
        made[bank.shape].memory_bank.bank.copy_(bank)
        return made[bank.shape](z0, z1)

    return call


def _ours(backend: str) -> tuple[Implementation, ...]:
    """Every loss of ours, as one process calls it and as several do; `gathered` is the group, None for one process."""
    every = {
        "ntxent": lambda t, group: NTXentLoss(t, gather_distributed=group is not None, backend=backend),
        "info_nce": lambda t, group: lambda q, k: info_nce_loss(q, k, temperature=t, group=group, backend=backend),
        "bank": lambda t, group: _our_bank(t, backend, group is not None),
        "clip": lambda t, group: lambda z0, z1: clip_loss(z0, z1, 1 / t, normalize=True, group=group, backend=backend),
        "sup_con": lambda t, group: (
            lambda z0, z1, labels: sup_con_loss(torch.cat([z0, z1]), labels, t, group=group, backend=backend)
        ),
    }
    return tuple(
        Implementation(
            loss,
            f"**simclr_fast**, {backend}",
            lambda t, build=build: build(t, None),
            lambda t, build=build: build(t, distributed.default_group()),
            backend=backend,
            op="ntxent_fwd" if loss == "ntxent" else "similarity_fwd",
        )
        for loss, build in every.items()
    )


_PLAIN = {"ntxent": ntxent_textbook, "info_nce": plain_info_nce, "bank": plain_bank, "clip": plain_clip}
_PLAIN["sup_con"] = plain_sup_con
_BUILDERS = ntxent_contestants.BUILDERS
_LIGHTLY, _METRIC, _INFO_NCE = (
    (name, ntxent_contestants.MODULES[name]) for name in ("lightly", "pytorch-metric-learning", "info-nce-pytorch")
)


def _peer(loss: str, who: tuple[str, str], build: Build, gathered: Build | None = None, cuda: bool = False):
    return Implementation(loss, who[0], build, gathered, module=who[1], needs_cuda=cuda)


IMPLEMENTATIONS = (
    *(made for backend in BACKENDS for made in _ours(backend)),
    *(
        Implementation(loss, "plain PyTorch", lambda t, f=formula: lambda *inputs: f(*inputs, t))
        for loss, formula in _PLAIN.items()
    ),
    _peer("ntxent", _LIGHTLY, _BUILDERS["lightly"], _lightly_gathered),
    _peer(
        "ntxent",
        _METRIC,
        _BUILDERS["pytorch-metric-learning"],
        lambda t: _metric_learning(t, "NTXentLoss", True),
    ),
    _peer("ntxent", _INFO_NCE, _BUILDERS["info-nce-pytorch"]),
    Implementation(
        "ntxent", "solo-learn, formula", lambda t: lambda z0, z1: solo_learn(z0, z1, t), _gathered_solo_learn
    ),
    Implementation(
        "ntxent",
        "Spijkervet, formula",
        lambda t: lambda z0, z1: spijkervet(z0, z1, t),
        lambda t: lambda z0, z1: spijkervet(z0, z1, t, lambda x: _Gather.apply(x, False)),
    ),
    _peer(
        "ntxent",
        ("simclr (Spijkervet)", "simclr.modules"),
        _spijkervet_package,
        lambda t: _spijkervet_package(t, dist.get_world_size),
    ),
    _peer("info_nce", _INFO_NCE, _info_nce_package),
    _peer("info_nce", ("inf-cl", "inf_cl"), _BUILDERS["inf-cl"], cuda=True),
    _peer("bank", _INFO_NCE, _info_nce_package),
    _peer("bank", _LIGHTLY, _lightly_bank, lambda t: _lightly_bank(t, True)),
    *(
        Implementation(
            "clip",
            f"**simclr_fast**, {backend}, unit rows",
            lambda t, backend=backend: _clip_of_unit_rows(t, backend),
            lambda t, backend=backend: _clip_of_unit_rows(t, backend, distributed.default_group()),
            backend=backend,
            op="similarity_fwd",
        )
        for backend in BACKENDS
    ),
    _peer("clip", ("open_clip", "open_clip"), _open_clip, lambda t: _open_clip(t, local_loss=False)),
    _peer(
        "clip",
        ("open_clip, local_loss and gather_with_grad", "open_clip"),
        _open_clip,
        lambda t: _open_clip(t, local_loss=True, gather_with_grad=True),
    ),
    _peer("clip", ("memeff", "memeff"), _BUILDERS["memeff"], cuda=True),
    _peer(
        "sup_con",
        _METRIC,
        lambda t: _metric_learning(t, "SupConLoss"),
        lambda t: _metric_learning(t, "SupConLoss", True),
    ),
)


def of_loss(loss: str) -> list[Implementation]:
    """The implementations of a loss, in the order of the page."""
    return [implementation for implementation in IMPLEMENTATIONS if implementation.loss == loss]


def plain(loss: str) -> Implementation:
    """The loss as usually written in PyTorch."""
    return next(made for made in of_loss(loss) if made.name == "plain PyTorch")


def modules(device: torch.device) -> tuple[str, ...]:
    """What the present implementations import."""
    there = (made.module for made in IMPLEMENTATIONS if made.module and made.absent(device) is None)
    return tuple(dict.fromkeys(there))


def large_inputs(loss: str, n: int, d: int, device: torch.device, bank: int = BANK) -> tuple[Tensor, ...]:
    """Views as a half-trained network gives them, float32, and the bank, or labels: 1,000 classes, n of fewer rows."""
    views = ntxent_contestants.views(n, d, torch.float32, device)
    if loss == "bank":
        return *views, F.normalize(torch.randn(bank, d, generator=torch.Generator().manual_seed(2))).to(device)
    classes = 1000 if 2 * n > 1000 else n
    return (*views, torch.arange(2 * n, device=device) % classes) if loss == "sup_con" else views


def memory_probe(name: str, implementation: str, n: int, d: int, device: str) -> Callable[[], object]:
    """For benchmarks.memory: forward and backward, after a tiny call that has initialised everything lazy."""
    made = next(made for made in of_loss(name) if made.name == implementation)
    call = made.build(0.1)

    def step(samples: int) -> Callable[[], object]:
        views = large_inputs(name, samples, d, torch.device(device), samples)
        return lambda: torch.autograd.grad(call(*views), views[:2], materialize_grads=True)

    step(8)()
    return step(n)


assert {made.loss for made in IMPLEMENTATIONS} <= LOSSES.keys()
