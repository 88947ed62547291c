"""The NT-Xent loss: forward, backward and both, each backend beside plain PyTorch, eager and compiled."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.ntxent_contestants import Truth, errors, extra_bytes, views
from benchmarks.ntxent_truth import loss_and_sampled_gradients
from simclr_fast import ntxent_loss
from simclr_fast.ops.ntxent.reference import ntxent_textbook
from tools.gpu import OURS
from tools.gpu.bench import Bench, backend_of
from tools.gpu.bench_ceilings import KINDS, limit_ms
from tools.gpu.device import MIB

TEMPERATURE = 0.1
SIZES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
DIMS = (128, 512)
HOST_TIMED_UP_TO = 4096  # samples; beyond, the device takes longer than the host
# What a right result is off at most, relatively: (loss, gradient), of float64 of the same inputs.
TOLERANCE = {"fp16": (2e-3, 3e-3), "bf16": (2e-3, 5e-3), "tf32": (1e-3, 3e-3), "ieee": (2e-5, 1e-4)}
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """N samples of two views, D columns, and the kind of operand."""

    n: int
    d: int
    kind: str


# All sizes, dimensions and kinds, those that are asked about first in front.
EVERY_CASE = [
    *(Case(n, d, kind) for n in (4096, 1024, 32768) for d in reversed(DIMS) for kind in KINDS),
    *(Case(n, d, kind) for kind in ("tf32", "bf16", "ieee", "fp16") for d in DIMS for n in SIZES),
]
# By section; in those that say so, plain PyTorch is compiled as well, which takes seconds a shape.
CASES = {
    "ntxent-first": [Case(n, 128, kind) for kind in ("fp16", "tf32", "ieee") for n in (4096, 256, 32768)],
    "ntxent-compiled": [
        *(Case(4096, d, kind) for d, kind in ((128, "fp16"), (512, "fp16"), (128, "tf32"))),
        *(Case(n, 128, "fp16") for n in (1024, 256, 8192)),
        *(Case(4096, 128, "ieee"), Case(16384, 128, "fp16")),
    ],
    "ntxent-sizes": [Case(n, d, kind) for d, kind in ((128, "fp16"), (512, "fp16"), (128, "ieee")) for n in SIZES],
    "ntxent-all": EVERY_CASE,
    "ntxent-compiled-all": EVERY_CASE,
}
DRY_CASES = {
    "ntxent-first": [Case(8, 8, "fp16"), Case(8, 20, "ieee")],
    "ntxent-compiled": [Case(8, 8, "fp16")],
    "ntxent-sizes": [Case(4, 8, "bf16")],
    "ntxent-all": [Case(4, 20, "tf32")],
    "ntxent-compiled-all": [Case(4, 20, "tf32")],
}


def textbook(z0: Tensor, z1: Tensor) -> Tensor:
    """Plain PyTorch."""
    return ntxent_textbook(z0, z1, TEMPERATURE)


def freshly_compiled(bench: Bench) -> Loss:
    """Plain PyTorch, compiled anew: from the ninth shape on, torch.compile would silently run eagerly."""
    torch._dynamo.reset()
    backend = "eager" if bench.dry else "inductor"
    return torch.compile(textbook, backend=backend, fullgraph=True, dynamic=False)


def loss_of(bench: Bench, name: str, kind: str) -> Loss:
    """The named contestant."""
    if name == "plain":
        return textbook
    if name == "compiled":
        return freshly_compiled(bench)
    backend = backend_of(name, bench.dry)
    return lambda z0, z1: ntxent_loss(z0, z1, TEMPERATURE, backend=backend, precision=KINDS[kind][1])


def measure(
    bench: Bench,
    figures: dict,
    loss: Loss,
    leaves: list[Tensor],
    scale: float,
    truth: Truth | None,
    graph: bool = True,
) -> None:
    """Fills in one contestant's figures.

    leaves: z0, z1, which require grad. scale: the upstream gradient, as a GradScaler's, so that a half type can hold
    the gradients of many rows. truth: of `loss_and_sampled_gradients`, or None. graph: as for `forward_and_backward`.
    """
    device = bench.device
    upstream = {kind: torch.full((), scale, dtype=kind, device=device.torch) for kind in (leaves[0].dtype, torch.float)}

    def forward() -> Tensor:
        return loss(*leaves)

    def backward(made: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(made, leaves, upstream[made.dtype])

    made = forward()
    gradients = backward(made)
    if truth is not None:
        figures["loss error"], figures["gradient error"] = errors((made.detach(), *gradients), truth, scale)
    del made, gradients
    figures["peak MiB"] = device.peak_bytes(lambda: backward(forward())) / MIB
    if len(leaves[0]) <= HOST_TIMED_UP_TO:
        figures["host us"] = device.host_us(lambda: backward(forward()))
        figures["host us forward"] = device.host_us(forward)
    timings = device.forward_and_backward(forward, backward, graph)
    figures |= {f"{part} ms": timing.ms for part, timing in timings.items()}
    figures["timings"] = {part: asdict(timing) for part, timing in timings.items()}


def run_case(bench: Bench, case: Case, names: Iterable[str]) -> None:
    """One case into found["ntxent"]; contestants that it has already are left as they are."""
    key = f"N={case.n} D={case.d} {case.kind}"
    entry = bench.found.setdefault("ntxent", {}).setdefault(key, asdict(case) | {"contestants": {}})
    waiting = [name for name in names if name not in entry["contestants"]]
    if not waiting:
        return
    dtype, _, precision = KINDS[case.kind]
    entry["limit ms"] = limit = limit_ms(bench, case.kind, 2 * case.n, case.d)
    torch.set_float32_matmul_precision(precision)
    z = views(case.n, case.d, dtype, bench.device.torch)
    truth = loss_and_sampled_gradients(*z, TEMPERATURE, samples=256)
    for name in waiting:
        figures = entry["contestants"].setdefault(name, {})
        needed = extra_bytes("plain", case.n, case.d) * dtype.itemsize / 4
        if name not in OURS and needed > bench.device.free_bytes():
            figures["failed"] = f"needs about {needed / 2**30:.0f} GiB"
            continue
        with bench.guarded(figures, f"{key} {name}"):
            leaves = [x.detach().clone().requires_grad_() for x in z]
            measure(bench, figures, loss_of(bench, name, case.kind), leaves, min(2.0 * case.n, 16384.0), truth)
            if name in OURS:
                loss_bound, gradient_bound = TOLERANCE[case.kind]
                right = figures["loss error"] <= loss_bound and figures["gradient error"] <= gradient_bound
                figures["right"] = right
            figures["over limit"] = figures["both ms"] / limit
    parts = (f"{name} {f.get('both ms', float('nan')):.4g}" for name, f in entry["contestants"].items())
    bench.say(f"{key}: limit {limit:.4g} ms; {', '.join(parts)}")
    bench.save()


def run(bench: Bench) -> None:
    """All cases of the section for which there is time."""
    names = (*OURS, "plain", *(["compiled"] if "compiled" in bench.section else []))
    for case in (DRY_CASES if bench.dry else CASES)[bench.section]:
        if bench.left() < 4:
            bench.say(f"no time for {case} and what follows")
            return
        run_case(bench, case, names)
        bench.device.clean()


def warm(bench: Bench) -> None:
    """Compiles what the sections compile, into inductor's or Triton's cache on disk, by one call of each."""
    if bench.section == "ntxent-compiled":
        name, cases = "compiled", (DRY_CASES if bench.dry else CASES)[bench.section]
    else:
        shared = [(d, kind) for d in DIMS for kind in KINDS][bench.part :: bench.parts]
        name, cases = "triton", [Case(n, d, kind) for d, kind in shared for n in SIZES]
        cases = [Case(8, *shared[0])] if bench.dry else cases
    for case in cases:
        torch.set_float32_matmul_precision(KINDS[case.kind][2])
        leaves = views(case.n, case.d, KINDS[case.kind][0], bench.device.torch)
        torch.autograd.grad(loss_of(bench, name, case.kind)(*leaves), leaves)
        bench.say(f"compiled {name} for {case}")
    bench.device.synchronize()
