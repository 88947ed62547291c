"""Fine-tuning: it learns, from where it is told to, on the images it is told to, alone and over processes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from simclr_fast.cli import main
from simclr_fast.data import ImageArrays
from simclr_fast.errors import ConfigError, NonFiniteLossError
from simclr_fast.evaluation.classifier import Classifier, Speed, train_classifier
from simclr_fast.evaluation.features import LabelledBatches, embed, preprocess_of
from simclr_fast.evaluation.run import Run
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


def test_the_learning_rate_falls_along_a_cosine(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = recorded_rates(monkeypatch, torch.optim.SGD)
    batches = LabelledBatches(dark_and_bright(16), 8, Run.open(run_folder), 0, CPU)
    model = Classifier(Run.open(run_folder).encoder(), 128, 2)
    train_classifier(model, batches, steps=6, lr=0.08, process=CPU, speed=Speed())
    assert rates == pytest.approx([0.04 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


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


def test_missing_data(run_folder: Path, tmp_path: Path, capsys) -> None:
    wrong = ["--dataset", "imagefolder", "--data", "nowhere"]
    assert main(["finetune", "--checkpoint", str(run_folder), "--output", str(tmp_path), *wrong]) == 2
    assert "--data nowhere" in capsys.readouterr().err


@pytest.mark.proof
def test_two_processes_train_as_one(run_folder: Path, tmp_path: Path) -> None:
    """Same images, same views, batch statistics and gradients over both processes: the same accuracies."""
    common = ["-m", "simclr_fast", "finetune", "--checkpoint", str(run_folder), *SMALL, "--batch-size", "40"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    for name, launcher in (("one", []), ("two", torchrun)):
        arguments = [sys.executable, *launcher, *common, "--output", str(tmp_path / name)]
        subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / name / "finetune.json").read_text())["results"] for name in ("one", "two"))
    for init in ("scratch", "checkpoint"):
        assert two["0.01"][init]["mean"] == pytest.approx(one["0.01"][init]["mean"], abs=0.01)
