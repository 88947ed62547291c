"""The table at the end of a run: raw pixels, random-init encoder and SimCLR encoder, by the same three probes."""

import statistics

import torch
from rich.table import Table
from torch import Tensor, nn

from simclr_fast.data import EncodedImages, ImageArrays
from simclr_fast.evaluation.features import Pixels, Preprocess, embed
from simclr_fast.evaluation.knn import knn_accuracy
from simclr_fast.evaluation.linear import linear_accuracy, standardize
from simclr_fast.evaluation.splits import few_label_draws, fixed_part

LARGEST = (50_000, 10_000)  # training and test images that are compared on
ENCODERS = {"raw": "raw pixels", "random_init": "random-init encoder", "simclr": "SimCLR encoder"}
PROBES = {
    "few_label_1nn": "1-NN, {n} labels/class",
    "few_label_linear": "linear, {n} labels/class",
    "knn": "weighted kNN, all labels",
}


def compare(
    random_init: nn.Module,
    trained: nn.Module,
    train: ImageArrays | EncodedImages,
    test: ImageArrays | EncodedImages,
    preprocess: Preprocess,
    device: torch.device,
    *,
    labels_per_class: int = 10,
    draws: int = 5,
) -> dict[str, dict[str, float]]:
    """Test accuracies (fractions) by probe and encoder, on fixed random parts of sets that are larger than LARGEST.

    Nothing is selected on the test images.
    """
    parts = [(source, fixed_part(len(source), limit)) for source, limit in zip((train, test), LARGEST)]
    labels, truth = (source.labels[chosen] for source, chosen in parts)
    results: dict[str, dict[str, float]] = {probe: {} for probe in PROBES}
    for name, encoder in (("raw", Pixels()), ("random_init", random_init), ("simclr", trained)):
        bank, queries = (embed(encoder, source, preprocess, device, chosen) for source, chosen in parts)
        scores = probe_accuracies(bank, labels, queries, truth, labels_per_class, draws)
        for probe, score in scores.items():
            results[probe][name] = round(score, 4)
    return results


def probe_accuracies(
    bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, labels_per_class: int = 10, draws: int = 5
) -> dict[str, float]:
    """The three accuracies (fractions) of features [N, D] for training and [Q, D] for test images."""
    chosen = few_label_draws(labels, labels_per_class, draws)
    scaled_bank, scaled_queries = standardize(bank, queries)
    return {
        "few_label_1nn": statistics.mean(
            knn_accuracy(bank[few], labels[few], queries, truth, knn_k=1) for few in chosen
        ),
        "few_label_linear": statistics.mean(
            linear_accuracy(scaled_bank[few], labels[few], scaled_queries, truth) for few in chosen
        ),
        "knn": knn_accuracy(bank, labels, queries, truth),
    }


def results_table(results: dict[str, dict[str, float]], labels_per_class: int = 10, draws: int = 5) -> Table:
    """The accuracies as a table in percent."""
    table = Table(title=f"Accuracy on held-out test images (%; few-label rows: mean of {draws} draws)")
    table.add_column("")
    for title in ENCODERS.values():
        table.add_column(title, justify="right")
    for probe, title in PROBES.items():
        cells = [f"{100 * results[probe][encoder]:.1f}" for encoder in ENCODERS]
        table.add_row(title.format(n=labels_per_class), *cells)
    return table
