"""Fine-tuning at a run's end: when it is done, which images it learns from, and whose figure is under which name."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.evaluation import in_training, one_label
from simclr_fast.evaluation.classifier import Schedule
from simclr_fast.evaluation.comparison import comparison_table
from simclr_fast.evaluation.features import Features, all_features
from simclr_fast.evaluation.probes import few_label_accuracies, standardize
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.splits import few_label_draws
from simclr_fast.evaluation.tables import spread
from simclr_fast.process import Process
from simclr_fast.run_files import read_comparison
from tests.evaluation.conftest import demo_config

CPU = Process(0, 1, torch.device("cpu"))


def levels(count: int, seed: int) -> ImageArrays:
    """Three classes by brightness, under noise that hides them in part."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 120, (count, 1, 28, 28), generator=generator)
    return ImageArrays((60 * labels.view(-1, 1, 1, 1) + noise).byte(), labels)


@pytest.fixture(scope="module")
def data() -> Dataset:
    train = levels(30, 0)
    return Dataset(train, train, levels(12, 1), ("dark", "middle", "bright"))


@pytest.mark.parametrize(
    ("steps", "size", "cheap"), [(106, 28, True), (105, 28, False), (620, 32, True), (620, 33, False)]
)
def test_small_images_are_fine_tuned_on_after_a_whole_training(
    steps: int, size: int, cheap: bool, data: Dataset, run_folder: Path
) -> None:
    """3 draws x 2 starts x 150 steps of 3 images are a fifth of two views of 64 images in 105.5 steps."""
    run = dataclasses.replace(Run.open(run_folder), step=steps)
    augment = dataclasses.replace(run.config.augment, size=size)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, augment=augment))
    assert one_label.is_cheap(run, data) == cheap


def test_both_starts_learn_from_the_same_label_per_class(
    data: Dataset, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fine_tune(run, init, train, test, schedule, *, seed, **_):
        calls.append((init, seed, train.images, test, schedule.min_steps))
        assert schedule == Schedule(epochs=0, min_steps=150, batch_size=64, lr=0.05)
        right = F.one_hot(data.test.labels, 3).float()
        return (right if init == "checkpoint" else right.roll(1, dims=1)), schedule.min_steps

    monkeypatch.setattr(one_label, "fine_tune", fine_tune)
    pixels = [part.images.flatten(1).float() / 255 for part in (data.labelled, data.test)]
    raw = one_label.raw_accuracies(Features(*standardize(*pixels)), data, CPU.device)
    found = one_label.one_label_accuracies(Run.open(run_folder), data, raw, CPU)
    draws = few_label_draws(data.labelled.labels, 1, 3)
    assert [(init, seed) for init, seed, *_ in calls] == [(i, d) for d in range(3) for i in ("scratch", "checkpoint")]
    for _, seed, images, test, steps in calls:
        assert torch.equal(images, data.labelled.images[draws[seed]])
        assert (test is data.test, steps) == (True, found["steps"])
    assert (found["simclr"], found["random_init"]) == ({"mean": 1.0, "std": 0.0}, {"mean": 0.0, "std": 0.0})
    linear = few_label_accuracies(
        *(pixels[0], data.labelled.labels, pixels[1], data.test.labels, draws),
        classes=3,
        scaled=standardize(*pixels),
    )["linear"]
    assert raw == pytest.approx(linear)
    assert found["raw"]["mean"] == pytest.approx(sum(linear) / 3)
    assert found["draws"] == 3


def test_a_loss_that_is_not_finite_costs_the_row_alone(
    data: Dataset, run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def fail(*_, **__):
        raise NonFiniteLossError("the loss is nan at step 3")

    monkeypatch.setattr(one_label, "fine_tune", fail)
    with caplog.at_level(logging.WARNING):
        assert one_label.one_label_accuracies(Run.open(run_folder), data, [0.5] * 3, CPU) is None
    assert caplog.messages == ["no accuracy of fine-tuning from 1 label per class: the loss is nan at step 3"]


@pytest.mark.parametrize("steps", [1, 600])
def test_a_run_ends_with_its_row(steps: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the trained encoder itself, in two steps: in the table on the console, in results.json, on the page."""
    monkeypatch.setattr(one_label, "SCHEDULE", dataclasses.replace(one_label.SCHEDULE, min_steps=2))
    seen, train = [], one_label.fine_tune
    monkeypatch.setattr(
        one_label, "fine_tune", lambda run, *rest, **named: seen.append(run) or train(run, *rest, **named)
    )
    config = demo_config()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, output=tmp_path))
    encoder = in_training.build_model(config.model, 1, 28).backbone
    console = Console(record=True, width=140)
    monkeypatch.setattr(one_label, "LARGEST_SHARE", 0.001)
    in_training.evaluate(config, data, encoder, CPU.device, console, steps=steps, seconds=1.0)
    results = read_comparison(tmp_path)
    rows = [row[0] for row in comparison_table(results).rows]
    assert ("fine-tuned, 1 label/class" in rows) == (steps == 600)
    assert ("fine-tuned, 1 label/class" in console.export_text()) == (steps == 600)
    assert len(seen) == (6 if steps == 600 else 0)
    if seen:
        assert torch.equal(seen[0].encoder().conv1.weight, encoder.conv1.weight)
        assert results["one_label_fine_tuned"]["steps"] == 2
        run = Run(tmp_path, tmp_path, steps, config, 1, encoder.state_dict())
        pixels = dict(all_features(run, data, CPU.device))["raw"]
        raw = one_label.raw_accuracies(Features(*standardize(pixels.train, pixels.test)), data, CPU.device)
        assert results["one_label_fine_tuned"]["raw"] == spread(raw), "of raw pixels alone"
