"""Parts of a labelled training set: class-balanced fractions, few labels per class, and a held-out part."""

import torch
from torch import Tensor

from simclr_fast.errors import ConfigError


def few_label_draws(labels: Tensor, per_class: int, draws: int, seed: int = 0) -> list[Tensor]:
    """`draws` random choices of `per_class` indices of every class, int64 [classes * per_class] each.

    Of a class with fewer images all are taken.
    """
    if per_class < 1:
        raise ValueError(f"per_class={per_class}: pass an integer >= 1")
    chosen = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed * draws + draw)
        members = [(labels == label).nonzero().flatten() for label in labels.unique()]
        chosen.append(torch.cat([m[torch.randperm(len(m), generator=generator)[:per_class]] for m in members]))
    return chosen


def rarest_class(labels: Tensor) -> int:
    """Images of the class that has fewest of them, among the classes that have any."""
    return int(labels.unique(return_counts=True)[1].min())


def balanced_fraction(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of the same fraction of every class, at least one image each, int64, ascending."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: pass a number in (0, 1]")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(fraction * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def random_part(size: int, limit: int) -> Tensor:
    """Indices of at most `limit` of `size` images in random order, the same at every call."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:limit]


def fixed_part(size: int, limit: int) -> Tensor:
    """Indices of all of `size` images, in their order, or of a `random_part` of them where there are more."""
    return torch.arange(size) if size <= limit else random_part(size, limit)


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, held out) indices; the held-out ones are the given fraction of every class, at least one image each.

    At least one image of every class is kept, too: a class with a single image has none held out. Raises ConfigError
    where every class has just one.
    """
    held_out = balanced_fraction(labels, fraction, seed)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if not kept[members].any():
            kept[members[0]] = True
    if kept.all():
        raise ConfigError("no class has two labelled training images, so none can be held out; add labelled images")
    return kept.nonzero().flatten(), (~kept).nonzero().flatten()
