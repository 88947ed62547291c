"""Nothing in the training loop waits for the device, but where a line of metrics or a checkpoint is due."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from simclr_fast.cli import main
from simclr_fast.training import step as step_module
from simclr_fast.training.metrics import StepClock
from simclr_fast.training.step import TrainStep
from simclr_fast.training.watch import StepWatch
from tests.host_reads import HostReadError, NoHostReads
from tests.training.conftest import FEW, STEPS_PER_EPOCH

OPTIONS = [*FEW, "--epochs", "2", "--log-interval", "1000", "--model-ema", "--clip-grad", "1"]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, few_images: None) -> list[int]:
    """Refuse what waits, from each epoch's second step to its last; the number of steps that were so watched."""
    steps: list[int] = []
    waiting_for = StepClock.waiting_for

    def watched_batches(self: StepClock, batches: Iterable) -> Iterator:
        mode = NoHostReads()
        for k, batch in enumerate(waiting_for(self, batches)):
            if 0 < k < STEPS_PER_EPOCH - 1:
                steps.append(k)
                with mode:  # stays entered while the loop is busy with the batch
                    yield batch
            else:
                yield batch

    monkeypatch.setattr(StepClock, "waiting_for", watched_batches)
    return steps


@pytest.mark.parametrize(
    "extra",
    [
        ["--opt", "lars", "--lr", "1"],
        ["--opt", "sgd", "--lr", "0.1"],
        ["--opt", "adamw", "--amp-dtype", "float16"],
        ["--opt", "lars", "--amp-dtype", "bfloat16", "--micro-batch-size", "4", "--norm", "batch"],
    ],
    ids=lambda extra: " ".join(extra),
)
def test_no_step_reads_a_value_on_the_host(extra: list[str], watched: list[int], tmp_path: Path) -> None:
    assert main(["pretrain", *OPTIONS, *extra, "--output", str(tmp_path / "run")]) == 0
    assert watched == [1, 2] * 2


def reading_the_loss(self: StepWatch, loss: torch.Tensor, norm: torch.Tensor, *, scaled: bool) -> None:
    if not loss.isfinite():
        raise RuntimeError("the loss is not finite")


def selecting_gradients(self: TrainStep, loss: torch.Tensor) -> torch.Tensor:
    grads = torch.cat([p.grad.flatten() for p in self.parameters])
    return grads[grads > 0].norm()


def reading_a_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"].mul_(lr / group["lr"].item())


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (StepWatch, "judge", reading_the_loss),
        (TrainStep, "_update", selecting_gradients),
        (step_module, "set_learning_rate", reading_a_rate),
    ],
    ids=["reads the loss", "selects by a mask", "reads the rate"],
)
def test_a_step_that_reads_is_found(
    owner: object, name: str, wrong: Callable, watched: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(HostReadError, match="waits for the device"):
        main(["pretrain", *OPTIONS, "--output", str(tmp_path / "run")])
