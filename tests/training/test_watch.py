"""A step that fails is not applied, nor is the next; the host hears of it one step later and saves what it takes."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simclr_fast import NTXentLoss
from simclr_fast.checkpoint import checkpoints, load
from simclr_fast.cli import main
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.process import Process
from simclr_fast.run_files import METRICS_FILE, read_metrics
from simclr_fast.training import loop
from simclr_fast.training.loop import build_step
from simclr_fast.training.profile import WARMUP_STEPS
from simclr_fast.training.state import TrainState
from simclr_fast.training.step import TrainStep
from simclr_fast.training.views import Views
from tests.training import processes
from tests.training.conftest import FEW, STEPS_PER_EPOCH
from tests.training.exactness import BATCH, config, images
from tests.training.processes import finish, start

CPU = torch.device("cpu")
SMALL = [*FEW, "--norm", "batch", "--opt", "lars", "--lr", "1", "--model-ema", "--checkpoint-minutes", "1e-9"]


class Breaking(NTXentLoss):
    """A loss that breaks in its call number `at`: its value, or its gradient alone."""

    def __init__(self, at: int, what: str, temperature: float = 0.2, **options):
        super().__init__(temperature, **options)
        self.at, self.what, self.calls = at, what, 0

    def forward(self, z0: Tensor, z1: Tensor, **options):
        made = super().forward(z0, z1, **options)
        loss, *statistics = made if isinstance(made, tuple) else (made,)
        if self.calls == self.at:
            # The derivative of the root is infinite at 0, and times that of its argument, 0, it is no number.
            loss = loss * math.nan if self.what == "loss" else loss + (0 * z0.sum()).sqrt()
        self.calls += 1
        return (loss, *statistics) if statistics else loss


@dataclasses.dataclass
class Run:
    """A state and its step, by which it is trained on the same images."""

    state: TrainState
    step: TrainStep
    views: Views

    def once(self) -> None:
        draw = self.views.draw(torch.arange(BATCH), self.state.step, batch_size=BATCH)
        self.step(images(), draw, lr=0.05)
        self.state.step += 1

    def values(self) -> dict[str, Tensor]:
        """Copies of all that a step may change."""
        values = dict(self.state.model.state_dict())
        values |= {f"ema.{name}": value for name, value in self.state.ema.state_dict().items()}
        for k, state in enumerate(self.state.optimizer.state.values()):
            values |= {f"state.{k}.{name}": value for name, value in state.items()}
        return {name: value.clone() for name, value in values.items()}


def run_of(
    criterion: Callable,
    opt: str,
    micro_batch_size: int = 0,
    autocast: torch.dtype | None = None,
    norm: str = "batch",
) -> Run:
    options = config(norm, micro_batch_size, opt)
    options = dataclasses.replace(options, optimization=dataclasses.replace(options.optimization, model_ema=True))
    state = TrainState.create(options, 1, CPU, autocast=autocast)
    views = Views(options.augment, seed=7, dtype=autocast)
    step = build_step(state, views, options, Process(0, 1, CPU), autocast)
    step.criterion = criterion
    return Run(state, step, views)


@pytest.mark.parametrize(
    ("opt", "what", "micro_batch_size"),
    [
        *(("lars", "loss", 0), ("sgd", "loss", 4), ("adamw", "loss", 0)),
        *(("lars", "gradient", 4), ("sgd", "gradient", 0), ("adamw", "gradient", 4)),
    ],
)
def test_a_failed_step_changes_nothing_and_is_told_by_the_next(opt: str, what: str, micro_batch_size: int) -> None:
    run = run_of(Breaking(2, what), opt, micro_batch_size)
    run.once()
    before_last = run.values()
    run.once()
    before = run.values()
    assert not any(torch.equal(value, before_last[name]) for name, value in before.items() if ".weight" in name)
    run.once()  # fails, and does not know it yet
    said = r"the loss is nan" if what == "loss" else r"the loss is \d\.\d+ and the norm of its gradient nan"
    with pytest.raises(NonFiniteLossError, match=said):
        run.once()
    after = run.values()
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []


def test_settling_tells_at_once_and_each_failure_once() -> None:
    run = run_of(Breaking(1, "loss"), "sgd")
    run.once()
    run.step.settle()
    run.once()
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        run.step.settle()
    run.step.settle()


def test_a_bad_loss_in_float16_fails_and_leaves_the_scale() -> None:
    run = run_of(Breaking(2, "loss"), "adamw", autocast=torch.float16)
    run.state.scaler.scale(torch.ones(()))  # makes the scaler's tensors
    run.state.scaler.update(16.0)
    run.once()
    run.once()
    scaler = run.state.scaler.state_dict()
    assert scaler["_growth_tracker"] == 2
    run.once()
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        run.once()
    assert run.state.scaler.state_dict() == scaler


def test_an_overflow_in_float16_skips_one_step_alone() -> None:
    run = run_of(Breaking(1, "gradient"), "adamw", autocast=torch.float16, norm="group")
    run.once()
    before, scale = run.values(), run.state.scaler.get_scale()
    run.once()
    kept = run.values()
    assert all(torch.equal(kept[name], value) for name, value in before.items() if not name.startswith("ema."))
    assert run.state.scaler.get_scale() == scale / 2
    assert run.state.ema.n_averaged == 2, "the weights that it leaves are averaged"
    run.once()
    run.step.settle()
    assert not torch.equal(run.values()["backbone.conv1.weight"], before["backbone.conv1.weight"])


def test_an_optimizer_that_cannot_skip_is_refused() -> None:
    run = run_of(NTXentLoss(), "sgd")
    with pytest.raises(ValueError, match="optimizer=SGD: pass one with fused=True"):
        TrainStep(run.state.model, run.views, NTXentLoss(), torch.optim.SGD(run.state.model.parameters(), lr=0.1))


# In the middle of an epoch, at its end (before its checkpoint), at the end of the run, and at a step that is logged.
@pytest.mark.parametrize(
    ("at", "log_interval", "what"), [(1, 100, "gradient"), (3, 100, "loss"), (7, 100, "gradient"), (5, 2, "loss")]
)
def test_the_bundle_is_the_state_before_the_failed_step(
    what: str, at: int, log_interval: int, few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    clean, broken = tmp_path / "clean", tmp_path / "broken"
    arguments = [*SMALL, "--epochs", "2", "--log-interval", str(log_interval), "--checkpoint-hist", "9", "--output"]
    assert main(["pretrain", *arguments, str(clean)]) == 0
    monkeypatch.setattr(loop, "NTXentLoss", lambda temperature, **options: Breaking(at, what, temperature, **options))
    assert main(["pretrain", *arguments, str(broken)]) == 1
    path = broken / f"nonfinite-step{at}-rank0.pt"
    assert f"at step {at} (epoch {at // STEPS_PER_EPOCH}); look into {path}" in capsys.readouterr().err
    bundle = torch.load(path, weights_only=True)
    expected = load(clean / f"checkpoint-{at:09d}.pt")
    assert bundle["step"] == at
    flat = lambda content: content["model"] | {f"ema.{k}": v for k, v in content["ema"].items()}
    assert all(torch.equal(flat(bundle)[name], value) for name, value in flat(expected).items())
    for state, wanted in zip(bundle["optimizer"]["state"].values(), expected["optimizer"]["state"].values()):
        assert torch.equal(state["momentum_buffer"], wanted["momentum_buffer"])
    assert bundle["images"].shape == (8, 1, 9, 9)
    assert [int(p.stem.split("-")[1]) for p in checkpoints(broken)] == list(range(1, at + 1)), "of good steps alone"
    logged = [line["step"] for line in read_metrics(broken / METRICS_FILE)]
    assert logged == list(range(log_interval, at + 1, log_interval)), "no metrics of a failed step"


def test_a_profile_tells_that_its_last_step_failed(
    few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    last = WARMUP_STEPS + 1  # one step as it is, and one by phase
    monkeypatch.setattr(loop, "NTXentLoss", lambda *arguments, **options: Breaking(last, "loss", *arguments, **options))
    assert main(["pretrain", *FEW, "--epochs", "2", "--profile", "1", "--output", str(tmp_path / "run")]) == 1
    assert f"the loss is nan at step {last}" in capsys.readouterr().err


def test_two_processes_fail_at_the_same_step_and_end(tmp_path: Path) -> None:
    """Neither waits for the other, whose gradients are not finite either, and whose clock wants no checkpoint yet."""
    folder, log = tmp_path / "run", tmp_path / "log"
    breaks = ("--epochs", "1", "--opt", "sgd", "--lr", "1e30", "--norm", "frozen", "--log-interval", "100")
    clocks = (("--checkpoint-minutes", "1e-9"), ())
    assert finish(start((*processes.SMALL, *breaks, "--output", str(folder)), log, 2, by_rank=clocks)) == [1, 1]
    bundles = sorted(path.name for path in folder.glob("nonfinite-*"))
    assert [name.split("-")[2] for name in bundles] == ["rank0.pt", "rank1.pt"]
    assert len({name.split("-")[1] for name in bundles}) == 1
    assert log.read_text().count("simclr-fast pretrain: error: the loss is") == 2
