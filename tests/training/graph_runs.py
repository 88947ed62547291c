"""Runs of some steps, as one graph or by themselves, to be compared bit by bit."""

import dataclasses

import torch
from torch import Tensor, nn

from simclr_fast import NTXentLoss
from simclr_fast.config import Config
from simclr_fast.data import ResidentBatch
from simclr_fast.training.state import TrainState
from simclr_fast.training.step import StepResult, TrainStep, random_state
from simclr_fast.training.step_graph import Capture, GraphedStep
from simclr_fast.training.views import Views
from tests.training.exactness import config

CPU = torch.device("cpu")
SIZE, BATCH, STEPS = 24, 8, 12


def run_config(opt: str, norm: str, model_ema: bool, clip_grad: float | None) -> Config:
    options = config(norm, opt=opt)
    optimization = dataclasses.replace(options.optimization, model_ema=model_ema, clip_grad=clip_grad)
    return dataclasses.replace(options, optimization=optimization)


@dataclasses.dataclass
class Run:
    """What a run of some steps ends with: all state, and what each step returned."""

    values: dict[str, Tensor]
    results: list[dict[str, Tensor]]
    capture: Capture


def step_of(state: TrainState, views: Views, options: Config, dtype: torch.dtype | None) -> TrainStep:
    """As the loop makes it, without the packages that the loop needs."""
    compiler = options.speed.torchcompile
    return TrainStep(
        state.model,
        views,
        NTXentLoss(options.optimization.temperature),
        state.optimizer,
        scaler=state.scaler,
        ema=state.ema,
        autocast=dtype,
        clip_grad=options.optimization.clip_grad,
        compile_backend=compiler if compiler in ("inductor", "aot_eager") else None,
    )


def run(
    options: Config,
    capture: Capture | None,
    *,
    device: torch.device = CPU,
    steps: int = STEPS,
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Run:
    """Steps on other images each, at another learning rate each; every third tells its statistics.

    capture: records them; None takes them one by one.
    """
    state = TrainState.create(options, 1, device, autocast=dtype)
    if dropout:
        state.model.head.append(nn.Dropout(dropout))
    views = Views(options.augment, seed=7, dtype=dtype)
    step = step_of(state, views, options, dtype)
    graphed = step if capture is None else GraphedStep(step, capture)
    resident = torch.randint(0, 256, (SIZE, 1, 20, 20), generator=torch.Generator().manual_seed(3)).to(
        device, torch.uint8
    )
    results = []
    for k in range(steps):
        rows = torch.randperm(SIZE, generator=torch.Generator().manual_seed(k))[:BATCH].to(device)
        indices = rows + 1000 * (k % 2)  # numbers in a larger data set
        draw, lr = views.draw(indices, k), 0.1 / (k + 1)
        batch = ResidentBatch(resident, rows, indices)
        results.append(copied(graphed.take(batch, draw, lr, measure=k % 3 == 2)))
    step.settle()
    values = dict(state.model.state_dict()) | {
        "generator": torch.cat([part for part in random_state() if part is not None])
    }
    values |= {f"ema.{name}": value for name, value in (state.ema.state_dict() if state.ema else {}).items()}
    for k, entry in enumerate(state.optimizer.state.values()):
        values |= {f"optimizer.{k}.{name}": value for name, value in entry.items()}
    return Run(values, results, capture)


def copied(result: StepResult) -> dict[str, Tensor]:
    values = {"loss": result.loss, "z": result.z, "grad_norm": result.grad_norm}
    if result.statistics is not None:
        values |= result.statistics._asdict()
    return {name: value.clone() for name, value in values.items()}


def assert_equal(graphed: Run, eager: Run) -> None:
    for found, expected in ((graphed.values, eager.values), *zip(graphed.results, eager.results, strict=True)):
        assert found.keys() == expected.keys()
        assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
