"""Ranks tile configurations of the Triton NT-Xent kernels by time on the device, for simclr_fast's triton_tiles.py.

Candidates are compiled first, side by side, by processes that need no device, into Triton's cache on disk; then each is
compared with the configuration of the table, timed, and ranked.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

from benchmarks.harness import in_a_line
from simclr_fast.ops.ntxent import triton_tiles
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_tiles import Target, Tiles, target_of
from simclr_fast.triton_launch import Launch
from tools.gpu.bench import Bench

TEMPERATURE = 0.1
SHARED_BYTES = 227 * 1024  # of one program, at most, on sm_90 and sm_100
TILE_KERNELS = {"forward": "ntxent_fwd_kernel", "backward": "ntxent_bwd_kernel"}
COMPILE_SECONDS = 100.0


@dataclass(frozen=True)
class Shape:
    """What a configuration is chosen for."""

    n: int
    d: int
    dtype: torch.dtype
    precision: str
    operand: str  # its name in the table

    def __str__(self) -> str:
        return f"N={self.n} D={self.d} {self.operand}"


SHAPES = (  # most important first
    Shape(4096, 128, torch.float16, "ieee", "fp16"),
    Shape(4096, 512, torch.float16, "ieee", "fp16"),
    Shape(4096, 128, torch.float32, "ieee", "ieee"),
    Shape(4096, 128, torch.float32, "tf32", "tf32"),
)


def fits(tiles: Tiles, d: int, element: int, backward: bool) -> bool:
    """Whether the tiles' accumulators fit into registers and their buffers into shared memory, roughly."""
    threads = 32 * tiles.num_warps
    accumulators = tiles.block_m * (tiles.block_n + (min(d, tiles.owned_d) if backward else 0))
    chunk = tiles.block_d * element
    shared = tiles.num_stages * tiles.block_n * chunk
    shared += tiles.block_m * (d * element if tiles.holds_rows else tiles.num_stages * chunk)
    return accumulators / threads <= 192 and shared <= SHARED_BYTES and tiles.block_m * tiles.block_n >= 16 * threads


def candidates(shape: Shape, way: str, dry: bool) -> list[Tiles]:
    """Configurations to try for "forward" or "backward"."""
    if dry:
        return [Tiles(64, 64, 32, 4, 2)]
    element = 4 if shape.operand == "ieee" else 2  # bytes of a column that are multiplied
    depths = [depth for depth in (32, 64, 128) if depth * element >= 128]
    found = []
    if way == "forward":
        for side, depth, warps, stages in itertools.product((64, 128, 256), depths, (4, 8), (2, 3)):
            found += [Tiles(side, side, depth, warps, stages, holds) for holds in (True, False)[shape.d > 256 :]]
    else:
        for m, n, depth, warps, stages in itertools.product((64, 128), (32, 64, 128), depths, (4, 8), (2, 3)):
            for owned in (256, 512)[: 2 if shape.d > 256 else 1]:  # rows are held by those who own all columns
                holding = (True, False) if shape.d <= owned else (False,)
                found += [Tiles(m, n, depth, warps, stages, holds, owned) for holds in holding]
    return [tiles for tiles in found if fits(tiles, shape.d, element, way == "backward")]


def with_tiles(way: str, tiles: Tiles, run: Callable[[], object]) -> object:
    """run() with these tiles in the place of those of the table."""
    with mock.patch.object(triton_tiles, f"{way}_tiles", return_value=tiles):
        return run()


def tiles_of_table(way: str, shape: Shape, target: Target) -> Tiles:
    """What the table holds for this shape; nothing is launched."""
    table = getattr(triton_tiles, f"{way}_tiles")
    with mock.patch.object(triton_tiles, f"{way}_tiles", wraps=table) as asked:
        backend = TritonNtxent(lambda launch: None, lambda device: target)
        calls(backend, shape, torch.device("cpu"))[way](backend)
    return table(*asked.call_args.args, **asked.call_args.kwargs)


Call = Callable[[TritonNtxent], tuple[Tensor, ...]]


def calls(backend: TritonNtxent, shape: Shape, device: torch.device) -> dict[str, Call]:
    """{"forward": the op's call, "backward": the op's call} by any backend, on fresh inputs that this one makes.

    A backend keeps the tiles that it has planned with, so that every configuration needs one of its own.
    """
    n = shape.n
    generator = torch.Generator().manual_seed(0)
    z0, z1 = torch.randn(2, n, shape.d, generator=generator).to(device, shape.dtype)
    u, inv_norm = backend.normalize(z0, z1, 1e-8)
    forward = lambda by: by.fwd(u, n, 0, TEMPERATURE, None, "mean", shape.precision)
    _, *statistics = forward(backend)
    saved = (torch.ones((), device=device), z0, z1, u, inv_norm, *statistics)
    backward = lambda by: by.bwd(*saved, 0, "mean", 1e-8, TEMPERATURE, None, shape.precision, False)
    return {"forward": forward, "backward": backward}


def kernel_options(launch: Launch) -> dict[str, object]:
    """What Triton takes of a launch by name."""
    return {**launch.arguments, **launch.constants, **launch.how}


def compile_only(shape: Shape, way: str, tiles: Tiles, target: Target, capability: int) -> str | None:
    """Compiles one candidate into Triton's cache, without a device; what went wrong, if anything did."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    card = GPUTarget("cuda", capability, 32)
    absent = {"get_current_target": lambda: card, "get_current_device": lambda: 0}
    driver.set_active(SimpleNamespace(**absent, get_current_stream=lambda device: 0))

    def compile_launch(launch: Launch) -> None:
        if launch.kernel.__name__ == TILE_KERNELS[way]:
            launch.kernel.warmup(grid=launch.grid, **kernel_options(launch))

    prepare, candidate = (TritonNtxent(run, lambda device: target) for run in (lambda launch: None, compile_launch))
    call = calls(prepare, shape, torch.device("cpu"))[way]
    try:
        with_tiles(way, tiles, partial(call, candidate))
    except Exception as error:  # a candidate that cannot be compiled is a finding
        return in_a_line(error)[:160]
    return None


def compile_all(
    bench: Bench, work: list[tuple[Shape, str, Tiles]], target: Target, capability: int
) -> list[str | None]:
    """Compiles the candidates side by side; for each None, or why it is not to be timed."""
    processes = 1 if bench.dry else max(1, len(os.sched_getaffinity(0)) - 1)
    until = time.monotonic() + (600 if bench.dry else min(COMPILE_SECONDS, 0.6 * bench.left()))
    messages: list[str | None] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:  # terminated at the end
        for waiting in [pool.apply_async(compile_only, (*item, target, capability)) for item in work]:
            try:
                messages.append(waiting.get(timeout=max(0.0, until - time.monotonic())))
            except multiprocessing.TimeoutError:
                messages.append("not compiled in time")
    return messages


def launch_and_note(facts: dict[str, dict]) -> Callable[[Launch], None]:
    """A way to run launches that notes what each kernel takes of a multiprocessor."""

    def run(launch: Launch) -> None:
        kernel = launch.kernel[launch.grid](**kernel_options(launch))
        taken = {"registers": kernel.n_regs, "spills": kernel.n_spills, "shared": kernel.metadata.shared}
        facts[launch.kernel.__name__] = taken

    return run


def differs(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest relative distance of the results."""
    pairs = [(a.double(), e.double()) for a, e in zip(actual, expected) if e.dim()]
    return max(((a - e).norm() / e.norm().clamp_min(1e-30)).item() for a, e in pairs)


def rank(bench: Bench, shape: Shape, way: str, work: list[tuple[Tiles, str | None]], table: Tiles) -> list[dict]:
    """Times of the candidates, the fastest first; the table's own is among them."""
    facts: dict[str, dict] = {}
    of_table = TritonNtxent(launch_and_note(facts))
    call = calls(of_table, shape, bench.device.torch)[way]
    expected = call(of_table)
    rows = []
    for tiles, message in [(table, None), *((tiles, why) for tiles, why in work if tiles != table)]:
        row: dict = {"tiles": repr(tiles), "in the table": tiles == table}
        rows.append(row)
        if message or bench.left() < 3:
            row["failed"] = message or "no time left"
            continue
        with bench.guarded(row, f"{way} {shape} {tiles}"):
            candidate = partial(call, TritonNtxent(launch_and_note(facts)))
            actual = with_tiles(way, tiles, candidate)
            row["distance"] = differs(actual, expected)
            row |= facts[TILE_KERNELS[way]]
            row["ms"] = with_tiles(way, tiles, partial(bench.device.timed, candidate, 0.03)).ms
    return sorted(rows, key=lambda row: row.get("ms", float("inf")))


def run(bench: Bench) -> None:
    """found["tune"]: {"N=... D=... operand, forward": rows}."""
    found = bench.found.setdefault("tune", {})
    major, minor = (9, 0) if bench.dry else torch.cuda.get_device_capability()
    target, capability = Target(90, 132) if bench.dry else target_of(bench.device.torch), 10 * major + minor
    shapes = [Shape(64, 32, torch.float16, "ieee", "fp16")] if bench.dry else SHAPES
    pairs = list(itertools.product(shapes, TILE_KERNELS))
    work = [(shape, way, tiles) for shape, way in pairs for tiles in candidates(shape, way, bench.dry)]
    bench.say(f"tune: {len(work)} candidates")
    messages = compile_all(bench, work, target, capability)
    bench.say(f"tune: {sum(message is None for message in messages)} of them compiled")
    for shape, way in pairs:
        own = [(tiles, message) for (*of, tiles), message in zip(work, messages) if of == [shape, way]]
        table = tiles_of_table(way, shape, target)
        if bench.dry:  # without a device, what was compiled
            rows = [{"tiles": repr(tiles), **({"failed": message} if message else {})} for tiles, message in own]
        else:
            rows = rank(bench, shape, way, own, table)
        found[f"{shape}, {way}"] = rows
        bench.save()
        for row in rows[:5]:
            bench.say(f"tune: {shape} {way}: {row}")
