"""Pictures of a run: which picture goes where in the view grid, what curves and points are of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from simclr_fast import visualize
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


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(visualize, "save", lambda figure, path: figures.append(figure))
    return figures


def test_curves_show_each_figure_at_its_step(saved: list[Figure], tmp_path: Path) -> None:
    metrics = [
        {"step": 10, "loss": 5.0, "contrastive_accuracy": 0.25, "lr": 0.1},
        {"step": 15, "warning": "chance"},
        {"step": 20, "knn": 0.75},
        {"step": 30, "loss": 4.0, "contrastive_accuracy": 0.5, "lr": 0.2, "knn": 0.875},
    ]
    visualize.learning_curves(tmp_path / "x.png", metrics, 6.5)
    loss, accuracy, lr = saved[0].axes
    points = lambda axis: [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
    assert points(loss) == [([10, 30], [5.0, 4.0]), ([0, 1], [6.5, 6.5])], "the dashed line is chance"
    assert points(accuracy) == [([10, 30], [25.0, 50.0]), ([20, 30], [75.0, 87.5])]
    assert points(lr) == [([10, 30], [0.1, 0.2])]
    titles = [axis.get_title() for axis in saved[0].axes]
    assert titles == ["Loss", "Accuracy", "Learning rate"]
    labels = [text.get_text() for axis in (loss, accuracy) for text in axis.get_legend().get_texts()]
    assert labels[:3] == ["NT-Xent loss", "chance, ln(2N - 1) = 6.50", "contrastive accuracy"]
    assert labels[3] == "online kNN (training images, k = 20)"
    visualize.learning_curves(tmp_path / "x.png", metrics[:1], 6.5)
    assert len(saved[1].axes[1].lines) == 1, "no kNN, no curve of it"


def test_the_map_arranges_directions_and_colours_classes(saved: list[Figure], tmp_path: Path, monkeypatch) -> None:
    given = []
    # Points stand in for t-SNE, which takes seconds.
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, features: given.append(features) or features[:, :2])
    features, labels = 3 * torch.randn(9, 4), torch.tensor([0, 1, 2, 2, 1, 0, 0, 2, 1])
    visualize.embedding_map(tmp_path / "x.png", features, labels, "title", ("a", "b", "c"), limit=8)
    unit = torch.nn.functional.normalize(features, dim=1)[:8]
    np.testing.assert_allclose(given[0], unit, atol=1e-6)
    (axis,) = saved[0].axes
    for label, points in enumerate(axis.collections):
        np.testing.assert_allclose(points.get_offsets(), unit[labels[:8] == label, :2], atol=1e-6)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "c"]
    assert len({tuple(points.get_facecolor()[0]) for points in axis.collections}) == 3
    visualize.embedding_map(tmp_path / "x.png", features, None, "title")
    assert len(saved[1].axes[0].collections) == 1
    assert saved[1].axes[0].get_legend() is None


def test_a_thin_image_keeps_a_row() -> None:
    assert shrunk(torch.zeros(1, 1, 2000, dtype=torch.uint8)).shape == (1, 1, GRID_SIDE)
