"""Augmentation: views per second of every backend beside torchvision v2 and a copy of the least bytes."""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import torch
from torch import Tensor

from benchmarks.augment_contestants import Recipe, build, torchvision_chain
from benchmarks.bench_augment import photographs as make_photographs
from simclr_fast import SimCLRAugment
from tools.gpu import OURS
from tools.gpu.bench import Bench, backend_of
from tools.gpu.bench_ceilings import copy_timing

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHAPES = ((256, 256, 224), (1024, 32, 32), (256, 96, 96))  # images, their side, the views' side
MEAN_CROP = 0.54  # share of an image that a crop covers in the mean: scale is uniform in [0.08, 1]
SAMPLES_OF_TORCHVISION = 32  # per sample it is slow; its time is linear in the images
photographs = cache(make_photographs)  # seconds for the large ones


def torchvision_of_a_batch(size: int) -> Callable[[Tensor], Tensor]:
    """torchvision v2 on a whole batch: one draw for all of its images, which is not SimCLR, but the best it can do."""
    transform = torchvision_chain(Recipe(size))
    return lambda images: torch.cat([transform(images), transform(images)])


def measure_ours(bench: Bench, figures: dict, aug: SimCLRAugment, images: Tensor, copy_ms: float) -> None:
    """Device time of the draws and the views, of the views alone, host time, and memory beyond the output."""
    call = lambda: aug(images)
    whole = bench.device.timed(call)
    figures["timing"] = asdict(whole)
    figures["ms"] = whole.ms
    params = aug.sample(images, seed=1)
    figures["apply ms"] = bench.device.timed(lambda: aug.apply(images, params)).ms
    figures["host us"] = bench.device.host_us(call)
    figures["views/s"] = 2 * len(images) / whole.ms * 1e3
    figures["over the copy"] = whole.ms / copy_ms


def run_case(bench: Bench, batch: int, side: int, size: int, kind: str) -> None:
    """One case into found["augment"]."""
    device, dtype = bench.device, DTYPES[kind]
    entry = bench.found.setdefault("augment", {}).setdefault(
        f"{batch} x {side} px to {size} px, {kind}",
        {"batch": batch, "side": side, "size": size, "kind": kind, "contestants": {}},
    )
    images = photographs(batch, side).to(device.torch)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    least = int(2 * batch * (MEAN_CROP * 3 * side**2 + 3 * size**2 * dtype.itemsize))
    copy_ms = copy_timing(device, least).ms
    entry |= {"least bytes": least, "copy ms": copy_ms}
    for backend in OURS:
        figures = entry["contestants"].setdefault(backend, {})
        with bench.guarded(figures, f"augment {size} {kind} {backend}"):
            measure_ours(
                bench, figures, SimCLRAugment(size, dtype=dtype, backend=backend_of(backend, bench.dry)), nhwc, copy_ms
            )
    if kind == "bf16":
        few = images[:SAMPLES_OF_TORCHVISION]
        per_sample = build("torchvision", Recipe(size), device.torch, True)
        # The draws decide what is done, so these are means of calls as they come, with the host's part.
        for name, call, count in (
            ("torchvision v2, a batch", torchvision_of_a_batch(size), batch),
            ("torchvision v2, per sample", per_sample, len(few)),
        ):
            figures = entry["contestants"].setdefault(name, {})
            with bench.guarded(figures, f"augment {size} {name}"):
                call(images[:count])
                taken = device.event_times(lambda call=call, count=count: call(images[:count]), 5)
                figures["ms"] = sum(taken) / len(taken) * batch / count
                figures["views/s"] = 2 * batch / figures["ms"] * 1e3
    parts = (f"{name} {f.get('views/s', float('nan')):.4g}/s" for name, f in entry["contestants"].items())
    bench.say(f"augment {batch} x {side} to {size}, {kind}: copy {copy_ms:.3f} ms; {', '.join(parts)}")
    bench.save()


def errors(bench: Bench, size: int, side: int) -> dict:
    """Each backend against torchvision per sample on the CPU: largest error, and whether the draws are the CPU's."""
    images = photographs(6, side)
    plain = {"mean": 0.0, "std": 1.0}
    params = SimCLRAugment(size, backend="cpp", **plain).sample(images, seed=5)
    truth = SimCLRAugment(size, backend="reference", **plain).apply(images, params)
    there = images.to(bench.device.torch)
    found = {}
    for backend in OURS:
        figures = found.setdefault(backend, {})
        with bench.guarded(figures, f"augmentation's errors, {backend}"):
            aug = SimCLRAugment(size, backend=backend_of(backend, bench.dry), **plain)
            made = aug.apply(there, params.to(bench.device.torch))
            figures["error"] = (made.cpu() - truth).abs().max().item()
            figures["same draws"] = torch.equal(aug.sample(there, seed=5).pack().cpu(), params.pack())
    return found


def warm(bench: Bench) -> None:
    """Compiles the Triton kernels of all cases, into Triton's cache on disk, by launching them once."""
    cases = [(shape, kind) for shape in (((4, 24, 20),) if bench.dry else SHAPES) for kind in DTYPES]
    for (_, side, size), kind in cases[bench.part :: bench.parts]:
        images = photographs(16, side).to(bench.device.torch).contiguous(memory_format=torch.channels_last)
        aug = SimCLRAugment(size, dtype=DTYPES[kind], backend=backend_of("triton", bench.dry))
        aug(images)
        aug.apply(images, aug.sample(images, seed=1))
        bench.device.synchronize()
        bench.say(f"compiled Triton's augmentation for {size} px, {kind}")


def run(bench: Bench) -> None:
    """found["augment errors"], found["augment"]."""
    torch.manual_seed(0)
    shapes = ((4, 24, 20),) if bench.dry else SHAPES
    bench.found["augment errors"] = {str(size): errors(bench, size, side) for _, side, size in shapes}
    bench.save()
    for kind in DTYPES:
        for batch, side, size in shapes:
            if bench.left() < 5:
                return
            run_case(bench, batch, side, size, kind)
