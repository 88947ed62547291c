"""The training loop against one written here by the definitions: schedule, order, views, loss, update, average."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_fast.checkpoint import checkpoints, load
from simclr_fast.cli import parse
from simclr_fast.config import Config
from simclr_fast.data import load_dataset
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.models import build_model
from simclr_fast.run_files import METRICS_FILE, read_metrics
from simclr_fast.training.views import Views
from tests.training.processes import SMALL, run

BATCH, STEPS_PER_EPOCH = 500, 8
TEMPERATURE = 0.2
# Of the way that the run moved: rounding comes to 0.01 of it; the average of the weights lies 0.1 of it behind them.
TOLERANCE = 0.04
OPTIONS = (*SMALL, "--epochs", "2", "--opt", "sgd", "--lr", "1e-4", "--weight-decay", "0.1", "--clip-grad", "8")
OPTIONS += ("--temperature", str(TEMPERATURE), "--momentum", "0.8", "--model-ema", "--model-ema-decay", "0.7")
OPTIONS += ("--seed", "3")


def nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, float]:
    """The loss by its formula (Chen et al. 2020, equation 1), and the share of positives found, of z [2n, D]."""
    z = F.normalize(z, dim=1)
    similarity = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    positive = torch.arange(len(z)).roll(len(z) // 2)
    return F.cross_entropy(similarity, positive), (similarity.argmax(1) == positive).float().mean().item()


def learning_rate(step: int, peak: float) -> float:
    """One epoch of linear warm-up, then a cosine down to zero; the demo's recipe over two epochs."""
    if step < STEPS_PER_EPOCH:
        return peak * (step + 1) / STEPS_PER_EPOCH
    return peak / 2 * (1 + math.cos(math.pi * (step - STEPS_PER_EPOCH) / STEPS_PER_EPOCH))


class Average:
    """The exponential moving average of a model, buffers and all; it starts at the first weights it is given."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def update(self, model: nn.Module, decay: float) -> None:
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                before = self.values.get(name, value)
                self.values[name] = decay * before + (1 - decay) * value


@dataclasses.dataclass(frozen=True)
class Expected:
    """Weights at the start and at the end, their average, and the metrics of each step."""

    start: dict[str, Tensor]
    end: dict[str, Tensor]
    average: dict[str, Tensor]
    lines: list[dict[str, float]]


def independent_run(config: Config) -> Expected:
    o = config.optimization
    images = load_dataset(config.data).train.images
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, channels=1).train()
    views = Views(config.augment, config.run.seed, channels_last=False)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    average, lines = Average(), []
    for step in range(o.epochs * STEPS_PER_EPOCH):
        epoch, k = divmod(step, STEPS_PER_EPOCH)
        indices = EpochSampler(len(images), BATCH, config.run.seed).order(epoch)[k * BATCH : (k + 1) * BATCH]
        loss, found = nt_xent(model(views.apply(images[indices], views.draw(indices, step))), o.temperature)
        gradients = dict(zip(velocity, torch.autograd.grad(loss, list(model.parameters()))))
        norm = torch.sqrt(sum(g.square().sum() for g in gradients.values()))
        lr = learning_rate(step, o.lr)
        with torch.no_grad():
            for name, p in model.named_parameters():
                g = gradients[name] * min(1.0, o.clip_grad / norm)
                if p.ndim > 1:  # biases and normalisation are not decayed
                    g = g + o.weight_decay * p
                velocity[name] = o.momentum * velocity[name] + g
                p -= lr * velocity[name]
        average.update(model, o.model_ema_decay)
        values = {"loss": loss.item(), "grad_norm": norm.item(), "lr": lr, "contrastive_accuracy": found}
        lines.append({"step": step + 1, **values})
    return Expected(start, model.state_dict(), average.values, lines)


@pytest.fixture(scope="module")
def expected() -> Iterator[Expected]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield independent_run(parse(["pretrain", *OPTIONS])[1])
    torch.set_num_threads(threads)


def error(found: dict[str, Tensor], truth: dict[str, Tensor], expected: Expected) -> float:
    """|found - truth| over the way from the start to the truth, of parameters or buffers, whichever is larger."""
    joined = lambda values, names: torch.cat([values[name].flatten() for name in names])
    buffers = [name for name in expected.average if "running" in name]
    parameters = [name for name in expected.average if "running" not in name]
    return max(
        (
            (joined(found, names) - joined(truth, names)).norm()
            / (joined(truth, names) - joined(expected.start, names)).norm()
        ).item()
        for names in (parameters, buffers)
    )


@pytest.mark.parametrize("world_size", [1, 2], ids=["one process", "two processes"])
def test_a_run_is_the_one_by_the_definitions(world_size: int, expected: Expected, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run((*OPTIONS, "--output", str(folder)), tmp_path / "log", world_size)
    assert "warning:" not in (tmp_path / "log").read_text()
    content = load(checkpoints(folder)[-1])
    averaged = {name.removeprefix("module."): value for name, value in content["ema"].items()}
    assert content["step"] == 2 * STEPS_PER_EPOCH
    assert error(content["model"], expected.end, expected) < TOLERANCE
    assert error(averaged, expected.average, expected) < TOLERANCE

    recorded = read_metrics(folder / METRICS_FILE)
    assert [line["step"] for line in recorded] == [line["step"] for line in expected.lines]
    for name, rounding in (("lr", 1e-9), ("loss", 1e-3), ("grad_norm", 1e-2)):
        assert [line[name] for line in recorded] == pytest.approx([line[name] for line in expected.lines], rel=rounding)
    for line in recorded:
        assert line["epoch"] == line["step"] / STEPS_PER_EPOCH
        assert line["chance"] == pytest.approx(math.log(2 * BATCH - 1))
        assert (line["temperature"], line["unreadable_images"], line["gpu_decode_fallbacks"]) == (TEMPERATURE, 0, 0)
        assert line["images_per_second"] > 0
    found, truth = ([line["contrastive_accuracy"] for line in lines] for lines in (recorded, expected.lines))
    assert found == pytest.approx(truth, abs=0.003)
    assert max(truth) > 0.003
    for line in recorded:  # exp(-x) is convex, and a logit is at most 1/t
        assert math.exp(-line["loss"]) <= line["positive_probability"] < 1
        assert 0 < line["positive_logit"] < 1 / TEMPERATURE
