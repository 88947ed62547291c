"""The step as a CUDA graph against the step by itself, bit by bit, and a run with a graph."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from simclr_fast.training.step_graph import CudaCapture
from tests.training.graph_runs import assert_equal, run, run_config

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """cuDNN's fastest backward passes add in any order."""
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize(
    ("opt", "dtype", "compiler"),
    [
        ("lars", None, "off"),
        ("sgd", None, "off"),
        ("adamw", torch.bfloat16, "off"),
        ("lars", torch.bfloat16, "inductor"),
    ],
)
def test_twenty_replays_are_the_steps_by_themselves(opt: str, dtype: torch.dtype | None, compiler: str) -> None:
    options = run_config(opt, "batch", model_ema=True, clip_grad=0.5)
    options = dataclasses.replace(options, speed=dataclasses.replace(options.speed, torchcompile=compiler))
    more = {"device": CUDA, "steps": 30, "dtype": dtype}
    if compiler == "off":  # inductor draws dropout in its own way, and seeds it on the host
        more["dropout"] = 0.3
    eager, again = (run(options, None, **more) for _ in range(2))
    assert_equal(again, eager)
    assert_equal(run(options, CudaCapture(CUDA), **more), eager)


@pytest.fixture
def train_main() -> Callable[[list[str]], int]:
    for package in ("tyro", "rich", "tqdm", "tensorboard", "mlxtend"):
        pytest.importorskip(package, reason=f"pretrain demo needs the package {package}")
    from simclr_fast.cli import main

    return lambda arguments: main(["pretrain", *arguments])


def test_a_run_with_a_graph_writes_what_one_without_writes(
    train_main: Callable[[list[str]], int], tmp_path: Path
) -> None:
    from tests.training.processes import final_state

    arguments = ["demo", "--batch-size", "500", "--epochs", "3", "--no-eval", "--knn-epochs", "0", "--device", "cuda"]
    arguments += ["--model-ema", "--opt", "lars", "--lr", "10", "--log-interval", "2"]
    states = []
    for choice in ("off", "on"):
        assert train_main([*arguments, "--cuda-graph", choice, "--output", str(tmp_path / choice)]) == 0
        states.append(final_state(tmp_path / choice))
    assert [name for name, value in states[0].items() if not torch.equal(states[1][name], value)] == []


def test_what_replays_compiled_parts_trains(train_main: Callable[[list[str]], int], tmp_path: Path) -> None:
    from simclr_fast.run_files import METRICS_FILE, read_metrics

    arguments = ["demo", "--batch-size", "500", "--epochs", "2", "--no-eval", "--log-interval", "1", "--device", "cuda"]
    assert train_main([*arguments, "--torchcompile-mode", "reduce-overhead", "--output", str(tmp_path / "run")]) == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / METRICS_FILE) if "loss" in line]
    assert sum(losses[8:]) < sum(losses[:8])
