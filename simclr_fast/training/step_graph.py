"""The whole training step as one CUDA graph, for images that lie on the device: a step costs the host a few launches.

Gathering the images, views, forward pass, loss, backward pass, optimizer and average are captured once and replayed;
what differs from step to step is read from tensors: rows, indices and seed of the batch, warp, learning rate. The
first steps run as they are, and a capture executes nothing, so a run computes the same with and without a graph.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from simclr_fast.config import Config, graph_conflict
from simclr_fast.data import ResidentBatch
from simclr_fast.data.loading import ReadingLoader
from simclr_fast.data.resident import ArrayLoader
from simclr_fast.errors import ConfigError, first_line
from simclr_fast.optim import set_learning_rate
from simclr_fast.process import Process
from simclr_fast.training.step import StepResult, TrainStep
from simclr_fast.training.views import Draw

# Steps before the capture: libraries make their handles and workspaces, kernels are compiled, the optimizer makes its
# state. None of that may happen in a capture; PyTorch's notes on CUDA graphs ask for 3.
EAGER_STEPS = 3

Work = Callable[[], StepResult]
Recorded = tuple[Callable[[], object], StepResult]  # what replays some work, and the tensors that each replay fills


class Capture(Protocol):
    """How work is recorded: `CudaCapture`, or in tests a stand-in that needs no GPU."""

    def eager(self, work: Work) -> StepResult:
        """Do the work as it will be done when it is recorded."""

    def record(self, works: Sequence[Work]) -> list[Recorded]:
        """Record works, of which one at a time is replayed, without doing them."""


class CudaCapture:
    """Records CUDA graphs on a side stream, as CUDA asks for."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def eager(self, work: Work) -> StepResult:
        """On the side stream, too: autograd's nodes and cuBLAS's workspaces are of the stream they were made on."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, works: Sequence[Work]) -> list[Recorded]:
        """They share a pool of memory, since results are good until the next step.

        It is a pool of its own: results of graphs that are no more may still lie in theirs.
        """
        pool, recorded = torch.cuda.graph_pool_handle(), []
        for work in works:
            graph = torch.cuda.CUDAGraph()
            # thread_local: what other threads do, such as those that write metrics, does not spoil the capture.
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                result = work()
            recorded.append((graph.replay, result))
        return recorded


class GraphedStep:
    """As `TrainStep`, for batches of equal size that lie on the device.

    Steps with and without statistics are two graphs. Both are recorded before one is replayed: a step that ran as it is
    beside a graph would take a step's memory for the second time.
    """

    def __init__(self, step: TrainStep, capture: Capture):
        self.step = step
        self.capture = capture
        self._resident: Tensor | None = None
        self._rows: Tensor | None = None
        self._draw: Draw | None = None
        self._recorded: dict[bool, Recorded] = {}
        self._eager_steps = 0

    def take(self, batch: ResidentBatch, draw: Draw, lr: float, *, measure: bool = False) -> StepResult:
        """One step, as TrainStep makes it. The results hold until the next step.

        Raises ConfigError where the step cannot be captured, after which CUDA is in no state to go on; ValueError for a
        batch of another size than the first; NonFiniteLossError as TrainStep does.
        """
        set_learning_rate(self.step.optimizer, lr)
        self._load(batch, draw)
        if self._eager_steps < EAGER_STEPS:
            self._eager_steps += 1
            result = self.capture.eager(lambda: self._warm_up(measure))
        else:
            if not self._recorded:
                self._record()
            replay, result = self._recorded[measure]
            replay()
        self.step.watch.note()
        return result

    def settle(self) -> None:
        """As TrainStep.settle."""
        self.step.settle()

    def _load(self, batch: ResidentBatch, draw: Draw) -> None:
        """Copy what this step is made of to where the graph reads it."""
        if self._rows is None:
            warp = None if draw.warp is None else torch.empty_like(draw.warp)
            self._draw = Draw(torch.empty_like(draw.seed), torch.empty_like(draw.indices), warp)
            self._rows = torch.empty_like(batch.rows)
        if self._resident is None or _layout(batch.resident) != _layout(self._resident):
            self._resident = batch.resident
            self._recorded.clear()  # they read the images from where the others lie
        if batch.rows.shape != self._rows.shape:
            raise ValueError(f"a batch of {len(batch.rows)} images: the graph is of batches of {len(self._rows)}")
        self._rows.copy_(batch.rows)
        self._draw.seed.copy_(draw.seed)
        self._draw.indices.copy_(draw.indices)
        if draw.warp is not None:
            self._draw.warp.copy_(draw.warp)

    def _compute(self, measure: bool) -> StepResult:
        return self.step.compute(self._resident[self._rows], self._draw, measure)

    def _warm_up(self, measure: bool) -> StepResult:
        """A step, after which the step of the other kind has run, too, as far as they differ."""
        result = self._compute(measure)
        self.step.rehearse(result.z, not measure)
        return result

    def _record(self) -> None:
        # What is in use when a capture begins keeps its memory; the gradients of the step before are not to.
        self.step.optimizer.zero_grad(set_to_none=True)
        kinds = (False, True)
        try:
            recorded = self.capture.record([functools.partial(self._compute, measure) for measure in kinds])
        except RuntimeError as error:
            first = error  # the one that spoilt the capture; to end a spoilt capture is an error again
            while first.__context__ is not None:
                first = first.__context__
            raise ConfigError(f"--cuda-graph: the step cannot be captured ({first_line(first)}); pass off") from error
        self._recorded = dict(zip(kinds, recorded, strict=True))


def _layout(tensor: Tensor) -> tuple:
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
) -> TrainStep | GraphedStep:
    """The step as a graph where --cuda-graph asks for it or it can be, else the step itself.

    Raises ConfigError where it is asked for and cannot be.
    """
    choice = config.speed.cuda_graph
    why_not = "it is off" if choice == "off" else obstacle(config, process, loader)
    if why_not is None:
        return GraphedStep(step, CudaCapture(process.device))
    if choice == "on":
        raise ConfigError(f"--cuda-graph on: {why_not}; pass auto or off")
    return step
