"""The tables on the Triton augmentation: what ahead-of-time compilation gives, and what ptxlab counts.

python -m tests.proof.triton_augment_tables [aot] [counts]   writes docs/tables/{aot,counts}_triton_augment.{json,md}
"""

import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.ops.augment import AugmentParams, ImageBatch
from simclr_fast.ops.augment.reference import augment_reference
from simclr_fast.ops.augment.triton_backend import TritonAugment
from simclr_fast.triton_launch import Launch
from tests.ops.augment.compare import noise
from tests.proof.ptxlab_augment import SECTOR, WORKLOADS, Workload
from tests.proof.triton_code import ROOT, compile_launch, resources, simulate

FOLDER = ROOT / "docs" / "tables"
ARCHS = (80, 90, 100)
GPU = "H100-SXM"  # of the model


def as_launched(launch: Launch) -> Launch:
    """The launch as Triton's own launcher makes it: an argument of 1 is a constant, unless it is not specialised on."""
    plain = {parameter.name for parameter in launch.kernel.params if parameter.do_not_specialize}
    ones = {
        name: value
        for name, value in launch.arguments.items()
        if isinstance(value, int) and value == 1 and name not in plain
    }
    arguments = {name: value for name, value in launch.arguments.items() if name not in ones}
    return replace(launch, arguments=arguments, constants=launch.constants | ones)


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
    "grey 28 to 28": Variant(lambda: noise(2, 1, 28, 28), (28, 28), blur_kernel=3),
    "grey 300 to 200": Variant(lambda: noise(2, 1, 300, 300), (200, 200), blur_kernel=21),
    "256 to 224, 63 taps": Variant(_channels_last(3, 256, 256), (224, 224), blur_kernel=63),
    "one pixel wide": Variant(lambda: noise(1, 3, 5, 1), (100, 1)),
}


def launches(variant: Variant) -> list[Launch]:
    """What the backend would launch for one call and its draws; nothing runs."""
    recorded: list[Launch] = []
    backend = TritonAugment(lambda launch: recorded.append(as_launched(launch)))
    batch = ImageBatch.of(variant.images())
    recipe = SimCLRAugment(32).recipe.numbers()
    seed = torch.zeros(1, dtype=torch.int64)
    packed = backend.augment_sample(
        seed, seed.expand(batch.batch_size), batch.table, *batch.size, batch.batch_size, 2, recipe
    )
    plain = [0.0] * batch.channels, [1.0] * batch.channels
    backend.augment(
        batch.data, batch.table, packed, batch.channels, *variant.size, *plain, variant.blur_kernel, variant.dtype,
        variant.channels_last,
    )  # fmt: skip
    return recorded


def aot_rows(key: tuple[str, int]) -> dict[str, dict[str, int]]:
    """Resources of the kernels of one variant on one architecture."""
    name, arch = key
    return {
        f"{launch.kernel.__name__}, {name}, sm_{arch}": resources(compile_launch(launch, arch))
        for launch in launches(VARIANTS[name])
    }


def aot_keys(names: tuple[str, ...] = tuple(VARIANTS)) -> list[tuple[str, int]]:
    return [(name, arch) for name in names for arch in ARCHS]


def aot_table(keys: list[tuple[str, int]]) -> dict[str, Any]:
    """Compiled in two processes of their own."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = {name: row for part in pool.map(aot_rows, keys) for name, row in part.items()}
    return {"triton": triton.__version__, "kernels": rows}


def aot_markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# The Triton augmentation compiled ahead of time",
        "",
        f"Triton {table['triton']}; written by `python -m tests.proof.triton_augment_tables aot`. No spills anywhere.",
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


def execute(workload: Workload, **options: object) -> Outcome:
    """The workload's launches in ptxlab, with the sm_80 code; `options` go to its launch()."""
    images = torch.randint(0, 256, (workload.batch, workload.source, workload.source, 3), dtype=torch.uint8)
    images = images.permute(0, 3, 1, 2)
    aug = SimCLRAugment(workload.size, backend="reference", **dict(workload.options))
    params: AugmentParams = aug.sample(images)
    launched: list[tuple[Launch, Any]] = []

    def run(launch: Launch) -> None:
        launch = as_launched(launch)
        launched.append((launch, simulate(launch, **options)))

    size, plain = (workload.size, workload.size), ([0.0] * 3, [1.0] * 3, aug.blur_kernel)
    out = TritonAugment(run).augment(images, None, params.pack(), 3, *size, *plain, workload.dtype, True)
    truth = augment_reference(images, None, params.pack(), 3, *size, *plain, torch.float32, True)
    error = (out.float() - truth).abs().nan_to_num(float("inf")).max().item()
    floor = 3 * int((params.height * params.width).sum()) + out.numel() * out.element_size()
    return Outcome(launched, error, floor)


def sampled(key: int, **options: object) -> tuple[Tensor, Tensor, Any]:
    """(params, the reference's, report) of 100 samples' two views drawn in ptxlab."""
    images, seed, reports = noise(1, 3, 40, 56).expand(100, -1, -1, -1), torch.tensor([2**62 + key]), []
    aug = SimCLRAugment(32, solarize_p=0.3, backend="reference")
    backend = TritonAugment(lambda launch: reports.append(simulate(as_launched(launch), **options)))
    params = backend.augment_sample(seed, None, None, 40, 56, 100, 2, aug.recipe.numbers())
    return params, aug.sample(images, seed=seed).pack(), reports[0]


def count(workload: Workload) -> list[dict[str, Any]]:
    """One row per launch of the workload."""
    torch.manual_seed(0)
    outcome = execute(workload)
    views, rows = 2 * workload.batch, []
    for launch, report in outcome.launched:
        model = report.estimate(GPU, regs_per_thread=resources(compile_launch(launch, 80))["registers"])
        rows.append(
            {
                "workload": workload.name,
                "kernel": launch.kernel.__name__,
                "views": views,
                "programs": report.grid[0],
                "threads": report.block[0],
                "shared_bytes": report.smem_per_block,
                "instructions_per_pixel": round(report.lane_instructions / (views * workload.size**2)),
                "unique_bytes": report.unique_read_bytes + report.unique_write_bytes,
                "sector_bytes": SECTOR * (report.global_load_sectors + report.global_store_sectors),
                "floor_bytes": outcome.floor,
                "coalescing_load": round(report.coalescing_load, 3),
                "coalescing_store": round(report.coalescing_store, 3),
                "bank_conflict_ratio": round(report.bank_conflict_ratio, 3),
                "spill_bytes": report.spill_bytes,
                "model_us": round(model["time"] * 1e6, 2),
                "model_bound": model["bound"],
            }
        )
    return rows


def counts_table() -> dict[str, Any]:
    rows = [row for workload in WORKLOADS for row in count(workload)]
    return {"triton": triton.__version__, "launches": rows}


def by_call(table: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The launches of each workload."""
    calls: dict[str, list[dict[str, Any]]] = {}
    for row in table["launches"]:
        calls.setdefault(row["workload"], []).append(row)
    return calls


def ratios(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Unique bytes and sector bytes of a call's launches over its floor."""
    floor = rows[0]["floor_bytes"]
    return sum(row["unique_bytes"] for row in rows) / floor, sum(row["sector_bytes"] for row in rows) / floor


def counts_markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    lines = [
        "# What the generated code of the Triton augmentation reads and writes",
        "",
        f"Counted by executing the sm_80 code that Triton {table['triton']} emits: two views of uint8 channels-last",
        "images, output channels-last, the recipe of that size. Unique bytes are those that device memory must at",
        "least move in a launch. Sector bytes count every 32-byte sector that a request asks of L1 and L2: each output",
        "row loads its own source rows, and neighbours ask for the same; in one request, coalescing passes 1.",
        f"The last two columns are a model on the counts ({GPU}, no latency, perfect overlap), not a measured speed;",
        "batches this small leave most of that GPU idle.",
        "Written by `python -m tests.proof.triton_augment_tables counts`.",
        "",
        "| call | kernel | programs x threads | shared memory | instructions per output pixel | coalescing ld / st "
        "| bank conflicts | unique bytes per view | sector bytes per view | model us per view | bound by |",
        "|" + "---|" * 11,
    ]
    for row in table["launches"]:
        lines.append(
            f"| {row['workload']} | `{row['kernel']}` | {row['programs']} x {row['threads']} | {row['shared_bytes']} "
            f"| {row['instructions_per_pixel']} | {row['coalescing_load']} / {row['coalescing_store']} "
            f"| {row['bank_conflict_ratio']} | {row['unique_bytes'] // row['views']} "
            f"| {row['sector_bytes'] // row['views']} | {row['model_us'] / row['views']:.3f} | {row['model_bound']} |"
        )
    lines += ["", "| call | launches | floor, bytes per view | unique / floor | sectors / floor |", "|" + "---|" * 5]
    for name, rows in by_call(table).items():
        unique, sectors = ratios(rows)
        lines.append(
            f"| {name} | {len(rows)} | {rows[0]['floor_bytes'] // rows[0]['views']} | {unique:.2f} | {sectors:.2f} |"
        )
    return "\n".join([*lines, ""])


def committed(name: str) -> dict[str, Any]:
    """The table as it stands in docs/tables."""
    return json.loads((FOLDER / f"{name}_triton_augment.json").read_text())


def _write(name: str, table: dict[str, Any], markdown: str) -> None:
    (FOLDER / f"{name}_triton_augment.json").write_text(json.dumps(table, indent=1) + "\n")
    (FOLDER / f"{name}_triton_augment.md").write_text(markdown)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["aot", "counts"]
    if "aot" in wanted:
        aot = aot_table(aot_keys())
        _write("aot", aot, aot_markdown(aot))
    if "counts" in wanted:
        counts = counts_table()
        _write("counts", counts, counts_markdown(counts))
