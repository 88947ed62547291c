"""The tables on the Triton augmentation: what ahead-of-time compilation gives, and what ptxlab counts.

python -m proof.generated.triton_augment_tables [aot] [counts] writes docs/tables/{aot,counts}_triton_augment.{json,md}
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from proof.generated.augment_counts import WORKLOADS, Row, Workload, count_row, error_and_floor, markdown_tables
from proof.generated.triton_code import (
    committed_table,
    compile_in_processes,
    compile_launch,
    resources,
    rewrite_tables,
    simulate,
)
from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.ops.augment import ImageBatch
from simclr_fast.ops.augment.triton_backend import TritonAugment
from simclr_fast.triton_launch import Launch
from tests.ops.augment.compare import noise

ARCHS = (80, 90, 100)
COUNTED_ARCHS = (80, 90)  # whose code ptxlab executes


def as_launched(launch: Launch) -> Launch:
    """The launch as Triton's own launcher makes it: an argument of 1 is a constant, unless it is not specialised on."""
    plain = {parameter.name for parameter in launch.kernel.params if parameter.do_not_specialize}
    ones = {
        name: value
        for name, value in launch.arguments.items()
        if isinstance(value, int) and value == 1 and name not in plain
    }
    arguments = {name: value for name, value in launch.arguments.items() if name not in ones}
    return Launch.of(launch.kernel, launch.grid, arguments, launch.constants | ones, **launch.how)


@dataclass(frozen=True)
class Variant:
    """A call whose kernels are compiled: images (a maker of a tensor, or of a list), output and blur."""

    images: Callable[[], Any]
    size: tuple[int, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    blur_kernel: int = 1


def _channels_last(channels: int, height: int, width: int) -> Callable[[], Tensor]:
    return lambda: noise(2, height, width, channels).permute(0, 3, 1, 2)


VARIANTS = {
    "32 to 32": Variant(_channels_last(3, 32, 32), (32, 32), blur_kernel=3),
    "96 to 64, half": Variant(_channels_last(3, 96, 96), (64, 64), torch.float16, blur_kernel=7),
    "256 to 224": Variant(_channels_last(3, 256, 256), (224, 224), blur_kernel=23),
    "256 to 224, NCHW to NCHW bfloat16": Variant(
        lambda: noise(2, 3, 256, 256), (224, 224), torch.bfloat16, channels_last=False, blur_kernel=23
    ),
    "500x333 to 224, float32 images": Variant(lambda: noise(2, 3, 500, 333).float() / 255, (224, 224), blur_kernel=23),
    "ragged to 224, half": Variant(
        lambda: [noise(3, 250, 301), noise(280, 191, 3).permute(2, 0, 1)], (224, 224), torch.float16, blur_kernel=23
    ),
    "ragged to 64": Variant(lambda: [noise(3, 25, 31), noise(28, 19, 3).permute(2, 0, 1)], (64, 64), blur_kernel=7),
    "gray 28 to 28": Variant(lambda: noise(2, 1, 28, 28), (28, 28), blur_kernel=3),
    "gray 300 to 200": Variant(lambda: noise(2, 1, 300, 300), (200, 200), blur_kernel=21),
    "256 to 224, 63 taps": Variant(_channels_last(3, 256, 256), (224, 224), blur_kernel=63),
    "one pixel wide": Variant(lambda: noise(1, 3, 5, 1), (100, 1)),
}


def pass_through(variant: Variant, backend: TritonAugment) -> None:
    """One call's draws and views."""
    batch = ImageBatch.of(variant.images())
    recipe = list(SimCLRAugment(32).recipe)
    seed = torch.zeros(1, dtype=torch.int64)
    packed = backend.augment_sample(
        seed, seed.expand(batch.batch_size), batch.table, *batch.size, batch.batch_size, 2, recipe
    )
    plain = [0.0] * batch.channels, [1.0] * batch.channels
    backend.augment(
        batch.data, batch.table, packed, batch.channels, *variant.size, *plain, variant.blur_kernel, variant.dtype,
        variant.channels_last,
    )  # fmt: skip


def launches(variant: Variant) -> list[Launch]:
    """What the backend would launch; nothing runs."""
    recorded: list[Launch] = []
    pass_through(variant, TritonAugment(lambda launch: recorded.append(as_launched(launch))))
    return recorded


def aot_launches(key: tuple[str, int]) -> dict[str, tuple[Launch, int]]:
    """The launches of one variant on one architecture, by the names of the table's rows."""
    name, arch = key
    return {f"{launch.kernel.__name__}, {name}, sm_{arch}": (launch, arch) for launch in launches(VARIANTS[name])}


def aot_keys() -> list[tuple[str, int]]:
    return [(name, arch) for name in VARIANTS for arch in ARCHS]


def aot_sample() -> list[tuple[str, int]]:
    """Every variant, each for one of the architectures."""
    return list(zip(VARIANTS, itertools.cycle(ARCHS)))


def aot_table(keys: list[tuple[str, int]]) -> dict[str, Any]:
    return compile_in_processes(aot_launches, keys)


def aot_markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# The Triton augmentation compiled ahead of time",
        "",
        f"Triton {table['triton']}, no spills; written by `python -m proof.generated.triton_augment_tables aot`.",
        "",
        "| kernel | call | arch | registers | shared memory, bytes |",
        "|---|---|---|---|---|",
    ]
    for name, row in table["kernels"].items():
        kernel, rest = name.split(", ", 1)
        call, arch = rest.rsplit(", ", 1)
        lines.append(f"| `{kernel}` | {call} | {arch} | {row['registers']} | {row['shared']} |")
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class Outcome:
    """The launches and their reports, the largest absolute error, and the floor of the traffic in bytes."""

    launched: list[tuple[Launch, Any]]
    error: float
    floor: int


def execute(workload: Workload, arch: int, **options: object) -> Outcome:
    """The workload's launches in ptxlab, with the code for sm_{arch}; `options` go to its launch()."""
    images, aug, params = workload.drawn()
    launched: list[tuple[Launch, Any]] = []

    def run(launch: Launch) -> None:
        launch = as_launched(launch)
        launched.append((launch, simulate(launch, arch=arch, **options)))

    size, plain = (workload.size, workload.size), ([0.0] * 3, [1.0] * 3, aug.blur_kernel)
    out = TritonAugment(run).augment(images, None, params.pack(), 3, *size, *plain, workload.dtype, True)
    return Outcome(launched, *error_and_floor(out, images, params, aug.blur_kernel))


def sampled(key: int, arch: int, **options: object) -> tuple[Tensor, Tensor, Any]:
    """(params, the reference's, report) of 100 samples' two views drawn in ptxlab."""
    images, seed, reports = noise(1, 3, 40, 56).expand(100, -1, -1, -1), torch.tensor([2**62 + key]), []
    aug = SimCLRAugment(32, solarize_p=0.3, backend="reference")
    backend = TritonAugment(lambda launch: reports.append(simulate(as_launched(launch), arch=arch, **options)))
    params = backend.augment_sample(seed, None, None, 40, 56, 100, 2, list(aug.recipe))
    return params, aug.sample(images, seed=seed).pack(), reports[0]


def count(workload: Workload, arch: int) -> list[Row]:
    """One row per launch of the workload."""
    torch.manual_seed(0)
    outcome = execute(workload, arch)
    return [
        count_row(
            workload,
            launch.kernel.__name__,
            report,
            resources(compile_launch(launch, arch))["registers"],
            outcome.floor,
        )
        for launch, report in outcome.launched
    ]


def counts_table() -> dict[str, Any]:
    """By architecture."""
    return {"triton": triton.__version__} | {
        f"sm_{arch}": {"launches": [row for workload in WORKLOADS for row in count(workload, arch)]}
        for arch in COUNTED_ARCHS
    }


def counts_markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# What the generated code of the Triton augmentation reads and writes",
        "",
        f"Counted by executing the code that Triton {table['triton']} emits: two views of uint8 channels-last",
        "images, output channels-last, the recipe of that size. Unique bytes are those that device memory must at",
        "least move in a launch. Sector bytes count every 32-byte sector that a request asks of L1 and L2: each output",
        "row loads its own source rows, and neighbours ask for the same; in one request, coalescing passes 1.",
        "Written by `python -m proof.generated.triton_augment_tables counts`.",
    ]
    for arch in COUNTED_ARCHS:
        lines += ["", f"## sm_{arch}", "", *markdown_tables(table[f"sm_{arch}"])]
    return "\n".join([*lines, ""])


def committed(name: str) -> dict[str, Any]:
    """The table "aot" or "counts" as it stands in docs/tables."""
    return committed_table(f"{name}_triton_augment")


if __name__ == "__main__":
    makers = {"aot": (lambda: aot_table(aot_keys()), aot_markdown), "counts": (counts_table, counts_markdown)}
    rewrite_tables("triton_augment", makers)
