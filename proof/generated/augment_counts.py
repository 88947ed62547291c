"""What is counted of the augmentation's generated code, whichever compiler made it: the workloads, a row, the tables.

The floor of a call is to read every crop once and to write every view once.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.ops.augment import AugmentParams
from simclr_fast.ops.augment.reference import augment_reference

GPU = "H100-SXM"  # of the model
SECTOR = 32
CIFAR = (("strength", 0.5), ("blur_p", 0.0), ("blur_kernel", 1))
CONTRAST_ALONE = (("jitter", (0.0, 0.8, 0.0, 0.0)), ("jitter_p", 1.0))  # hence first
Row = dict[str, Any]
# Of a launch: wavefronts of shared memory over the ideal; bytes that are used of those that a request moves.
MAX_BANK_CONFLICTS = 1.1
MIN_COALESCING = 0.9


@dataclass(frozen=True)
class Workload:
    """Two views of `batch` uint8 images, channels-last, source x source -> size x size; `options` of SimCLRAugment."""

    name: str
    batch: int
    source: int
    size: int
    dtype: torch.dtype
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.name

    def drawn(self) -> tuple[Tensor, SimCLRAugment, AugmentParams]:
        """Images of noise, the transform, and its draws for them."""
        images = torch.randint(0, 256, (self.batch, self.source, self.source, 3), dtype=torch.uint8)
        images = images.permute(0, 3, 1, 2)
        aug = SimCLRAugment(self.size, backend="reference", **dict(self.options))
        return images, aug, aug.sample(images)


WORKLOADS = (
    Workload("32 -> 32, float32", 16, 32, 32, torch.float32, CIFAR),
    Workload("32 -> 32, float16", 16, 32, 32, torch.float16, CIFAR),
    Workload("96 -> 64, float32", 4, 96, 64, torch.float32),
    Workload("128 -> 96, float16", 4, 128, 96, torch.float16),
    Workload("256 -> 224, float32", 2, 256, 224, torch.float32),
    Workload("256 -> 224, float16", 2, 256, 224, torch.float16),
    Workload("256 -> 224, float32, contrast alone", 2, 256, 224, torch.float32, CONTRAST_ALONE),
)


def error_and_floor(out: Tensor, images: Tensor, params: AugmentParams, blur_kernel: int) -> tuple[float, int]:
    """Of the views without normalisation: the largest absolute error, and the least bytes of the call's traffic."""
    plain = ([0.0] * 3, [1.0] * 3, blur_kernel, torch.float32, False)
    truth = augment_reference(images, None, params.pack(), 3, *out.shape[2:], *plain)
    error = (out.float() - truth).abs().nan_to_num(float("inf")).max().item()
    return error, 3 * int((params.height * params.width).sum()) + out.numel() * out.element_size()


def count_row(workload: Workload, kernel: str, report: Any, registers: int, floor: int) -> Row:
    """What the table says of one launch."""
    views = 2 * workload.batch
    model = report.estimate(GPU, regs_per_thread=registers)
    return {
        "workload": workload.name,
        "kernel": kernel,
        "views": views,
        "blocks": report.grid[0],
        "threads": report.block[0],
        "shared_bytes": report.smem_per_block,
        "instructions_per_pixel": round(report.lane_instructions / (views * workload.size**2)),
        "unique_bytes": report.unique_read_bytes + report.unique_write_bytes,
        "sector_bytes": SECTOR * (report.global_load_sectors + report.global_store_sectors),
        "floor_bytes": floor,
        "coalescing_load": round(report.coalescing_load, 3),
        "coalescing_store": round(report.coalescing_store, 3),
        "bank_conflict_ratio": round(report.bank_conflict_ratio, 3),
        "spill_bytes": report.spill_bytes,
        "model_us": round(model["time"] * 1e6, 2),
        "model_bound": model["bound"],
    }


def by_call(table: Row) -> dict[str, list[Row]]:
    """The launches of each workload."""
    calls: dict[str, list[Row]] = {}
    for row in table["launches"]:
        calls.setdefault(row["workload"], []).append(row)
    return calls


def ratios(rows: list[Row]) -> tuple[float, float]:
    """Unique bytes and sector bytes of a call's launches over its floor."""
    floor = rows[0]["floor_bytes"]
    return sum(row["unique_bytes"] for row in rows) / floor, sum(row["sector_bytes"] for row in rows) / floor


def check_bounds(rows: list[Row], call: str, most_unique: float, most_sectors: float) -> None:
    """Asserts that the launches of a call move few bytes over its floor, without spills, conflicts or waste.

    most_unique, most_sectors: of `ratios`. The mean kernel, which writes one number per block or program, may store as
    it likes.
    """
    unique, sectors = ratios(rows)
    assert unique <= most_unique, f"{call}: {unique} of the floor"
    assert sectors <= most_sectors, f"{call}: {sectors} of the floor"
    for row in rows:
        where = f"{row['kernel']} in {call}"
        assert row["spill_bytes"] == 0, where
        assert row["bank_conflict_ratio"] <= MAX_BANK_CONFLICTS, where
        assert row["coalescing_load"] >= MIN_COALESCING, where
        if not row["kernel"].startswith("augment_mean_kernel"):
            assert row["coalescing_store"] >= MIN_COALESCING, where


def markdown_tables(table: Row) -> list[str]:
    """The launches, then each call's traffic over its floor, in Markdown."""
    lines = [
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
    return lines
