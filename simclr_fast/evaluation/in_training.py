"""What the training loop shows: views, and kNN on the way; at the end, pictures and the comparison with baselines."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from simclr_fast.config import Config
from simclr_fast.data import Dataset
from simclr_fast.data.shrink import side_of
from simclr_fast.data.sources import shrunk_to
from simclr_fast.evaluation.comparison import (
    LABELS_PER_CLASS,
    compare,
    compared_part,
    comparison_by_class,
    comparison_table,
)
from simclr_fast.evaluation.features import ENCODERS, Features, Preprocess, embed
from simclr_fast.evaluation.one_label import is_cheap, one_label_accuracies, raw_accuracies
from simclr_fast.evaluation.probes import knn_accuracy, nearest
from simclr_fast.evaluation.published import beside_published
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import measurable
from simclr_fast.evaluation.splits import few_label_draws, random_part
from simclr_fast.evaluation.tables import class_names
from simclr_fast.models import build_model
from simclr_fast.process import Process
from simclr_fast.run_files import (
    METRICS_FILE,
    ONLINE_KNN_K,
    RESULTS_FILE,
    VIEWS_FILE,
    chance_level,
    read_metrics,
    write_results,
)

QUERY_SHARE = 0.1
LARGEST_QUERIES = 1000  # test images whose neighbours are looked for, a fixed random part
LARGEST_SAMPLE = 50_000  # images, queries and bank together; of a larger set a fixed random part is used
PICTURE_COLUMNS = 10
PICTURE_LINES = 10  # queries whose neighbours are shown, of a class each
PICTURE_NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True)
class Pictured:
    """Images that the pictures of a run's end show, and what the comparison made of them.

    data: the part of the data set that is compared on. few: labelled images, those of the comparison's first draw, and
    asked: test images in random order, both int64. features: of `few` and `asked`, by the keys of ENCODERS.
    """

    data: Dataset
    few: Tensor
    asked: Tensor
    features: dict[str, Features]

    @staticmethod
    def of(data: Dataset) -> "Pictured":
        """Before anything is embedded."""
        few = few_label_draws(data.labelled.labels, LABELS_PER_CLASS, draws=1)[0]
        return Pictured(data, few, random_part(len(data.test), LARGEST_QUERIES), {})

    def keep(self, name: str, features: Features) -> None:
        """Copy what is pictured of the features of all compared images."""
        self.features[name] = Features(features.train[self.few], features.test[self.asked])


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


def draw_views(
    config: Config,
    dataset: Dataset,
    views: Callable[[Tensor | list[Tensor], Tensor], Tensor],
    device: torch.device,
) -> Path:
    """The view grid: some training images, and what the encoder will be shown of them.

    views: gives two views [2n, C, S, S], view-major, of n images uint8 [C, H, W] at indices int64 [n].
    """
    from simclr_fast import visualize  # matplotlib is slow to import

    indices = torch.linspace(0, len(dataset.train) - 1, min(PICTURE_COLUMNS, len(dataset.train))).long()
    images = shrunk_to(dataset.train, side_of(config.augment)).take(indices, device)
    view0, view1 = views(images, indices.to(device)).chunk(2)
    path = config.run.output / VIEWS_FILE
    visualize.view_grid(path, images, view0, view1, config.augment.mean, config.augment.std)
    return path


def draw_pictures(
    config: Config, dataset: Dataset, encoder: nn.Module, device: torch.device, pictured: Pictured | None
) -> list[Path]:
    """The learning curves; where there are labelled test images, the map of their embeddings, and where there are
    labelled training images, too, the nearest of a few of these by raw pixels and by the encoder.

    pictured: what `evaluate` gives.
    """
    from simclr_fast import visualize  # matplotlib is slow to import

    folder = config.run.output
    paths = [folder / "curves.png"]
    chance = chance_level(config.optimization.batch_size)
    visualize.learning_curves(paths[0], read_metrics(folder / METRICS_FILE), chance)
    if dataset.test is not None and dataset.test.labels is not None:
        paths.append(folder / "embeddings.png")
        if pictured is None:
            chosen = random_part(len(dataset.test), visualize.MAPPED_IMAGES)
            features = embed(encoder, dataset.test, Preprocess.of(config.augment), device, chosen)
            labels = dataset.test.labels[chosen]
        else:
            features = pictured.features["simclr"].test[: visualize.MAPPED_IMAGES]
            labels = pictured.data.test.labels[pictured.asked[: visualize.MAPPED_IMAGES]]
        title = f"Encoder features of {len(labels)} test images"
        visualize.embedding_map(paths[1], features, labels, title, class_names(dataset))
    if pictured is not None:
        paths.append(_draw_neighbours(folder, pictured, device))
    return paths


def _draw_neighbours(folder: Path, pictured: Pictured, device: torch.device) -> Path:
    """Test images of different classes with the most alike of a few labelled images, by raw pixels and by the encoder.

    The queries are the first of their class in a random order, whatever is found for them.
    """
    from simclr_fast.evaluation import neighbour_picture as picture

    labelled, test, few, asked = pictured.data.labelled, pictured.data.test, pictured.few, pictured.asked
    labels, truth = labelled.labels[few], test.labels[asked]
    classes = truth.unique()
    shown = classes[torch.linspace(0, len(classes) - 1, min(PICTURE_LINES, len(classes))).long()]
    lines = torch.stack([(truth == label).nonzero()[0, 0] for label in shown])
    found = {}
    for name in ("raw", "simclr"):
        features = pictured.features[name]
        near = nearest(features.train, features.test, PICTURE_NEIGHBOURS, device)[1]  # [Q, k]
        same = labels[near] == truth[:, None]
        found[f"{ENCODERS[name]}: {same.float().mean():.0%} right"] = [
            [
                picture.Shown(image, same=right)
                for image, right in zip(picture.thumbnails(labelled, few[near[line]]), same[line].tolist())
            ]
            for line in lines.tolist()
        ]
    queries = [picture.Shown(image) for image in picture.thumbnails(test, asked[lines])]
    title = (
        f"Test images, and the {near.shape[1]} that each finds most alike of {len(few)} labelled ones "
        f"({LABELS_PER_CLASS} per class).\nGreen: of the query's class. Shares: of what {len(asked)} test images find."
    )
    return picture.draw_side_by_side(folder / picture.PICTURE_FILE, queries, found, title)


def evaluate(
    config: Config,
    dataset: Dataset,
    encoder: nn.Module,
    device: torch.device,
    console: Console,
    *,
    steps: int,
    seconds: float,
) -> Pictured | None:
    """Compare with the baselines, print the table, write results.json, and return what the pictures need.

    On small images fine-tuning from a label per class is compared, too. None where there is nothing to compare on.

    steps, seconds: how long the encoder has trained.
    """
    results: dict = {"seed": config.run.seed, "train_seconds": round(seconds, 1), "steps": steps}
    pictured = None
    if measurable(dataset):
        torch.manual_seed(config.run.seed)
        random_init = build_model(config.model, dataset.train.channels, config.augment.size).backbone.to(device)
        part = compared_part(dataset)
        run = Run(config.run.output, config.run.output, steps, config, dataset.train.channels, encoder.state_dict())
        pictured, of_raw, cheap = Pictured.of(part), [], is_cheap(run, part)

        def see(name: str, features: Features, scaled: Features) -> None:
            pictured.keep(name, features)
            if name == "raw" and cheap:
                of_raw.extend(raw_accuracies(scaled, part, device))

        scores = compare(
            *(random_init, encoder, part, Preprocess.of(config.augment), device),
            labelled_images=len(dataset.labelled),
            see=see,
        )
        if cheap:
            scores["one_label_fine_tuned"] = one_label_accuracies(run, part, of_raw, Process(0, 1, device))
        console.print(comparison_table(scores).rich())
        console.print(comparison_by_class(scores).rich())
        results |= scores
        found = beside_published(config, dataset, scores)
        if found is not None:
            console.print(found["line"], soft_wrap=True, markup=False, highlight=False)
            results["published"] = found
    write_results(config.run.output / RESULTS_FILE, results)
    return pictured
