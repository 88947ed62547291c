"""Views: draws that depend on (seed, step, image, view) alone, and the rotation and shear of the demo."""

import dataclasses

import pytest
import torch

from simclr_fast.config import AugmentOptions
from simclr_fast.errors import ConfigError
from simclr_fast.recipes import RECIPES
from simclr_fast.training.views import Views, check_channels

DEMO = dataclasses.replace(RECIPES["demo"].augment, size=28)
INDICES = torch.tensor([5, 9, 2, 7, 11, 0])


def batch() -> torch.Tensor:
    return torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def whole(step: int = 3, seed: int = 1) -> torch.Tensor:
    views = Views(DEMO, seed)
    return views.apply(batch(), views.draw(INDICES, step))


def test_split_batch_gets_the_same_views() -> None:
    views = Views(DEMO, seed=1)
    halves = []
    for first in (0, 3):
        draw = views.draw(INDICES[first : first + 3], 3, first=first, batch_size=6)
        halves.append(views.apply(batch()[first : first + 3], draw).chunk(2))
    joined = torch.cat([half[view] for view in range(2) for half in halves])
    assert torch.equal(joined, whole())


def test_sliced_draw_gets_the_same_views() -> None:
    views = Views(DEMO, seed=1)
    draw = views.draw(INDICES, 3)
    part = views.apply(batch()[2:4], draw[2:4])
    assert torch.equal(part, whole()[[2, 3, 8, 9]])


def test_step_seed_and_view_change_the_views() -> None:
    view0, view1 = whole().chunk(2)
    assert not torch.equal(view0, view1)
    assert not torch.equal(whole(step=4), whole())
    assert not torch.equal(whole(seed=2), whole())


def plain(**changes) -> AugmentOptions:
    """The whole image, unchanged but for `changes`."""
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "jitter_p": 0.0, "rotate": 0.0, "shear": 0.0}
    return dataclasses.replace(DEMO, **(still | changes))


def test_rotation_turns_a_bar_by_at_most_its_angle() -> None:
    bar = torch.zeros(64, 1, 29, 29, dtype=torch.uint8)
    bar[:, :, 14, 4:25] = 255  # horizontal, through the centre
    views = Views(dataclasses.replace(plain(rotate=30.0), size=29), seed=0)
    turned = views.apply(bar, views.draw(torch.arange(64), 0))[:, 0]  # [128, 29, 29]
    y, x = torch.meshgrid(torch.arange(29.0) - 14, torch.arange(29.0) - 14, indexing="ij")
    mass = turned.sum((1, 2))
    xx, yy, xy = ((turned * m).sum((1, 2)) / mass for m in (x * x, y * y, x * y))
    angle = torch.rad2deg(0.5 * torch.atan2(2 * xy, xx - yy))
    assert angle.abs().max() <= 31
    assert angle.max() > 20
    assert angle.min() < -20


def test_shear_moves_rows_in_proportion_to_their_height() -> None:
    column = torch.zeros(32, 1, 29, 29, dtype=torch.uint8)
    column[:, :, 4:25, 14] = 255
    views = Views(dataclasses.replace(plain(shear=0.3), size=29), seed=0)
    sheared = views.apply(column, views.draw(torch.arange(32), 0))[:, 0]
    x = torch.arange(29.0) - 14
    centre = (sheared * x).sum(2) / sheared.sum(2).clamp_min(1e-6)  # [64, 29], of every row
    slope = (centre[:, 22] - centre[:, 6]) / 16
    assert slope.abs().max() <= 0.31
    assert slope.abs().max() > 0.2
    torch.testing.assert_close(centre[:, 14], torch.zeros(64), rtol=0, atol=0.05)


def test_a_draw_becomes_a_rotation_with_a_shear_added_to_it() -> None:
    angle, shear = torch.tensor([[0.5, -0.5], [0.3, -0.1]])
    uniform = torch.stack([torch.rad2deg(angle) / 30, shear / 0.4], dim=-1)
    maps = Views(plain(rotate=30.0, shear=0.4), seed=0)._warp_maps(uniform)
    rows = [torch.stack([angle.cos(), shear - angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)]
    torch.testing.assert_close(maps, torch.cat([torch.stack(rows, -2), torch.zeros(2, 2, 1)], -1))


def test_without_warp_views_are_those_of_the_augmentation() -> None:
    views = Views(plain(), seed=0)
    draw = views.draw(INDICES, 0)
    assert draw.warp is None
    torch.testing.assert_close(views.apply(batch(), draw), batch().repeat(2, 1, 1, 1) / 255)


def test_ragged_images_are_served() -> None:
    views = Views(dataclasses.replace(DEMO, mean=(0.5,) * 3, std=(0.2,) * 3), seed=0)
    images = [torch.zeros(3, 20 + i, 30 - i, dtype=torch.uint8) for i in range(4)]
    made = views.apply(images, views.draw(torch.arange(4), 0))
    assert made.shape == (8, 3, 28, 28)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_what_a_rotation_has_no_pixels_for_is_black() -> None:
    views = Views(plain(rotate=45.0), seed=0)
    turned = views.apply(torch.full((6, 1, 28, 28), 255, dtype=torch.uint8), views.draw(INDICES, 0))
    assert turned[:, 0, 0, 0].min() == 0
    assert turned[:, 0, 14, 14].min() == 1


@pytest.mark.parametrize("options", [DEMO, plain()], ids=["warped", "plain"])
def test_half_types_are_what_float32_rounds_to(options: AugmentOptions) -> None:
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        views = Views(options, seed=1, dtype=dtype)
        made.append(views.apply(batch(), views.draw(INDICES, 3)))
    assert made[1].dtype == torch.bfloat16
    assert torch.equal(made[1], made[0].to(torch.bfloat16))


def test_mean_for_other_channels_is_told() -> None:
    for name in ("mean", "std"):
        with pytest.raises(ConfigError, match=f"--{name} 0.1 0.2 0.3: the images have 1 channel.*; pass 1 or 1 numb"):
            check_channels(dataclasses.replace(DEMO, **{name: (0.1, 0.2, 0.3)}), 1)
        check_channels(dataclasses.replace(DEMO, **{name: (0.1, 0.2, 0.3)}), 3)
