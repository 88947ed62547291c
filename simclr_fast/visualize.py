"""Pictures of a run: images with their two views, learning curves, a map of embeddings; how any picture is saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from simclr_fast.run_files import ONLINE_KNN_K, in_one_move

DPI = 130
MAPPED_IMAGES = 1000  # points of a map of embeddings
GRID_SIDE = 288  # pixels of an image in the view grid: twice what is drawn of it, whatever the camera gave


def new_figure(figsize: tuple[float, float], layout: str | None = None) -> Figure:
    """A figure that is only ever written to a file; figsize: inches.

    pyplot's own figures belong to the caller's program: they need its display, its main thread, and its backend.
    """
    figure = Figure(figsize=figsize, layout=layout)
    FigureCanvasAgg(figure)  # draws it, where the size of a text is asked for
    return figure


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A `new_figure`, and its axes; options: of `Figure.subplots`."""
    figure = new_figure(figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write the figure in one move, and return the path. Raises OSError with the path."""
    with in_one_move(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=path.suffix.removeprefix("."))
    return path


def show_image(axis: Axes, image: Tensor) -> None:
    """Draw an image [C, H, W] on the CPU, uint8 or floats in [0, 1], without ticks."""
    brightest = 1 if image.is_floating_point() else 255
    axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=brightest)
    axis.set(xticks=[], yticks=[])


def view_grid(path: Path, images: Tensor | list[Tensor], view0: Tensor, view1: Tensor, mean: tuple, std: tuple) -> None:
    """Rows image, view 1 and view 2, one column per sample.

    images: uint8, each [C, H, W]; view0, view1: [n, C, S, S], normalised by mean and std.
    """
    undo = lambda view: (view.float().cpu() * _column(std) + _column(mean)).clamp(0, 1)
    rows = [
        ("image", [shrunk(image.cpu()).float() / 255 for image in images]),
        ("view 1", list(undo(view0))),
        ("view 2", list(undo(view1))),
    ]
    columns = len(rows[0][1])
    figure, axes = subplots(3, columns, figsize=(1.1 * columns + 0.8, 3.9), squeeze=False)
    for line, (title, pictures) in zip(axes, rows):
        for axis, picture in zip(line, pictures):
            show_image(axis, picture)
        line[0].set_ylabel(title)
    figure.suptitle("Training images and their two random views (a column is a positive pair)")
    save(figure, path)


def shrunk(image: Tensor, side: int = GRID_SIDE) -> Tensor:
    """An image uint8 [C, H, W] on the CPU, averaged down until its longer side is at most `side` pixels."""
    height, width = image.shape[-2:]
    if max(height, width) <= side:
        return image
    shape = [max(1, round(length * side / max(height, width))) for length in (height, width)]
    return F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0]


def learning_curves(path: Path, metrics: list[dict], chance: float) -> None:
    """Loss, contrastive accuracy, online kNN and learning rate over the steps; metrics: the lines of metrics.jsonl."""
    figure, (loss_axis, accuracy_axis, lr_axis) = subplots(1, 3, figsize=(13, 3.8))
    loss_axis.plot(*_series(metrics, "loss"), "o-", markersize=2, label="NT-Xent loss")
    loss_axis.axhline(chance, color="gray", linestyle="--", label=f"chance, ln(2N - 1) = {chance:.2f}")
    loss_axis.set(title="Loss", xlabel="step", ylabel="loss (nats)")
    loss_axis.legend(loc="best")
    steps, accuracy = _series(metrics, "contrastive_accuracy")
    accuracy_axis.plot(steps, 100 * accuracy, "o-", markersize=2, label="contrastive accuracy")
    steps, knn = _series(metrics, "knn")
    if len(steps):
        accuracy_axis.plot(steps, 100 * knn, "o-", label=f"online kNN (training images, k = {ONLINE_KNN_K})")
    accuracy_axis.set(title="Accuracy", xlabel="step", ylabel="accuracy (%)", ylim=(0, 101))
    accuracy_axis.legend(loc="best")
    lr_axis.plot(*_series(metrics, "lr"), "o-", markersize=2, color="tab:green")
    lr_axis.set(title="Learning rate", xlabel="step", ylabel="learning rate")
    lr_axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axis in (loss_axis, accuracy_axis, lr_axis):
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


def embedding_map(
    path: Path, features: Tensor, labels: Tensor | None, title: str, names: Sequence[str] = (), limit: int = 2000
) -> None:
    """t-SNE of features [n, D] in two dimensions, coloured by labels int64 [n] where there are any; `limit` at most.

    names: of the classes by number, for the legend; a class beyond them is shown by its number.
    """
    from sklearn.manifold import TSNE  # slow to import, and only this needs it

    features = features[:limit].float().numpy()
    labels = np.zeros(len(features), dtype=np.int64) if labels is None else labels[:limit].numpy()
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    if len(features) > 2:
        # Of 1,000 digits, 500 steps keep as many neighbours together as the usual 1,000 (trustworthiness 0.977), in
        # half of the time; 300 keep fewer (0.966).
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500)
        points = tsne.fit_transform(features)
    else:  # one or two points have no arrangement to look for
        points = features[:, :2]
    figure, axis = subplots(figsize=(7, 6))
    classes = np.unique(labels)
    colors = matplotlib.colormaps["tab10" if len(classes) <= 10 else "nipy_spectral"]
    for k, label in enumerate(classes):
        chosen = labels == label
        color = colors(k) if len(classes) <= 10 else colors(k / max(1, len(classes) - 1))
        axis.scatter(*points[chosen].T, s=9, color=color, label=str(label))
    if 1 < len(classes) <= 20:
        legend = axis.legend(title="class", markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for text, label in zip(legend.get_texts(), classes):  # set afterwards: a label "_x" would be left out
            text.set(text=names[label] if label < len(names) else str(label), parse_math=False)
    axis.set(title=title, xlabel="t-SNE dimension 1", ylabel="t-SNE dimension 2")
    save(figure, path)


def _series(metrics: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    lines = [line for line in metrics if name in line]
    return np.array([line["step"] for line in lines]), np.array([line[name] for line in lines])


def _column(values: tuple) -> Tensor:
    return Tensor(values).view(1, -1, 1, 1)
