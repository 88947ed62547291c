"""The command `report`: everything known about a run on one HTML page."""

import json
from pathlib import Path

import torch

from simclr_fast import visualize
from simclr_fast.config import as_dict
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.evaluation import page, pictures
from simclr_fast.evaluation.comparison import ENCODERS, LARGEST, PROBES
from simclr_fast.evaluation.encoders import preprocess_of
from simclr_fast.evaluation.features import embed
from simclr_fast.evaluation.knn import nearest, vote
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import fixed_part
from simclr_fast.training.metrics import METRICS_FILE, read_metrics
from simclr_fast.training.summary import RESULTS_FILE, chance_level

PAGE_FILE = "report.html"
MAP_IMAGES = 1000
SAMPLE_QUERIES = 8
SAMPLE_NEIGHBOURS = 8
KNN_K, KNN_T = 20, 0.1


def main(session: Session) -> None:
    """Draw what is missing, gather what the other commands left, write report.html."""
    run = session.run
    parts = [page.facts(_facts(run))]
    parts += _training(session)
    results = run.folder / RESULTS_FILE
    if results.exists():
        parts.append(_comparison(json.loads(results.read_text())))
    parts += _representation(session, session.labelled_data())
    parts += _commands(session.folder)
    parts.append(page.Section("Options", page.options(as_dict(run.config))))
    title = f"SimCLR run {run.folder.name}: {run.config.model.model} on {run.config.data.dataset}"
    path = session.folder / PAGE_FILE
    path.write_text(page.render(title, parts))
    session.finish({"page": str(path), "sections": [part.title for part in parts]}, files=(path,))


def _facts(run: Run) -> dict[str, str]:
    parameters = sum(p.numel() for p in run.encoder().parameters())
    return {
        "Backbone": f"{run.config.model.model}, {parameters / 1e6:.2f} M parameters",
        "Data": run.config.data.dataset,
        "Recipe": run.config.recipe,
        "Checkpoint": f"{run.checkpoint.name}, after {run.step} steps",
        "Batch": f"{run.config.optimization.batch_size} images, temperature {run.config.optimization.temperature}",
    }


def _training(session: Session) -> list[page.Section]:
    """Views and learning curves; the curves are drawn again, so that they reach to the end of a resumed run."""
    run, sections = session.run, []
    views, metrics = run.folder / "views.png", run.folder / METRICS_FILE
    if views.exists():
        text = "Each column is an image and the two random views that SimCLR learns to recognise as one."
        sections.append(page.Section("Views", page.picture(views, text)))
    lines = read_metrics(metrics) if metrics.exists() else []
    if lines:
        curves = session.folder / "curves.png"
        visualize.learning_curves(curves, lines, chance_level(run.config.optimization.batch_size))
        sections.append(page.Section("Learning curves", page.picture(curves, "Loss, accuracy and learning rate.")))
    return sections


def _comparison(results: dict) -> page.Section:
    rows = [
        [title.format(n=10), *(f"{100 * results[probe][encoder]:.1f}" for encoder in ENCODERS)]
        for probe, title in PROBES.items()
        if probe in results
    ]
    text = "Accuracy on held-out test images (%), as measured at the end of training."
    return page.Section("Against the baselines", page.table(["", *ENCODERS.values()], rows, text))


def _representation(session: Session, data: Dataset) -> list[page.Section]:
    """Map of the test embeddings, nearest training images of sample test images, confusion matrix of kNN."""
    run, device, folder = session.run, session.device, session.folder
    encoder, preprocess = run.encoder().to(device), preprocess_of(run)
    chosen = [fixed_part(len(source), limit) for source, limit in zip((data.labelled, data.test), LARGEST)]
    bank, queries = (
        embed(encoder, source, preprocess, device, part) for source, part in zip((data.labelled, data.test), chosen)
    )
    labels, truth = data.labelled.labels[chosen[0]], data.test.labels[chosen[1]]
    similarity, index = nearest(bank, queries, KNN_K, device)
    predicted = vote(similarity, labels[index], KNN_T, int(labels.max()) + 1)
    accuracy = (predicted == truth).float().mean().item()

    some = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))[:MAP_IMAGES]
    map_file, neighbours_file, confusion_file = (
        folder / name for name in ("embeddings.png", "neighbours.png", "confusion.png")
    )
    visualize.embedding_map(map_file, queries[some], truth[some], f"t-SNE of the features of {len(some)} test images")
    samples = _samples(predicted, truth)
    near = index[samples, :SAMPLE_NEIGHBOURS]  # [queries, neighbours]
    size = run.config.augment.img_size
    pictures.neighbours(
        neighbours_file,
        _thumbnails(data.test, chosen[1][samples], size),
        _thumbnails(data.labelled, chosen[0][near.flatten()], size).unflatten(0, near.shape),
        labels[near] == truth[samples, None],
    )
    pictures.confusion(
        confusion_file,
        predicted,
        truth,
        int(labels.max()) + 1,
        f"kNN, k = {KNN_K}: {accuracy:.1%} of test images right",
    )
    return [
        page.Section("Map of the embeddings", page.picture(map_file, "Test images, coloured by class.")),
        page.Section(
            "Nearest neighbours",
            page.picture(
                neighbours_file,
                "Test images and their nearest training images by cosine similarity; green: same class, red: another. "
                "The last rows are images that kNN takes for another class, where there are any.",
            ),
        ),
        page.Section("Confusions", page.picture(confusion_file, f"Weighted kNN with {KNN_K} neighbours, in percent.")),
    ]


def _samples(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Sample images: right ones of different classes first, then up to two wrong ones."""
    wrong = (predicted != truth).nonzero().flatten()[:2]
    right = [(truth == label).logical_and(predicted == truth).nonzero().flatten()[:1] for label in truth.unique()]
    return torch.cat([torch.cat(right)[: SAMPLE_QUERIES - len(wrong)], wrong])


def _thumbnails(source, indices: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [n, C, H, W]."""
    if isinstance(source, ImageArrays):
        return source.images[indices]
    resize = lambda image: torch.nn.functional.interpolate(image[None].float(), (size, size), mode="area")[0].byte()
    return torch.stack([resize(source.decoded(i)) for i in indices.tolist()])


def _commands(folder: Path) -> list[page.Section]:
    """A section for every other command that has left its results here."""
    titles = {
        "knn": "Nearest-neighbour classification",
        "linear": "Linear classification",
        "few-label": "Few labels",
        "finetune": "Fine-tuning",
        "detect": "Object detection",
    }
    sections = []
    for command, title in titles.items():
        path = folder / f"{command}.json"
        if not path.exists():
            continue
        content = json.loads(path.read_text())
        blocks = [page.table(one["columns"], one["rows"], one["title"]) for one in content["tables"]]
        drawing = folder / f"{command}.png"
        if drawing.exists():
            blocks.append(page.picture(drawing, ""))
        note = f"After {content['step']} steps, on {content['device']}, in {content['seconds']:.0f} s."
        sections.append(page.Section(title, "".join(blocks) + page.note(note)))
    return sections
