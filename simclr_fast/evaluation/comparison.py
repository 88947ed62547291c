"""The table at the end of a run: raw pixels, random-init encoder and SimCLR encoder, by the same three probes."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from simclr_fast.data import Dataset
from simclr_fast.evaluation.features import ENCODERS, Features, Pixels, Preprocess, embed
from simclr_fast.evaluation.probes import (
    KNN_K,
    KNN_T,
    choose_k,
    choosing_rows,
    chosen_by,
    few_label_accuracies,
    nearest,
    standardize,
    vote,
)
from simclr_fast.evaluation.splits import few_label_draws, random_part, rarest_class
from simclr_fast.evaluation.tables import ResultTable, accuracy, class_accuracies, class_names, class_table

LARGEST = (50_000, 10_000)  # training and test images that are compared on
LABELS_PER_CLASS = 10  # of the few-label probes
PROBES = {
    "few_label_1nn": "1-NN, {few}",
    "few_label_linear": "linear, {few}",
    "few_label_linear_top5": "its top-5 accuracy",
    "knn": "weighted kNN, {all}",
}
ALL_LABELS = "all labels"
See = Callable[[str, Features, Features], None]  # (key of ENCODERS, features, what `standardize` makes of them)


def compared_part(data: Dataset) -> Dataset:
    """The data set with its labelled and its test images; of more than LARGEST a fixed random part of them."""
    parts = [
        source if len(source) <= limit else source.subset(random_part(len(source), limit))
        for source, limit in zip((data.labelled, data.test), LARGEST)
    ]
    return dataclasses.replace(data, labelled=parts[0], test=parts[1])


def compare(
    random_init: nn.Module,
    trained: nn.Module,
    data: Dataset,
    preprocess: Preprocess,
    device: torch.device,
    *,
    labelled_images: int | None = None,
    labels_per_class: int = LABELS_PER_CLASS,
    draws: int = 5,
    see: See = lambda *_: None,
) -> dict[str, Any]:
    """Test accuracies (fractions) by probe and encoder, of the labelled training and the test images of `data`.

    labelled_images: of the whole, where `data` is its `compared_part`. Of a class with fewer than labels_per_class
    images the few-label probes see all. see: is shown each encoder's features before they are let go of, so that
    nothing is embedded twice. Beside the probes: what was measured on ("labels_per_class", "rarest_class", "draws",
    "train_images" of the "labelled_images", "test_images"), "knn_k" by encoder and how many training images chose it
    ("choosing_images"), and "per_class", {"names", "images" (of the test images), an accuracy by kNN per encoder}.
    Nothing is selected on the test images.
    """
    names, labels, truth = class_names(data), data.labelled.labels, data.test.labels
    results: dict[str, Any] = {
        "labels_per_class": labels_per_class,
        "rarest_class": rarest_class(labels),
        "draws": draws,
        "train_images": len(labels),
        "labelled_images": len(labels) if labelled_images is None else labelled_images,
        "test_images": len(truth),
        "choosing_images": len(choosing_rows(labels)),
        "knn_k": {},
        "per_class": {"names": names, "images": torch.bincount(truth, minlength=len(names)).tolist()},
    }
    for name, encoder in (("raw", Pixels()), ("random_init", random_init), ("simclr", trained)):
        features = Features(*(embed(encoder, part, preprocess, device) for part in (data.labelled, data.test)))
        scaled = Features(*standardize(features.train, features.test))
        found = probe_accuracies(features, scaled, labels, truth, len(names), labels_per_class, draws, device)
        see(name, features, scaled)
        del features, scaled  # the next encoder's need the room
        results["per_class"][name] = found.pop("per_class")
        results["knn_k"][name] = found.pop("knn_k")
        for probe, score in found.items():
            results.setdefault(probe, {})[name] = round(score, 4)
    return results


def probe_accuracies(
    features: Features,
    scaled: Features,
    labels: Tensor,
    truth: Tensor,
    classes: int,
    labels_per_class: int = LABELS_PER_CLASS,
    draws: int = 5,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """The probes' accuracies (fractions) of features of training images, labels int64 [N], and test images, truth [Q].

    scaled: what `standardize` makes of the features. "knn" is that of "knn_k" neighbours, which leaving one out chooses
    among the training images, "per_class" what it gives by class. "few_label_linear_top5" is there where there are more
    than five classes.
    """
    bank, queries = features.train, features.test
    chosen = few_label_draws(labels, labels_per_class, draws)
    knn_k, _ = choose_k(bank, labels, KNN_K, knn_t=KNN_T, classes=classes, device=device)
    similarity, index = nearest(bank, queries, knn_k, device)
    votes = vote(similarity, labels[index], KNN_T, classes)
    per_class = class_accuracies(votes.argmax(dim=1), truth, classes)
    scores = {
        "knn": accuracy(votes, truth),
        "knn_k": knn_k,
        "per_class": [None if share is None else round(share, 4) for share in per_class],
    }
    by_draw = few_label_accuracies(
        *(bank, labels, queries, truth, chosen), classes=classes, scaled=[scaled.train, scaled.test], device=device
    )
    return scores | {f"few_label_{probe}": statistics.mean(of_draws) for probe, of_draws in by_draw.items()}


def few_labels(results: dict[str, Any]) -> str:
    """How many labels the few-label probes saw; results: what `compare` gives."""
    wanted, rarest = results["labels_per_class"], results["rarest_class"]
    unit = "label" if wanted == 1 else "labels"
    return f"{wanted} {unit}/class" + (f" ({rarest} in the rarest)" if rarest < wanted else "")


def knn_labels(results: dict[str, Any]) -> str:
    """How many labels kNN saw: all, or a random part of a large set; results: what `compare` gives."""
    seen = results["train_images"]
    labelled = results.get("labelled_images", seen)  # which runs of before did not write
    return ALL_LABELS if seen == labelled else f"{seen:,} of {labelled:,} labels"


def comparison_table(results: dict[str, Any]) -> ResultTable:
    """The accuracies in percent; results: what `compare` gives, and the number of neighbours of kNN.

    Where it was measured, also "one_label_fine_tuned": what `one_label_accuracies` gives.
    """
    shown = {"few": few_labels(results), "all": knn_labels(results)}
    rows = {title.format(**shown): results[probe] for probe, title in PROBES.items() if probe in results}
    rows["its k"] = {encoder: str(k) for encoder, k in results["knn_k"].items()}
    fine_tuned = results.get("one_label_fine_tuned")
    if fine_tuned is not None:
        rows["fine-tuned, 1 label/class"] = fine_tuned
    images = results["train_images"]
    by = chosen_by(images, results.get("choosing_images", images))  # which runs of before did not write
    title = (
        f"Accuracy on {results['test_images']} held-out test images (%; few-label rows: mean of {results['draws']} "
        f"draws; k: chosen on {by}, leaving one out"
        + ("" if fine_tuned is None else f"; fine-tuned: {fine_tuned['draws']} draws, raw pixels: linear")
        + ")"
    )
    return ResultTable.of(title, "", ENCODERS, rows)


def comparison_by_class(results: dict[str, Any]) -> ResultTable:
    """Accuracy of each class (%) by weighted kNN; results: what `compare` gives."""
    per_class = results["per_class"]
    scores = {encoder: per_class[encoder] for encoder in ENCODERS}
    images = torch.tensor(per_class["images"])
    truth = torch.arange(len(images)).repeat_interleave(images)
    title = f"Accuracy by class (%), weighted kNN, {knn_labels(results)}"
    return class_table(title, per_class["names"], truth, scores, ENCODERS)
