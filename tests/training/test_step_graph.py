"""The step as a graph against the step by itself, bit by bit, with a recorder in the place of CUDA's graphs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simclr_fast.cli import main
from simclr_fast.data import ImageArrays, ResidentBatch
from simclr_fast.data.resident import ArrayLoader
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.errors import ConfigError
from simclr_fast.process import Process
from simclr_fast.recipes import RECIPES
from simclr_fast.training import loop, step_graph
from simclr_fast.training import step as step_module
from simclr_fast.training.loop import build_step
from simclr_fast.training.state import TrainState
from simclr_fast.training.step import StepResult, TrainStep
from simclr_fast.training.step_graph import EAGER_STEPS, GraphedStep, obstacle
from simclr_fast.training.views import Draw, Views
from simclr_fast.training.watch import StepWatch
from tests.host_reads import HostReadError
from tests.recorder import Recorder
from tests.training.conftest import FEW
from tests.training.graph_runs import BATCH, CPU, STEPS, Run, assert_equal, run, run_config
from tests.training.processes import final_state


@pytest.mark.parametrize(
    ("opt", "norm", "model_ema", "clip_grad", "more"),
    [
        ("lars", "batch", True, None, {}),
        ("sgd", "group", True, 0.5, {}),
        ("adamw", "batch", False, None, {"dropout": 0.3}),
        ("lars", "group", False, 0.5, {"dtype": torch.bfloat16}),
    ],
    ids=lambda value: str(value),
)
def test_replays_are_the_steps_by_themselves(
    opt: str, norm: str, model_ema: bool, clip_grad: float | None, more: dict
) -> None:
    options = run_config(opt, norm, model_ema, clip_grad)
    assert options.augment.rotate > 0, "with warps"
    eager, graphed = run(options, None, **more), run(options, Recorder(), **more)
    assert_equal(graphed, eager)
    assert graphed.capture.records == 2, "one with statistics, one without"
    assert graphed.capture.replays == STEPS - EAGER_STEPS, "no step runs beside a graph"
    losses = [result["loss"].item() for result in graphed.results]
    assert len(set(losses)) == STEPS


# Each plants one number of the host, or one tensor of the first steps alone, where the graph must read a tensor.
def a_rate_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr

    monkeypatch.setattr("simclr_fast.training.step_graph.set_learning_rate", set_rate)


def a_seed_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    draw, views = Views.draw, TrainStep._views

    def noted(self: Views, indices: Tensor, step: int, **place: int) -> Draw:
        made = draw(self, indices, step, **place)
        seeds.append(int(made.seed))
        return made

    def with_number(self: TrainStep, images: Tensor, draw: Draw) -> Tensor:
        return views(self, images, dataclasses.replace(draw, seed=torch.full((1,), seeds[-1])))

    monkeypatch.setattr(Views, "draw", noted)
    monkeypatch.setattr(TrainStep, "_views", with_number)


def images_gathered_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    load = GraphedStep._load

    def gathered(self: GraphedStep, batch: ResidentBatch, draw: Draw) -> None:
        load(self, batch, draw)
        self.images = batch.images

    monkeypatch.setattr(GraphedStep, "_load", gathered)
    monkeypatch.setattr(
        GraphedStep, "_compute", lambda self, measure: self.step.compute(self.images, self._draw, measure)
    )


def a_draw_that_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    load = GraphedStep._load

    def kept(self: GraphedStep, batch: ResidentBatch, draw: Draw) -> None:
        load(self, batch, draw)
        self._draw = draw

    monkeypatch.setattr(GraphedStep, "_load", kept)


def an_average_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that leaves the average to what comes after it, which a replay does not run."""
    compute = TrainStep.compute

    def without(self: TrainStep, *arguments: object) -> StepResult:
        ema, self.ema = self.ema, None
        result = compute(self, *arguments)
        self.ema = ema
        with step_module.torch.utils._python_dispatch._disable_current_modes():
            ema.update_parameters(self.model)
        return result

    monkeypatch.setattr(TrainStep, "compute", without)


PLANTED = run_config("lars", "group", model_ema=True, clip_grad=None)


@pytest.fixture(scope="module")
def expected() -> Run:
    return run(PLANTED, None)


@pytest.mark.parametrize(
    "plant",
    [
        a_rate_of_the_host,
        a_seed_of_the_host,
        images_gathered_outside,
        a_draw_that_is_not_copied,
        an_average_of_the_host,
    ],
)
def test_what_the_host_computes_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], expected: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = run(PLANTED, Recorder())
    with pytest.raises(AssertionError):
        assert_equal(found, expected)


def test_a_step_that_waits_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = StepWatch.judge

    def reading(self: StepWatch, loss: Tensor, norm: Tensor, *, scaled: bool) -> None:
        judge(self, loss, norm, scaled=scaled or not loss.isfinite())

    monkeypatch.setattr(StepWatch, "judge", reading)
    with pytest.raises(HostReadError, match="waits for the device"):
        run(run_config("lars", "group", model_ema=False, clip_grad=None), Recorder())


def graphed_of(capture: Recorder) -> tuple[GraphedStep, Views]:
    options = run_config("sgd", "group", model_ema=False, clip_grad=None)
    state = TrainState.create(options, 1, CPU, autocast=None)
    views = Views(options.augment, seed=7)
    return GraphedStep(build_step(state, views, options, Process(0, 1, CPU), None), capture), views


class Unable(Recorder):
    """A capture that something forbids, as torch tells it: the end of a spoilt capture is another error."""

    def record(self, works):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("capture was invalidated")


def test_a_failed_capture_is_told() -> None:
    graphed, views = graphed_of(Unable())
    rows = torch.arange(BATCH)
    batch = ResidentBatch(torch.zeros(BATCH, 1, 20, 20, dtype=torch.uint8), rows, rows)
    for k in range(EAGER_STEPS):
        graphed.take(batch, views.draw(rows, k), 0.1)
    said = r"--cuda-graph: the step cannot be captured \(operation not permitted when stream is capturing\); pass off"
    with pytest.raises(ConfigError, match=said):
        graphed.take(batch, views.draw(rows, 9), 0.1)


def test_both_kinds_of_steps_have_run_before_they_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled, or made at first use, is so in the first step, whichever kind that is."""
    graphed, views = graphed_of(Recorder())
    rows = torch.arange(BATCH)
    batch = ResidentBatch(torch.zeros(BATCH, 1, 20, 20, dtype=torch.uint8), rows, rows)
    kinds: list[bool] = []
    compare = graphed.step.compare
    monkeypatch.setattr(graphed.step, "compare", lambda z, measure: kinds.append(measure) or compare(z, measure))
    for k in range(EAGER_STEPS):
        graphed.take(batch, views.draw(rows, k), 0.1, measure=k == 1)
    assert kinds == [False, True, True, False, False, True]


def test_images_that_move_and_batches_of_another_size() -> None:
    recorder = Recorder()
    graphed, views = graphed_of(recorder)
    rows = torch.arange(BATCH)
    dark, light = (torch.full((BATCH, 1, 20, 20), value, dtype=torch.uint8) for value in (10, 240))
    for k in range(EAGER_STEPS + 1):
        graphed.take(ResidentBatch(dark, rows, rows), views.draw(rows, k), 0.0)
    first = graphed.take(ResidentBatch(dark, rows, rows), views.draw(rows, 0), 0.0).z.clone()
    moved = graphed.take(ResidentBatch(light, rows, rows), views.draw(rows, 0), 0.0).z.clone()
    assert recorder.records == 4, "with statistics and without, twice"
    assert not torch.equal(first, moved)
    assert torch.equal(graphed.take(ResidentBatch(dark.clone(), rows, rows), views.draw(rows, 0), 0.0).z, first)
    with pytest.raises(ValueError, match="a batch of 4 images: the graph is of batches of 8"):
        graphed.take(ResidentBatch(dark, rows[:4], rows[:4]), views.draw(rows[:4], 0), 0.0)


def test_a_whole_run_stops_and_goes_on_as_without_a_graph(
    few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run: checkpoints at every step, resumed in the middle of an epoch, where the graph is made anew."""
    arguments = [*FEW, "--epochs", "4", "--model-ema", "--opt", "lars", "--lr", "2", "--log-interval", "3", "--output"]
    assert main(["pretrain", *arguments, str(tmp_path / "eager")]) == 0
    expected = final_state(tmp_path / "eager")
    recorders: list[Recorder] = []

    def graphed(step: TrainStep, *_: object) -> GraphedStep:
        recorders.append(Recorder())
        return GraphedStep(step, recorders[-1])

    monkeypatch.setattr(loop, "graphed", graphed)
    folder = tmp_path / "graph"
    often = ["--checkpoint-minutes", "1e-9", "--checkpoint-hist", "99"]
    assert main(["pretrain", *arguments, str(folder), *often]) == 0
    for resumed in (False, True):
        if resumed:
            middle = folder / "checkpoint-000000006.pt"
            for path in folder.glob("checkpoint-*.pt"):
                if path.name > middle.name:
                    path.unlink()
            assert main(["pretrain", *arguments, str(folder), "--resume", "auto"]) == 0
        found = final_state(folder)
        assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert [recorder.replays > 0 for recorder in recorders] == [True, True]


def test_a_failed_step_of_a_graph_leaves_what_one_without_leaves(
    few_images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*FEW, "--epochs", "4", "--opt", "sgd", "--lr", "3e9", "--norm", "frozen", "--warmup-epochs", "4"]
    bundles = []
    for name in ("eager", "graph"):
        if name == "graph":
            monkeypatch.setattr(loop, "graphed", lambda step, *_: GraphedStep(step, Recorder()))
        assert main(["pretrain", *arguments, "--output", str(tmp_path / name)]) == 1
        (path,) = (tmp_path / name).glob("nonfinite-step*-rank0.pt")
        bundles.append((path.name, torch.load(path, weights_only=True)))
    (name, eager), (same, graph) = bundles
    assert name == same
    for part in ("images", "indices", "seed", "warp"):
        assert torch.equal(graph[part], eager[part])
    assert all(torch.equal(graph["model"][key], value) for key, value in eager["model"].items())


def test_why_a_run_makes_no_graph() -> None:
    options = RECIPES["cifar10"]
    images = ImageArrays(torch.zeros(8, 3, 4, 4, dtype=torch.uint8))
    loader = ArrayLoader(images, EpochSampler(8, 4, seed=0), CPU)
    cuda = torch.device("cuda", 0)
    assert obstacle(options, Process(0, 1, cuda), loader) is None
    assert obstacle(options, Process(0, 1, CPU), loader) == "training runs on cpu"
    assert obstacle(options, Process(0, 2, cuda), loader) == "2 processes add up their gradients"
    assert obstacle(options, Process(0, 1, cuda), object()) == "the images do not lie on the device"
    for group, change, said in (
        ("optimization", {"micro_batch_size": 128}, "--micro-batch-size 128 sets random generators back"),
        ("speed", {"amp_dtype": "float16"}, "--amp-dtype float16 keeps the scaler's state"),
        ("speed", {"torchcompile_mode": "reduce-overhead"}, "--torchcompile-mode reduce-overhead makes graphs"),
        ("run", {"profile": 3}, "--profile 3 looks into the step"),
    ):
        changed = dataclasses.replace(options, **{group: dataclasses.replace(getattr(options, group), **change)})
        assert obstacle(changed, Process(0, 1, cuda), loader).startswith(said)


def test_a_graph_is_made_where_it_may_be_and_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graph, "CudaCapture", lambda device: device)
    loader = ArrayLoader(ImageArrays(torch.zeros(8, 3, 4, 4, dtype=torch.uint8)), EpochSampler(8, 4, seed=0), CPU)
    step, cuda = object(), torch.device("cuda", 0)

    def made(choice: str, device: torch.device) -> object:
        options = RECIPES["cifar10"]
        options = dataclasses.replace(options, speed=dataclasses.replace(options.speed, cuda_graph=choice))
        return step_graph.graphed(step, options, Process(0, 1, device), loader)

    for choice in ("auto", "on"):
        found = made(choice, cuda)
        assert (type(found), found.step, found.capture) == (GraphedStep, step, cuda)
    assert made("off", cuda) is made("auto", CPU) is step
    with pytest.raises(ConfigError, match="^--cuda-graph on: training runs on cpu; pass auto or off$"):
        made("on", CPU)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cuda-graph", "on"], "--cuda-graph on: training runs on cpu; pass auto or off"),
        (["--cuda-graph", "on", "--micro-batch-size", "4"], "--cuda-graph on: --micro-batch-size 4 sets random gen"),
        (["--torchcompile-mode", "max-autotune"], "--torchcompile-mode max-autotune: nothing is compiled on the CPU"),
        (
            ["--torchcompile-mode", "reduce-overhead", "--torchcompile", "aot_eager"],
            "--torchcompile-mode reduce-overhead: only inductor has modes, and --torchcompile is aot_eager",
        ),
    ],
)
def test_contradictions_are_named(arguments: list[str], said: str, few_images: None, tmp_path: Path, capsys) -> None:
    assert main(["pretrain", *FEW, "--device", "cpu", *arguments, "--output", str(tmp_path / "run")]) == 2
    assert f"simclr-fast pretrain: error: {said}" in capsys.readouterr().err
