"""What each evaluation looks at: choices and training see training images alone, figures come from test images."""

import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from simclr_fast.cli import parse
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.evaluation import classifier, comparison, few_label, finetune, penalty_sweep, probes, session
from simclr_fast.evaluation import features as features_module
from simclr_fast.evaluation import knn as knn_command
from simclr_fast.evaluation import linear as linear_command
from simclr_fast.evaluation.classifier import Classifier
from simclr_fast.evaluation.features import Pixels, all_features, preprocess_of
from simclr_fast.evaluation.linear import Standardize
from simclr_fast.evaluation.probes import knn_accuracy, standardize
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import balanced_fraction, few_label_draws, hold_out
from simclr_fast.evaluation.tables import accuracy
from simclr_fast.process import Process
from tests.evaluation.conftest import linear_accuracy

CPU = Process(0, 1, torch.device("cpu"))
CLASSES = 6
NAMES = ("zero", "one", "two", "three", "four", "five")


def noisy_images(count: int, seed: int, shift: int = 0) -> ImageArrays:
    """Images of CLASSES brightness levels under noise that hides them in part; labels shifted by `shift`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 25 * labels.view(-1, 1, 1, 1) + torch.randint(0, 90, (count, 1, 28, 28), generator=generator)
    images[:, :, :14, :14] += 40 * torch.randint(0, 2, (count, 1, 1, 1), generator=generator)
    return ImageArrays(images.byte(), (labels + shift) % CLASSES)


@pytest.fixture(scope="module")
def data() -> Dataset:
    train = noisy_images(72, seed=0)
    return Dataset(train, train, noisy_images(30, seed=1), NAMES)


def with_other_test_images(data: Dataset) -> Dataset:
    return dataclasses.replace(data, test=noisy_images(36, seed=2, shift=2))


@pytest.fixture
def run_command(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a command on a data set; gives its results."""

    def run(command: str, main: Callable[[Session], None], data: Dataset, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(session, "load_dataset", lambda _: data)
        _, options = parse([command, "--checkpoint", str(run_folder), *arguments])
        main(Session(command, options, Run.open(run_folder), CPU, tmp_path, Console(quiet=True)))
        return json.loads((tmp_path / f"{command}.json").read_text())["results"]

    return run


class Seen:
    """Keeps the tensors that functions were called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch
        self.calls: list[tuple[str, list[Tensor]]] = []

    def watch(self, name: str, *modules: object) -> None:
        original = getattr(modules[0], name)

        def spy(*args, **options):
            given = [*args, *options.values()]
            self.calls.append((name, [value.detach().clone() for value in given if isinstance(value, Tensor)]))
            return original(*args, **options)

        for module in modules:
            self.monkeypatch.setattr(module, name, spy)

    def take(self) -> list[tuple[str, list[Tensor]]]:
        calls, self.calls = self.calls, []
        return calls


def same(one: list[tuple[str, list[Tensor]]], other: list[tuple[str, list[Tensor]]]) -> bool:
    return len(one) == len(other) > 0 and all(
        a == b and len(given) == len(again) and all(map(torch.equal, given, again))
        for (a, given), (b, again) in zip(one, other)
    )


def without_figures(value: Any) -> Any:
    """Results without what is measured on test images."""
    measured = ("accuracy", "top5_accuracy", "per_class", "test", "linear", "linear_top5", "1nn")
    if isinstance(value, dict):
        return {key: without_figures(entry) for key, entry in value.items() if key not in measured}
    return value


LINEAR = ["--epochs", "1", "--lr-base", "0.01", "0.3", "--penalty-c", "1e-4", "1.0", "--held-out", "0.3"]


@pytest.mark.parametrize(
    ("command", "main", "arguments"),
    [
        ("linear", linear_command.main, LINEAR),
        ("knn", knn_command.main, ["--knn-k", "1", "3", "9"]),
        ("few-label", few_label.main, ["--per-class", "1", "5", "--draws", "2"]),
    ],
    ids=["linear", "knn", "few-label"],
)
def test_test_images_change_figures_and_no_choice(
    command: str, main: Callable, arguments: list[str], data: Dataset, run_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    seen.watch("fit_linear", probes, penalty_sweep)
    seen.watch("choose_k", probes, knn_command)
    seen.watch("best_probe", linear_command)
    seen.watch("Standardize", linear_command)
    seen.watch("train_probes", linear_command)
    results = run_command(command, main, data, *arguments)
    calls = seen.take()
    others = run_command(command, main, with_other_test_images(data), *arguments)
    assert same(calls, seen.take()), "test images decide on nothing"
    assert without_figures(results) == without_figures(others)
    assert results != others


def test_the_comparison_chooses_on_training_images(data: Dataset, run_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(run_folder)
    seen = Seen(monkeypatch)
    seen.watch("fit_linear", probes)
    seen.watch("choose_k", comparison)
    results = []
    for of in (data, with_other_test_images(data)):
        results.append(
            comparison.compare(
                run.random_init(),
                run.encoder(),
                of,
                preprocess_of(run),
                CPU.device,
                labels_per_class=5,
                draws=2,
            )
        )
        seen.calls.append(("end", []))
    calls = seen.take()
    assert same(calls[: len(calls) // 2], calls[len(calls) // 2 :])
    assert results[0]["knn_k"] == results[1]["knn_k"]
    assert results[0]["knn"] != results[1]["knn"]
    features = dict(all_features(run, data, CPU.device))
    for name, one in features.items():
        k = results[0]["knn_k"][name]
        expected = knn_accuracy(one.train, data.labelled.labels, one.test, data.test.labels, knn_k=k)
        assert results[0]["knn"][name] == pytest.approx(expected, abs=1e-4)


def test_the_probe_is_chosen_on_what_no_probe_was_trained_on(
    data: Dataset, run_folder: Path, run_command, monkeypatch
) -> None:
    seen, chosen, best = Seen(monkeypatch), [], linear_command.best_probe
    monkeypatch.setattr(linear_command, "best_probe", lambda *given: chosen.append(best(*given)) or chosen[-1])
    seen.watch("best_probe", linear_command)
    batches = []
    original = linear_command.LabelledBatches
    monkeypatch.setattr(
        linear_command, "LabelledBatches", lambda source, *rest: batches.append(source) or original(source, *rest)
    )
    results = run_command("linear", linear_command.main, data, *LINEAR, "--method", "sgd")
    labels = data.labelled.labels
    kept, held_out = hold_out(labels, 0.3, seed=0)
    features = dict(all_features(Run.open(run_folder), data, CPU.device))
    assert len(seen.calls) == len(batches) == len(features) == 3
    for (_, (chosen_by, truth)), source, one in zip(seen.calls, batches, features.values()):
        assert torch.equal(source.images, data.labelled.images[kept])
        assert torch.equal(source.labels, labels[kept])
        assert torch.equal(truth, labels[held_out])
        torch.testing.assert_close(chosen_by, Standardize(one.train[kept])(one.train[held_out]))
    assert {one["lr_base"] for one in results["sgd"].values()} <= {0.01, 0.3}
    for (probe, score), (name, one) in zip(chosen, features.items(), strict=True):
        found, logits = results["sgd"][name], probe.classifier.logits(Standardize(one.train[kept])(one.test))
        expected = {
            "accuracy": accuracy(logits, data.test.labels),
            "held_out_accuracy": score,
            "lr_base": probe.lr_base,
        }
        assert {key: found[key] for key in expected} == pytest.approx(expected)
        assert (found["images"], found["batch_size"], found["epochs"]) == (72, len(kept), 1)


def test_few_label_figures_are_those_of_test_images(data: Dataset, run_folder: Path, run_command) -> None:
    """Computed plainly: trained on what the draws choose, counted on test images; the comparison says the same."""
    run = Run.open(run_folder)
    results = run_command("few-label", few_label.main, data, "--per-class", "5", "--draws", "2", "--seed", "1")
    compared = comparison.compare(
        *(run.random_init(), run.encoder(), data, preprocess_of(run), CPU.device),
        labels_per_class=5,
        draws=2,
    )
    labels, truth = data.labelled.labels, data.test.labels
    for name, one in all_features(run, data, CPU.device):
        train, test = standardize(one.train, one.test)
        for seed, found in ((1, lambda probe: results[probe]["5"]), (0, lambda probe: compared[f"few_label_{probe}"])):
            draws = few_label_draws(labels, 5, 2, seed)
            linear_draws = [linear_accuracy(train[few], labels[few], test, truth) for few in draws]
            nearest = [knn_accuracy(one.train[few], labels[few], one.test, truth, knn_k=1) for few in draws]
            for probe, expected in (("linear", linear_draws), ("1nn", nearest)):
                score = found(probe)[name]
                score = score["mean"] if seed else score
                assert score == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_linear_figures_are_those_of_test_images(data: Dataset, run_folder: Path, run_command) -> None:
    results = run_command("linear", linear_command.main, data, "--method", "lbfgs", "--penalty-c", "0.01", "1.0")
    labels, truth = data.labelled.labels, data.test.labels
    for name, one in all_features(Run.open(run_folder), data, CPU.device):
        train, test = standardize(one.train, one.test)
        found = results["lbfgs"][name]
        assert found["accuracy"] == pytest.approx(linear_accuracy(train, labels, test, truth, found["penalty_c"]))
        assert sum(found["per_class"]) / CLASSES == pytest.approx(found["accuracy"])


def test_of_five_classes_the_best_five_say_nothing(data: Dataset, run_command) -> None:
    """They are all of them; of six there is a top-5 accuracy."""
    part = lambda source: source.subset((source.labels < 5).nonzero().flatten()[:20])
    of = Dataset(part(data.train), part(data.labelled), part(data.test), NAMES[:5])
    linear = ("--method", "lbfgs", "--penalty-c", "0.1")
    assert "top5" not in str(run_command("linear", linear_command.main, of, *linear))
    assert run_command("knn", knn_command.main, of, "--knn-k", "20")["top5_accuracy"] == {}
    assert "top5" not in str(run_command("few-label", few_label.main, of, "--per-class", "1", "--draws", "1"))


def test_knn_takes_the_temperature_asked_for(data: Dataset, run_folder: Path, run_command) -> None:
    features = dict(all_features(Run.open(run_folder), data, CPU.device))
    found = {}
    for knn_t in (0.001, 10.0):
        results = run_command("knn", knn_command.main, data, "--knn-k", "1", "40", "--knn-t", str(knn_t))
        for name, one in features.items():
            for split, queries, truth in (("test", one.test, data.test.labels), ("train", None, data.labelled.labels)):
                expected = knn_accuracy(one.train, data.labelled.labels, queries, truth, knn_k=40, knn_t=knn_t)
                assert results[split]["40"][name] == pytest.approx(expected)
            assert sum(results["per_class"][name]) / CLASSES == pytest.approx(results["test"]["chosen"][name])
        assert 1 in results["chosen_k"].values(), "the accuracies by class are not always those of most neighbours"
        found[knn_t] = results
    assert found[0.001]["test"]["40"] != found[10.0]["test"]["40"]
    assert found[0.001]["test"]["1"] == found[10.0]["test"]["1"]


def test_encoders_are_what_their_names_say(run_folder: Path) -> None:
    run = Run.open(run_folder)
    found = features_module.encoders(run)
    assert list(found) == list(features_module.ENCODERS)
    assert isinstance(found["raw"], Pixels)
    for name, expected in (("random_init", run.random_init()), ("simclr", run.encoder())):
        weights = found[name].state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in expected.state_dict().items())
    assert not torch.equal(found["random_init"].conv1.weight, found["simclr"].conv1.weight)


def test_features_are_of_the_part_that_they_are_named_after(data: Dataset, run_folder: Path) -> None:
    found = dict(all_features(Run.open(run_folder), data, CPU.device))
    assert list(found) == ["raw", "random_init", "simclr"]
    for features in found.values():
        assert len(features.train) == len(data.labelled)
        assert len(features.test) == len(data.test)


def test_one_encoder_at_a_time(data: Dataset, run_command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large data set, the features of one encoder fill the memory; no command keeps those of two."""
    held: list[weakref.ref] = []
    original = features_module.embed

    def recorded(encoder, source, *rest):
        gc.collect()
        assert sum(ref() is not None for ref in held) <= (source is data.test), "features of an encoder done with"
        features = original(encoder, source, *rest)
        held.append(weakref.ref(features))
        return features

    monkeypatch.setattr(features_module, "embed", recorded)
    run_command("linear", linear_command.main, data, *LINEAR)
    run_command("knn", knn_command.main, data, "--knn-k", "3")
    run_command("few-label", few_label.main, data, "--per-class", "2", "--draws", "1")
    assert len(held) == 3 * 6


def test_fine_tuning_trains_on_the_fraction_and_is_scored_on_test_images(
    data: Dataset, run_folder: Path, run_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, scored, sources = [], [], []
    embed, batches = classifier.embed, classifier.LabelledBatches

    def classify(model, source, preprocess, device):
        if isinstance(model, Classifier):
            scored.append(source)
            return F.one_hot(data.test.labels, CLASSES).float()
        return embed(model, source, preprocess, device)

    def train(model, batches, **options):
        trained.append((model.backbone.state_dict(), options))
        return model

    monkeypatch.setattr(classifier, "embed", classify)
    monkeypatch.setattr(classifier, "train_classifier", train)
    monkeypatch.setattr(
        classifier, "LabelledBatches", lambda *given: sources.append((given[0], given[3])) or batches(*given)
    )
    arguments = ["--fractions", "0.25", "1", "--draws", "2", "--epochs", "2", "3", "--min-steps", "0", "--seed", "1"]
    results = run_command("finetune", finetune.main, data, *arguments, "--batch-size", "6", "--lr-base", "0.4")
    assert len(scored) == len(trained) == 2 * 2 + 2, "two draws of a quarter, one of all labels, from two starts"
    assert all(source is data.test for source in scored)
    run, labels = Run.open(run_folder), data.labelled.labels
    expected = [balanced_fraction(labels, 0.25, seed) for seed in (2, 2, 3, 3)] + [torch.arange(72)] * 2
    assert [seed for _, seed in sources] == [2, 2, 3, 3, 2, 2], "no draw of a seed is one of another seed"
    for (source, _), chosen in zip(sources, expected, strict=True):
        assert torch.equal(source.images, data.labelled.images[chosen])
        assert torch.equal(source.labels, labels[chosen])
    starts = [run.random_init(2), run.encoder(), run.random_init(3), run.encoder(), run.random_init(2), run.encoder()]
    for (weights, _), start in zip(trained, starts, strict=True):
        assert torch.equal(weights["conv1.weight"], start.conv1.weight)
    assert [options["steps"] for _, options in trained] == [2 * 3] * 4 + [3 * 12] * 2
    assert all(options["lr"] == pytest.approx(0.4 * 6 / 256) for _, options in trained)
    for fraction in ("0.25", "1"):
        for init in ("scratch", "checkpoint"):
            assert (results[fraction][init]["mean"], results[fraction][init]["top5_mean"]) == (1.0, 1.0)
        assert results[fraction]["raw"]["mean"] < 1.0


@pytest.mark.parametrize(
    ("command", "module", "function", "arguments", "kept"),
    [
        (
            "finetune",
            finetune,
            "fine_tune",
            ["--fractions", "1", "--epochs", "1", "--min-steps", "0"],
            {"1": {"raw", "scratch"}},
        ),
        ("linear", linear_command, "_by_lbfgs", ["--method", "lbfgs", "--penalty-c", "1"], {"lbfgs": {"raw"}}),
    ],
)
def test_a_failure_costs_nothing_that_was_measured(
    command: str, module: Any, function: str, arguments: list, kept: dict, data, run_command, tmp_path, monkeypatch
) -> None:
    calls, original = [], getattr(module, function)

    def second_fails(*given, **options):
        calls.append(function)
        if len(calls) == 2:
            raise NonFiniteLossError("the loss is nan at step 3")
        return original(*given, **options)

    monkeypatch.setattr(module, function, second_fails)
    with pytest.raises(NonFiniteLossError):
        run_command(command, module.main, data, *arguments)
    found = json.loads((tmp_path / f"{command}.json.unfinished").read_text())["results"]
    for key, names in kept.items():
        assert {name for name in found[key] if isinstance(found[key][name], dict)} == names
    assert not (tmp_path / f"{command}.json").exists()
