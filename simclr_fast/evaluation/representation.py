"""Pictures of what an encoder's features hold: a map, nearest neighbours and, where there are labels, confusions."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from simclr_fast import visualize
from simclr_fast.data import Dataset, Source
from simclr_fast.evaluation import page, pictures
from simclr_fast.evaluation.classes import accuracy, class_names
from simclr_fast.evaluation.comparison import LARGEST
from simclr_fast.evaluation.knn import KNN_K, KNN_T, choose_k, nearest, vote
from simclr_fast.evaluation.splits import fixed_part

MAP_IMAGES = 1000
SAMPLE_QUERIES = 8
SAMPLE_NEIGHBOURS = 8

Embed = Callable[[Source, Tensor], Tensor]  # (images, indices int64 [N]) -> features [N, D]


def labelled_sections(data: Dataset, embed: Embed, folder: Path, size: int, device: torch.device) -> list[page.Section]:
    """Map of the test embeddings, nearest training images of sample test images, confusion matrix of kNN."""
    names = class_names(data)
    chosen = [fixed_part(len(source), limit) for source, limit in zip((data.labelled, data.test), LARGEST)]
    bank, queries = (embed(source, part) for source, part in zip((data.labelled, data.test), chosen))
    labels, truth = data.labelled.labels[chosen[0]], data.test.labels[chosen[1]]
    k, _ = choose_k(bank, labels, KNN_K, knn_t=KNN_T, classes=len(names), device=device)
    similarity, index = nearest(bank, queries, max(k, SAMPLE_NEIGHBOURS), device)
    votes = vote(similarity[:, :k], labels[index[:, :k]], KNN_T, len(names))
    predicted = votes.argmax(dim=1)

    samples = _samples(predicted, truth)
    near = index[samples, :SAMPLE_NEIGHBOURS]  # [queries, neighbours]
    neighbours = pictures.neighbours(
        folder / "neighbours.png",
        _thumbnails(data.test, chosen[1][samples], size),
        _thumbnails(data.labelled, chosen[0][near.flatten()], size).unflatten(0, near.shape),
        labels[near] == truth[samples, None],
    )
    title = f"kNN, k = {k}: {accuracy(votes, truth):.1%} of {len(truth)} test images right"
    confusion = pictures.confusion(folder / "confusion.png", predicted, truth, names, title)
    return [
        _map(folder, queries, truth, names, "test images"),
        page.Section(
            "Nearest neighbours",
            page.picture(
                neighbours,
                "Test images and their nearest training images by cosine similarity; green: same class, red: another. "
                "The last rows are images that kNN takes for another class, where there are any.",
            ),
        ),
        page.Section(
            "Confusions",
            page.picture(
                confusion,
                f"Weighted kNN with {k} neighbour(s), in percent; the training images chose k, leaving one out.",
            ),
        ),
    ]


def training_sections(data: Dataset, embed: Embed, folder: Path, size: int, device: torch.device) -> list[page.Section]:
    """Where there are no labelled test images: a map of the training images, and their nearest ones; no accuracies."""
    source = data.train if data.labelled is None else data.labelled
    chosen = fixed_part(len(source), LARGEST[0])
    bank = embed(source, chosen)
    labels = None if source.labels is None else source.labels[chosen]
    samples = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:SAMPLE_QUERIES]
    _, near = nearest(bank, None, SAMPLE_NEIGHBOURS, device, samples)
    neighbours = pictures.neighbours(
        folder / "neighbours.png",
        _thumbnails(source, chosen[samples], size),
        _thumbnails(source, chosen[near.flatten()], size).unflatten(0, near.shape),
        None if labels is None else labels[near] == labels[samples, None],
    )
    frames = "" if labels is None else "; green: same class, red: another"
    text = f"Training images and their nearest other training images by cosine similarity{frames}."
    missing = page.note("The data has no labelled test images, so that no accuracy can be measured.")
    return [
        _map(folder, bank, labels, class_names(data), "training images"),
        page.Section("Nearest neighbours", page.picture(neighbours, text) + missing),
    ]


def _map(folder: Path, features: Tensor, labels: Tensor | None, names: list[str], images: str) -> page.Section:
    some = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MAP_IMAGES]
    path = folder / "embeddings.png"
    title = f"t-SNE of the features of {len(some)} {images}"
    visualize.embedding_map(path, features[some], None if labels is None else labels[some], title, names)
    colours = "." if labels is None else ", coloured by class."
    return page.Section("Map of the embeddings", page.picture(path, f"{images.capitalize()}{colours}"))


def _samples(predicted: Tensor, truth: Tensor) -> Tensor:
    """Sample images: right ones of different classes first, then up to two wrong ones."""
    wrong = (predicted != truth).nonzero().flatten()[:2]
    right = [(truth == label).logical_and(predicted == truth).nonzero().flatten()[:1] for label in truth.unique()]
    return torch.cat([torch.cat(right)[: SAMPLE_QUERIES - len(wrong)], wrong])


def _thumbnails(source: Source, indices: Tensor, size: int) -> Tensor:
    """uint8 [n, C, size, size]."""
    resize = lambda image: torch.nn.functional.interpolate(image[None].float(), (size, size), mode="area")[0].byte()
    return torch.stack([resize(image) for image in source.take(indices)])
