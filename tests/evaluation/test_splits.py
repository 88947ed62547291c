"""Parts of a labelled set: balanced, seeded, disjoint where they must be."""

import pytest
import torch

from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.splits import balanced_fraction, few_label_draws, fixed_part, hold_out, rarest_class

LABELS = torch.tensor([0] * 200 + [1] * 100 + [2] * 40)[torch.randperm(340, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.1, [20, 10, 4]), (0.29, [58, 29, 12]), (0.01, [2, 1, 1]), (1.0, [200, 100, 40])]
)
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
    of_seeds = [draw for seed in range(3) for draw in few_label_draws(LABELS, per_class=3, draws=4, seed=seed)]
    assert len({tuple(draw.tolist()) for draw in of_seeds}) == 12, "no seed repeats a draw of another"
    (draw,) = few_label_draws(LABELS, per_class=50, draws=1)
    assert LABELS[draw].bincount().tolist() == [50, 50, 40], "of a class with fewer images all are taken"
    assert rarest_class(LABELS) == 40
    assert rarest_class(LABELS[LABELS != 0]) == 40, "a class without images does not count"
    with pytest.raises(ValueError, match="per_class=0"):
        few_label_draws(LABELS, per_class=0, draws=1)


def test_a_class_of_one_image_is_kept() -> None:
    labels = torch.tensor([0] * 10 + [1])
    kept, held_out = hold_out(labels, 0.2, seed=0)
    assert labels[kept].bincount().tolist() == [8, 1]
    assert labels[held_out].tolist() == [0, 0]
    kept, held_out = hold_out(labels, 1 - 1e-9, seed=0)
    assert labels[kept].tolist() == [0, 1], "never all of a class are held out"
    with pytest.raises(ConfigError, match="none can be held out"):
        hold_out(torch.arange(5), 0.2, seed=0)


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
