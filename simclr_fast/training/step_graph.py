"""The whole training step as one CUDA graph, for images that lie on the device: a step costs the host a few launches.

Gathering the images, views, forward pass, loss, backward pass, optimizer and average are captured once and replayed;
what differs from step to step is read from tensors: rows, numbers and seed of the batch, warp, learning rate. The
first steps run as they are, and a capture executes nothing, so a run computes the same with and without a graph.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from simclr_fast.config import Config, graph_conflict
from simclr_fast.data import ResidentBatch
from simclr_fast.data.loading import ReadingLoader
from simclr_fast.data.resident import ArrayLoader
from simclr_fast.errors import ConfigError
from simclr_fast.optim import set_learning_rate
from simclr_fast.process import Process
from simclr_fast.training.step import StepResult, TrainStep
from simclr_fast.training.views import Draw

# Before a kind of step is captured it runs so often: libraries make their handles and workspaces, kernels are compiled,
# the optimizer makes its state. None of that may happen in a capture; PyTorch's notes on CUDA graphs ask for 3.
EAGER_STEPS = 3

Work = Callable[[], StepResult]
log = logging.getLogger(__name__)


class Capture(Protocol):
    """How work is recorded: `CudaCapture`, or in tests a stand-in that needs no GPU."""

    def eager(self, work: Work) -> StepResult:
        """Do the work as it will be done when it is recorded."""

    def record(self, work: Work) -> tuple[Callable[[], object], StepResult]:
        """Record the work without doing it: what replays it, and the tensors that each replay fills."""


class CudaCapture:
    """Records CUDA graphs in one memory pool, on a side stream, as CUDA asks for."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def eager(self, work: Work) -> StepResult:
        """On the side stream, too: autograd's nodes and cuBLAS's workspaces are of the stream they were made on."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, work: Work) -> tuple[Callable[[], object], StepResult]:
        """The graphs may share a pool since they never run side by side and results are good until the next step."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do, such as those that write metrics, does not spoil the capture.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


class GraphedStep:
    """As `TrainStep`, for batches of equal size that lie on the device.

    required: raise ConfigError where the step cannot be captured; otherwise go on without a graph, after a warning.
    """

    def __init__(self, step: TrainStep, capture: Capture, *, required: bool = False):
        self.step = step
        self.capture = capture
        self.required = required
        self._resident: Tensor | None = None
        self._rows: Tensor | None = None
        self._draw: Draw | None = None
        self._recorded: dict[bool, tuple[Callable[[], object], StepResult]] = {}
        self._seen = {False: 0, True: 0}
        self._possible = True

    def __call__(self, batch: ResidentBatch, draw: Draw, lr: float, *, measure: bool = False) -> StepResult:
        """One step, as TrainStep makes it. The results hold until the next step."""
        set_learning_rate(self.step.optimizer, lr)
        self._take(batch, draw)
        if measure not in self._recorded and self._seen[measure] >= EAGER_STEPS and self._possible:
            self._record(measure)
        self._seen[measure] += 1
        if measure in self._recorded:
            replay, result = self._recorded[measure]
            replay()
        else:
            result = self.capture.eager(lambda: self._compute(measure))
        self.step.watch.note()
        return result

    def _take(self, batch: ResidentBatch, draw: Draw) -> None:
        """Copy what this step is made of to where the graph reads it."""
        if self._rows is None:
            warp = None if draw.warp is None else torch.empty_like(draw.warp)
            self._draw = Draw(torch.empty_like(draw.seed), torch.empty_like(draw.indices), warp)
            self._rows = torch.empty_like(batch.rows)
        if self._resident is None or _place(batch.resident) != _place(self._resident):
            self._resident = batch.resident
            self._recorded.clear()  # they read the images from where the others lie
        if batch.rows.shape != self._rows.shape:
            raise ValueError(f"a batch of {len(batch.rows)} images: the graph is of batches of {len(self._rows)}")
        self._rows.copy_(batch.rows)
        self._draw.seed.copy_(draw.seed)
        self._draw.indices.copy_(draw.indices)
        if draw.warp is not None:
            self._draw.warp.copy_(draw.warp, non_blocking=True)

    def _compute(self, measure: bool) -> StepResult:
        return self.step.compute(self._resident[self._rows], self._draw, measure)

    def _record(self, measure: bool) -> None:
        # What is in use when a capture begins keeps its memory; the gradients of the step before are not to.
        self.step.optimizer.zero_grad(set_to_none=True)
        try:
            self._recorded[measure] = self.capture.record(lambda: self._compute(measure))
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if self.required:
                raise ConfigError(f"--cuda-graph on: the step cannot be captured: {reason}") from error
            self._possible = False
            log.warning("going on without a CUDA graph, since the step cannot be captured: %s", reason)


def _place(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def obstacle(config: Config, process: Process, loader: ArrayLoader | ReadingLoader) -> str | None:
    """Why the steps of a run cannot be one CUDA graph, if they cannot."""
    if process.device.type != "cuda":
        return f"training runs on {process.device.type}"
    if process.world_size > 1:
        return f"{process.world_size} processes add up their gradients"
    if not isinstance(loader, ArrayLoader):
        return "the images do not lie on the device"
    return graph_conflict(config)


def graphed(
    step: TrainStep, config: Config, process: Process, loader: ArrayLoader | ReadingLoader
) -> GraphedStep | None:
    """The step as a graph where --cuda-graph asks for it or it can be; ConfigError where it is asked for and cannot."""
    choice = config.speed.cuda_graph
    if choice == "off":
        return None
    why_not = obstacle(config, process, loader)
    if why_not is None:
        return GraphedStep(step, CudaCapture(process.device), required=choice == "on")
    if choice == "on":
        raise ConfigError(f"--cuda-graph on: {why_not}; pass auto or off")
    return None
