"""The view grid: which picture goes where, undone normalisation, and photos that are shrunk before they are drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from simclr_fast.visualize import GRID_SIDE, shrunk, view_grid


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The arrays given to imshow, which draws them as well."""
    arrays, imshow = [], Axes.imshow

    def spy(axis: Axes, array: np.ndarray, **options):
        arrays.append(array)
        return imshow(axis, array, **options)

    monkeypatch.setattr(Axes, "imshow", spy)
    return arrays


def two_tones(height: int, width: int) -> torch.Tensor:
    image = torch.full((3, height, width), 40, dtype=torch.uint8)
    image[:, :, width // 2 :] = 200
    return image


def test_photos_are_shrunk_before_they_are_drawn(drawn: list[np.ndarray], tmp_path: Path) -> None:
    views = torch.zeros(2, 3, 16, 16)
    view_grid(tmp_path / "grid.png", [two_tones(900, 1200), two_tones(30, 20)], views, views, (0.5,) * 3, (0.25,) * 3)
    large, small = drawn[:2]
    assert large.shape == (GRID_SIDE * 3 // 4, GRID_SIDE, 3)
    assert small.shape == (30, 20, 3)
    for image in (large, small):
        width = image.shape[1]
        np.testing.assert_allclose(image[:, : width // 2 - 3], 40 / 255, atol=1e-6)
        np.testing.assert_allclose(image[:, width // 2 + 3 :], 200 / 255, atol=1e-6)
    assert (tmp_path / "grid.png").stat().st_size > 0


def test_columns_are_pairs_and_rows_are_views(drawn: list[np.ndarray], tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.25)
    colors = torch.tensor([[0.1, 0.2, 0.3], [0.6, 0.5, 0.4]])
    normalised = lambda x: ((x - torch.tensor(mean)) / torch.tensor(std))[..., None, None].expand(-1, -1, 4, 4)
    images = (255 * colors).round().byte()[..., None, None].expand(-1, -1, 4, 4)
    view_grid(tmp_path / "grid.png", images, normalised(colors + 0.1), normalised(colors + 0.2), mean, std)
    expected = [color + shift for shift in (0, 0.1, 0.2) for color in colors]
    assert len(drawn) == 6
    for array, color in zip(drawn, expected):
        np.testing.assert_allclose(array, np.broadcast_to(color.numpy(), (4, 4, 3)), atol=2e-3)


def test_a_thin_image_keeps_a_row() -> None:
    assert shrunk(torch.zeros(1, 1, 2000, dtype=torch.uint8)).shape == (1, 1, GRID_SIDE)
