"""NT-Xent's variants and the memory bank over two gloo processes: the values and gradients of one process."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from simclr_fast import NTXentLoss
from simclr_fast.ops.ntxent.reference import normalize_rows
from tests.gloo_ranks import on_ranks, refusals_of
from tests.helpers import relative_error

WORLD, SAMPLES, FEATURES, SIZE = 2, 6, 5, 8
STEPS = 3
CASES = {
    f"{name}, {reduction}": options | {"reduction": reduction}
    for reduction in ("mean", "sum", "none")
    for name, options in {
        "weighted": {},
        "decoupled": {"decoupled": True},
        "statistics": {"return_stats": True},
        "bank": {"memory_bank_size": (SIZE, FEATURES), "return_stats": True},
        "bank of unknown width": {"memory_bank_size": SIZE, "decoupled": True},
        "three views": {"views": 3},
    }.items()
}


def batches() -> Tensor:
    """Views of the whole batch, step by step: [STEPS, 3, SAMPLES, FEATURES]."""
    return torch.randn(STEPS, 3, SAMPLES, FEATURES, generator=torch.Generator().manual_seed(1))


def weights() -> Tensor:
    return torch.rand(SAMPLES, generator=torch.Generator().manual_seed(2))


def upstream(rows: int) -> Tensor:
    """Weights of the row losses, in the order [view, sample]."""
    return torch.rand(rows // SAMPLES, SAMPLES, generator=torch.Generator().manual_seed(3))


def steps(options: dict, rank: int, world: int) -> list[list[Tensor]]:
    """Of each step: the loss (of the rows, [views, n]), the gradient by this rank's views, the statistics, the bank."""
    torch.manual_seed(10 * rank)  # banks that the ranks draw differ
    views = options.get("views", 2)
    module = NTXentLoss(0.2, gather_distributed=True, **{k: v for k, v in options.items() if k != "views"})
    if module.memory_bank is not None:
        module.memory_bank.bank_ptr += rank  # as after a run of each rank alone
    results = []
    for batch in batches():
        z = batch[:views].chunk(world, dim=1)[rank].clone().requires_grad_()
        loss = module(*(z if views == 2 else (z,)), weights=weights().chunk(world)[rank])
        loss, statistics = loss if options.get("return_stats") else (loss, ())
        if options["reduction"] == "none":
            loss = loss.view(-1, SAMPLES // world)
            loss.backward(upstream(loss.numel() * world).chunk(world, dim=1)[rank])
        else:
            loss.backward()
        state = () if module.memory_bank is None else (module.memory_bank.bank.clone(), module.memory_bank.bank_ptr + 0)
        results.append([loss.detach(), z.grad, *statistics, *state])
    return results


def refusals(rank: int) -> list[str]:
    """What this rank is told where the ranks' calls differ: see EXPECTED_REFUSALS."""
    z, more, first = torch.randn(4, FEATURES), torch.randn(3 + rank, FEATURES), rank == 0
    weights = torch.ones(4) if first else None
    plain = NTXentLoss(0.2, gather_distributed=True)
    bank = NTXentLoss(0.2, gather_distributed=True, memory_bank_size=4)
    calls = [
        lambda: NTXentLoss(0.2, gather_distributed=True, decoupled=True)(more, more),
        lambda: bank(more, more),
        lambda: plain(more, more, weights=torch.ones(len(more))),
        lambda: NTXentLoss(0.2, gather_distributed=True, decoupled=first)(z, z),
        lambda: plain(z, z, return_stats=first),
        lambda: plain(z.half(), z.half(), return_stats=first),
        lambda: plain(z, z, weights=weights),
        lambda: bank(z, z, weights=weights),
        lambda: bank(z.clone().requires_grad_(first), z),
        lambda: NTXentLoss(0.2, gather_distributed=True, memory_bank_size=4 + rank)(z, z),
        lambda: (bank if first else plain)(z, z),
        lambda: plain(z.expand(2 + rank, 4, FEATURES)),
        lambda: NTXentLoss(0.2, gather_distributed=True, backend="cpp" if first else "reference")(z, z),
        lambda: NTXentLoss(0.2, gather_distributed=True, precision="ieee" if first else None)(z, z),
    ]
    return refusals_of(calls)


EXPECTED_REFUSALS = (
    "rows of z0 must be the same on all ranks of the group; by rank: [3.0, 4.0]",
    "rows of out0 must be the same on all ranks of the group; by rank: [3.0, 4.0]",
    "rows of z0 must be the same on all ranks of the group; by rank: [3.0, 4.0]",
    "decoupled must be the same on all ranks of the group; by rank: [True, False]",
    "return_stats must be the same on all ranks of the group; by rank: [True, False]",
    "return_stats must be the same on all ranks of the group; by rank: [True, False]",
    "weights must be the same on all ranks of the group; by rank: [True, False]; pass them on all ranks or on none",
    "weights must be the same on all ranks of the group; by rank: [True, False]; pass them on all ranks or on none",
    "out0.requires_grad must be the same on all ranks of the group; by rank: [True, False]",
    "rows of the memory bank must be the same on all ranks of the group; by rank: [4.0, 5.0]",
    "loss must be the same on all ranks of the group; by rank: ['NTXentLoss with a memory bank', 'ntxent_loss']",
    "loss must be the same on all ranks of the group; by rank: ['ntxent_loss', 'ntxent_loss of more than two views']",
    "backend must be the same on all ranks of the group; by rank: ['cpp', 'reference']",
    "precision must be the same on all ranks of the group; by rank: ['ieee', None]",
)


def loss_under_weights_of_unlike_dtypes(rank: int) -> Tensor:
    z, weights = batches()[0, :2].chunk(WORLD, dim=1)[rank], torch.ones(SAMPLES // WORLD)
    return NTXentLoss(0.2, gather_distributed=True)(*z, weights=weights.double() if rank else weights)


def banks(rank: int, world: int) -> dict:
    """How often a bank for all ranks is made one, in three calls; and what a bank of one rank holds after a call."""
    z0, z1 = batches()[0, :2].chunk(world, dim=1)[rank].clone().requires_grad_()
    shared, own = (NTXentLoss(0.2, SIZE, gather_distributed=gather) for gather in (True, False))
    broadcasts = []
    original, dist.broadcast = dist.broadcast, lambda x, src: (broadcasts.append(src), original(x, src=src))
    try:
        for _ in range(3):
            shared(z0, z1)
        own(z0, z1)
    finally:
        dist.broadcast = original
    filled = own.memory_bank.bank_ptr.item()
    return {"broadcasts": broadcasts, "own rows": own.memory_bank.bank[:filled], "keys": normalize_rows(z1.detach())}


def work(rank: int, world: int) -> dict:
    return {name: steps(options, rank, world) for name, options in CASES.items()} | {
        "refusals": refusals(rank),
        "banks": banks(rank, world),
        "weights of unlike dtypes": loss_under_weights_of_unlike_dtypes(rank),
    }


def check_two_equal_one(ranks: list[dict], name: str) -> None:
    reduction = CASES[name]["reduction"]
    for step, expected in enumerate(steps(CASES[name], 0, 1)):
        loss, gradient, *shared = expected
        of_ranks = [rank[name][step] for rank in ranks]
        losses, gradients = ([of_rank[k] for of_rank in of_ranks] for k in (0, 1))
        if reduction == "none":
            losses = [torch.cat(losses, dim=1)]
        else:  # DistributedDataParallel takes the mean of the ranks' gradients
            gradients = [g / WORLD for g in gradients]
        assert all(relative_error(found, loss) <= 1e-6 for found in losses), name
        assert relative_error(torch.cat(gradients, dim=1), gradient) <= 2e-6, name
        for of_rank in of_ranks:
            assert all(relative_error(a, b) <= 1e-6 for a, b in zip(of_rank[2:], shared, strict=True)), name


def test_two_processes_equal_one_and_refuse_calls_that_differ(tmp_path: Path) -> None:
    """One test, since to start the processes takes longer than all that they do."""
    ranks = on_ranks(work, WORLD, tmp_path)
    for case in CASES:
        check_two_equal_one(ranks, case)
    expected = NTXentLoss(0.2)(*batches()[0, :2])
    assert all(relative_error(rank["weights of unlike dtypes"], expected) <= 1e-6 for rank in ranks)
    for rank in ranks:
        assert rank["banks"]["broadcasts"] == [0, 0]  # bank and pointer, once
        assert torch.equal(rank["banks"]["own rows"], rank["banks"]["keys"])
        for message, expected in zip(rank["refusals"], EXPECTED_REFUSALS, strict=True):
            assert message.startswith(expected)
