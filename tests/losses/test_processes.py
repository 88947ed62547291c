"""InfoNCE, CLIP and SupCon over two gloo processes: values on every rank and gradients are those of one process."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from simclr_fast import (
    CLIPLoss,
    InfoNCELoss,
    SupConLoss,
    clip_loss,
    info_nce_loss,
    similarity_logsumexp,
    sup_con_loss,
)
from tests.gloo_ranks import on_ranks, refusals_of
from tests.helpers import relative_error

WORLD, SAMPLES, FEATURES = 2, 12, 5
# Classes of two in one process and across both, of one, of three; rows that count are not shared out evenly.
LABELS = torch.tensor([0, 0, 1, 2, 2, 2, 1, 3, 4, 5, 0, 6])


def info_nce(t: Tensor, group, rows: Tensor, share: Callable, **options) -> Tensor:
    return info_nce_loss(rows[0], rows[1], temperature=t, group=group, **options)


def unpaired(t: Tensor, group, rows: Tensor, share: Callable, **options) -> Tensor:
    return info_nce_loss(rows[0], rows[1], rows[2], t, group=group, **options)


def paired(t: Tensor, group, rows: Tensor, share: Callable, **options) -> Tensor:
    return info_nce_loss(rows[0], rows[1], rows.permute(1, 0, 2), t, negative_mode="paired", group=group, **options)


def clip(t: Tensor, group, rows: Tensor, share: Callable, **options) -> Tensor:
    return clip_loss(rows[0], rows[1], 1 / t, normalize=True, group=group, **options)


def sup_con(t: Tensor, group, rows: Tensor, share: Callable, **options) -> Tensor:
    return sup_con_loss(rows[0], share(LABELS), t, group=group, **options)


def sup_con_of_an_odd_number(t: Tensor, group, rows: Tensor, share: Callable, **options) -> Tensor:
    """Three views of an odd number of samples of each process: all but its last."""
    parts = rows.chunk(WORLD, dim=1) if group is None else [rows]
    kept = torch.cat([part[:, : SAMPLES // WORLD - 1] for part in parts], dim=1)
    return sup_con_loss(kept.transpose(0, 1), None, t, group=group, **options)


def sup_con_of_views(t: Tensor, group, rows: Tensor, share: Callable, **options) -> Tensor:
    weights = share(torch.arange(1.0, SAMPLES + 1))
    return sup_con_loss(rows[:2].transpose(0, 1), None, t, weights=weights, group=group, **options)


LOSSES = {
    "InfoNCE": (info_nce, {}),
    "InfoNCE both ways": (info_nce, {"symmetric": True}),
    "InfoNCE, unpaired": (unpaired, {}),
    "InfoNCE, paired": (paired, {}),
    "CLIP": (clip, {}),
    "SupCon": (sup_con, {}),
    "SupCon, odd": (sup_con_of_an_odd_number, {}),
    "SupCon, views": (sup_con_of_views, {}),
}
CASES = [
    (name, reduction, backend) for name in LOSSES for reduction in ("mean", "sum") for backend in ("cpp", "reference")
]


def step(name: str, reduction: str, backend: str, rank: int, world: int) -> list[Tensor]:
    """The loss of this rank's share of three sets of rows, and its gradients by the rows [3, n, D] and by t."""

    def share(x: Tensor, dim: int = 0) -> Tensor:
        return x.chunk(world, dim=dim)[rank]

    function, options = LOSSES[name]
    rows = torch.randn(3, SAMPLES, FEATURES, generator=torch.Generator().manual_seed(1))
    rows = share(rows, dim=1).clone().requires_grad_()
    t = torch.tensor(0.2, requires_grad=True)
    group = dist.group.WORLD if world > 1 else None
    loss = function(t, group, rows, share, reduction=reduction, backend=backend, **options)
    return [loss.detach(), *torch.autograd.grad(loss, (rows, t))]


def refusals(rank: int) -> list[str]:
    """What this rank is told where the ranks' calls differ: see EXPECTED_REFUSALS."""
    z, first = torch.randn(4, 2, FEATURES), rank == 0
    leaf = torch.randn(4, FEATURES, requires_grad=True)
    info_nce_module, sup_con_module = InfoNCELoss(gather_distributed=True), SupConLoss(gather_distributed=True)
    calls = [
        lambda: info_nce_module(z[:, 0], z[:, 1], z[: 2 + rank, 0]),
        lambda: info_nce_loss(z[:, 0], z[:, 1], symmetric=first, group=dist.group.WORLD),
        lambda: info_nce_loss(
            *(z[:, 0], z[:, 1], z[:, 0] if first else z[:, :1].expand(4, 4, FEATURES)),
            negative_mode="unpaired" if first else "paired",
            group=dist.group.WORLD,
        ),
        lambda: CLIPLoss(rank=rank, world_size=WORLD, normalize=first)(z[:, 0], z[:, 1], 10.0),
        lambda: CLIPLoss(rank=rank, world_size=WORLD)(z[:, 0], z[:, 1], 10.0 + rank),
        lambda: sup_con_module(z, torch.arange(4) if first else None),
        lambda: sup_con_module(z if first else z.transpose(0, 1)),
        lambda: sup_con_module(z, weights=torch.ones(4) if first else None),
        lambda: info_nce_module(z[:, 0], z[:, 1]) if first else sup_con_module(z),
        lambda: similarity_logsumexp(z[:, 0], z[: 3 + rank, 1], group=dist.group.WORLD),
        lambda: similarity_logsumexp(z[:, 0], z[: 4 - rank, 1], exclude="self", group=dist.group.WORLD),
        lambda: similarity_logsumexp(z[:, 0], None if first else z[:, 1], group=dist.group.WORLD),
        lambda: similarity_logsumexp(z[:, 0], exclude="self" if first else "pair", group=dist.group.WORLD),
        lambda: similarity_logsumexp(z[:, 0], z[:, 1], both=first, group=dist.group.WORLD),
        lambda: similarity_logsumexp(z[:, 0], normalize=first, group=dist.group.WORLD),
        lambda: similarity_logsumexp(leaf, leaf if first else z[:, 1], group=dist.group.WORLD),
        lambda: info_nce_loss(leaf, z[:, 0] if first else leaf, group=dist.group.WORLD),
        lambda: similarity_logsumexp(z[: 3 + rank, 0], group=dist.group.WORLD),
        lambda: similarity_logsumexp(z[:, 0], backend="cpp" if first else "reference", group=dist.group.WORLD),
    ]
    return refusals_of(calls)


EXPECTED_REFUSALS = (
    "number of negative_keys (-1 for None) must be the same on all ranks of the group; by rank: [2.0, 3.0]",
    "symmetric must be the same on all ranks of the group; by rank: [True, False]",
    "negative_mode must be the same on all ranks of the group; by rank: ['unpaired', 'paired']",
    "normalize must be the same on all ranks of the group; by rank: [True, False]",
    "temperature must be the same on all ranks of the group; by rank: [0.1, 0.09090909090909091]",
    "labels must be the same on all ranks of the group; by rank: [True, False]; pass them on all ranks or on none",
    "number of views must be the same on all ranks of the group; by rank: [2.0, 4.0]",
    "weights must be the same on all ranks of the group; by rank: [True, False]; pass them on all ranks or on none",
    "loss must be the same on all ranks of the group; by rank: ['info_nce_loss', 'sup_con_loss']",
    "number of columns (-1 for None) must be the same on all ranks of the group; by rank: [3.0, 4.0]",
    "number of columns (-1 for None) must be the same on all ranks of the group; by rank: [4.0, 3.0]",
    "number of columns (-1 for None) must be the same on all ranks of the group; by rank: [-1.0, 4.0]",
    "exclude must be the same on all ranks of the group; by rank: ['self', 'pair']",
    "both must be the same on all ranks of the group; by rank: [True, False]",
    "normalize must be the same on all ranks of the group; by rank: [True, False]",
    "gradient of the rows alone (requires_grad) must be the same on all ranks of the group; by rank: [False, True]",
    "gradient of the query alone (requires_grad) must be the same on all ranks of the group; by rank: [True, False]",
    "rows of rows must be the same on all ranks of the group; by rank: [3.0, 4.0]",
    "backend must be the same on all ranks of the group; by rank: ['cpp', 'reference']",
)


def work(rank: int, world: int) -> dict:
    return {"steps": {case: step(*case, rank, world) for case in CASES}, "refusals": refusals(rank)}


def check_two_equal_one(ranks: list[dict], case: tuple[str, str, str]) -> None:
    loss, gradient, dt = step(*case, 0, 1)
    found = [rank["steps"][case] for rank in ranks]
    assert all(relative_error(one[0], loss) <= 2e-6 for one in found), case
    # DistributedDataParallel takes the mean of the ranks' gradients.
    assert relative_error(torch.cat([one[1] for one in found], dim=1) / WORLD, gradient) <= 5e-6, case
    assert relative_error(sum(one[2] for one in found) / WORLD, dt) <= 2e-5, case


def test_two_processes_equal_one_and_refuse_calls_that_differ(tmp_path: Path) -> None:
    """One test, since to start the processes takes longer than all that they do."""
    ranks = on_ranks(work, WORLD, tmp_path)
    for case in CASES:
        check_two_equal_one(ranks, case)
    for rank in ranks:
        for message, expected in zip(rank["refusals"], EXPECTED_REFUSALS, strict=True):
            assert message.startswith(expected)
