"""What the training loop measures: online kNN on the way; at the end, pictures and the comparison with baselines."""

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from simclr_fast.config import Config
from simclr_fast.data import Dataset
from simclr_fast.data.shrink import side_of
from simclr_fast.data.sources import shrunk_to
from simclr_fast.evaluation.comparison import compare, comparison_by_class, comparison_table
from simclr_fast.evaluation.features import Preprocess, embed
from simclr_fast.evaluation.probes import knn_accuracy
from simclr_fast.evaluation.session import measurable
from simclr_fast.evaluation.splits import random_part
from simclr_fast.evaluation.tables import class_names
from simclr_fast.models import build_model
from simclr_fast.run_files import METRICS_FILE, ONLINE_KNN_K, RESULTS_FILE, chance_level, read_metrics, write_results

QUERY_SHARE = 0.1
LARGEST_SAMPLE = 50_000  # images, queries and bank together; of a larger set a fixed random part is used
PICTURE_COLUMNS = 10


class OnlineKnn:
    """kNN accuracy of an encoder: a fixed tenth of the labelled training images against the rest; no test image."""

    def __init__(self, dataset: Dataset, config: Config, device: torch.device):
        self.source = dataset.labelled
        self.device = device
        self.preprocess = Preprocess.of(config.augment)
        order = random_part(len(self.source), LARGEST_SAMPLE)
        queries = max(1, int(QUERY_SHARE * len(order)))
        self.queries, self.bank = order[:queries], order[queries:]

    def accuracy(self, encoder: nn.Module) -> float:
        """Share of the queries whose class is voted right (fraction)."""
        bank, queries = (
            embed(encoder, self.source, self.preprocess, self.device, part) for part in (self.bank, self.queries)
        )
        labels = self.source.labels
        return knn_accuracy(bank, labels[self.bank], queries, labels[self.queries], knn_k=ONLINE_KNN_K)


def draw_pictures(
    config: Config,
    dataset: Dataset,
    encoder: nn.Module,
    views: Callable[[Tensor | list[Tensor], Tensor], Tensor],
    device: torch.device,
) -> list[Path]:
    """The view grid, the learning curves and, where there are labelled test images, the map of their embeddings.

    views: gives two views [2n, C, S, S], view-major, of n images uint8 [C, H, W] at indices int64 [n].
    """
    from simclr_fast import visualize  # matplotlib is slow to import, and only this needs it

    folder = config.run.output
    indices = torch.linspace(0, len(dataset.train) - 1, min(PICTURE_COLUMNS, len(dataset.train))).long()
    images = shrunk_to(dataset.train, side_of(config.augment)).take(indices, device)
    view0, view1 = views(images, indices.to(device)).chunk(2)
    paths = [folder / "views.png", folder / "curves.png"]
    visualize.view_grid(paths[0], images, view0, view1, config.augment.mean, config.augment.std)
    chance = chance_level(config.optimization.batch_size)
    visualize.learning_curves(paths[1], read_metrics(folder / METRICS_FILE), chance)
    if dataset.test is not None and dataset.test.labels is not None:
        paths.append(folder / "embeddings.png")
        chosen = random_part(len(dataset.test), visualize.MAPPED_IMAGES)
        features = embed(encoder, dataset.test, Preprocess.of(config.augment), device, chosen)
        title = f"Encoder features of {len(chosen)} test images"
        visualize.embedding_map(paths[2], features, dataset.test.labels[chosen], title, class_names(dataset))
    return paths


def evaluate(
    config: Config,
    dataset: Dataset,
    encoder: nn.Module,
    device: torch.device,
    console: Console,
    *,
    steps: int,
    seconds: float,
) -> dict:
    """Compare with the baselines, print the table, write results.json, and return what is in it.

    steps, seconds: how long the encoder has trained.
    """
    results: dict = {"seed": config.run.seed, "train_seconds": round(seconds, 1), "steps": steps}
    if measurable(dataset):
        torch.manual_seed(config.run.seed)
        random_init = build_model(config.model, dataset.train.channels, config.augment.size).backbone.to(device)
        preprocess = Preprocess.of(config.augment)
        scores = compare(
            random_init, encoder, dataset.labelled, dataset.test, preprocess, device, names=class_names(dataset)
        )
        console.print(comparison_table(scores).rich())
        console.print(comparison_by_class(scores).rich())
        results |= scores
    write_results(config.run.output / RESULTS_FILE, results)
    return results
