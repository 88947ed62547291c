"""Small calls that reach every kernel of a backend, to run under compute-sanitizer; no pytest, little of torch.

    compute-sanitizer --tool memcheck python -m tools.gpu.sanitized cpp|triton [ntxent] [augment]
    python -m tools.gpu.sanitized cpp --kernels         which kernels the calls launch, one a line

Data is made on the CPU, so that few kernels of torch are watched. Sizes are odd, so that every edge is ragged.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator

# Every tensor gets an allocation of its own: an access past its end is then outside of all allocations, and memcheck
# sees it, where the caching allocator would have put another tensor. Read when torch is loaded.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import torch
from torch import Tensor

from simclr_fast import SimCLRAugment, SimCLREval, ntxent_loss
from simclr_fast.ops.ntxent.similarity import similarity
from tools.gpu.bench import backend_of

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
KINDS = ((HALF, "ieee"), (BFLOAT, "ieee"), (FLOAT, "ieee"), (FLOAT, "tf32"))
Call = tuple[str, Callable[[], object]]


def normal(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Random numbers, drawn on the CPU."""
    return torch.randn(shape).to(dtype).to(device)


def loss(backend: str, device: str, n: int, d: int, kind: tuple[torch.dtype, str], temperature: float, of: str) -> None:
    """Loss and gradient: of the "mean", of the single "rows", or of the mean with a "learned" temperature.

    Those of a mean come from one op; "apart": from one for each direction, as under torch.func.
    """
    dtype, precision = kind
    z = [normal(n, d, dtype=dtype, device=device).requires_grad_() for _ in range(2)]
    if of == "learned":
        t = torch.tensor(temperature, dtype=DOUBLE if dtype == DOUBLE else FLOAT).to(device).requires_grad_()
        torch.autograd.grad(ntxent_loss(*z, t, backend=backend, precision=precision), [*z, t])
    elif of == "apart":
        torch.func.grad(lambda z0: ntxent_loss(z0, z[1], temperature, backend=backend, precision=precision))(z[0])
    elif of == "rows":
        rows = ntxent_loss(*z, temperature, backend=backend, precision=precision, reduction="none")
        torch.autograd.grad(rows, z, torch.rand(2 * n).to(rows.dtype).to(device))
    else:
        torch.autograd.grad(ntxent_loss(*z, temperature, backend=backend, precision=precision), z)


def gathered_loss(backend: str, device: str, n: int, d: int, dtype: torch.dtype, precision: str) -> None:
    """What a process of three does: its rows are the second of three parts of the columns."""
    suffix = "" if backend == "cpp" else "_triton"
    ops = [getattr(torch.ops.simclr_fast, f"ntxent_{name}{suffix}") for name in ("normalize", "fwd", "bwd")]
    z0, z1 = (normal(n, d, dtype=dtype, device=device) for _ in range(2))
    parts = [ops[0](normal(n, d, dtype=dtype, device=device), z1, 1e-8)[0] for _ in range(2)]
    own, inv_norm = ops[0](z0, z1, 1e-8)
    u = torch.cat([parts[0], own, parts[1]])
    _, lse_neg, s_pos = ops[1](u, n, 2 * n, 0.1, None, "none", precision)
    statistics = [torch.cat([x, x, x]) for x in (lse_neg, s_pos)]
    dloss = torch.rand(6 * n).to(lse_neg.dtype).to(device)
    ops[2](dloss, z0, z1, u, inv_norm, *statistics, 2 * n, "none", 1e-8, 0.1, None, precision, False)


def similarities(
    backend: str,
    device: str,
    n: int,
    m: int | None,
    d: int,
    kind: tuple[torch.dtype, str],
    temperature: float,
    exclude: str,
) -> None:
    """Forward and backward pass of the primitive: both sums of a rectangle, or those of rows among themselves."""
    dtype, precision = kind
    options = {"exclude": exclude, "both": m is not None, "need_max": False, "precision": precision}
    primitive(backend, device, (dtype, n, m, d), options, temperature)


def primitive(
    backend: str,
    device: str,
    case: tuple[torch.dtype, int, int | None, int],
    options: dict,
    temperature: float | None = None,
) -> None:
    """Both passes of rows [n, d] and columns [m, d] (None: the rows), with maxima.

    temperature: None is one that the device alone knows, and that has a gradient.
    """
    dtype, n, m, d = case
    rows, columns = (None if k is None else normal(k, d, dtype=dtype, device=device) for k in (n, m))
    t = temperature
    if t is None:
        t = torch.tensor(0.1, dtype=DOUBLE if dtype == DOUBLE else FLOAT).to(device).requires_grad_()
    fixed = options.get("fixed_columns", False)
    leaves = [z.requires_grad_() for z in (rows, None if fixed else columns) if z is not None]
    leaves += [t] if isinstance(t, Tensor) else []
    how = {"exclude": "none", "both": False, "need_max": True, "eps": 1e-8, "precision": "ieee", "group": None}
    lse, column_lse, _ = similarity(rows, columns, t, backend=backend, **(how | options))
    sums = [x for x in (lse, column_lse) if len(x)]
    torch.autograd.grad(sums, leaves, [torch.rand(len(x)).to(x) for x in sums])


def views(
    backend: str, device: str, size: int, side: int, dtype: torch.dtype, channels: int, ragged: bool, blur: int
) -> None:
    """All operations of the recipe, drawn and applied, of uniform or ragged images; and the test-time transform."""
    sides = [side + 3 * i for i in range(3)] if ragged else [side] * 3
    images = [torch.randint(0, 256, (channels, height, side), dtype=torch.uint8).to(device) for height in sides]
    batch = images if ragged else torch.stack(images)
    settings = {"dtype": dtype, "backend": backend, "mean": 0.5, "std": 0.25}
    SimCLRAugment(size, solarize_p=0.3, gray_p=0.3, blur_p=0.8, blur_kernel=blur, **settings)(batch, seed=3)
    SimCLREval(size, **settings)(batch)


def ntxent_calls(backend: str, device: str) -> Iterator[Call]:
    """D of one slice and of several, of whole chunks and ragged, more than the tile kernels of cpp serve, float64."""
    cases = [
        (n, d, kind, temperature, "mean")
        for n, d in ((33, 123), (150, 64), (20, 257), (70, 512))
        for kind in KINDS
        for temperature in (0.1, 0.01)  # the maximum is a constant, or found as the columns go by
    ]
    cases += [(33, 123, kind, 0.1, of) for kind in KINDS for of in ("rows", "learned", "apart")]
    cases += [(20, 257, (dtype, "ieee"), 0.1, "learned") for dtype in (HALF, FLOAT)]
    cases += [(9, 1100, (dtype, "ieee"), 0.1, "mean") for dtype in (HALF, FLOAT)]
    if backend == "cpp":
        cases += [
            (n, d, (DOUBLE, "ieee"), 0.1, of)
            for n, d in ((9, 33), (70, 20))
            for of in ("mean", "rows", "learned", "apart")
        ]
    for case in cases:
        yield f"loss {case}", lambda case=case: loss(backend, device, *case)
    rectangles = [
        (*sizes, kind, temperature, exclude)
        for *sizes, exclude in ((33, 150, 123, "self"), (150, 70, 257, "none"), (70, None, 64, "pair"))
        for kind in KINDS
        for temperature in (0.1, 0.01)
    ]
    rectangles += [(9, 14, 1100, (dtype, "ieee"), 0.1, "none") for dtype in (HALF, FLOAT)]
    rectangles += [(9, 14, 33, (DOUBLE, "ieee"), 0.1, "self")] * (backend == "cpp")
    for case in rectangles:
        yield f"similarities {case}", lambda case=case: similarities(backend, device, *case)
    for dtype in (HALF, BFLOAT, FLOAT, DOUBLE)[: 4 if backend == "cpp" else 3]:
        for n, m, d, options in (
            (33, 70, 123, {"both": True}),
            (150, 150, 64, {"both": True, "exclude": "self", "eps": None}),
            (33, 130, 257, {"fixed_columns": True}),
            (33, None, 40, {"exclude": "self"}),
            (70, None, 130, {"exclude": "pair"}),
        ):
            case = (dtype, n, m, d)
            yield f"primitive {case, options}", lambda case=(case, options): primitive(backend, device, *case)
    for kind in KINDS:
        for n, d in ((21, 40), (70, 130)):
            yield f"gathered loss {n, d, kind}", lambda case=(n, d, *kind): gathered_loss(backend, device, *case)


def augment_calls(backend: str, device: str) -> Iterator[Call]:
    """Views that one block holds and views in tiles, halos of several tiles, every output type, both layouts."""
    for case in (
        (32, 40, FLOAT, 3, False, 5),
        (28, 28, HALF, 1, False, 3),
        (96, 61, BFLOAT, 3, True, 9),
        (100, 61, BFLOAT, 3, False, 11),
        (130, 150, FLOAT, 3, True, 13),
        (48, 300, HALF, 3, True, 5),
        (140, 90, FLOAT, 1, False, 63),
    ):
        yield f"views {case}", lambda case=case: views(backend, device, *case)


OPS = {"ntxent": ntxent_calls, "augment": augment_calls}


def kernels_of(run: Callable[[], None]) -> list[str]:
    """Names of the kernels that run() launches, as torch's profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        run()
        torch.cuda.synchronize()
    return sorted({event.name for event in profiler.events() if event.device_type.name == "CUDA"})


def main() -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("backend", choices=("cpp", "triton"))
    parser.add_argument("ops", nargs="*", help=f"of {', '.join(OPS)}; all where none is named")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--part", default="0/1", help="K/P: calls K, K + P, ... only")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    backend = backend_of(options.backend, options.dry_run)
    torch.manual_seed(0)
    part, parts = map(int, options.part.split("/"))
    calls = [call for op in options.ops or OPS for call in OPS[op](backend, device)]
    if options.dry_run:
        calls = [call for call in calls if backend == "cpp" or "gathered" not in call[0]]
        calls = calls[:: max(1, len(calls) // 12)]
    calls = calls[part::parts]
    begin = time.monotonic()

    def run() -> None:
        for name, call in calls:
            call()
            if not options.kernels:
                print(f"sanitized: {time.monotonic() - begin:6.1f} s  {backend}: {name}", flush=True)

    if options.kernels:
        print("\n".join(kernels_of(run)))
        return 0
    run()
    if not options.dry_run:
        torch.cuda.synchronize()
    print(f"sanitized: {backend}: all {len(calls)} calls in {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
