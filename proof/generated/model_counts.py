"""What each launch of one loss and gradient costs, counted by ptxlab, for the model of device time (model.py).

python -m proof.generated.model_counts      writes docs/tables/model_counts.json, of the kernels that stand now

docs/tables/model_calibration.json holds the same of the kernels that an H200 timed; it is not written again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from proof.generated import aot, sm90
from proof.generated.ptx import Program
from proof.generated.triton_code import TABLES, simulate
from proof.generated.triton_tables import H100_MULTIPROCESSORS
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_tiles import Target
from simclr_fast.triton_launch import Launch
from tests.ntxent_launchers import Device, NtxentLaunchers
from tools.tables import table_text

H100 = Device(H100_MULTIPROCESSORS, 227 * 1024, 90)
TEMPERATURE, EPS = 0.1, 1e-8
OPERANDS = {"fp16": (torch.float16, "ieee"), "tf32": (torch.float32, "tf32"), "ieee": (torch.float32, "ieee")}
# (n, D, operands) of the bars (model_bars.py) and of the sizes at which `auto` chooses.
COUNTED = (
    (1024, 128, "fp16"),
    (2048, 128, "fp16"),
    (4096, 128, "fp16"),
    (32768, 128, "fp16"),
    (1024, 512, "fp16"),
    (4096, 512, "fp16"),
    (4096, 128, "tf32"),
    (4096, 512, "tf32"),
    (4096, 128, "ieee"),
)
AT_ONCE = ((256, 128, "fp16"),)  # loss and gradient in one launch
Row = dict[str, Any]


def row_of(report: Any, kernel: str, blocks: int, factor: float) -> Row:
    """The counts of a launch of which 1 / factor ran.

    A part of a kernel with products reads all of u, as any other part does, and writes what is its own. Products are
    FLOPs in fp16, those in tf32 counted twice, as they take twice the time.
    """
    cost = {"f16": 1, "bf16": 1, "tf32": 2}
    products = sum(flops * cost[operands] for operands, flops in report.mma_flops_by_type.items())
    wgmma = sum(flops * cost[operands] for operands, flops in report.wgmma_flops_by_type.items())
    sectors = report.global_load_sectors + report.global_store_sectors + report.cp_async_sectors
    sectors += report.bulk_load_sectors + report.bulk_store_sectors
    read = report.unique_read_bytes * (1 if products else factor)
    return {
        "kernel": kernel,
        "blocks": blocks,
        "mma.sync": round((products - wgmma) * factor),
        "wgmma": round(wgmma * factor),
        "instructions": round(report.warp_instructions * factor),
        "mufu": round(report.lane_classes["mufu"] * factor),
        "wavefronts": round((report.shared_wavefronts + report.async_shared_wavefronts) * factor),
        "sectors": round(sectors * factor),
        "unique": round(read + report.unique_write_bytes * factor),
    }


def triton_rows(n: int, dim: int, operand: str) -> list[Row]:
    """Forward and backward of 2 x n views by the sm_90 code; of the tile kernels a band of rows runs."""
    rows: list[Row] = []

    def run(launch: Launch) -> None:
        name, grid, factor = launch.kernel.__name__, launch.grid, 1.0
        if name == "ntxent_fwd_kernel":
            tiles = -(-launch.arguments["columns"] // launch.constants["BLOCK_M"])
            grid = (1, grid[1])
            in_part = sum(tiles - i for i in range(min(launch.arguments["band_m"], tiles)))
            factor = tiles * (tiles + 1) / 2 / in_part
            launch.arguments["sum_ptr"].fill_(1)
        elif name == "ntxent_bwd_kernel":
            grid, factor = (1, *grid[1:]), float(grid[0])
            launch.arguments["part_ptr"].fill_(1)
        else:
            grid = (min(8, grid[0]), *grid[1:])
            factor = launch.grid[0] / grid[0]
        report = simulate(launch, grid, 90, check_races=False, check_uninit=False)
        rows.append(row_of(report, name, math.prod(launch.grid), factor))

    dtype, precision = OPERANDS[operand]
    backend = TritonNtxent(run, lambda device: Target(90, H100_MULTIPROCESSORS))
    z0, z1 = torch.randn(2, n, dim).to(dtype).unbind()
    u, inv_norm = backend.normalize(z0, z1, EPS)
    _, lse_neg, s_pos = backend.fwd(u, n, 0, TEMPERATURE, None, "mean", precision)
    numbers = (0, "mean", EPS, TEMPERATURE, None, precision, False)
    backend.bwd(torch.tensor(1.0), z0, z1, u, inv_norm, lse_neg, s_pos, *numbers)
    return rows


@dataclass
class Part:
    """A module of a Program, of whose launches the first blocks run; `rows` gets what they were counted to do.

    A forward kernel's blocks may differ in their work: all of them run up to 8192 columns; beyond, the first blocks'
    counts are scaled to the fp16 products of the triangle of 128 x 128 tiles.
    """

    module: Any
    names: dict[str, str]
    rows: list[Row]
    columns: int
    dim: int

    @property
    def kernels(self) -> dict:
        return self.module.kernels

    def launch(self, kernel: str, grid: tuple[int, ...], block: Any, values: list, **options: Any) -> Any:
        """The report of the launch's first blocks; of all of a resident one, whose blocks wait for each other."""
        blocks, name = math.prod(grid), self.names[kernel]
        forward = "_fwd_" in name and "finish" not in name
        whole = "resident" in options or (forward and self.columns <= 8192)
        part = grid if whole else _first(grid, 4 if options["shared"] else 8)
        report = self.module.launch(kernel, part, block, values, check_races=False, check_uninit=False, **options)
        factor = blocks / math.prod(part)
        if forward and not whole:
            factor = self.columns * (self.columns + 128) * self.dim / report.mma_flops
        self.rows.append(row_of(report, name, blocks, factor))
        return report


def _first(grid: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    """The first blocks of a grid, of y and z too where x has not so many."""
    x, y, z = (*grid, 1, 1)[:3]
    return (min(x, blocks), 1 if x >= blocks else min(y, -(-blocks // x)), 1 if x * y >= blocks else z)


def cpp_rows(program: Program, n: int, dim: int, operand: str, at_once: bool = False) -> list[Row]:
    """Forward and backward of 2 x n views by the compiled kernels; at_once: by the op of both."""
    rows: list[Row] = []
    names = aot.readable(kernel for module in program.modules for kernel in module.kernels)
    modules, program.modules = program.modules, [Part(module, names, rows, 2 * n, dim) for module in program.modules]
    ops = NtxentLaunchers(program, H100)
    dtype, precision = OPERANDS[operand]
    z0, z1 = torch.randn(2, n, dim).to(dtype).unbind()
    how = {"eps": EPS, "temperature": TEMPERATURE, "precision": precision}
    try:
        with program.simulated(lambda: ops.tensors):
            if at_once:
                ops.fwd_bwd(z0, z1, 1 / (2 * n), **how)
                return rows
            u, inv_norm = ops.normalize(z0, z1, EPS)
            _, lse_neg, s_pos = ops.fwd(u, n, 0, TEMPERATURE, reduce=True, precision=precision)
            ops.bwd(torch.tensor(0.5), z0, z1, u, inv_norm, lse_neg, s_pos, **how)
    finally:
        program.modules = modules
    return rows


def counts() -> dict[str, Any]:
    """Of every case of COUNTED and AT_ONCE, by backend."""
    torch.manual_seed(0)
    program = sm90.program()
    cases = []
    for n, dim, operand in COUNTED:
        size = {"n": n, "d": dim, "operands": operand, "at once": False}
        cases.append({"backend": "cpp", **size, "launches": cpp_rows(program, n, dim, operand)})
        cases.append({"backend": "triton", **size, "launches": triton_rows(n, dim, operand)})
    for n, dim, operand in AT_ONCE:
        size = {"n": n, "d": dim, "operands": operand, "at once": True}
        cases.append({"backend": "cpp", **size, "launches": cpp_rows(program, n, dim, operand, True)})
    return {"cases": cases}


if __name__ == "__main__":
    (TABLES / "model_counts.json").write_text(table_text(counts()))
