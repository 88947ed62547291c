"""The tables on the Triton NT-Xent kernels: what ahead-of-time compilation gives, and what ptxlab counts.

python -m proof.generated.triton_tables [aot] [counts]      writes docs/tables/{aot,counts}_triton.{json,md}
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import triton

from proof.generated.triton_code import (
    committed_table,
    compile_in_processes,
    compile_launch,
    ptxlab,
    resources,
    rewrite_tables,
    simulate,
)
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_tiles import Target
from simclr_fast.triton_launch import Launch

ARCHS = (80, 90, 100)
COUNTED_ARCHS = (80, 90)  # whose code ptxlab executes
OPERANDS = {"fp16": (torch.float16, "ieee"), "tf32": (torch.float32, "tf32"), "ieee": (torch.float32, "ieee")}
DIMS = (64, 128, 200, 256, 384, 512, 1024)  # 200 and 384: columns are masked
# The least and the most that the tile kernels are compiled for: whether the temperature allows the constant maximum,
# and whether its gradient is wanted.
VARIANTS = {"constant max": (0.1, False), "online max, dt": (0.01, True)}
H100_MULTIPROCESSORS = 132
TILE_KERNELS = ("ntxent_fwd_kernel", "ntxent_bwd_kernel")
OF_FWD_BWD = ("ntxent_bwd_coefficients_kernel", "ntxent_bwd_finish_kernel")
Key = tuple[int, str, int, str]  # arch, operand, D, variant


def launches(key: Key, columns: int = 4096) -> list[Launch]:
    """Every launch of forward and backward for one variant, as the backend would make them; nothing runs."""
    return _recorded(key, columns, _pass_through)


def launches_at_once(key: Key, columns: int = 4096) -> list[Launch]:
    """Every launch of the op that makes loss and gradient at once."""
    return _recorded(key, columns, _pass_at_once)


def _recorded(key: Key, columns: int, run: Callable[..., None]) -> list[Launch]:
    arch, operand, dim, variant = key
    recorded: list[Launch] = []
    backend = TritonNtxent(recorded.append, lambda device: Target(arch, H100_MULTIPROCESSORS))
    run(backend, columns, dim, *OPERANDS[operand], *VARIANTS[variant])
    return recorded


def _pass_at_once(backend, columns, dim, dtype, precision, temperature, need_dt) -> None:
    z0, z1 = torch.zeros(2, columns // 2, dim, dtype=dtype)
    backend.fwd_bwd(z0, z1, 1e-8, temperature, None, "mean", precision, need_dt)


def _pass_through(backend, columns, dim, dtype, precision, temperature, need_dt) -> None:
    n = columns // 2
    generator = torch.Generator().manual_seed(0)
    z0, z1 = (torch.randn(n, dim, generator=generator).to(dtype) for _ in range(2))
    u, inv_norm = backend.normalize(z0, z1, 1e-8)
    _, lse_neg, s_pos = backend.fwd(u, n, 0, temperature, None, "mean", precision)
    numbers = (0, "mean", 1e-8, temperature, None, precision, need_dt)
    backend.bwd(torch.tensor(1.0), z0, z1, u, inv_norm, lse_neg, s_pos, *numbers)


def aot_keys() -> list[Key]:
    """Every architecture, operand, D and variant."""
    return list(itertools.product(ARCHS, OPERANDS, DIMS, VARIANTS))


def aot_sample() -> list[Key]:
    """A sixth of them, in which every two values of architecture, operand, D and variant meet."""
    operands, variants = tuple(OPERANDS), tuple(VARIANTS)
    return [
        (arch, operands[(i + k) % len(operands)], dim, variants[(i + k) % len(variants)])
        for i, arch in enumerate(ARCHS)
        for k, dim in enumerate(DIMS)
    ]


# Of these every kernel is in the table; of the others the tile kernels.
EVERY_KERNEL = [(arch, "fp16", 128, "constant max") for arch in ARCHS]


def aot_launches(key: Key) -> dict[str, tuple[Launch, int]]:
    """The launches of the table, by the names of its rows: of the tile kernels, or of every kernel.

    Of every kernel, those two a second time that differ where forward makes the gradient, which is then float32.
    """
    arch, operand, dim, variant = key
    every = key in EVERY_KERNEL
    found = {}
    for launch in launches(key):
        name = launch.kernel.__name__
        label = variant.removesuffix(", dt") if name == "ntxent_fwd_kernel" else variant
        if name in TILE_KERNELS or every:
            found[f"{name}, {operand}, D={dim}, {label}, sm_{arch}"] = launch, arch
    for launch in launches_at_once(key) if every else []:
        name = launch.kernel.__name__
        if name in OF_FWD_BWD:
            found[f"{name}, {operand}, D={dim}, {variant}, in forward, sm_{arch}"] = launch, arch
    return found


def aot_table(keys: list[Key]) -> dict[str, Any]:
    return compile_in_processes(aot_launches, keys)


def markdown_of_aot(table: dict[str, Any], title: str, command: str) -> str:
    """A table of resources for people; `python -m COMMAND` writes it."""
    lines = [
        f"# {title}",
        "",
        f"Triton {table['triton']}; written by `python -m {command}`. No spills anywhere.",
        "Tensor-core instructions (HMMA on sm_80, HGMMA on sm_90, UTCHMMA on sm_100) are counted in the code.",
        "",
        "| kernel | operands | D | variant | arch | registers | shared memory, bytes | tensor-core instructions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in table["kernels"].items():
        kernel, operand, dim, *variant, arch = name.split(", ")
        tensor = ", ".join(f"{row[op]} {op}" for op in ("HMMA", "HGMMA", "UTCHMMA") if op in row)
        cells = [kernel, operand, dim.removeprefix("D="), ", ".join(variant), arch]
        cells += [str(row["registers"]), str(row["shared"]), tensor]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def aot_markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    return markdown_of_aot(table, "Triton kernels compiled ahead of time", "proof.generated.triton_tables aot")


COUNTED = {"columns": 8192, "D": 128, "operand": "fp16", "temperature": 0.1}
# The other operands, whose simulation takes longer, at a smaller size.
ALSO_COUNTED = tuple(COUNTED | {"columns": 1024, "operand": operand} for operand in ("tf32", "ieee"))
_COUNTED_ROW_BANDS = 4  # of the forward kernel: all their column bands


def count_rows(size: dict[str, Any], arch: int) -> dict[str, dict[str, Any]]:
    """What the code for sm_{arch} of one forward and backward pass does at this size, and its modelled time on an H100.

    Of the two tile kernels only some programs are run, and the counts scaled by the number of tiles. What the others
    would have written is filled with ones: on garbage, replicated warps may store different NaNs, which is no race.
    """
    rows: dict[str, dict[str, Any]] = {}

    def run(launch: Launch) -> None:
        name = launch.kernel.__name__
        grid, factor = launch.grid, 1.0
        if name == "ntxent_fwd_kernel":
            tiles = launch.arguments["columns"] // launch.constants["BLOCK_M"]
            grid = (_COUNTED_ROW_BANDS, launch.grid[1])
            assert launch.arguments["band_m"] == 1
            factor = tiles * (tiles + 1) / 2 / sum(tiles - i for i in range(_COUNTED_ROW_BANDS))
            launch.arguments["sum_ptr"].fill_(1)
        elif name == "ntxent_bwd_kernel":
            grid = (1, *launch.grid[1:])
            factor = float(launch.grid[0])
            launch.arguments["part_ptr"].fill_(1)
        report = simulate(launch, grid, arch, strict=True)
        rows[name] = _scaled(report, launch, arch, factor)

    backend = TritonNtxent(run, lambda device: Target(arch, H100_MULTIPROCESSORS))
    dtype, precision = OPERANDS[size["operand"]]
    _pass_through(backend, size["columns"], size["D"], dtype, precision, size["temperature"], False)
    return rows


def _scaled(report, launch: Launch, arch: int, factor: float) -> dict[str, Any]:
    gpu = ptxlab().GPUS["H100-SXM"]
    registers = resources(compile_launch(launch, arch))["registers"]
    estimate = report.estimate("H100-SXM", regs_per_thread=registers, mma_sync=None)
    programs = math.prod(launch.grid)
    # Work of the busiest multiprocessor over the mean.
    uneven = math.ceil(programs / gpu["sms"]) * gpu["sms"] / programs
    bounds = {}
    for bound, seconds in estimate["bounds"].items():
        if bound == "L2 bandwidth":
            bounds[bound] = seconds * factor
        elif bound != "DRAM bandwidth":  # a part of the grid reads all of u, but writes only its part
            bounds[bound] = seconds * factor / estimate["quantisation"] * uneven
    unique = report.unique_read_bytes + factor * report.unique_write_bytes
    bounds["DRAM bandwidth"] = unique / gpu["dram_bw"]
    sectors = report.global_load_sectors + report.global_store_sectors + report.cp_async_sectors
    loaded = report.global_load_useful_bytes + report.cp_async_useful_bytes
    slowest = max(bounds, key=bounds.get)
    return {
        "programs": programs,
        "registers": registers,
        "tensor-core FLOPs": round(report.mma_flops * factor),
        "sectors": round(sectors * factor),
        "unique bytes": round(unique),
        "shared wavefronts": round(report.shared_wavefronts * factor),
        "bank-conflict ratio": round(report.bank_conflict_ratio, 3),
        "coalescing of loads": round(loaded / (32 * (report.global_load_sectors + report.cp_async_sectors)), 2),
        "coalescing of stores": round(report.coalescing_store, 2),
        "spill bytes": report.spill_bytes,
        "modelled microseconds": round(bounds[slowest] * 1e6, 2),
        "bound": slowest,
    }


def tensor_core_microseconds() -> float:
    """Tensor-core time of an H100 for 2.5 M^2 D multiply-adds at COUNTED's size."""
    return 2.5 * COUNTED["columns"] ** 2 * COUNTED["D"] * 2 / ptxlab().GPUS["H100-SXM"]["mma"]["f16"] * 1e6


def counts_of(arch: int) -> dict[str, Any]:
    """The counts of one architecture's code, and the modelled time in all at COUNTED's size."""
    rows = count_rows(COUNTED, arch)
    others = {
        f"{name}, {size['operand']}": row for size in ALSO_COUNTED for name, row in count_rows(size, arch).items()
    }
    total = sum(row["modelled microseconds"] for row in rows.values())
    return {"kernels": rows, "other operands": others, "modelled microseconds": round(total, 1)}


def counts_table() -> dict[str, Any]:
    """By architecture."""
    return {
        "triton": triton.__version__,
        "size": COUNTED,
        "tensor-core microseconds": round(tensor_core_microseconds(), 1),
    } | {f"sm_{arch}": counts_of(arch) for arch in COUNTED_ARCHS}


def _markdown_rows(kernels: dict[str, dict[str, Any]]) -> list[str]:
    columns = list(next(iter(kernels.values())))
    lines = ["| kernel | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, row in kernels.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]}" for column in columns) + " |")
    return lines


def counts_markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    size = table["size"]
    lines = [
        "# Triton kernels: counts and a model, not measurements",
        "",
        f"One forward and backward pass at M={size['columns']}, D={size['D']}, {size['operand']} operands: the code",
        f"that Triton {table['triton']} emits for each architecture, run by ptxlab and counted (of the tile kernels",
        "some programs, scaled by tiles).",
        "The microseconds are ptxlab's roofline model of an H100: no latency, no launch overhead, perfect overlap;",
        "mma.sync, which the sm_80 code multiplies by, at 62% of the tensor cores' peak.",
        "Written by `python -m proof.generated.triton_tables counts`.",
    ]
    for arch in COUNTED_ARCHS:
        counts = table[f"sm_{arch}"]
        ratio = counts["modelled microseconds"] / table["tensor-core microseconds"]
        lines += [
            "",
            f"## sm_{arch}",
            "",
            *_markdown_rows(counts["kernels"]),
            "",
            f"Modelled in all: {counts['modelled microseconds']} us; 2.5 M^2 D multiply-adds at the tensor cores' "
            f"peak: {table['tensor-core microseconds']} us; ratio {ratio:.2f}.",
            "",
            f"Other operands, M={ALSO_COUNTED[0]['columns']}, D={size['D']}:",
            "",
            *_markdown_rows(counts["other operands"]),
        ]
    return "\n".join(lines) + "\n"


def committed(name: str) -> dict[str, Any]:
    """The table "aot" or "counts" as it stands in docs/tables."""
    return committed_table(f"{name}_triton")


if __name__ == "__main__":
    makers = {"aot": (lambda: aot_table(aot_keys()), aot_markdown), "counts": (counts_table, counts_markdown)}
    rewrite_tables("triton", makers)
