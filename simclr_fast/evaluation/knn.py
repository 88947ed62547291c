"""The command `knn`: weighted nearest neighbours over splits, numbers of neighbours and encoders."""

from typing import Any

from simclr_fast.evaluation.features import ENCODERS, all_features
from simclr_fast.evaluation.probes import choose_k, choosing_rows, chosen_by, nearest, vote
from simclr_fast.evaluation.protocols import described
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import (
    TOP,
    Cell,
    ResultTable,
    accuracy,
    class_accuracies,
    class_names,
    class_table,
    percent,
    top5_accuracy,
)

SPLITS = ("test", "train")
CHOSEN = "chosen"  # the row of the number of neighbours that the training images choose
TOP5_LEAST_K = 20  # neighbours that top-5 accuracy is given from, as in published tables: fewer vote for few classes


def main(session: Session) -> dict[str, Any]:
    """Accuracy of every encoder for every k, on the test images and, leaving one out, on training images.

    On the test images top-5 accuracy, too, of TOP5_LEAST_K neighbours or more where there are more than five classes.
    The results' "choosing_images" is the number of training images that choose k, and that "train" is measured on.
    """
    options = session.options
    data = session.labelled_data()
    names, labels, truth = class_names(data), data.labelled.labels, data.test.labels
    choosing = len(choosing_rows(labels))
    results: dict[str, Any] = {
        **{split: {} for split in SPLITS},
        "top5_accuracy": {},
        "chosen_k": {},
        "choosing_images": choosing,
        "per_class": {},
    }
    for encoder, features in all_features(session.run, data, session.device):
        k, of_train = choose_k(
            features.train, labels, options.knn_k, knn_t=options.knn_t, classes=len(names), device=session.device
        )
        results["chosen_k"][encoder] = k
        similarity, index = nearest(features.train, features.test, max(options.knn_k), session.device)
        counts = dict.fromkeys(min(n, similarity.shape[1]) for n in options.knn_k)  # no more than there are
        votes = {n: vote(similarity[:, :n], labels[index[:, :n]], options.knn_t, len(names)) for n in counts}
        for n, of_k in votes.items():
            results["test"].setdefault(str(n), {})[encoder] = accuracy(of_k, truth)
            if n >= TOP5_LEAST_K and len(names) > TOP:
                results["top5_accuracy"].setdefault(str(n), {})[encoder] = top5_accuracy(of_k, truth)
        for n, share in of_train.items():
            results["train"].setdefault(str(n), {})[encoder] = share
        results["test"].setdefault(CHOSEN, {})[encoder] = accuracy(votes[k], truth)
        results["per_class"][encoder] = class_accuracies(votes[k].argmax(dim=1), truth, len(names))
        del features, similarity, index, votes  # the next encoder's need the room
    if max(options.knn_k) >= len(labels):
        session.say(
            f"--knn-k {max(options.knn_k)}: there are only {len(labels)} training images, so that all of them vote"
        )
    protocol = described(options)
    by = chosen_by(len(labels), choosing)
    title = f"Weighted kNN, t = {options.knn_t}: accuracy (%); train: {by}, leaving one out{protocol}"
    table = ResultTable.of(title, "images", ENCODERS, _rows(results, len(labels)))
    by_class = class_table(
        f"Accuracy by class (%), test images, k chosen on {by}",
        names,
        truth,
        results["per_class"],
        ENCODERS,
    )
    return session.finish(results, table, by_class, protocol=protocol)


def _rows(results: dict[str, Any], images: int) -> dict[str, dict[str, Cell]]:
    """Cells by setting; images: those that can be neighbours, of which a training image has one fewer."""
    most, rows = {"test": images, "train": images - 1}, {}
    for split in SPLITS:
        for k, scores in results[split].items():
            row = f"{split}, k = {k}{' (all)' * (k == str(most[split]))}"
            if k != CHOSEN:
                rows[row] = scores
            if split == "test" and k in results["top5_accuracy"]:
                rows[f"{row}, top-5"] = results["top5_accuracy"][k]
    chosen = {
        encoder: f"{percent(score)} (k = {results['chosen_k'][encoder]})"
        for encoder, score in results["test"][CHOSEN].items()
    }
    return {"test, chosen k": chosen, **rows}
