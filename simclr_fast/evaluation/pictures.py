"""Pictures of results: accuracy over labels, detections, confusion matrix."""

import functools
from pathlib import Path

import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from simclr_fast.visualize import save, show_image, subplots

LONGEST_NAME = 24  # characters of a class's name beside a picture
COLORS = {"raw": "tab:gray", "random_init": "tab:orange", "simclr": "tab:blue"}
TRUE_BOX, FOUND_BOX = "#2ecc40", "#ff4136"

_save = functools.partial(save, dpi=120)


def accuracy_over_labels(
    path: Path, results: dict[str, dict[str, dict]], probes: dict[str, str], encoders: dict[str, str]
) -> Path:
    """Accuracy over labels per class, an axis per probe, a line with its deviation per encoder; returns the path.

    results: probe -> labels per class -> encoder -> {"mean", "std"} (fractions; std None for a single draw).
    """
    figure, axes = subplots(1, len(probes), figsize=(5.2 * len(probes), 3.9), sharey=True)
    for axis, (probe, title) in zip(axes, probes.items()):
        counts = [int(count) for count in results[probe]]
        for encoder, name in encoders.items():
            scores = [score[encoder] for score in results[probe].values()]
            means, deviations = ([100 * (score[key] or 0) for score in scores] for key in ("mean", "std"))
            axis.errorbar(counts, means, deviations, marker="o", capsize=3, color=COLORS[encoder], label=name)
        axis.set(title=title, xlabel="labelled images per class", xscale="log", ylim=(0, 101))
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy (%)")
    axes[-1].legend(loc="lower right")
    return _save(figure, path)


def detections(
    path: Path, images: list[Tensor], truth: list[dict], found: dict[str, list[dict]], classes: list[str], score: float
) -> Path:
    """A row of images with their true boxes, and a row per detector with what it found above `score`.

    images: uint8 [C, H, W]; found: detector's name -> a {"boxes", "labels", "scores"} per image.
    """
    rows = {"true boxes": truth} | {
        name: [{key: value[one["scores"] >= score] for key, value in one.items()} for one in boxes]
        for name, boxes in found.items()
    }
    figure, axes = subplots(len(rows), len(images), figsize=(2.0 * len(images), 2.15 * len(rows)), squeeze=False)
    for line, (name, boxes) in zip(axes, rows.items()):
        for axis, image, one in zip(line, images, boxes):
            show_image(axis, image)
            color = TRUE_BOX if name == "true boxes" else FOUND_BOX
            for (left, top, right, bottom), label in zip(one["boxes"].tolist(), one["labels"].tolist()):
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color))
                axis.text(left, top - 1, classes[label], color=color, fontsize=8, va="bottom", parse_math=False)
        line[0].set_ylabel(name)
    figure.suptitle(f"Objects found on test images (score at least {score:g})")
    return _save(figure, path)


def confusion(path: Path, predicted: Tensor, truth: Tensor, names: list[str], title: str) -> Path:
    """Share of each true class (row) that was taken for each class (column), in percent; names: of the classes."""
    classes = len(names)
    counts = torch.zeros(classes, classes).index_put_((truth, predicted), torch.ones(()), accumulate=True)
    share = 100 * counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    figure, axis = subplots(figsize=(6.2, 5.4))
    shown = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=100)
    if classes <= 20:
        for row in range(classes):
            for column in range(classes):
                value = share[row, column].item()
                if value >= 0.5:
                    axis.text(
                        column, row, f"{value:.0f}", ha="center", va="center", color="white" if value > 50 else "black"
                    )
        labels = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
        turned = 0 if max(map(len, labels)) <= 2 else 90
        axis.set_xticks(range(classes), labels, rotation=turned, parse_math=False)
        axis.set_yticks(range(classes), labels, parse_math=False)
    axis.set(title=title, xlabel="predicted class", ylabel="true class")
    figure.colorbar(shown, label="share of the true class (%)")
    return _save(figure, path)
