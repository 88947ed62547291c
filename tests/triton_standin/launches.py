"""Every kind of Triton launch of the project, and calls that are to share compiled kernels, on the stand-in device.

python -m tests.triton_standin.launches      prints, as JSON, what came of each
"""

import itertools
import json
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from proof.generated.triton_augment_tables import VARIANTS, Variant, pass_through
from simclr_fast.ops.augment.params import AugmentRecipe
from simclr_fast.ops.augment.triton_backend import TritonAugment
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_similarity import TritonSimilarity
from simclr_fast.ops.ntxent.triton_tiles import Target
from tests.ntxent_truth import EPS, run_steps
from tests.ops.augment.compare import noise
from tests.ops.ntxent import triton_similarity_cases as similarity
from tests.ops.ntxent.triton_cases import Case, upstream, views
from tests.triton_standin.device import Launched, StandInDevice

ARCHS = (80, 90, 100)
OPERANDS = ((torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32"))
FORWARD, BACKWARD = (
    [f"ntxent_{name}_kernel" for name in names]
    for names in (("fwd", "fwd_finish"), ("bwd_coefficients", "bwd", "bwd_finish"))
)
SIMILARITY_FORWARD, SIMILARITY_BACKWARD = (
    [f"similarity_{name}_kernel" for name in names]
    for names in (("fwd", "fwd_finish"), ("bwd_terms", "bwd", "bwd_finish"))
)
SAMPLE, WHOLE, MEAN, TILE = (f"augment_{name}_kernel" for name in ("sample", "whole", "mean", "tile"))


def _ntxent_cases() -> list[Case]:
    """Every type, precision, reduction and way to give the temperature; then shapes, and processes."""
    temperatures = [{"temperature": 0.1}, {"temperature": 0.01}, {"temperature": 0.1, "temperature_on_device": True}]
    cases = [
        Case(75, 72, dtype=dtype, precision=precision, reduce=reduce, **temperature)
        for (dtype, precision), reduce, temperature in itertools.product(OPERANDS, (True, False), temperatures)
    ]
    shapes = ((1, 1), (1, 5), (1, 128), (2, 16), (128, 128), (40, 33), (20, 384), (16, 512), (8, 1030))
    cases += [Case(n, D, 0.1, dtype) for (n, D), dtype in itertools.product(shapes, (torch.float16, torch.float32))]
    return cases + [Case(10, 33, 0.1, world=3, rank=rank, reduce=False) for rank in range(3)]


def _ntxent(case: Case, arch: int) -> None:
    """Forward and backward of the case on its rank, without and with the temperature's gradient."""
    backend = TritonNtxent(target=lambda device: Target(arch, 132))
    value = 1.0 if case.temperature_on_device else case.temperature
    tensor = torch.tensor(case.temperature) if case.temperature_on_device else None
    normalized = [backend.normalize(z0, z1, EPS) for z0, z1 in views(case)]
    u = torch.cat([u for u, _ in normalized])
    z0, z1 = views(case)[case.rank]
    inv_norm, offset = normalized[case.rank][1], case.rows.start
    dloss, reduction = upstream(case)[:2]
    for need_dt in (False, True):
        _, lse_neg, s_pos = backend.fwd(u, case.n, offset, value, tensor, reduction, case.precision)
        lse_neg, s_pos = lse_neg.repeat(case.world), s_pos.repeat(case.world)  # of all processes
        numbers = (offset, reduction, EPS, value, tensor, case.precision, need_dt)
        backend.bwd(dloss, z0, z1, u, inv_norm, lse_neg, s_pos, *numbers)
        if _at_once(case):
            backend.fwd_bwd(z0, z1, EPS, value, tensor, reduction, case.precision, need_dt)


def _at_once(case: Case) -> bool:
    """Whether an op makes the gradient with the loss."""
    return case.reduce and case.world == 1


def _similarity_cases() -> list[similarity.Case]:
    """Every type, precision, side and way to give the temperature; then what a row leaves out, and processes."""
    temperatures = [{"temperature": 0.1}, {"temperature": 0.01}, {"temperature": 0.1, "temperature_on_device": True}]
    cases = [
        similarity.Case(75, m, 72, dtype=dtype, precision=precision, **temperature)
        for m, (dtype, precision), temperature in itertools.product((None, 40), OPERANDS, temperatures)
    ]
    cases += [similarity.Case(n, m, D, 0.1) for n, m, D in ((1, None, 1), (1, 1, 128), (2, 40, 33), (128, 256, 384))]
    cases += [
        similarity.Case(20, None, 16, 0.1, exclude=exclude, need_max=True) for exclude in ("none", "self", "pair")
    ]
    return cases + [similarity.Case(10, 10, 33, 0.1, exclude="self", world=3, rank=rank) for rank in range(3)]


def _similarity(case: similarity.Case, arch: int) -> None:
    similarity.run(case, TritonSimilarity(target=lambda device: Target(arch, 132)))


def _augment(variant: Variant) -> None:
    pass_through(variant, TritonAugment())


def _far_apart() -> Tensor:
    """Two images, further apart than 32 bits count; the memory between them is never touched."""
    return torch.empty(2**31 + 3 * 32 * 32, dtype=torch.uint8).as_strided((2, 3, 32, 32), (2**31, 1024, 32, 1))


_AUGMENT = VARIANTS | {
    "one pixel to one pixel": Variant(lambda: noise(1, 3, 1, 1), (1, 1)),
    "one gray pixel to a row": Variant(lambda: noise(1, 1, 1, 1), (1, 70)),
    "far apart": Variant(_far_apart, (32, 32)),
    "half images": Variant(lambda: noise(2, 3, 33, 33).half(), (40, 17), torch.bfloat16, channels_last=False),
    "bfloat16 images": Variant(lambda: noise(2, 3, 33, 33).bfloat16(), (70, 80), torch.float16),
    "ragged and gray": Variant(lambda: [noise(1, 25, 31), noise(1, 1, 1)], (70, 80)),
}


def calls() -> dict[str, tuple[Callable[[], None], list[str]]]:
    """{name: (call, kernels that it is to launch)}."""
    found = {}
    for number, case in enumerate(_ntxent_cases()):
        # Archs take turns: they differ in tiles alone.
        arch = ARCHS[number % len(ARCHS)]
        found[f"sm_{arch}, {case}"] = (
            (lambda case=case, arch=arch: _ntxent(case, arch)),
            [
                *case.world * ["ntxent_normalize_kernel"],
                *2 * (FORWARD + BACKWARD + ["ntxent_normalize_kernel", *FORWARD, *BACKWARD] * _at_once(case)),
            ],
        )
    for number, case in enumerate(_similarity_cases()):
        arch = ARCHS[number % len(ARCHS)]
        columns_too = SIMILARITY_FORWARD[1:] if case.m is not None and case.world == 1 else []
        found[f"sm_{arch}, {case}"] = (
            (lambda case=case, arch=arch: _similarity(case, arch)),
            ["ntxent_normalize_kernel", *SIMILARITY_FORWARD, *columns_too, *SIMILARITY_BACKWARD],
        )
    for name, variant in _AUGMENT.items():
        kernels = [SAMPLE, WHOLE] if max(variant.size) <= 64 else [SAMPLE, MEAN, TILE]
        found[f"augment, {name}"] = (lambda variant=variant: _augment(variant)), kernels
    return found


def _loss(z0: Tensor, z1: Tensor, temperature: Tensor | float, dloss: Tensor) -> None:
    backend = TritonNtxent(target=lambda device: Target(90, 132))
    reduction, need_dt = "none" if dloss.dim() else "mean", isinstance(temperature, Tensor)
    run_steps(backend, z0, z1, temperature, dloss, reduction=reduction, need_dt=need_dt)


def _loss_and_gradient(z0: Tensor, z1: Tensor, temperature: Tensor | float, _: Tensor) -> None:
    backend = TritonNtxent(target=lambda device: Target(90, 132))
    backend.fwd_bwd(z0, z1, EPS, 0.0, temperature, "mean", "ieee", True)


def _losses(D: int, dtype: torch.dtype, reduce: bool, loss: Callable[..., None] = _loss) -> None:
    """Views as slices of one tensor, of wider rows, and from anywhere in memory; batches of several sizes."""
    memory = torch.ones(200 * (D + 16) + 1, dtype=dtype)
    numbers = torch.full((501,), 0.1)
    for n, wider, start in itertools.product((63, 64, 65), (0, 1, 16), (0, 1)):
        z = memory[start:].as_strided((2 * n, D), (D + wider, 1))
        dloss = numbers[start] if reduce else numbers[start : start + 2 * n]
        loss(z[:n], z[n:], numbers[start], dloss)


def _two_towers(D: int, dtype: torch.dtype) -> None:
    """Both sides of rectangles of several sizes."""
    backend = TritonSimilarity(target=lambda device: Target(90, 132))
    for n, m in itertools.product((63, 64, 65), (63, 80, 129)):
        similarity.run(similarity.Case(n, m, D, 0.1, dtype), backend)


def _slices_of_images(height: int, width: int, size: int, channels_last: bool) -> None:
    """Consecutive batches of a tensor of images, the last one smaller, with slices of the samples' numbers."""
    images = noise(9, height, width, 3).permute(0, 3, 1, 2) if channels_last else noise(9, 3, height, width)
    indices, seeds = torch.arange(9), torch.arange(9)
    backend, recipe = TritonAugment(), [0.5] * len(AugmentRecipe._fields)
    for first, last in ((0, 4), (4, 8), (1, 4), (8, 9), (3, 8)):
        part, count = images[first:last], last - first
        packed = backend.augment_sample(seeds[first:][:1], indices[first:last], None, height, width, count, 2, recipe)
        backend.augment(
            part, None, packed, 3, size, size, [0.5] * 3, [0.5] * 3, 3, torch.float16, True
        )  # fmt: skip


# Calls that one training run may make: each kernel is to be compiled once for all of them.
RUNS: dict[str, Callable[[], None]] = (
    {
        f"losses, D = {D}, {dtype}, {'reduced' if reduce else 'by row'}": (
            lambda D=D, dtype=dtype, reduce=reduce: _losses(D, dtype, reduce)
        )
        for D, dtype, reduce in itertools.product((33, 128), (torch.float16, torch.float32), (True, False))
    }
    | {
        f"losses with gradient, D = {D}, {dtype}": (
            lambda D=D, dtype=dtype: _losses(D, dtype, True, _loss_and_gradient)
        )
        for D, dtype in ((33, torch.float16), (128, torch.float32))
    }
    | {
        f"two towers, D = {D}, {dtype}": (lambda D=D, dtype=dtype: _two_towers(D, dtype))
        for D, dtype in itertools.product((33, 128), (torch.float16, torch.float32))
    }
    | {
        "images of 32 x 32": lambda: _slices_of_images(32, 32, 32, True),
        "images of 33 x 33": lambda: _slices_of_images(33, 33, 32, True),
        "images of 33 x 33, planar": lambda: _slices_of_images(33, 33, 96, False),
    }
)


def outcome(device: StandInDevice, call: Callable[[], None]) -> tuple[list[Launched], str | None]:
    """The call's launches, and what it raised."""
    device.launched.clear()
    try:
        call()
    except Exception as failure:  # whatever Triton raises is what the report is about
        return list(device.launched), f"{type(failure).__name__}: {failure}"
    return list(device.launched), None


def main() -> None:
    device = StandInDevice(90)
    report = {"triton": triton.__version__, "calls": {}, "runs": {}}
    for name, (call, _) in calls().items():
        launched, error = outcome(device, call)
        report["calls"][name] = {"kernels": [launch.kernel for launch in launched], "error": error}
    for name, call in RUNS.items():
        launched, error = outcome(device, call)
        variants: dict[str, list[str]] = {launch.kernel: [] for launch in launched}
        for launch in launched:
            if launch.variant not in variants[launch.kernel]:
                variants[launch.kernel].append(launch.variant)
        report["runs"][name] = {"variants": variants, "error": error}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
