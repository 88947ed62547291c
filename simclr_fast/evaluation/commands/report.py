"""The command `report`: everything known about a run on one HTML page."""

from pathlib import Path

from simclr_fast import visualize
from simclr_fast.config import as_dict
from simclr_fast.evaluation import page
from simclr_fast.evaluation.comparison import comparison_by_class, comparison_table
from simclr_fast.evaluation.encoders import preprocess_of
from simclr_fast.evaluation.features import embed
from simclr_fast.evaluation.representation import labelled_sections, training_sections
from simclr_fast.evaluation.results import read_comparison, read_results
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session, measurable
from simclr_fast.evaluation.tables import ResultTable
from simclr_fast.run_files import METRICS_FILE, chance_level, read_metrics

PAGE_FILE = "report.html"


def main(session: Session) -> None:
    """Draw what is missing, gather what the other commands left, write report.html."""
    run = session.run
    parts = [page.facts(_facts(run))]
    parts += _training(session)
    results = read_comparison(run.folder)
    if results is not None:
        parts.append(_comparison(results))
    parts += _representation(session)
    parts += _commands(session.folder)
    parts.append(page.Section("Options", page.options(as_dict(run.config))))
    title = f"SimCLR run {run.folder.resolve().name}: {run.config.model.model} on {run.config.data.dataset}"
    path = session.folder / PAGE_FILE
    path.write_text(page.render(title, parts), encoding="utf-8")
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
    tables = (comparison_table(results), comparison_by_class(results))
    text = page.note("As measured at the end of training.")
    return page.Section("Against the baselines", "".join(map(_table, tables)) + text)


def _representation(session: Session) -> list[page.Section]:
    run, device, data = session.run, session.device, session.data()
    encoder, preprocess = run.encoder().to(device), preprocess_of(run)
    features = lambda source, indices: embed(encoder, source, preprocess, device, indices)
    sections = labelled_sections if measurable(data) else training_sections
    return sections(data, features, session.folder, run.config.augment.img_size, device)


def _table(one: ResultTable) -> str:
    return page.table(one.columns, one.rows, one.title)


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
        content = read_results(folder / f"{command}.json")
        if content is None:
            continue
        blocks = [_table(ResultTable(**one)) for one in content["tables"]]
        drawing = folder / f"{command}.png"
        if drawing.exists():
            blocks.append(page.picture(drawing, ""))
        note = f"After {content['step']} steps, on {content['device']}, in {content['seconds']:.0f} s."
        sections.append(page.Section(title, "".join(blocks) + page.note(note)))
    return sections
