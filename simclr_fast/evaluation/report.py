"""The command `report`: everything known about a run on one HTML page, with pictures of what its features hold."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simclr_fast import visualize
from simclr_fast.config import as_dict
from simclr_fast.data import Dataset, EncodedImages, Source
from simclr_fast.data.auto import found_in
from simclr_fast.data.ignored import IGNORED_FILE
from simclr_fast.errors import in_utf8
from simclr_fast.evaluation import page, pictures
from simclr_fast.evaluation.card_metadata import name_of
from simclr_fast.evaluation.comparison import LARGEST, comparison_by_class, comparison_table
from simclr_fast.evaluation.features import embed, preprocess_of
from simclr_fast.evaluation.neighbour_picture import PICTURE_FILE, Shown, draw_side_by_side, thumbnails
from simclr_fast.evaluation.probes import KNN_K, KNN_T, choose_k, choosing_rows, chosen_by, nearest, vote
from simclr_fast.evaluation.published import published_table
from simclr_fast.evaluation.results import heading, left_by
from simclr_fast.evaluation.session import FEATURES_FOLDER, Session, measurable
from simclr_fast.evaluation.splits import fixed_part, random_part
from simclr_fast.evaluation.tables import ResultTable, accuracy, class_names
from simclr_fast.run_files import (
    METRICS_FILE,
    VIEWS_FILE,
    chance_level,
    in_one_move,
    read_comparison,
    read_metrics,
    read_results,
)

PAGE_FILE = "report.html"
SAMPLE_QUERIES = 8
SAMPLE_NEIGHBOURS = 8

FeaturesOf = Callable[[Source, Tensor], Tensor]  # (images, indices int64 [N]) -> features [N, D]


def main(session: Session) -> dict[str, Any]:
    """Draw what is missing, gather what the other commands left, write report.html."""
    run, data = session.run, session.data()
    lines = read_metrics(run.folder / METRICS_FILE) if (run.folder / METRICS_FILE).exists() else []
    parts = _warnings(lines) + _training(session, lines)
    results = read_comparison(run.folder)
    if results is not None:
        parts.append(_comparison(results, run.folder / PICTURE_FILE))
        parts += _published(results)
    parts += _representation(session, data)
    parts += _commands(session.folder)
    parts += _embedded(run.folder / FEATURES_FOLDER)
    parts.append(page.Section("Options", page.options(as_dict(run.config))))
    parts.insert(0, page.facts(_facts(session, data)))  # last: unreadable images are met on the way
    images = f"{_name(session)} ({len(data.train)} images)"
    title = f"SimCLR run {run.folder.resolve().name}: {run.config.model.model} on {images}"
    path = session.folder / PAGE_FILE
    with in_one_move(path) as temporary:
        temporary.write_text(in_utf8(page.render(title, parts)), encoding="utf-8")
    drawn = [file for part in parts for file in part.files]
    return session.finish({"page": str(path), "sections": [part.title for part in parts]}, files=(*drawn, path))


def _name(session: Session) -> str:
    """What the images are called: the data set, or the folder that holds it."""
    return name_of(session.data_options.dataset, session.data_options.data)


def _facts(session: Session, data: Dataset) -> dict[str, str]:
    run, name, kind = session.run, _name(session), found_in(session.data_options)[0].dataset
    parameters = sum(p.numel() for p in run.encoder().parameters())
    return {
        "Backbone": f"{run.config.model.model}, {parameters / 1e6:.2f} M parameters without the projection head",
        "Data": f"{name}, {len(data.train)} training images" + (f" ({kind})" if kind != name else ""),
        "Left out": _left_out(data),
        "Recipe": run.config.recipe,
        "Checkpoint": f"{run.checkpoint.name}, after {run.step} steps",
        "Batch": f"{run.config.optimization.batch_size} images, temperature {run.config.optimization.temperature}",
    }


def _left_out(data: Dataset) -> str:
    unreadable = {name for source in (data.train, data.labelled, data.test) for name in _unreadable(source)}
    counts = f"{len(data.ignored)} ignored, {len(unreadable)} of those looked at here unreadable"
    return f"{counts}; {IGNORED_FILE} beside this page names each" if data.ignored or unreadable else "nothing"


def _unreadable(source: Source | None) -> Collection[str]:
    """Names of the images that turned out to be unreadable."""
    return source.bad.messages if isinstance(source, EncodedImages) else ()


def _warnings(lines: list[dict]) -> list[page.Section]:
    """What the run said to be wrong while it trained."""
    rows = [[str(line["step"]), line["message"]] for line in lines if "warning" in line]
    return [page.Section("Warnings", page.table(["step", "warning"], rows, ""))] if rows else []


def _training(session: Session, lines: list[dict]) -> list[page.Section]:
    """Views and learning curves; the curves are drawn again, so that they reach to the end of a resumed run."""
    run, sections = session.run, []
    views = run.folder / VIEWS_FILE
    if views.exists():
        text = "Each column is an image and the two random views that SimCLR learns to recognise as one."
        sections.append(page.Section("Views", page.picture(views, text)))
    if lines:
        curves = session.folder / "curves.png"
        visualize.learning_curves(curves, lines, chance_level(run.config.optimization.batch_size))
        text = "Loss, accuracy and learning rate."
        sections.append(page.Section("Learning curves", page.picture(curves, text), (curves,)))
    return sections


def _comparison(results: dict, drawing: Path) -> page.Section:
    overall, by_class = (_table(table(results)) for table in (comparison_table, comparison_by_class))
    text = "What raw pixels and the encoder find most alike among a few labelled images."
    picture = page.picture(drawing, text) if drawing.exists() else ""
    note = page.note("As measured at the end of training.")
    return page.Section("Against the baselines", overall + picture + by_class + note)


def _published(results: dict) -> list[page.Section]:
    found = results.get("published")
    if found is None:
        return []
    content = page.note(found["line"]) + _table(published_table(found))
    return [page.Section("Beside what was published", content)]


def _representation(session: Session, data: Dataset) -> list[page.Section]:
    run, device = session.run, session.device
    encoder, preprocess = run.encoder().to(device), preprocess_of(run)
    features = lambda source, indices: embed(encoder, source, preprocess, device, indices)
    sections = labelled_sections if measurable(data) else training_sections
    return sections(data, features, session.folder, device)


def _table(one: ResultTable) -> str:
    return page.table(one.columns, one.rows, one.title)


def _commands(folder: Path) -> list[page.Section]:
    """A section for every protocol and list by which another command has left its results here."""
    titles = {
        "knn": "Nearest-neighbour classification",
        "linear": "Linear classification",
        "few-label": "Few labels",
        "finetune": "Fine-tuning",
        "detect": "Object detection",
        "multi-label": "Multi-label classification",
    }
    sections = []
    for command, title in titles.items():
        for path, content in left_by(command, folder).items():
            blocks = [_table(ResultTable(**one)) for one in content["tables"]]
            drawing = path.with_suffix(".png")
            if drawing.exists():
                blocks.append(page.picture(drawing, ""))
            note = f"After {content['step']} steps, on {content['device']}, in {content['seconds']:.0f} s."
            sections.append(page.Section(title + heading(content), "".join(blocks) + page.note(note)))
    return sections


def _embedded(folder: Path) -> list[page.Section]:
    """What `embed` left in the run's folder: its picture of nearest neighbours."""
    content, drawing = read_results(folder / "embed.json"), folder / PICTURE_FILE
    if content is None or not drawing.exists():
        return []
    results = content["results"]
    text = f"Nearest neighbours among the {results['rows']} images of {results['data']} that embed made features of."
    tables = "".join(_table(ResultTable(**one)) for one in content["tables"][:1])
    note = page.note(f"After {content['step']} steps.")
    return [page.Section("Features of your images", page.picture(drawing, text, wide=True) + tables + note)]


def labelled_sections(data: Dataset, features_of: FeaturesOf, folder: Path, device: torch.device) -> list[page.Section]:
    """Map of the test embeddings, nearest training images of sample test images, confusion matrix of kNN."""
    names = class_names(data)
    chosen = [fixed_part(len(source), limit) for source, limit in zip((data.labelled, data.test), LARGEST)]
    bank, queries = (features_of(source, part) for source, part in zip((data.labelled, data.test), chosen))
    (chosen[0], bank), (chosen[1], queries) = (
        _readable(data.labelled, chosen[0], bank),
        _readable(data.test, chosen[1], queries),
    )
    labels, truth = data.labelled.labels[chosen[0]], data.test.labels[chosen[1]]
    k, _ = choose_k(bank, labels, KNN_K, knn_t=KNN_T, classes=len(names), device=device)
    similarity, index = nearest(bank, queries, max(k, SAMPLE_NEIGHBOURS), device)
    votes = vote(similarity[:, :k], labels[index[:, :k]], KNN_T, len(names))
    predicted = votes.argmax(dim=1)

    samples = _samples(predicted, truth)
    near = index[samples, :SAMPLE_NEIGHBOURS]  # [queries, neighbours]
    neighbours = _draw_neighbours(
        *(folder, data.test, chosen[1][samples], data.labelled, chosen[0][near]), labels[near] == truth[samples, None]
    )
    by = chosen_by(len(labels), len(choosing_rows(labels)))
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
            (neighbours,),
        ),
        page.Section(
            "Confusions",
            page.picture(
                confusion,
                f"Weighted kNN with {k} neighbour(s), in percent; k was chosen on {by}, leaving one out.",
            ),
            (confusion,),
        ),
    ]


def training_sections(data: Dataset, features_of: FeaturesOf, folder: Path, device: torch.device) -> list[page.Section]:
    """Where there are no labelled test images: a map of the training images, and their nearest ones; no accuracies."""
    source = data.train if data.labelled is None or len(data.labelled) < 2 else data.labelled
    chosen = fixed_part(len(source), LARGEST[0])
    chosen, bank = _readable(source, chosen, features_of(source, chosen))
    labels = None if source.labels is None else source.labels[chosen]
    samples = random_part(len(bank), SAMPLE_QUERIES)
    _, near = nearest(bank, None, SAMPLE_NEIGHBOURS, device, samples)
    same = None if labels is None else labels[near] == labels[samples, None]
    neighbours = _draw_neighbours(folder, source, chosen[samples], source, chosen[near], same)
    frames = "" if labels is None else "; green: same class, red: another"
    text = f"Training images and their nearest other training images by cosine similarity{frames}."
    missing = page.note("The data has no labelled training and test images, so that no accuracy can be measured.")
    return [
        _map(folder, bank, labels, class_names(data), "training images"),
        page.Section("Nearest neighbours", page.picture(neighbours, text) + missing, (neighbours,)),
    ]


def _draw_neighbours(
    folder: Path, asked: Source, queries: Tensor, source: Source, near: Tensor, same: Tensor | None
) -> Path:
    """A line for each of the images at `queries` int64 [Q] with those at `near` int64 [Q, k]; same: bool [Q, k]."""
    known = [[None] * near.shape[1]] * len(near) if same is None else same.tolist()
    lines = [
        [Shown(image, same=one) for image, one in zip(thumbnails(source, row), line)] for row, line in zip(near, known)
    ]
    shown = [Shown(image) for image in thumbnails(asked, queries)]
    return draw_side_by_side(folder / "nearest.png", shown, {"nearest first": lines})


def _map(folder: Path, features: Tensor, labels: Tensor | None, names: list[str], images: str) -> page.Section:
    some = random_part(len(features), visualize.MAPPED_IMAGES)
    path = folder / "embeddings.png"
    title = f"t-SNE of the features of {len(some)} {images}"
    visualize.embedding_map(path, features[some], None if labels is None else labels[some], title, names)
    colors = "." if labels is None else ", coloured by class."
    return page.Section("Map of the embeddings", page.picture(path, f"{len(some)} {images}{colors}"), (path,))


def _samples(predicted: Tensor, truth: Tensor) -> Tensor:
    """Sample images: right ones of different classes first, then up to two wrong ones."""
    wrong = (predicted != truth).nonzero().flatten()[:2]
    right = [(truth == label).logical_and(predicted == truth).nonzero().flatten()[:1] for label in truth.unique()]
    return torch.cat([torch.cat(right)[: SAMPLE_QUERIES - len(wrong)], wrong])


def _readable(source: Source, indices: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and features of the images that could be read; in the place of others are images twice."""
    bad = _unreadable(source)
    if not bad:
        return indices, features
    kept = torch.tensor([source.name(index) not in bad for index in indices.tolist()])
    return indices[kept], features[kept.to(features.device)]
