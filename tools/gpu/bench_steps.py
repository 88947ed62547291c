"""Training steps as a run takes them (compiled, bfloat16, channels-last), and what views and loss take of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from simclr_fast import NTXentLoss
from simclr_fast.data.resident import ResidentBatch
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.models import build_model
from simclr_fast.optim import build_optimizer
from simclr_fast.recipes import RECIPES
from simclr_fast.training.step import StepResult, TrainStep
from simclr_fast.training.step_graph import EAGER_STEPS, CudaCapture, GraphedStep, Recorded, Work
from simclr_fast.training.views import Draw, Views
from tools.gpu import OURS
from tools.gpu.bench import Bench, backend_of
from tools.gpu.bench_augment import photographs
from tools.gpu.device import MIB
from tools.gpu.not_finite import FailedStep, Search


@dataclass(frozen=True)
class Setting:
    """A recipe with its images' side and the batch that is trained on."""

    recipe: str
    model: str
    batch: int
    side: int
    steps: int
    stem: str = "imagenet"


SETTINGS = {
    "resnet50": Setting("imagenet", "resnet50", 128, 256, 20),
    "resnet18": Setting("cifar10", "resnet18", 1024, 32, 40, stem="cifar"),
}
DRY = {
    "resnet50": Setting("imagenet", "resnet_mini", 2, 40, 1),
    "resnet18": Setting("cifar10", "resnet_mini", 2, 32, 1),
}


class Repeated:
    """In the place of CUDA graphs in a dry run: does the work again."""

    def eager(self, work: Work) -> StepResult:
        """Do it."""
        return work()

    def record(self, works: Sequence[Work]) -> list[Recorded]:
        """What does each, and what it makes."""
        return [(work, work()) for work in works]


class Training:
    """A training run without its loader: the images are on the device.

    compiler: a backend of torch.compile, None for none. graph: whether the whole step is a CUDA graph.
    """

    def __init__(self, bench: Bench, name: str, *, compiler: str | Callable | None = "inductor", graph: bool = False):
        self.bench = bench
        self.setting = (DRY if bench.dry else SETTINGS)[name]
        recipe = RECIPES[self.setting.recipe]
        model_options = replace(recipe.model, model=self.setting.model, stem=self.setting.stem)
        optimization = replace(recipe.optimization, batch_size=self.setting.batch)
        augment = replace(recipe.augment, size=32) if bench.dry else recipe.augment
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        device = bench.device.torch
        model = build_model(model_options, 3).to(device, memory_format=torch.channels_last).train()
        self.head_dim = model_options.head_dim
        self.views = Views(augment, seed=0, dtype=torch.bfloat16)
        self.loss = NTXentLoss(optimization.temperature)
        optimizer = build_optimizer(model, optimization)
        self.losses = {"step": self.loss}  # and by the backends, for a search
        for backend in (*OURS, "reference"):
            self.losses[backend] = NTXentLoss(optimization.temperature, backend=backend_of(backend, bench.dry))
        self.compiler = "eager" if bench.dry and compiler == "inductor" else compiler
        # The same step without scaler and clipping that the recipes take.
        self.step = TrainStep(
            model,
            self.views,
            self.loss,
            optimizer,
            autocast=torch.bfloat16,
            compile_backend=self.compiler,
        )
        self.taken = GraphedStep(self.step, Repeated() if bench.dry else CudaCapture(device)) if graph else self.step
        images = photographs(self.setting.batch, self.setting.side).to(device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.indices = torch.arange(self.setting.batch, device=device)
        self.count = 0

    def draw(self) -> Draw:
        """Of the step that was taken last."""
        return self.views.draw(self.indices, self.count)

    def once(self) -> StepResult:
        """One step."""
        self.count += 1
        return self.taken.take(ResidentBatch(self.images, self.indices, self.indices), self.draw(), lr=0.01)

    def first(self) -> None:
        """The first step; raises NonFiniteLossError where it failed, with found["not finite"] saying of what."""
        made: list[Tensor] = []
        apply = self.views.apply
        self.views.apply = lambda images, draw: made.append(apply(images, draw)) or made[-1]
        result = self.once()
        self.views.apply = apply
        try:
            self.step.settle()
        except NonFiniteLossError:
            self.search(self.draw(), made[-1], result)
            raise

    @contextmanager
    def searched(self) -> Iterator[None]:
        """Steps after the first; of one that fails the host hears when it has begun the next."""
        try:
            yield
        except NonFiniteLossError:
            self.search(self.views.draw(self.indices, self.count - 1))
            raise

    def search(self, draw: Draw, views: Tensor | None = None, result: StepResult | None = None) -> None:
        """found["not finite"]: which tensor of the failed step is the first; see not_finite."""
        found = self.bench.found.setdefault("steps", {}).setdefault(self.bench.section, {})
        found["not finite"] = {}
        failed = FailedStep(self.step, self.images, draw, self.losses, self.compiler, views, result)
        Search(failed, self.bench, found["not finite"]).run()

    def milliseconds_of_a_step(self) -> float:
        """Over steps in a row, by the wall clock."""
        self.bench.device.synchronize()
        begin = time.perf_counter()
        for _ in range(self.setting.steps):
            self.once()
        self.bench.device.synchronize()
        return (time.perf_counter() - begin) / self.setting.steps * 1e3


def run(bench: Bench) -> None:
    """found["steps"][section]."""
    device, found = bench.device, bench.found.setdefault("steps", {}).setdefault(bench.section, {})
    training = Training(bench, bench.section)
    setting = training.setting
    found["setting"] = asdict(setting)
    begin = time.monotonic()
    training.first()
    found["compile s"] = time.monotonic() - begin
    bench.save()
    # With views and with views made before, in turns: the difference is what the views take of the step.
    fixed = training.views.apply(training.images, training.views.draw(training.indices, 0))
    apply = training.views.apply
    taken: dict[str, list[float]] = {"with": [], "without": []}
    with training.searched():
        for _ in range(0 if bench.dry else 5):
            training.once()
        for _ in range(1 if bench.dry else 3):
            taken["with"].append(training.milliseconds_of_a_step())
            training.views.apply = lambda images, draw: fixed
            taken["without"].append(training.milliseconds_of_a_step())
            training.views.apply = apply
    step_ms = statistics.median(taken["with"])
    found |= {"step ms": step_ms, "step ms, single": taken["with"], "images/s": setting.batch / step_ms * 1e3}
    found["step ms without views"] = statistics.median(taken["without"])
    found["peak MiB"] = device.peak_bytes(training.once) / MIB
    bench.save()

    draw = training.draw()
    views_ms = device.timed(lambda: apply(training.images, draw)).ms
    z = torch.randn(2, setting.batch, training.head_dim, device=device.torch).bfloat16()
    leaves = [view.clone().requires_grad_() for view in z]
    loss_ms = device.forward_and_backward(
        lambda: training.loss(*leaves), lambda made: torch.autograd.grad(made, leaves)
    )["both"].ms
    found |= {"views ms": views_ms, "loss ms": loss_ms, "share of views and loss": (views_ms + loss_ms) / step_ms}
    found["share of views, by difference"] = (step_ms - found["step ms without views"]) / step_ms
    if bench.section == "resnet18":  # small steps are what launches cost the most
        others(bench, found)
    bench.say(f"{bench.section}: {found}")


def others(bench: Bench, found: dict) -> None:
    """The same step as it is, and compiled and as one CUDA graph: images per second of both, beside "images/s"."""
    for name, how in (
        ("graph", {"graph": True, "compiler": None if bench.dry else "inductor"}),
        ("eager", {"compiler": None}),
    ):
        figures = found.setdefault(name, {})
        with bench.guarded(figures, f"{bench.section}, {name}"):
            training = Training(bench, bench.section, **how)
            training.first()
            for _ in range(EAGER_STEPS if bench.dry else EAGER_STEPS + 5):
                training.once()
            step_ms = statistics.median(training.milliseconds_of_a_step() for _ in range(1 if bench.dry else 3))
            training.step.settle()
            figures |= {"step ms": step_ms, "images/s": training.setting.batch / step_ms * 1e3}
            found[f"images/s, {name}"] = figures["images/s"]


def warm(bench: Bench) -> None:
    """One step, which compiles; whether it is finite, `run` looks at."""
    Training(bench, bench.section).once()
    bench.device.synchronize()
