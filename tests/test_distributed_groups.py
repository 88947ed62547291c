"""The loss over process groups that are not the world, and whose ranks are not those in the world."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from simclr_fast import distributed, ntxent_loss
from simclr_fast.ops.ntxent.similarity import _of_entries_below_one
from tests.gloo_ranks import on_ranks
from tests.helpers import relative_error

WORLD, SAMPLES, FEATURES = 3, 4, 5
GROUPS = ((0, 2), (1, 2))
BACKENDS = ("cpp", "reference")


def shard(rank: int) -> Tensor:
    """Both views of a rank's samples, [2, SAMPLES, FEATURES]."""
    return torch.randn(2, SAMPLES, FEATURES, generator=torch.Generator().manual_seed(rank))


def weights(rank: int) -> Tensor:
    return torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(10 + rank))


def rows(rank: int, group: dist.ProcessGroup, backend: str) -> list[Tensor]:
    """This rank's losses, and the gradient of all members' weighted sums by its embeddings."""
    z = shard(rank).requires_grad_()
    losses = ntxent_loss(z[0], z[1], 0.2, reduction="none", group=group, backend=backend)
    losses.backward(weights(rank).flatten())
    return [losses.detach().view(2, -1), z.grad]


def mean(rank: int, group: dist.ProcessGroup, backend: str) -> list[Tensor]:
    z = shard(rank).requires_grad_()
    loss = ntxent_loss(z[0], z[1], 0.2, group=group, backend=backend)
    loss.backward()
    return [loss.detach(), z.grad]


def refusal(group: dist.ProcessGroup) -> str:
    try:
        ntxent_loss(*shard(0), group=group)
    except ValueError as error:
        return str(error)
    return "nothing"


def gathered(rank: int, world: int) -> Tensor:
    """Shards whose memory lies in another order than their elements; and numbers that are alike and no numbers."""
    shared = [distributed.Shared(name, value, "") for name, value in (("a", math.nan), ("b", torch.tensor(math.nan)))]
    distributed.check_same_on_all_ranks(shared, torch.device("cpu"), dist.group.WORLD, 3)
    return distributed.all_gather_shards((torch.arange(6.0) + 10 * rank).view(2, 3).T, dist.group.WORLD)


def scaled(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns as kernels of half a float's range take them; those of the last rank are the largest."""
    rows, columns = shard(rank) * torch.tensor([3.0**rank, 1e4 * 7.0**rank])[:, None, None]
    return _of_entries_below_one(rows, columns, torch.tensor(0.5), dist.group.WORLD)


def work(rank: int, world: int) -> dict:
    results = {"gathered": gathered(rank, world), "scaled": scaled(rank)}
    for members in GROUPS:
        group = dist.new_group(list(members))  # every rank of the world takes part in making it
        if rank in members:
            results[members] = {
                backend: {"rows": rows(rank, group, backend), "mean": mean(rank, group, backend)}
                for backend in BACKENDS
            }
        else:
            results[members] = refusal(group)
    dist.barrier()
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return on_ranks(work, WORLD, tmp_path_factory.mktemp("groups"))


def joined(members: tuple[int, ...], of) -> Tensor:
    return torch.cat([of(rank) for rank in members], dim=1).double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("members", GROUPS, ids=str)
def test_rows_are_those_of_one_process_with_the_members_samples(ranks: list[dict], members, backend: str) -> None:
    z = joined(members, shard).requires_grad_()
    losses = ntxent_loss(z[0], z[1], 0.2, reduction="none", backend="reference").view(2, -1)
    losses.backward(joined(members, weights))
    for index, truth in enumerate((losses, z.grad)):
        actual = torch.cat([ranks[rank][members][backend]["rows"][index] for rank in members], dim=1)
        assert relative_error(actual, truth) <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("members", GROUPS, ids=str)
def test_mean_is_that_of_one_process_with_the_members_samples(ranks: list[dict], members, backend: str) -> None:
    z = joined(members, shard).requires_grad_()
    loss = ntxent_loss(z[0], z[1], 0.2, backend="reference")
    loss.backward()
    for rank in members:
        assert relative_error(ranks[rank][members][backend]["mean"][0], loss) <= 1e-6
    # Averaging the members' gradients, as DistributedDataParallel over the group does, gives that of one process.
    actual = torch.cat([ranks[rank][members][backend]["mean"][1] for rank in members], dim=1) / len(members)
    assert relative_error(actual, z.grad) <= 1e-6


def test_shards_of_any_strides_are_gathered_in_rank_order(ranks: list[dict]) -> None:
    expected = torch.cat([(torch.arange(6.0) + 10 * rank).view(2, 3).T for rank in range(WORLD)])
    assert all(torch.equal(rank["gathered"], expected) for rank in ranks)


def test_the_largest_entries_of_all_ranks_scale_those_of_each(ranks: list[dict]) -> None:
    peaks = [max(shard(rank)[k].abs().max() * factor**rank for rank in range(WORLD)) for k, factor in ((0, 3), (1, 7))]
    scales = [2.0 ** -math.frexp(peak * factor)[1] for peak, factor in zip(peaks, (1, 1e4))]
    for rank, of_rank in enumerate(ranks):
        rows, columns, temperature = of_rank["scaled"]
        assert torch.equal(rows, shard(rank)[0] * 3.0**rank * scales[0])
        assert torch.equal(columns, shard(rank)[1] * (1e4 * 7.0**rank) * scales[1])
        assert max(rows.abs().max(), columns.abs().max()) < 1
        assert temperature == 0.5 * scales[0] * scales[1]


def test_a_rank_outside_the_group_is_told(ranks: list[dict]) -> None:
    for members, outside in zip(GROUPS, (1, 0)):
        assert "group: this process does not belong to it" in ranks[outside][members]
