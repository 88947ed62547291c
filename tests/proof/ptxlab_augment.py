"""Counts, by executing the PTX that nvcc emits, what the CUDA augmentation reads and writes, against the floor.

`python -m tests.proof.ptxlab_augment` writes docs/tables/ptxlab_augment.json and .md. The floor of a call is to read
every crop once and to write every view once. Everything there is a count; nothing is a measured speed.
"""

import ctypes
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.ops.augment import AugmentParams, ImageBatch
from simclr_fast.ops.augment.reference import augment_reference
from tests.proof import aot
from tests.proof.ptx import ROOT, Program
from tests.proof.ptxlab_cuda import GPU, registers
from tests.simt import augment as simt

TABLE = ROOT / "docs/tables/ptxlab_augment.json"
SOURCES = tuple(ROOT / source for source in simt.SOURCES)
SECTOR = 32
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}


@dataclass(frozen=True)
class Workload:
    """Two views of `batch` uint8 images, channels-last, source x source -> size x size; `options` of SimCLRAugment."""

    name: str
    batch: int
    source: int
    size: int
    dtype: torch.dtype
    options: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return self.name


CIFAR = (("strength", 0.5), ("blur_p", 0.0), ("blur_kernel", 1))
WORKLOADS = (
    Workload("32 -> 32, float32", 16, 32, 32, torch.float32, CIFAR),
    Workload("32 -> 32, float16", 16, 32, 32, torch.float16, CIFAR),
    Workload("96 -> 64, float32", 4, 96, 64, torch.float32),
    Workload("128 -> 96, float16", 4, 128, 96, torch.float16),
    Workload("256 -> 224, float32", 2, 256, 224, torch.float32),
    Workload("256 -> 224, float16", 2, 256, 224, torch.float16),
)


@dataclass(frozen=True)
class Outcome:
    """The reports of the launches, the largest error over its tolerance, and the floor of the traffic in bytes."""

    reports: list
    error: float
    floor: int


def execute(program: Program, workload: Workload, **options: object) -> Outcome:
    """Runs the workload's launches in ptxlab; `options` go to its launch()."""
    images = torch.randint(0, 256, (workload.batch, workload.source, workload.source, 3), dtype=torch.uint8)
    images = images.permute(0, 3, 1, 2)
    aug = SimCLRAugment(workload.size, backend="reference", **dict(workload.options))
    params: AugmentParams = aug.sample(images)
    packed, batch, size = params.pack(), ImageBatch.of(images), (workload.size, workload.size)
    out = simt.unwritten_views((2 * workload.batch, 3, *size), workload.dtype, channels_last=True)
    args = simt.augment_args(batch, packed, out, aug.blur_kernel)
    sums = torch.empty(program.value("augment_scratch_doubles", ctypes.byref(args)), dtype=torch.float64)
    with program.simulated(lambda: [images, packed, out, sums], **options) as reports:
        program.call("augment", ctypes.byref(args), sums)
    plain = ([0.0] * 3, [1.0] * 3, aug.blur_kernel, torch.float32, False)
    truth: Tensor = augment_reference(batch.data, batch.table, packed, 3, *size, *plain)
    error = (out.float() - truth).abs().nan_to_num(float("inf")).max().item()
    floor = 3 * int((params.height * params.width).sum()) + out.numel() * out.element_size()
    return Outcome(reports, error / TOLERANCE[workload.dtype], floor)


def count(program: Program, workload: Workload) -> list[dict]:
    """One row per launch of the workload."""
    torch.manual_seed(0)
    outcome = execute(program, workload, threads=2)
    names, of_kernel = aot.readable(report.kernel for report in outcome.reports), registers()
    rows = []
    for report in outcome.reports:
        kernel = names[report.kernel]
        model = report.estimate(GPU, regs_per_thread=of_kernel[kernel])
        rows.append(
            {
                "workload": workload.name,
                "kernel": kernel,
                "views": 2 * workload.batch,
                "blocks": report.grid[0],
                "threads": report.block[0],
                "shared_bytes": report.smem_per_block,
                "instructions_per_pixel": round(report.lane_instructions / (2 * workload.batch * workload.size**2)),
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


def render(table: dict) -> str:
    """The table in Markdown: launches, then each call's traffic over its floor."""
    lines = [
        "<!-- Generated by `python -m tests.proof.ptxlab_augment`; do not edit. -->",
        "# What the generated code of the CUDA augmentation reads and writes",
        "",
        f"Counted by executing the PTX of nvcc {table['nvcc']} (compute_80): two views of uint8 channels-last images,",
        "output channels-last, the recipe of that size. Unique bytes are those that device memory must at least move",
        "in a launch. Sector bytes count every 32-byte sector that a request asks of L1 and L2: what adjacent tiles",
        "and their halos read again is served there, and the ends of a tile's rows are cut out of whole sectors.",
        f"The last two columns are a model on the counts ({GPU}, no latency, perfect overlap), not a measured speed;",
        "batches this small leave most of that GPU idle.",
        "",
        "| call | kernel | blocks x threads | shared memory | instructions per output pixel | coalescing ld / st "
        "| bank conflicts | unique bytes per view | sector bytes per view | model us per view | bound by |",
        "|" + "---|" * 11,
    ]
    for row in table["launches"]:
        lines.append(
            f"| {row['workload']} | `{row['kernel']}` | {row['blocks']} x {row['threads']} | {row['shared_bytes']} "
            f"| {row['instructions_per_pixel']} | {row['coalescing_load']} / {row['coalescing_store']} "
            f"| {row['bank_conflict_ratio']} | {row['unique_bytes'] // row['views']} "
            f"| {row['sector_bytes'] // row['views']} | {row['model_us'] / row['views']:.3f} | {row['model_bound']} |"
        )
    lines += ["", "| call | launches | floor, bytes per view | unique / floor | sectors / floor |", "|" + "---|" * 5]
    for name, rows in by_call(table).items():
        unique, sectors = ratios(rows)
        floor = rows[0]["floor_bytes"] // rows[0]["views"]
        lines.append(f"| {name} | {len(rows)} | {floor} | {unique:.2f} | {sectors:.2f} |")
    return "\n".join([*lines, ""])


def by_call(table: dict) -> dict[str, list[dict]]:
    """The launches of each workload."""
    calls: dict[str, list[dict]] = {}
    for row in table["launches"]:
        calls.setdefault(row["workload"], []).append(row)
    return calls


def ratios(rows: list[dict]) -> tuple[float, float]:
    """Unique bytes and sector bytes of a call's launches over its floor."""
    floor = rows[0]["floor_bytes"]
    return sum(row["unique_bytes"] for row in rows) / floor, sum(row["sector_bytes"] for row in rows) / floor


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = Program(SOURCES, Path(folder))
        table = {"nvcc": aot.toolkit(), "launches": [row for workload in WORKLOADS for row in count(program, workload)]}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    TABLE.with_suffix(".md").write_text(render(table))
    print(f"wrote {TABLE.relative_to(ROOT)}: {len(table['launches'])} launches")


if __name__ == "__main__":
    main()
