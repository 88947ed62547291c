"""One training step: two views of every image, one forward pass over both, NT-Xent, backward, optimizer.

With micro-batches the loss is still that of the whole batch (GradCache, Gao et al. 2021, arXiv:2101.06983). With the
embeddings z = f(x; w) of all micro-batches in hand, the chain rule splits the gradient exactly,
    dL/dw = sum over micro-batches k of (dz_k/dw)^T dL/dz_k,
so a first pass computes all z without keeping activations, the loss gives dL/dz, and a second pass computes each z_k
again, with the same views and the same random numbers, and propagates its slice of dL/dz.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simclr_fast.data import Batch, ResidentBatch
from simclr_fast.losses import NTXentStatistics
from simclr_fast.optim import set_learning_rate
from simclr_fast.training.average import WeightAverage
from simclr_fast.training.buffers import KeptBuffers
from simclr_fast.training.profile import phase
from simclr_fast.training.views import Draw, Images, Views
from simclr_fast.training.watch import StepWatch


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Tensors left on the device, so that reading them is the caller's choice: loss and grad_norm [], z [2b, D].

    They hold until the next step, which may write its own to the same memory.
    statistics: of the whole batch of all processes, where the step was asked for them.
    """

    loss: Tensor
    z: Tensor
    grad_norm: Tensor
    statistics: NTXentStatistics | None


class TrainStep:
    """Updates a model, and the average of its weights where one is kept, by one batch. Nothing waits for the device.

    model: maps views [2b, C, S, S] to embeddings [2b, D]; may be wrapped in DistributedDataParallel.
    criterion: loss(z0, z1) -> scalar, as NTXentLoss; loss(z0, z1, return_stats=True) -> (scalar, statistics)
    is called in steps that are asked for statistics. optimizer: one that can be told by the device to skip a step, as
    LARS and torch's fused ones. scaler: of the loss in float16; None scales nothing. ema: the average of what `model`
    wraps. autocast: a dtype, or None for float32. micro_batch_size: images per forward pass, 0 for all at once.
    clip_grad: the largest norm of the gradient; None clips nothing. compile_backend: of torch.compile, which makes a
    graph of the forward pass and one of the loss (and a third of the loss with statistics); None runs them eagerly.
    compile_mode: of torch.compile; where it is not "default", inductor replays CUDA graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        criterion: Callable[..., Tensor | tuple[Tensor, NTXentStatistics]],
        optimizer: torch.optim.Optimizer,
        *,
        scaler: torch.amp.GradScaler | None = None,
        ema: WeightAverage | None = None,
        autocast: torch.dtype | None = None,
        micro_batch_size: int = 0,
        clip_grad: float | None = None,
        compile_backend: str | None = None,
        compile_mode: str = "default",
    ):
        self.model = model
        self.views = views
        self.criterion = criterion
        self.optimizer = optimizer
        self.scaler = scaler if scaler is not None else torch.amp.GradScaler(enabled=False)
        self.ema = ema
        self.autocast = autocast
        self.micro_batch_size = micro_batch_size
        self.clip_grad = clip_grad
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(f"optimizer={type(optimizer).__name__}: pass one with fused=True, which can skip a step")
        self.watch = StepWatch(self.parameters[0].device)
        self.buffers = KeptBuffers(model)
        optimizer.found_inf = self.watch.skip
        self.replays = compile_backend is not None and compile_mode != "default"
        # DistributedDataParallel breaks the graph on purpose, between its buckets, to overlap their reduction.
        fullgraph = not isinstance(model, DistributedDataParallel)

        def traced(function: Callable, name: str) -> Callable:
            if compile_backend is not None:
                mode = compile_mode if self.replays else None  # other backends than inductor know no modes
                function = torch.compile(
                    function, backend=compile_backend, mode=mode, fullgraph=fullgraph, dynamic=False
                )

            def in_phase(*arguments: object) -> object:  # around the graph: within, a profiler sees no ranges
                with phase(name):
                    return function(*arguments)

            return in_phase

        self.project = traced(self._project, "forward")
        self.compare = traced(self._compare, "loss")

    def __call__(self, images: Images, draw: Draw, lr: float, *, measure: bool = False) -> StepResult:
        """One step at learning rate `lr`, with statistics if it is to `measure`, which all processes must then do.

        Raises NonFiniteLossError if the step before failed; all state but that of generators is that of before it.
        """
        set_learning_rate(self.optimizer, lr)
        result = self.compute(images, draw, measure)
        self.watch.note()
        return result

    def take(self, batch: Batch | ResidentBatch, draw: Draw, lr: float, *, measure: bool = False) -> StepResult:
        """One step on a loader's batch."""
        return self(batch.images, draw, lr, measure=measure)

    def settle(self) -> None:
        """Wait for the last step, and raise NonFiniteLossError if it failed: before its results are relied on."""
        self.watch.settle()

    def compute(self, images: Images, draw: Draw, measure: bool) -> StepResult:
        """What a step does on the device, at the learning rate that was set."""
        self.optimizer.zero_grad(set_to_none=True)
        self.buffers.keep()
        if self.replays:  # what the graphs of the step before wrote, gradients included, may be written over
            torch.compiler.cudagraph_mark_step_begin()
        if 0 < self.micro_batch_size < len(draw):
            loss, statistics, z = self._backward_in_micro_batches(images, draw, measure)
        else:
            z = self.project(self._views(images, draw))
            loss, statistics = self.compare(z, measure)
            with phase("backward"):
                self.scaler.scale(loss).backward()
        with phase("optimizer"):
            grad_norm = self._update(loss)
        return StepResult(loss.detach(), z.detach(), grad_norm, statistics)

    def rehearse(self, z: Tensor, measure: bool) -> None:
        """Compute the loss of embeddings z [2b, D], with statistics if it is to `measure`, and its gradient.

        Nothing comes of it but what happens only once, such as compilation.
        """
        z = z.detach().requires_grad_()
        loss, _ = self.compare(z.clone(), measure)
        torch.autograd.grad(loss, z)

    def _views(self, images: Images, draw: Draw) -> Tensor:
        with phase("augment"):
            views = self.views.apply(images, draw)  # [2b, C, S, S], view-major
        self._require_layout(views)
        return views

    def _require_layout(self, views: Tensor) -> None:
        layout = self.views.layout
        if not views.is_contiguous(memory_format=layout):
            raise RuntimeError(f"views have strides {views.stride()}: they must reach the backbone as {layout}")

    def _project(self, views: Tensor) -> Tensor:
        with torch.autocast(views.device.type, self.autocast, enabled=self.autocast is not None):
            return self.model(views)  # [2b, D]

    def _compare(self, z: Tensor, measure: bool) -> tuple[Tensor, NTXentStatistics | None]:
        if measure:
            return self.criterion(*z.chunk(2), return_stats=True)
        return self.criterion(*z.chunk(2)), None

    def _backward_in_micro_batches(
        self, images: Images, draw: Draw, measure: bool
    ) -> tuple[Tensor, NTXentStatistics | None, Tensor]:
        size = self.micro_batch_size
        parts = [slice(i, i + size) for i in range(0, len(draw), size)]
        states, cached = [], []
        with torch.no_grad(), frozen_running_statistics(self.model):
            for part in parts:
                states.append(random_state())
                cached.append(self.project(self._views(images[part], draw[part])))
        # Each micro-batch is view-major: gather view 0 of all, then view 1.
        z = torch.cat([zk.chunk(2)[view] for view in range(2) for zk in cached]).requires_grad_()
        with phase("loss"):
            loss, statistics = self._compare(z, measure)
            self.scaler.scale(loss).backward()
        dz0, dz1 = (dz.split(size) for dz in z.grad.chunk(2))
        for k, part in enumerate(parts):
            # After the last micro-batch the generators stand where one pass would have left them.
            set_random_state(states[k])
            with self._reduce_gradients(now=k == len(parts) - 1):
                zk = self.project(self._views(images[part], draw[part]))
                with phase("backward"):
                    zk.backward(torch.cat([dz0[k], dz1[k]]))
        return loss, statistics, z

    def _reduce_gradients(self, now: bool) -> contextlib.AbstractContextManager:
        """Let DistributedDataParallel sum the gradients over processes now, or only accumulate them here."""
        if now or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _update(self, loss: Tensor) -> Tensor:
        scaled = self.scaler.is_enabled()
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads, foreach=True)
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad, norm, foreach=True)
        self.watch.judge(loss, norm, scaled=scaled)
        self.buffers.take_back(self.watch.failed)
        # Not by scaler.step, which knows of overflows only; as it does, the optimizer takes its word from `found_inf`.
        self.optimizer.step()
        if scaled:
            self._update_scale()
        if self.ema is not None:
            model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
            self.ema.update_parameters(model, skip=self.watch.failed)
        return norm

    def _update_scale(self) -> None:
        """Let the scaler learn from this step, unless a step has failed, whose scale is looked into."""
        learnt = (self.scaler._scale, self.scaler._growth_tracker)  # updated in place
        before = [value.clone() for value in learnt]
        self.scaler.update()
        for value, old in zip(learnt, before):
            value.copy_(torch.where(self.watch.failed > 0, old, value))


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Keep batch norm's running statistics as they are, while it normalises by the batch's own."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # running <- (1 - momentum) running + momentum batch
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def random_state() -> tuple[Tensor, Tensor | None]:
    """The state of torch's generators, CPU and current CUDA device: what dropout and the like draw from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    """Go back to a state of `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
