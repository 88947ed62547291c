"""The front matter of a model card, as Hugging Face's hub reads it: tags, and the accuracies that were measured."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.comparison import ALL_LABELS, knn_labels
from simclr_fast.evaluation.results import LIST, left_by, list_name, share_of_labels
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import RESULTS_FOLDER, chosen_data
from simclr_fast.run_files import read_comparison

COMMANDS = ("knn", "linear", "few-label", "finetune")  # those that measure accuracies
CHOSEN_K = "weighted kNN, k chosen on training images"
LIBRARY = "simclr_fast"
TASK = "image-feature-extraction"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def front_matter(run: Run, license_name: str | None = None) -> str:
    """The YAML between two lines of dashes that a card begins with.

    license_name: of the weights, as the hub names it; None leaves it out. Raises ConfigError where it is no such name.
    """
    if license_name is not None and not LICENSE.fullmatch(license_name):
        raise ConfigError(
            f"--license {license_name}: pass a name as Hugging Face has them, such as apache-2.0 or other"
        )
    measured = list(accuracies(run))
    data = ModelCardData(
        library_name=LIBRARY,
        license=license_name,
        pipeline_tag=TASK,
        tags=["simclr", "self-supervised", "contrastive-learning", "pytorch"],
        metrics=["accuracy"] if measured else None,
        model_name=f"{run.config.model.model} by SimCLR on {data_name(run)}" if measured else None,
        eval_results=measured or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def data_name(run: Run) -> str:
    """What the run's images are called: the data set's name, of a folder its own."""
    return name_of(run.config.data.dataset, run.config.data.data)


def results_of(run: Run) -> list[dict[str, Any]]:
    """What the commands of the evaluation left in the run's folder about this checkpoint, by protocol and list."""
    return [
        content
        for command in COMMANDS
        for content in left_by(command, run.folder / RESULTS_FOLDER).values()
        if (content.get("step"), _file(content)) == (run.step, run.checkpoint.name)
    ]


def comparison_of(run: Run) -> dict[str, Any] | None:
    """The comparison from the end of training; None without one, and for an earlier checkpoint than the last."""
    results = read_comparison(run.folder)
    return results if results is not None and results.get("steps", run.step) == run.step else None


def accuracies(run: Run) -> Iterator[EvalResult]:
    """Test accuracies (fractions) of the trained encoder, with what they were measured by."""
    found = results_of(run)
    comparison = comparison_of(run)
    of_run = run.config.data.dataset, run.config.data.data
    if comparison is not None:
        few = comparison["labels_per_class"]
        yield _result(*of_run, f"linear classifier, {few} labels per class", comparison["few_label_linear"]["simclr"])
        if not any(content["command"] == "knn" and not content["protocol"] for content in found):
            voted = knn_labels(comparison)
            of_part = "" if voted == ALL_LABELS else f", {voted}"
            yield _result(*of_run, CHOSEN_K + of_part, comparison["knn"]["simclr"])
    for content in found:
        data = chosen_data(run.config.data, content["options"])
        of_images = data.dataset, Path(data.data)
        for name, value in _named(content):
            yield _result(*of_images, name + (f", {content['protocol']}" if content["protocol"] else ""), value)


def _named(content: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The accuracies in one command's results, each with what it is of."""
    command, results, options = (content[key] for key in ("command", "results", "options"))
    if command == "knn":
        k = results["chosen_k"]["simclr"]
        name = CHOSEN_K if len(options["knn_k"]) > 1 else f"weighted kNN, k = {k}"
        yield f"{name}, t = {options['knn_t']:g}", results["test"]["chosen"]["simclr"]
    elif command == "linear":
        for method, by_encoder in results.items():
            of_it = by_encoder["simclr"]
            labels = (
                f"all {of_it['images']} labels"
                if (of := list_name(content)) is None
                else f"{of_it['images']} labels of {of}"
            )
            yield f"linear classifier, {labels} ({method})", of_it["accuracy"]
    elif command == "few-label":
        for count, by_encoder in results["linear"].items():
            yield f"linear classifier, {count} labels per class, mean of draws", by_encoder["simclr"]["mean"]
    else:
        for part, of_it in results.items():
            labels = list_name(content) if part == LIST else f"{share_of_labels(float(part))} of the labels"
            if (scores := of_it.get("checkpoint")) is not None:
                mean = ", mean of draws" if len(scores["draws"]) > 1 else ""
                yield f"fine-tuned on {labels} ({of_it['images']} images{mean})", scores["mean"]


def _result(dataset: str, folder: Path, name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=dataset,
        dataset_name=name_of(dataset, folder),
        dataset_split="test",
        metric_type="accuracy",
        metric_name=name,
        metric_value=round(value, 4),
    )


def name_of(dataset: str, folder: Path) -> str:
    """What images are called: the data set's name, of a folder its own."""
    of_folder = dataset in ("auto", "imagefolder", "huggingface", "table", "packed")
    return folder.resolve().name if of_folder else dataset


def _file(content: dict[str, Any]) -> str:
    return Path(content.get("checkpoint", "")).name
