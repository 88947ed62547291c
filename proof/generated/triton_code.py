"""The machine code of a Triton launch: compiled ahead of time for any architecture, and run by ptxlab on the CPU.

Compiling all that the tables hold takes minutes. So a row notes what it was made of: that it would come out the same is
told without compiling.

ptxlab is a PTX simulator outside the repository: found at ../shared/ptxlab, or through the environment variable PTXLAB.
"""

import ast
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITCallable

from proof.kept import digest
from simclr_fast.ops.ntxent import triton_host
from simclr_fast.triton_launch import Launch
from tools.tables import write_table

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "docs" / "tables"
REWRITE = (
    "rewrite docs/tables: python -m proof.generated.triton_tables, triton_similarity_tables, triton_augment_tables"
)
SASS_OPS = ("HMMA", "HGMMA", "UTCHMMA", "LDSM", "LDGSTS", "STL", "LDL")
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list]]:
    """(signature, constants, attributes) as Triton's launcher would derive them from the arguments."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        if name in launch.constants or launch.arguments[name] is None:
            signature[name] = "constexpr"
            constants[name] = launch.constants.get(name)
            continue
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            divisible = value.data_ptr() % 16 == 0 and not parameter.do_not_specialize_on_alignment
        elif isinstance(value, float):
            signature[name], divisible = "fp32", False
        else:
            signature[name], divisible = "i32", value % 16 == 0 and not parameter.do_not_specialize
        if divisible:
            attributes[index,] = [["tt.divisibility", 16]]
    return signature, constants, attributes


_compiled: dict[str, Any] = {}


def compile_launch(launch: Launch, arch: int):
    """The compiled kernel for sm_{arch}; needs no GPU."""
    signature, constants, attributes = specialise(launch)
    options = launch.how
    key = repr((launch.kernel.__name__, arch, signature, constants, attributes, options))
    if key not in _compiled:
        source = ASTSource(launch.kernel, signature, constants, attributes)
        _compiled[key] = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return _compiled[key]


def resources(compiled) -> dict[str, int]:
    """Registers a thread, shared bytes a program, bytes of stack and local memory, counts of key SASS instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage).groups())
    counts = {op: len(re.findall(rf"\b{op}\b", sass)) for op in SASS_OPS}
    return {"registers": registers, "shared": compiled.metadata.shared, "stack": stack, "local": local} | {
        op: count for op, count in counts.items() if count
    }


def made_of(launch: Launch, arch: int) -> str:
    """Digest of all that a launch's machine code is made of, but for the release of Triton, which a table names."""
    return digest(written_in(launch.kernel), *specialise(launch), launch.how, arch)


@cache
def written_in(kernel: JITCallable) -> dict[str, str]:
    """The code of a kernel and of the functions that it calls, without comments, and the constants that they name.

    By module and name.
    """
    found: dict[str, str] = {}
    waiting = [(f"{kernel.__module__}.{kernel.__name__}", kernel)]
    while waiting:
        name, value = waiting.pop()
        if name in found or value in (triton, triton.language):
            continue
        if isinstance(value, JITCallable):
            tree, known = value.parse(), value.__globals__
            found[name] = ast.unparse(tree)
            named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            waiting += [(f"{value.__module__}.{other}", known[other]) for other in named & known.keys()]
        else:
            found[name] = str(getattr(value, "_fields", value))
    return dict(sorted(found.items()))


LaunchesOf = Callable[[Any], dict[str, tuple[Launch, int]]]  # a table's rows of a key, each a launch and architecture


def _compiled_rows(launches_of: LaunchesOf, key: Any) -> dict[str, dict[str, Any]]:
    return {
        name: resources(compile_launch(launch, arch)) | {"made_of": made_of(launch, arch)}
        for name, (launch, arch) in launches_of(key).items()
    }


def compile_in_processes(launches_of: LaunchesOf, keys: list[Any]) -> dict[str, Any]:
    """The table of the resources of all launches of the keys, compiled in two processes of their own."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = {
            name: row for part in pool.map(partial(_compiled_rows, launches_of), keys) for name, row in part.items()
        }
    return {"triton": triton.__version__, "kernels": rows}


def check_digests(launches_of: LaunchesOf, keys: list[Any], table: dict[str, Any]) -> None:
    """Asserts that a committed table has the rows of these keys and no others, each made of what the code is now.

    So they are what compilation would give; of another release of Triton the names alone are compared.
    """
    found = {name: made_of(*launched) for key in keys for name, launched in launches_of(key).items()}
    assert found.keys() == table["kernels"].keys(), REWRITE
    if is_of_this_release(table):
        assert found == {name: row["made_of"] for name, row in table["kernels"].items()}, REWRITE


def committed_table(name: str) -> dict[str, Any]:
    """docs/tables/NAME.json."""
    return json.loads((TABLES / f"{name}.json").read_text())


def rewrite_tables(name: str, makers: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]]) -> None:
    """Writes docs/tables/KIND_NAME.{json,md} for each kind on the command line, or all of `makers`.

    makers: by kind, what makes the table, and what makes Markdown of it.
    """
    for kind in sys.argv[1:] or makers:
        make, markdown = makers[kind]
        table = make()
        write_table(TABLES / f"{kind}_{name}.json", table, markdown(table))


def is_of_this_release(table: dict[str, Any]) -> bool:
    """Whether a committed table is of the Triton that is installed."""
    return table["triton"] == triton.__version__


def compare_with_committed(rows: Any, expected: Any, table: dict[str, Any]) -> None:
    """Asserts that the rows are those of a committed table, if the installed Triton is the one that the table is of.

    Other releases emit other code: of theirs, the callers' bounds say what is right.
    """
    if is_of_this_release(table):
        assert rows == expected, REWRITE


@cache
def ptxlab() -> ModuleType | None:
    """The simulator, or None where it is not installed."""
    folder = Path(os.environ.get("PTXLAB", ROOT.parent / "shared" / "ptxlab"))
    if not (folder / "ptxlab.py").exists():
        return None
    sys.path.insert(0, str(folder))
    try:
        import ptxlab
    finally:
        sys.path.remove(str(folder))
    return ptxlab


@contextmanager
def scratch_apart() -> Iterator[None]:
    """Every scratch buffer of the loss is an allocation of its own, so that ptxlab finds an access beyond it."""

    def scratch(like: torch.Tensor, plan: triton_host.ScratchSizes) -> tuple[torch.Tensor, ...]:
        return tuple(like.new_empty(size, dtype=torch.float32) for size in plan.sizes)

    with mock.patch.object(triton_host, "scratch", scratch):
        yield


_modules: dict[int, Any] = {}


def simulate(launch: Launch, grid: tuple[int, ...] | None = None, arch: int = 80, **options):
    """Run the code of a launch for sm_{arch} in ptxlab, on the launch's own CPU tensors; its report.

    grid: a part of the launch's grid, to count what some of its programs do.
    """
    compiled = compile_launch(launch, arch)
    if id(compiled) not in _modules:
        _modules[id(compiled)] = ptxlab().Module(compiled.asm["ptx"])
    module = _modules[id(compiled)]
    name = module.find(compiled.metadata.name)
    values = [launch.arguments.get(parameter.name) for parameter in launch.kernel.params]
    arguments = [value for value in values if value is not None]
    arguments += [None] * (len(module.kernels[name]["params"]) - len(arguments))  # Triton's scratch pointers: unused
    options.setdefault("shared", compiled.metadata.shared)
    return module.launch(name, grid or launch.grid, 32 * launch.how["num_warps"], arguments, threads=2, **options)
