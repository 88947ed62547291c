"""CLIP, SupCon and the memory bank: seconds and peak memory of ours, of plain PyTorch, and of the peers."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from benchmarks.correctness_implementations import Implementation, large_inputs, modules, of_loss, plain
from benchmarks.correctness_measures import peak_mib
from benchmarks.harness import Absent, Contestant, Laps, compare, require
from benchmarks.ntxent_contestants import check_against
from simclr_fast.backends import BACKENDS

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Case:
    """One loss of a view against the other, against a bank of as many rows, or (SupCon) of the rows of both."""

    loss: str
    rows: int  # of the matrix of logits, and its columns
    d: int = 128

    def __str__(self) -> str:
        return f"{self.loss},{self.rows}x{self.rows},D={self.d}"

    @property
    def n(self) -> int:
        """Rows of one view."""
        return self.rows // 2 if self.loss == "sup_con" else self.rows


NAMES = ("clip", "sup_con", "bank")
CASES = {
    "smoke": [Case(loss, 32, 8) for loss in NAMES],
    "quick": [Case(loss, 4096) for loss in NAMES],
    "full": [Case(loss, rows, d) for loss in (*NAMES, "info_nce") for rows in (1024, 4096, 8192) for d in (128, 512)],
}
MEMORY_CASES = {
    "smoke": [Case("clip", 64, 8)],
    "quick": [Case("clip", 8192, 512), Case("sup_con", 16384)],
    "full": [Case("clip", 8192, 512), Case("sup_con", 16384), Case("bank", 16384)],
}


def timed_of(loss: str) -> list[Implementation]:
    """The implementations that differ in speed.

    open_clip's options differ in what several processes do, and unit rows are made outside of the loss.
    """
    return [made for made in of_loss(loss) if "local_loss" not in made.name and "unit rows" not in made.name]


def name_of(made: Implementation) -> str:
    """As the other suites call it: ours by backend alone."""
    return made.backend or made.name.replace("plain PyTorch", "plain")


def _contestant(made: Implementation, case: Case, device: torch.device) -> Contestant | Absent:
    if reason := made.absent(device):
        return Absent(name_of(made), reason)
    call = made.build(TEMPERATURE)
    z0, z1, *extra = large_inputs(case.loss, case.n, case.d, device, case.rows)

    def run(lap: Laps) -> tuple[Tensor, Tensor, Tensor]:
        loss = call(z0, z1, *extra)
        lap("forward")
        gradients = torch.autograd.grad(loss, (z0, z1), materialize_grads=True)
        lap("backward")
        return loss.detach(), *gradients

    return Contestant(name_of(made), run)


def _truth(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, rows and their gradient by the plain form in float64."""
    z0, z1, *extra = large_inputs(case.loss, case.n, case.d, device, case.rows)
    leaves = [z.detach().double().requires_grad_() for z in (z0, z1)]
    extra = [x.double() if x.is_floating_point() else x for x in extra]
    loss = plain(case.loss).build(TEMPERATURE)(*leaves, *extra)
    gradient = torch.cat(torch.autograd.grad(loss, leaves))
    return loss.detach(), torch.arange(len(gradient), device=device), gradient


def test_losses(benchmark, case: Case, device: torch.device, budget: float) -> None:
    field = [made for made in timed_of(case.loss) if made.backend != "reference"]  # which is for truth, not for speed
    found = compare(
        benchmark,
        [_contestant(made, case, device) for made in field],
        check_against(_truth(case, device), torch.float32),
        device,
        budget,
        suite="losses",
        case=vars(case),
    )
    require(found, BACKENDS)


def test_losses_memory(benchmark, memory_case: Case, device: torch.device) -> None:
    """Peak memory of forward + backward where the logits would take hundreds of MiB."""
    case, found = memory_case, {}

    def probe_all() -> None:
        for made in timed_of(case.loss):
            if made.backend:
                reason = "stores the logits" if made.backend == "reference" else made.absent(device)
                found[made.backend] = {"absent": reason} if reason else {"peak_bytes": _peak(made, case, device)}

    benchmark.pedantic(probe_all, rounds=1, iterations=1)
    benchmark.extra_info.update(suite="losses_memory", case=vars(case), contestants=found)
    if not any("peak_bytes" in figures for figures in found.values()):
        pytest.fail(f"no kernel serves {device}: {found}")


def _peak(made: Implementation, case: Case, device: torch.device) -> int:
    return int(peak_mib(case.loss, made.name, case.n, case.d, device.type, modules(device)) * 2**20)
