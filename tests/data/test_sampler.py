"""Which images make up which step."""

import pytest
import torch

from simclr_fast.data.sampler import EpochSampler, step_seed_of


def test_epoch_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = [EpochSampler(100, 1, seed).order(epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(100))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(EpochSampler(100, 1, 0).order(1), orders[1])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_a_step_without_overlap(world_size: int) -> None:
    whole = EpochSampler(50, 12, seed=3).steps(epoch=2)
    ranks = [EpochSampler(50, 12, 3, rank, world_size).steps(epoch=2) for rank in range(world_size)]
    assert len(whole) == 4
    for step, indices in enumerate(whole):
        assert torch.equal(torch.cat([rank[step] for rank in ranks]), indices)


def test_an_epoch_can_be_entered_in_the_middle() -> None:
    sampler = EpochSampler(50, 8, seed=0, rank=1, world_size=2)
    assert [s.tolist() for s in sampler.steps(1, start=3)] == [s.tolist() for s in sampler.steps(1)][3:]


def test_no_image_twice_in_an_epoch() -> None:
    seen = torch.cat(EpochSampler(50, 8, seed=0).steps(0))
    assert len(seen.unique()) == len(seen) == 48


@pytest.mark.parametrize(("batch_size", "world_size"), [(51, 1), (9, 2)])
def test_impossible_batches_are_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        EpochSampler(50, batch_size, 0, 0, world_size)


def test_step_seeds_are_distinct_and_in_range() -> None:
    seeds = {step_seed_of(seed, step) for seed in range(20) for step in range(500)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
