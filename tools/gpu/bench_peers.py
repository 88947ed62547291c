"""The peers that can be imported here, at a few sizes: other losses, and other augmentation on the device."""

import torch

from benchmarks import augment_contestants, ntxent_contestants
from benchmarks.harness import installed
from benchmarks.ntxent_truth import loss_and_sampled_gradients
from tools.gpu.bench import Bench
from tools.gpu.bench_augment import SHAPES, photographs
from tools.gpu.bench_ntxent import TEMPERATURE, measure

CASES = ((1024, 128), (4096, 128))


def losses(bench: Bench) -> dict:
    """{peer: {"N=... D=... fp32": figures}}, or {peer: {"absent": why}}."""
    torch.set_float32_matmul_precision("high")
    found: dict[str, dict] = {}
    for name, module in ntxent_contestants.MODULES.items():
        entry = found.setdefault(name, {})
        if not installed(module):
            entry["absent"] = "not installed"
            continue
        for n, d in ((8, 8),) if bench.dry else CASES:
            figures = entry.setdefault(f"N={n} D={d} fp32", {})
            if (needed := ntxent_contestants.extra_bytes(name, n, d)) > bench.device.free_bytes():
                figures["failed"] = f"needs about {needed / 2**30:.0f} GiB"
                continue
            with bench.guarded(figures, f"{name} N={n}"):
                leaves = ntxent_contestants.views(n, d, torch.float32, bench.device.torch)
                same_loss = name not in ntxent_contestants.CLIP_LOSSES
                truth = loss_and_sampled_gradients(*leaves, TEMPERATURE) if same_loss else None
                loss = ntxent_contestants.BUILDERS[name](TEMPERATURE)
                measure(bench, figures, loss, list(leaves), 1.0, truth, graph=False)
    return found


def views(bench: Bench) -> dict:
    """{peer: {"224 px": figures}}, or {peer: {"absent": why}}, of those that work on the device."""
    found: dict[str, dict] = {}
    for name in ("kornia", "dali"):
        entry = found.setdefault(name, {})
        for batch, side, size in ((4, 24, 20),) if bench.dry else SHAPES:
            recipe = augment_contestants.Recipe(size)
            if reason := augment_contestants.absent(name, recipe, bench.device.torch):
                entry["absent"] = reason
                break
            figures = entry.setdefault(f"{size} px", {})
            with bench.guarded(figures, f"{name} {size} px"):
                call = augment_contestants.build(name, recipe, bench.device.torch, True)
                images = photographs(batch, side).to(bench.device.torch)
                figures["ms"] = bench.device.called(lambda call=call, images=images: call(images), most=5).ms
                figures["views/s"] = 2 * batch / figures["ms"] * 1e3
    return found


def run(bench: Bench) -> None:
    """found["peers"]."""
    found = bench.found.setdefault("peers", {})
    found["ntxent"] = losses(bench)
    bench.save()
    found["augment"] = views(bench)
