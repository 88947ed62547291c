"""Training as a call in somebody's program: equal each time, stopped as the command is, and the process as it was."""

import contextlib
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import simclr_fast
from simclr_fast import PretrainedRun, caller
from simclr_fast.checkpoint import checkpoints
from simclr_fast.errors import ConfigError, NonFiniteLossError
from simclr_fast.training.metrics import StepClock
from tests.training.conftest import STEPS_PER_EPOCH
from tests.training.processes import final_state

FEW = {"recipe": "demo", "batch_size": 8, "size": 8, "head_hidden": 32, "threads": 1, "norm": "group", "eval": False}
FEW |= {"knn_epochs": 0, "epochs": 2, "log_interval": 2}


def state_of_the_process() -> list:
    flags = [place.fp32_precision for place in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)]
    package_log = logging.getLogger("simclr_fast")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    return [*flags, torch.get_num_threads(), handlers, generators, package_log.level, list(package_log.handlers)]


def test_two_runs_in_one_process_are_equal_and_leave_it_as_it_was(few_images: None, tmp_path: Path) -> None:
    before = state_of_the_process()
    simclr_fast.pretrain(output=tmp_path / "a", seed=3, **FEW)
    assert state_of_the_process() == before
    torch.rand(3)  # what else the caller draws changes nothing
    simclr_fast.pretrain(output=tmp_path / "b", seed=3, **FEW)
    first, second = final_state(tmp_path / "a"), final_state(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    simclr_fast.pretrain(output=tmp_path / "c", seed=4, **FEW)
    assert any(not torch.equal(first[name], tensor) for name, tensor in final_state(tmp_path / "c").items())


def test_a_run_that_fails_leaves_the_process_as_it_was(few_images: None, tmp_path: Path) -> None:
    before = state_of_the_process()
    with pytest.raises(NonFiniteLossError):
        simclr_fast.pretrain(output=tmp_path / "run", **FEW, opt="sgd", lr=1e30)
    assert state_of_the_process() == before


def test_the_settings_of_a_caller_that_torch_has_newer_names_for_are_kept(few_images: None, tmp_path: Path) -> None:
    place = torch.backends.cuda.matmul
    before = place.fp32_precision
    try:
        place.fp32_precision = "tf32"  # from here on torch refuses to read the older name
        simclr_fast.pretrain(output=tmp_path / "run", **FEW, tf32=False)
        assert place.fp32_precision == "tf32"
    finally:
        place.fp32_precision = before


@pytest.fixture
def signalled(few_images: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[signal.Signals], None]:
    """Sends the process a signal while the second step of a run is under way."""

    def at_second_step(number: signal.Signals) -> None:
        waiting_for = StepClock.waiting_for

        def batches(self, given):
            for k, batch in enumerate(waiting_for(self, given)):
                if k == 1:
                    os.kill(os.getpid(), number)
                yield batch

        monkeypatch.setattr(StepClock, "waiting_for", batches)

    return at_second_step


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stop_leaves_a_checkpoint_and_the_run_goes_on_exactly(
    number: signal.Signals, error: type[BaseException], signalled: Callable, tmp_path: Path, monkeypatch
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalled(number)
        with pytest.raises(error):
            simclr_fast.pretrain(output=tmp_path / "a", **FEW)
        patch.undo()
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["checkpoint-000000002.pt"]


def test_a_stopped_run_goes_on_exactly(few_images: None, tmp_path: Path) -> None:
    simclr_fast.pretrain(output=tmp_path / "whole", **FEW)
    simclr_fast.pretrain(output=tmp_path / "parts", **FEW | {"checkpoint_minutes": 1e-9, "checkpoint_hist": 9})
    for path in checkpoints(tmp_path / "parts")[3:]:
        path.unlink()
    run = simclr_fast.pretrain(output=tmp_path / "parts", resume="auto", **FEW)
    whole, parts = final_state(tmp_path / "whole"), final_state(run.path)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    assert checkpoints(run.path)[-1].name == f"checkpoint-{2 * STEPS_PER_EPOCH:09d}.pt"


def test_another_thread_trains_and_leaves_signals_alone(few_images: None, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    runs: list[PretrainedRun] = []
    thread = threading.Thread(target=lambda: runs.append(simclr_fast.pretrain(output=tmp_path / "run", **FEW)))
    thread.start()
    thread.join()
    assert [run.path for run in runs] == [tmp_path / "run"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_cannot_be_built_is_told_before_the_data_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--size 40: .* patches of 16 pixels"):
        simclr_fast.pretrain(data=tmp_path / "absent", output=tmp_path / "run", model="vit_b_16", size=40)


def test_one_thread_at_a_time_trains_or_evaluates(few_images: None, tmp_path: Path, monkeypatch) -> None:
    """Two would draw from one generator, so that equal seeds gave unequal runs."""
    monkeypatch.setattr(caller, "PATIENCE", 0.05)
    run = simclr_fast.pretrain(output=tmp_path / "a", **FEW)
    works = {
        "pretrain": lambda: simclr_fast.pretrain(output=tmp_path / "b", **FEW),
        "knn": run.knn,
        "load_backbone": run.backbone,
    }
    refused: dict[str, str] = {}

    def tried() -> None:
        for name, work in works.items():
            try:
                work()
            except ConfigError as error:
                refused[name] = str(error)

    with caller.callers_state("pretrain"):
        thread = threading.Thread(target=tried)
        thread.start()
        thread.join()
        run.backbone()  # as a function of one's own may do that makes the backbone of a run
    for name in works:
        assert refused[name].startswith(f"{name}: another thread of this process trains or evaluates")
    assert not (tmp_path / "b").exists()
    simclr_fast.pretrain(output=tmp_path / "b", **FEW)


def test_a_backbone_is_loaded_without_a_draw_from_any_generator(few_images: None, tmp_path: Path, monkeypatch) -> None:
    run = simclr_fast.pretrain(output=tmp_path / "run", **FEW)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("it seeds the caller's GPUs"))
    before = torch.get_rng_state()
    run.backbone()
    assert torch.equal(torch.get_rng_state(), before)


@contextlib.contextmanager
def default(setter: Callable[[object], None], value: object, before: object) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
        lambda: default(torch.set_default_device, "meta", None),
        # Which on some CPUs makes bfloat16 of float32 products.
        lambda: default(torch.set_float32_matmul_precision, "medium", "highest"),
    ],
    ids=["no grad", "inference", "autocast", "in a device", "default dtype", "default device", "matmul precision"],
)
def test_what_the_caller_has_set_around_the_call_changes_nothing(
    around: Callable, few_images: None, expected: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with around():
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        matmul = torch.get_float32_matmul_precision()
        run = simclr_fast.pretrain(output=tmp_path / "run", **FEW)
        weights = run.backbone().state_dict()
        assert (torch.get_default_dtype(), torch.get_default_device()) == (dtype, device)
        assert torch.get_float32_matmul_precision() == matmul
    found = final_state(run.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for name, value in weights.items():
        assert torch.equal(value, found[f"model.backbone.{name}"])


@pytest.fixture
def expected(few_images: None, tmp_path: Path) -> dict[str, torch.Tensor]:
    return final_state(simclr_fast.pretrain(output=tmp_path / "expected", **FEW).path)
