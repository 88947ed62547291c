"""What is measured of an implementation: errors against float64, what fails, memory, graph breaks."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.correctness_cases import LOSSES, Case, inputs, truth, vanishes
from benchmarks.harness import in_a_line
from benchmarks.memory import peak_bytes

Call = Callable[..., Tensor]
# Relative errors above these are called wrong: far beyond what rounding in that type explains.
WRONG = {"float64": 1e-6, "float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
MOST_UPSTREAM = 2.0**15  # of the powers of two that float16 holds


@dataclass(frozen=True)
class Outcome:
    """Relative errors of one case; `fault` is "" or how it failed: "NaN", "inf", "wrong", "raises ..."."""

    loss_error: float = math.inf
    gradient_error: float = math.inf
    fault: str = ""


def outcome(name: str, case: Case, build: Callable[[float], Call], device: torch.device) -> Outcome:
    """The named loss by `build(temperature)(z0, z1, *extra)` against its truth."""
    made, value, gradient = _problem(name, case)
    z = torch.cat(made[:2])
    natural = 2 / (case.temperature * len(z) * _lengths(z).median().item())
    symmetric = vanishes(name, case.kind)
    sizes = gradient.norm(dim=1)[_lengths(z)[:, 0] > 0]
    upstream = _upstream(natural if symmetric else sizes.square().mean().sqrt().item())
    leaves = [x.to(device).requires_grad_() for x in made[:2]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = build(case.temperature)(*leaves, *(x.to(device) for x in made[2:]))
            seed = torch.full_like(loss, upstream)
            found = torch.autograd.grad(loss, leaves, seed, materialize_grads=True)
    except Exception as error:  # of a peer, a finding; of ours too, and the tests refuse it
        return Outcome(fault=f"raises {in_a_line(error)}")
    rounded = (gradient * upstream).to(z.dtype)
    return judge(loss.detach().cpu(), torch.cat(found).cpu(), value, rounded, z, natural * upstream * symmetric, case)


@cache
def _problem(name: str, case: Case) -> tuple[tuple[Tensor, ...], float, Tensor]:
    """Inputs, true loss and true gradient, shared by all implementations."""
    made = inputs(LOSSES[name], case)
    return made, *truth(LOSSES[name], made, case.temperature)


def _upstream(size: float) -> float:
    """The power of two that brings a gradient of this size near 1, as a GradScaler would."""
    return min(max(2.0 ** -round(math.log2(size)), 1 / MOST_UPSTREAM), MOST_UPSTREAM) if size > 0 else 1.0


def judge(
    loss: Tensor, found: Tensor, value: float, gradient: Tensor, z: Tensor, natural: float, case: Case
) -> Outcome:
    """Errors of a loss and of a gradient [2N, D] against the true ones, the gradient's rounded to the type it is in.

    A row's gradient is inverse to its length: times |z_i|, every row counts alike. Rows of length 0 do not count (their
    gradient is divided by the eps of each package), but must not be NaN. natural: a size to relate errors to where the
    gradient is 0, else 0.
    """
    lengths = _lengths(z)
    counts = lengths[:, 0] > 0
    if loss.isnan() or found.isnan().any():
        return Outcome(fault="NaN")
    if loss.isinf() or (found.isinf() & ~gradient.isinf())[counts].any():
        return Outcome(fault="inf")
    floor = torch.finfo(loss.dtype).tiny
    off = abs(loss.double().item() - value)
    loss_error = off / max(value, floor) if value else off
    difference = ((found.double() - gradient.double()) * lengths)[counts].nan_to_num()
    if natural:
        gradient_error = difference.norm(dim=1).max().item() / (natural * lengths.median().item())
    else:
        least = torch.finfo(z.dtype).tiny * lengths.median().item() * len(z) ** 0.5
        size = (gradient.double() * lengths)[counts].nan_to_num().norm().item()
        gradient_error = difference.norm().item() / max(size, least)
    fault = "" if max(loss_error, gradient_error) <= WRONG[case.dtype] else "wrong"
    return Outcome(loss_error, gradient_error, fault)


def _lengths(z: Tensor) -> Tensor:
    """|z_i| [M, 1] of rows whose squares may overflow float64."""
    peak = z.double().abs().amax(dim=1, keepdim=True).clamp_min(1e-300)
    return peak * (z.double() / peak).norm(dim=1, keepdim=True)


def graph_breaks(call: Call, made: tuple[Tensor, ...]) -> int:
    """Where torch.compile leaves the graph in one call of the loss; 0 is what fullgraph=True asks for."""
    torch._dynamo.reset()
    leaves = [z.clone().requires_grad_() for z in made[:2]]
    call(*leaves, *made[2:])  # what is made once is no part of a step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch._dynamo.explain(call)(*leaves, *made[2:])
    torch._dynamo.reset()
    return found.graph_break_count


def peak_mib(name: str, implementation: str, n: int, d: int, device: str, preload: tuple[str, ...]) -> float:
    """Peak memory of forward and backward beyond the inputs, in a process of its own, float32."""
    arguments = {"name": name, "implementation": implementation, "n": n, "d": d, "device": device}
    return peak_bytes("benchmarks.correctness_implementations:memory_probe", arguments, preload) / 2**20
