"""The table at the end of a run: raw pixels, random-init encoder and SimCLR encoder, by the same three probes."""

import statistics
from typing import Any

import torch
from torch import Tensor, nn

from simclr_fast.data import Source
from simclr_fast.evaluation.features import ENCODERS, Pixels, Preprocess, embed
from simclr_fast.evaluation.probes import KNN_K, KNN_T, choose_k, few_label_accuracies, nearest, standardize, vote
from simclr_fast.evaluation.splits import few_label_draws, fixed_part, rarest_class
from simclr_fast.evaluation.tables import ResultTable, accuracy, class_accuracies, class_table

LARGEST = (50_000, 10_000)  # training and test images that are compared on
LABELS_PER_CLASS = 10  # of the few-label probes
PROBES = {
    "few_label_1nn": "1-NN, {few}",
    "few_label_linear": "linear, {few}",
    "few_label_linear_top5": "its top-5 accuracy",
    "knn": "weighted kNN, {all}",
}


def compare(
    random_init: nn.Module,
    trained: nn.Module,
    train: Source,
    test: Source,
    preprocess: Preprocess,
    device: torch.device,
    *,
    names: list[str],
    labels_per_class: int = LABELS_PER_CLASS,
    draws: int = 5,
) -> dict[str, Any]:
    """Test accuracies (fractions) by probe and encoder, on fixed random parts of sets that are larger than LARGEST.

    names: of the classes. Of a class with fewer than labels_per_class images the few-label probes see all. Beside the
    probes: what was measured on ("labels_per_class", "rarest_class", "draws", "train_images" of the "labelled_images",
    "test_images"), "knn_k" by encoder, and "per_class", {"names", "images" (of the test part), an accuracy by kNN per
    encoder}.
    Nothing is selected on the test images.
    """
    parts = [(source, fixed_part(len(source), limit)) for source, limit in zip((train, test), LARGEST)]
    labels, truth = (source.labels[chosen] for source, chosen in parts)
    results: dict[str, Any] = {
        "labels_per_class": labels_per_class,
        "rarest_class": rarest_class(labels),
        "draws": draws,
        "train_images": len(labels),
        "labelled_images": len(train),
        "test_images": len(truth),
        "knn_k": {},
        "per_class": {"names": names, "images": torch.bincount(truth, minlength=len(names)).tolist()},
    }
    for name, encoder in (("raw", Pixels()), ("random_init", random_init), ("simclr", trained)):
        bank, queries = (embed(encoder, source, preprocess, device, chosen) for source, chosen in parts)
        found = probe_accuracies(bank, labels, queries, truth, len(names), labels_per_class, draws, device)
        del bank, queries  # the next encoder's need the room
        results["per_class"][name] = found.pop("per_class")
        results["knn_k"][name] = found.pop("knn_k")
        for probe, score in found.items():
            results.setdefault(probe, {})[name] = round(score, 4)
    return results


def probe_accuracies(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    truth: Tensor,
    classes: int,
    labels_per_class: int = LABELS_PER_CLASS,
    draws: int = 5,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """The probes' accuracies (fractions) of features [N, D] for training and [Q, D] for test images.

    "knn" is that of "knn_k" neighbours, which leaving one out chooses among the training images, "per_class" what it
    gives by class. "few_label_linear_top5" is there where there are more than five classes.
    """
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
    scaled = standardize(bank, queries)
    by_draw = few_label_accuracies(bank, labels, queries, truth, chosen, classes=classes, scaled=scaled, device=device)
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
    return "all labels" if seen == labelled else f"{seen:,} of {labelled:,} labels"


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
    title = (
        f"Accuracy on {results['test_images']} held-out test images (%; few-label rows: mean of {results['draws']} "
        "draws; k: chosen on the training images, leaving one out"
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
