"""Parts of a labelled set: balanced, seeded, disjoint where they must be."""

import pytest
import torch

from simclr_fast.evaluation.splits import balanced_fraction, few_label_draws, fixed_part, hold_out

LABELS = torch.tensor([0] * 200 + [1] * 100 + [2] * 40)[torch.randperm(340, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(("fraction", "counts"), [(0.1, [20, 10, 4]), (0.01, [2, 1, 1]), (1.0, [200, 100, 40])])
def test_fractions_are_the_same_in_every_class(fraction: float, counts: list[int]) -> None:
    chosen = balanced_fraction(LABELS, fraction, seed=0)
    assert LABELS[chosen].bincount().tolist() == counts
    assert len(chosen.unique()) == len(chosen)


def test_fractions_follow_the_seed() -> None:
    draw = lambda seed: balanced_fraction(LABELS, 0.1, seed)
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_held_out_part_is_disjoint() -> None:
    kept, held_out = hold_out(LABELS, 0.1, seed=0)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(LABELS)))
    assert LABELS[held_out].bincount().tolist() == [20, 10, 4]


def test_few_label_draws() -> None:
    draws = few_label_draws(LABELS, per_class=3, draws=4)
    assert all(LABELS[draw].bincount().tolist() == [3, 3, 3] for draw in draws)
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert all(torch.equal(a, b) for a, b in zip(draws, few_label_draws(LABELS, per_class=3, draws=4)))
    with pytest.raises(ValueError, match="per_class=41: the rarest class has only 40"):
        few_label_draws(LABELS, per_class=41, draws=1)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction="):
        balanced_fraction(LABELS, fraction, seed=0)


def test_fixed_part_is_all_or_the_same_few() -> None:
    assert torch.equal(fixed_part(7, 7), torch.arange(7))
    part = fixed_part(1000, 10)
    assert len(part.unique()) == 10
    assert torch.equal(part, fixed_part(1000, 10))
    assert not torch.equal(part, torch.arange(10))
