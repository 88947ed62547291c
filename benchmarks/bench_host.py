"""Host time of the loss: forward and backward of so small a batch that its kernels take next to no time, on the CPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Absent, Contestant, Laps, compare, require
from benchmarks.ntxent_contestants import check_ntxent, contestant, views
from simclr_fast import NTXentLoss
from simclr_fast.backends import why_not
from simclr_fast.ops.ntxent.ops import OPS

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Case:
    """One problem: N pairs of D-dimensional embeddings in float32."""

    n: int = 4
    d: int = 8

    def __str__(self) -> str:
        return f"N={self.n},D={self.d}"


CASES = {"smoke": [Case()], "quick": [Case()], "full": [Case()]}


def _kernels(case: Case, device: torch.device) -> Contestant:
    """What a step computes, called without autograd: the op, and the product of its gradient with what arrives."""
    fwd_bwd = OPS["cpp"].fwd_bwd
    z0, z1 = (z.detach() for z in views(case.n, case.d, torch.float32, device))
    one = torch.ones(())

    def run(lap: Laps) -> tuple[Tensor, Tensor, Tensor]:
        loss, dz, _ = fwd_bwd(z0, z1, 1e-8, TEMPERATURE, None, "mean", "ieee", False)
        lap("forward")
        dz0, dz1 = (dz * one).unbind()
        lap("backward")
        return loss, dz0, dz1

    return Contestant("kernels", run, note="the op, and the gradient times what arrives, without autograd")


class _Empty(torch.autograd.Function):
    """Computes nothing: hands on a loss and gradients that were there before."""

    @staticmethod
    def forward(ctx, z0, z1, loss, gradients):
        ctx.gradients = gradients
        return loss.view(())

    @staticmethod
    def backward(ctx, dloss):
        return *ctx.gradients, None, None


def _empty(case: Case, device: torch.device) -> Contestant:
    z0, z1 = views(case.n, case.d, torch.float32, device)
    loss, gradients = torch.zeros(()), (torch.zeros_like(z0), torch.zeros_like(z1))
    run = _step(lambda z0, z1: _Empty.apply(z0, z1, loss, gradients), z0, z1)
    note = "an autograd.Function that does nothing: what PyTorch itself takes for any"
    return Contestant("empty Function", run, lambda result: (0.0, 0.0), note)


def _ours(case: Case, device: torch.device) -> Contestant | Absent:
    if reason := why_not("cpp", "ntxent_fwd_bwd", device):
        return Absent("cpp", reason)
    return Contestant(
        "cpp", _step(NTXentLoss(TEMPERATURE, backend="cpp"), *views(case.n, case.d, torch.float32, device))
    )


def _step(loss_function: Callable[[Tensor, Tensor], Tensor], z0: Tensor, z1: Tensor) -> Callable[[Laps], tuple]:
    def run(lap: Laps) -> tuple[Tensor, Tensor, Tensor]:
        loss = loss_function(z0, z1)
        lap("forward")
        gradients = torch.autograd.grad(loss, (z0, z1))
        lap("backward")
        return loss.detach(), *gradients

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch: several of a tiny job wait for one another, which on a busy machine takes all the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_host(benchmark, case: Case, scale: str, budget: float) -> None:
    device = torch.device("cpu")  # also beside a GPU, where tools/gpu has the host time of launches
    ours = _ours(case, device)
    field = [ours if isinstance(ours, Absent) else _kernels(case, device), _empty(case, device), ours]
    for name in ("plain", "plain compiled"):
        if scale == "smoke" and name == "plain compiled":
            field.append(Absent(name, "takes long to compile"))
        else:
            field.append(contestant(name, case.n, case.d, torch.float32, TEMPERATURE, device, float("inf")))
    check = check_ntxent(*views(case.n, case.d, torch.float32, device), TEMPERATURE)
    require(compare(benchmark, field, check, device, budget, suite="host", case=vars(case)), ("kernels", "cpp"))
