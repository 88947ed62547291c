"""What ptxas made of every CUDA kernel for every architecture: read from the extension, or compiled ahead of time.

`python -m proof.generated.aot` writes docs/tables/aot_cuda.json and .md; test_aot_cuda.py compares them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from proof.generated.ptx import NVCC_FLAGS, ROOT, binary_tool, cuda_home, made_of, ptx_of, run, toolkit
from proof.kept import kept
from tools.tables import write_table

# Hopper's is the one with wgmma, for which setup.py compiles 9.0.
HOPPER = "sm_90a"
ARCHS = ("sm_80", HOPPER, "sm_100")
SOURCES = tuple(sorted((ROOT / "csrc/cuda").glob("*.cu")))
TABLE = ROOT / "docs/tables/aot_cuda.json"
# SASS instructions worth knowing, by what they do.
INSTRUCTIONS = {
    "HMMA": "tensor core product",
    "HGMMA": "warpgroup product",
    "LDSM": "ldmatrix",
    "LDGSTS": "cp.async",
    "MUFU": "special function",
    "FFMA": "fp32 multiply-add",
    "DFMA": "fp64 multiply-add",
    "BAR": "barrier",
    "LDL": "local memory load",
    "STL": "local memory store",
}
Row = dict[str, str | int | dict[str, int]]


def readable(mangled: Iterable[str]) -> dict[str, str]:
    """Kernel names as the sources write them, without namespaces and parameters."""
    mangled = list(mangled)
    plain = run(["c++filt", "-p", *mangled]).split("\n")
    short = (re.sub(r"simclr::cuda::|\(anonymous namespace\)::|^void ", "", name) for name in plain)
    return dict(zip(mangled, (re.sub(r"\((?:int|bool)\)", "", name) for name in short)))


def kernels_in(binary: Path) -> list[Row]:
    """One row per kernel and architecture that a fatbin, an object or a shared library has code for."""
    rows: dict[tuple[str, str], Row] = {}
    for arch, part in _by_architecture(run([binary_tool("cuobjdump"), "-res-usage", binary])):
        for name, *numbers in re.findall(r"Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", part):
            registers, stack, shared, local = map(int, numbers)
            # From sm_90 on, 1 KiB of what a kernel with shared memory takes is CUDA's own.
            reserved = 1024 if shared and arch in (HOPPER, "sm_100") else 0
            usage = {"registers": registers, "static_shared_bytes": shared - reserved, "stack_bytes": stack}
            rows[name, arch] = {"arch": arch, **usage, "local_bytes": local}
    for arch, part in _by_architecture(run([binary_tool("cuobjdump"), "-sass", binary])):
        for function in part.split("Function : ")[1:]:
            name = function.split("\n", 1)[0].strip()
            used = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\w+)", function, re.MULTILINE)
            rows[name, arch]["sass"] = {kind: used.count(kind) for kind in INSTRUCTIONS if used.count(kind)}
    names = readable({name for name, _ in rows}) if rows else {}
    return [{"kernel": names[name], **row} for (name, arch), row in rows.items() if arch in archs_of(names[name])]


def archs_of(kernel: str) -> tuple[str, ...]:
    """The architectures that a kernel is for; elsewhere it is empty, and never launched."""
    return (HOPPER,) if "_sm90_kernel" in kernel else ARCHS


def _by_architecture(text: str) -> Iterator[tuple[str, str]]:
    """The parts of cuobjdump's output, each with the architecture that it is about."""
    parts = re.split(r"^Fatbin elf code:\n", text, flags=re.MULTILINE)[1:]
    return ((re.search(r"^arch = (\w+)", part, re.MULTILINE)[1], part) for part in parts)


def shipped() -> Path | None:
    """The package's extension, where it was built of these sources for exactly these architectures; else None."""
    extension = next(ROOT.glob("simclr_fast/_C.*.so"), None)
    if extension is None:
        return None
    made_of_files = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.*")]
    if max(path.stat().st_mtime for path in made_of_files) > extension.stat().st_mtime:
        return None
    found = set(re.findall(r"(\w+\.sm_\w+)\.cubin", run([binary_tool("cuobjdump"), "-lelf", extension])))
    return extension if found == {f"{source.stem}.{arch}" for source in SOURCES for arch in ARCHS} else None


def check_products(source: Path, said: str) -> None:
    """RuntimeError where ptxas `said` that wgmma, which it cannot follow from its start to its wait, is waited for at
    once: right, but slow.
    """
    if "wgmma" in said and "serialized" in said:
        raise RuntimeError(f"{source.name}: ptxas serialises products\n{said}")


def assemble(source: Path) -> None:
    """Hears what ptxas says of Hopper's kernels in a file, of the PTX that proofs execute. RuntimeError as above."""

    def make(made: Path) -> None:
        ptx = made.with_suffix(".ptx")
        ptx.write_text(ptx_of(source, "90a"))
        command = [cuda_home() / "bin/ptxas", f"-arch={HOPPER}", ptx, "-o", made.with_suffix(".cubin")]
        made.write_text(run(command, errors=True))

    path = ROOT / "build/aot" / f"{source.stem}-{made_of(source, HOPPER, Path(__file__).read_text())}.said.txt"
    check_products(source, kept(path, make).read_text())


def compiled(source: Path, archs: tuple[str, ...]) -> list[Row]:
    """The kernels of a file, from build/aot where the file, what it includes, the flags and nvcc are unchanged."""

    def make(made: Path) -> None:
        fatbin = made.with_suffix(".fatbin")
        targets = [f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}" for arch in archs]
        defines = ["-DSIMCLR_SM90A"] if HOPPER in archs else []
        command = [cuda_home() / "bin/nvcc", *NVCC_FLAGS, *defines, *targets, "-fatbin", source, "-o", fatbin]
        check_products(source, run(command, errors=True))
        made.write_text(json.dumps(kernels_in(fatbin)))

    path = ROOT / "build/aot" / f"{source.stem}-{made_of(source, archs, Path(__file__).read_text())}.json"
    return json.loads(kept(path, make).read_text())


def compile_all(sources: Iterable[Path] = SOURCES, archs: tuple[str, ...] = ARCHS, workers: int = 2) -> list[Row]:
    """The rows of all files and architectures, sorted."""
    with ThreadPoolExecutor(workers) as pool:
        rows = [row for made in pool.map(lambda source: compiled(source, archs), sources) for row in made]
    return in_order(rows)


def in_order(rows: list[Row]) -> list[Row]:
    """Rows as the table has them: by kernel, then by architecture."""
    return sorted(rows, key=lambda row: (row["kernel"], ARCHS.index(row["arch"])))


def render(table: dict) -> str:
    """The table in Markdown: one line per kernel, architectures side by side."""
    lines = [
        "<!-- Generated by `python -m proof.generated.aot`; do not edit. -->",
        "# CUDA kernels, compiled ahead of time",
        "",
        f"nvcc {table['nvcc']}, `{' '.join(NVCC_FLAGS)}`. Registers per thread for {', '.join(ARCHS)}; stack in",
        "bytes (spilled registers are in it), the most of all architectures; SASS counts the instructions for",
        f"{HOPPER}.",
        "",
        "| kernel | registers | static shared | stack | SASS |",
        "|---|---|---|---|---|",
    ]
    by_kernel: dict[str, list[Row]] = {}
    for row in table["kernels"]:
        by_kernel.setdefault(row["kernel"], []).append(row)
    for kernel, rows in by_kernel.items():
        registers = " ".join(str(row["registers"]) for row in rows)
        sass = next(row["sass"] for row in rows if row["arch"] == HOPPER)
        stack, shared = max(row["stack_bytes"] for row in rows), rows[0]["static_shared_bytes"]
        counts = ", ".join(f"{kind} {count}" for kind, count in sass.items())
        lines.append(f"| `{kernel}` | {registers} | {shared} | {stack} | {counts} |")
    meanings = ", ".join(f"{kind}: {meaning}" for kind, meaning in INSTRUCTIONS.items())
    return "\n".join([*lines, "", f"{meanings}.", ""])


def main() -> None:
    extension = shipped()
    rows = in_order(kernels_in(extension)) if extension else compile_all()
    table = {"nvcc": toolkit(), "kernels": rows}
    write_table(TABLE, table, render(table))
    print(f"wrote {TABLE.relative_to(ROOT)}: {len(table['kernels'])} kernels x architectures")


if __name__ == "__main__":
    main()
