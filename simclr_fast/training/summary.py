"""What a finished run leaves in its folder: pictures, the comparison with the baselines, results.json."""

import json
import math
from pathlib import Path

import torch
from rich.console import Console

from simclr_fast.config import Config
from simclr_fast.data import Dataset
from simclr_fast.evaluation.classes import class_names
from simclr_fast.evaluation.comparison import compare, comparison_by_class, comparison_table
from simclr_fast.evaluation.features import Preprocess, embed
from simclr_fast.models import build_model
from simclr_fast.training.metrics import METRICS_FILE, read_metrics
from simclr_fast.training.state import TrainState
from simclr_fast.training.views import Views

RESULTS_FILE = "results.json"
PICTURE_COLUMNS = 10


def chance_level(batch_size: int) -> float:
    """The NT-Xent loss of embeddings that say nothing: ln(2N - 1) for the global batch of N images (nats)."""
    return math.log(2 * batch_size - 1)


def print_summary(config: Config, state: TrainState, console: Console) -> None:
    """The run in a few lines, by the last of its recorded metrics, if its file of them is still there."""
    images = state.step * config.optimization.batch_size
    trained = f"Trained {state.step} steps in {state.seconds:.0f} s ({images / state.seconds:.0f} images/s)."
    lines = [line for line in read_metrics(config.run.output / METRICS_FILE) if "loss" in line]
    if not lines:
        console.print(f"{trained} {METRICS_FILE} holds no metrics of them")
        return
    last = lines[-1]
    console.print(
        f"{trained} Loss {last['loss']:.3f} (chance {last['chance']:.3f}), contrastive accuracy "
        f"{last['contrastive_accuracy']:.1%}, peak memory {last['peak_memory_mib']:.0f} MiB"
    )


def draw_pictures(
    config: Config, dataset: Dataset, state: TrainState, views: Views, device: torch.device
) -> list[Path]:
    """The view grid, the learning curves and, where there are labelled test images, the map of their embeddings."""
    from simclr_fast import visualize  # matplotlib is slow to import, and only this needs it

    folder = config.run.output
    indices = torch.linspace(0, len(dataset.train) - 1, min(PICTURE_COLUMNS, len(dataset.train))).long()
    images = dataset.train.take(indices, device)
    view0, view1 = views.apply(images, views.draw(indices.to(device), step=0)).chunk(2)
    paths = [folder / "views.png", folder / "curves.png"]
    visualize.view_grid(paths[0], images, view0, view1, config.augment.mean, config.augment.std)
    chance = chance_level(config.optimization.batch_size)
    visualize.learning_curves(paths[1], read_metrics(folder / METRICS_FILE), chance)
    if dataset.test is not None and dataset.test.labels is not None:
        paths.append(folder / "embeddings.png")
        preprocess = Preprocess.of(config.augment)
        chosen = torch.randperm(len(dataset.test), generator=torch.Generator().manual_seed(0))[:1000]
        features = embed(state.evaluated, dataset.test, preprocess, device, chosen)
        title = f"Encoder features of {len(chosen)} test images"
        visualize.embedding_map(paths[2], features, dataset.test.labels[chosen], title, class_names(dataset))
    return paths


def evaluate(config: Config, dataset: Dataset, state: TrainState, device: torch.device, console: Console) -> dict:
    """Compare with the baselines, print the table, write results.json, and return what is in it."""
    results: dict = {"seed": config.run.seed, "train_seconds": round(state.seconds, 1), "steps": state.step}
    labelled, test = dataset.labelled, dataset.test
    if labelled is not None and test is not None and test.labels is not None:
        torch.manual_seed(config.run.seed)
        random_init = build_model(config.model, dataset.train.channels).backbone.to(device)
        preprocess = Preprocess.of(config.augment)
        names = class_names(dataset)
        scores = compare(random_init, state.evaluated, labelled, test, preprocess, device, names=names)
        console.print(comparison_table(scores).rich())
        console.print(comparison_by_class(scores).rich())
        results |= scores
    (config.run.output / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    return results
