"""Fine-tuning: it learns, from where it is told to, on the images it is told to, alone and over processes."""

import copy
import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from simclr_fast.cli import main, parse
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.errors import ConfigError, NonFiniteLossError
from simclr_fast.evaluation import finetune, session
from simclr_fast.evaluation.classifier import Classifier, Schedule, Speed, train_classifier
from simclr_fast.evaluation.features import LabelledBatches, embed, preprocess_of
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.process import Process
from tests.evaluation.conftest import plain_config, recorded_rates, write_run
from tests.training.processes import free_port

ROOT = Path(__file__).parents[2]
CPU = Process(0, 1, torch.device("cpu"))


def dark_and_bright(count: int) -> ImageArrays:
    labels = torch.arange(2).repeat(count // 2)
    level = torch.where(labels.view(-1, 1, 1, 1) == 0, 30, 200)
    return ImageArrays((level + torch.randint(0, 40, (count, 1, 28, 28))).byte(), labels)


@pytest.mark.parametrize(
    "speed",
    [Speed(), Speed(torch.bfloat16), Speed(channels_last=False)],
    ids=["float32", "bfloat16", "contiguous"],
)
def test_learns(speed: Speed, run_folder: Path) -> None:
    run, source = Run.open(run_folder), dark_and_bright(32)
    model = Classifier(run.encoder(), 128, 2)
    start = [p.detach().clone() for p in model.parameters()]
    batches = LabelledBatches(source, 16, run, 0, CPU)
    trained = train_classifier(model, batches, steps=40, lr=0.02, process=CPU, speed=speed)
    logits = embed(trained, source, preprocess_of(run), CPU.device)
    assert logits.argmax(dim=1).tolist() == source.labels.tolist()
    assert all(not torch.equal(p, before) for p, before in zip(trained.parameters(), start)), "every layer is trained"
    statistics = run.encoder().bn1.running_mean
    assert not torch.equal(trained.backbone.bn1.running_mean, statistics), "batch norm sees batches"


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_optimizer_is_the_papers(nesterov: bool, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD with a momentum of 0.9 and no decay; the learning rate falls along a cosine."""
    rates, made, create = recorded_rates(monkeypatch, torch.optim.SGD), [], torch.optim.SGD.__init__
    monkeypatch.setattr(torch.optim.SGD, "__init__", lambda self, *p, **o: made.append(o) or create(self, *p, **o))
    batches = LabelledBatches(dark_and_bright(16), 8, Run.open(run_folder), 0, CPU)
    model = Classifier(Run.open(run_folder).encoder(), 128, 2)
    train_classifier(model, batches, steps=6, lr=0.08, process=CPU, speed=Speed(), nesterov=nesterov)
    assert rates == pytest.approx([0.04 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
    assert made == [{"lr": 0.08, "momentum": 0.9, "nesterov": nesterov}]


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_a_plain_loop(nesterov: bool, run_folder: Path) -> None:
    batches = LabelledBatches(dark_and_bright(16), 8, Run.open(run_folder), 0, CPU)
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.Tanh()), 5, 2)
    plain = copy.deepcopy(model)
    train_classifier(model, batches, steps=5, lr=0.3, process=CPU, speed=Speed(), nesterov=nesterov)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9, nesterov=nesterov)
    for step, (images, labels) in enumerate(batches.steps(5)):
        optimizer.param_groups[0]["lr"] = 0.15 * (1 + math.cos(math.pi * step / 5))
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for p, expected in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(p, expected)


def test_the_loss_is_scaled_in_float16_alone(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enabled, scaler = [], torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **o: enabled.append(o["enabled"]) or scaler(*a, **o))
    batches = LabelledBatches(dark_and_bright(8), 8, Run.open(run_folder), 0, CPU)
    for dtype in (None, torch.bfloat16, torch.float16):
        model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 5)), 5, 2)
        train_classifier(model, batches, steps=2, lr=0.02, process=CPU, speed=Speed(dtype))
        assert model.fc.weight.abs().max() > 0, "a step is taken"
    assert enabled == [False, False, True]


def test_batches_are_normalised_as_the_recipe_says(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path, plain_config(mean=(0.3,), std=(0.6,))))
    source = dark_and_bright(8)
    (images, labels), *_ = LabelledBatches(source, 8, run, 0, CPU).steps(1)
    order = labels.argsort(stable=True)
    expected = (source.images.float() / 255 - 0.3) / 0.6
    assert images[order].mean() == pytest.approx(expected.mean().item(), abs=1e-3)
    assert images[order].std() == pytest.approx(expected.std().item(), abs=1e-3)


def test_compiled_step_is_the_same(run_folder: Path) -> None:
    run, source = Run.open(run_folder), dark_and_bright(16)
    weights = []
    for backend in (None, "eager"):  # checks that the step can be traced, without a C++ compiler's minutes
        torch.manual_seed(0)
        model = Classifier(run.encoder(), 128, 2)
        batches = LabelledBatches(source, 16, run, 0, CPU)
        trained = train_classifier(model, batches, steps=3, lr=0.05, process=CPU, speed=Speed(compile_backend=backend))
        weights.append(trained.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value)


def test_fewer_images_than_processes_are_refused(run_folder: Path) -> None:
    with pytest.raises(ConfigError, match="2 labelled images cannot be shared by 4 processes"):
        LabelledBatches(dark_and_bright(2), 16, Run.open(run_folder), 0, Process(0, 4, CPU.device))


def test_a_loss_that_is_not_finite_stops(run_folder: Path) -> None:
    run = Run.open(run_folder)
    model = Classifier(run.encoder(), 128, 2)
    nn.init.constant_(model.fc.bias, float("nan"))
    batches = LabelledBatches(dark_and_bright(16), 16, run, 0, CPU)
    with pytest.raises(NonFiniteLossError, match="step 0"):
        train_classifier(model, batches, steps=2, lr=0.1, process=CPU, speed=Speed())
    model = Classifier(run.encoder(), 128, 2)
    with pytest.raises(NonFiniteLossError, match="step 1"):  # the last one, whichever it is
        train_classifier(model, batches, steps=2, lr=math.inf, process=CPU, speed=Speed())


@pytest.fixture
def asked(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `finetune` on 600 images of two classes; gives (start, images, schedule, options) of each training that it
    asks for, none of which is done, and what it says."""
    draw = torch.Generator().manual_seed(0)
    part = lambda count: ImageArrays(
        torch.randint(0, 256, (count, 1, 4, 4), generator=draw).byte(), torch.arange(count) % 2
    )
    source = part(600)
    monkeypatch.setattr(session, "load_dataset", lambda _: Dataset(source, source, part(4)))

    def ask(*arguments: str, recipe: str = "demo", processes: int = 1) -> tuple[list[tuple[Any, ...]], str]:
        trainings: list[tuple[Any, ...]] = []

        def record(run, init, train, test, schedule, **options):
            trainings.append((init, len(train), schedule, options))
            return torch.eye(2).repeat(2, 1), 7

        monkeypatch.setattr(finetune, "fine_tune", record)
        _, options = parse(["finetune", "--checkpoint", str(run_folder), *arguments])
        run = Run.open(run_folder)
        run = dataclasses.replace(run, config=dataclasses.replace(run.config, recipe=recipe))
        said = io.StringIO()
        process = Process(0, processes, CPU.device)
        finetune.main(Session("finetune", options, run, process, tmp_path, Console(file=said, width=200)))
        return trainings, said.getvalue()

    return ask


def test_what_is_asked_for_by_default(asked) -> None:
    """The demo has batches, epochs and fewest steps of its own; elsewhere they are the published ones."""
    for recipe, wanted in (
        ("demo", [(6, 6, 60, 300), (60, 60, 30, 300), (600, 64, 5, 300)]),
        ("photos", [(6, 6, 60, 0), (60, 60, 30, 0), (600, 256, 30, 0)]),
    ):
        trainings, said = asked(recipe=recipe)
        expected = [
            (init, images, Schedule(epochs, least, batch, 0.05 * batch / 256))
            for images, batch, epochs, least in wanted
            for _ in range(3 if images < 600 else 1)
            for init in ("scratch", "checkpoint")
        ]
        assert [one[:3] for one in trainings] == expected
        titles = [one[3]["title"] for one in trainings]
        assert titles[2] == "1% of the labels, from scratch, draw 2 of 3"
        assert titles[-1] == "100% of the labels, from the checkpoint, draw 1 of 1"
        for share, batch in (("1%", 6), ("10%", 60)):
            cut = f"{share} of the labels: there are only batches of {batch} images, not of {wanted[2][1]}"
            assert said.count(cut) == 1, "once for all draws"
        assert "100% of the labels: there are only" not in said


def test_what_is_given_reaches_the_training(asked) -> None:
    given = ("--fractions", "0.1", "--draws", "1", "--init", "scratch")
    (one,), _ = asked(*given)
    assert (one[3]["speed"], one[3]["classes"]) == (Speed(None, True, None), 2)
    fast = ("--amp-dtype", "bfloat16", "--no-channels-last", "--torchcompile", "aot_eager", "--min-steps", "0")
    (one,), _ = asked(*given, *fast, "--epochs", "3", "--batch-size", "8", "--lr-base", "0.4")
    assert one[3]["speed"] == Speed(torch.bfloat16, False, "aot_eager")
    assert one[2] == Schedule(3, 0, 8, 0.4 * 8 / 256)
    (one,), _ = asked(*given, "--batch-size", "64", processes=2)
    assert (one[1], one[2].batch_size, one[3]["process"].world_size) == (60, 60, 2)
    with pytest.raises(ConfigError, match="--batch-size 9: it must divide by the 2 processes"):
        asked(*given, "--batch-size", "9", processes=2)


def test_a_list_of_one_percent_is_trained_as_long_as_one_percent(asked, tmp_path: Path, monkeypatch) -> None:
    """The published lists have 1.00% and 10.00% of the labels, not a fraction exactly."""
    (tmp_path / "list.txt").write_text("a\n")
    for images, epochs in ((7, 60), (58, 30), (61, 30), (12, 30)):
        part = lambda data, path, images=images: dataclasses.replace(
            data, labelled=data.labelled.subset(torch.arange(images))
        )
        monkeypatch.setattr(finetune, "with_labels_of", part)
        (one,), _ = asked("--label-list", str(tmp_path / "list.txt"), "--init", "checkpoint", recipe="photos")
        assert (one[1], one[2].epochs, one[2].batch_size) == (images, epochs, images)


SMALL = ["--fractions", "0.01", "--draws", "1", "--epochs", "1", "--min-steps", "2", "--threads", "1"]


def test_command(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["finetune", "--checkpoint", str(run_folder), "--output", str(tmp_path), *SMALL]) == 0
    content = json.loads((tmp_path / "finetune.json").read_text())
    result = content["results"]["0.01"]
    assert result["images"] == 40
    assert result["steps"] == 2
    assert result["raw"]["mean"] > 0.3  # 4 labels per class: far above the 10% of chance
    for name in ("scratch", "checkpoint"):
        assert 0.05 < result[name]["mean"] < 0.5  # two steps change little of the classifier, which starts at zero
        assert result[name]["mean"] + 0.1 < result[name]["top5_mean"]
        assert result[name]["draws"] == [result[name]["mean"]]
    assert "1% (40 images)" in capsys.readouterr().out
    rows = content["tables"][0]["rows"]
    assert [row[0] for row in rows] == ["1% (40 images)", "1% (40 images), top-5"]
    for row, score in zip(rows, ("mean", "top5_mean")):
        assert row[1:] == [f"{100 * result[name][score]:.1f}" for name in ("raw", "scratch", "checkpoint")]


def test_missing_data(run_folder: Path, tmp_path: Path, capsys) -> None:
    wrong = ["--dataset", "imagefolder", "--data", "nowhere"]
    assert main(["finetune", "--checkpoint", str(run_folder), "--output", str(tmp_path), *wrong]) == 2
    assert "--data nowhere" in capsys.readouterr().err


@pytest.mark.proof
def test_two_processes_train_as_one(run_folder: Path, tmp_path: Path) -> None:
    """Same images, same views, batch statistics and gradients over both processes: the same accuracies."""
    finetune = ["finetune", "--checkpoint", str(run_folder), *SMALL, "--batch-size", "40", "--output"]
    assert main([*finetune, str(tmp_path / "one")]) == 0
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    two = [sys.executable, *torchrun, "-m", "simclr_fast", *finetune, str(tmp_path / "two")]
    subprocess.run(two, cwd=ROOT, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / name / "finetune.json").read_text())["results"] for name in ("one", "two"))
    for init in ("scratch", "checkpoint"):
        assert two["0.01"][init]["mean"] == pytest.approx(one["0.01"][init]["mean"], abs=0.01)
