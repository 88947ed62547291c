"""The front matter of a model card, as Hugging Face's hub reads it: tags, and the accuracies that were measured."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import RESULTS_FOLDER
from simclr_fast.run_files import read_comparison, read_results

COMMANDS = ("knn", "linear", "few-label", "finetune")  # those that measure accuracies
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


def results_of(run: Run) -> dict[str, dict[str, Any]]:
    """What the commands of the evaluation left in the run's folder about this checkpoint, by command."""
    found = {}
    for command in COMMANDS:
        content = read_results(run.folder / RESULTS_FOLDER / f"{command}.json")
        if content is not None and (content.get("step"), _file(content)) == (run.step, run.checkpoint.name):
            found[command] = content
    return found


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
        if "knn" not in found:
            yield _result(*of_run, "weighted kNN, k chosen on training images", comparison["knn"]["simclr"])
    for command, content in found.items():
        options = content["options"]
        data = options.get("dataset") or of_run[0], Path(options["data"]) if options.get("data") else of_run[1]
        for name, value in _named(command, content["results"]):
            yield _result(*data, name, value)


def _named(command: str, results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The accuracies in one command's results, each with what it is of."""
    if command == "knn":
        yield "weighted kNN, k chosen on training images", results["test"]["chosen"]["simclr"]
    elif command == "linear":
        for method, by_encoder in results.items():
            yield f"linear classifier, all labels ({method})", by_encoder["simclr"]["accuracy"]
    elif command == "few-label":
        for count, by_encoder in results["linear"].items():
            yield f"linear classifier, {count} labels per class, mean of draws", by_encoder["simclr"]["mean"]
    else:
        for fraction, by_init in results.items():
            if "checkpoint" in by_init:
                yield f"fine-tuned on {float(fraction):.0%} of the labels, mean of draws", by_init["checkpoint"]["mean"]


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
