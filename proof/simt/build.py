"""Compiles CUDA kernel files with g++ and the runtime beside this file into a shared library for the CPU."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from proof.kept import digest, kept

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = Path(__file__).resolve().parent / "runtime"
OUT = ROOT / "build" / "simt"
CXX = os.environ.get("CXX", "g++")


class BuildError(RuntimeError):
    """A kernel file that could not be rewritten or compiled."""


@dataclass(frozen=True)
class Flavour:
    """One way to build: flags for the kernels, and what the runtime (never instrumented) is told."""

    name: str
    kernel_flags: tuple[str, ...]
    runtime_flags: tuple[str, ...] = ()


# Sanitizers name the lines of what they find: -g1 is enough for that, and compiles faster than what debuggers want.
FLAVOURS = {
    f.name: f
    for f in (
        # An int that overflows wraps, instead of being made an int64 by an optimiser that takes it for impossible.
        Flavour("plain", ("-O2", "-fwrapv")),
        # The one source of a mutant: compiled ninety times, and run for a moment.
        Flavour("defect", ("-O1", "-fwrapv")),
        Flavour(
            "asan",
            (
                "-O1",
                "-g1",
                "-fsanitize=address,undefined",
                "-fno-sanitize-recover=undefined",
                "-fno-omit-frame-pointer",
            ),
            ("-DSIMT_ASAN",),
        ),
        Flavour("tsan", ("-O1", "-g1", "-fsanitize=thread"), ("-DSIMT_TSAN",)),
    )
}
# Kernels read registers through pointers of other types, which nvcc lets them. The runtime must not turn its copies
# into library calls that the sanitizers intercept and take for the kernel's.
COMMON_FLAGS = ("-std=c++17", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-fno-strict-aliasing")
RUNTIME_FLAGS = ("-O2", "-fno-tree-loop-distribute-patterns")


@functools.cache
def cuda_include() -> Path:
    """The folder of the CUDA headers: CUDA_HOME, the toolkit of nvcc on PATH, or those in the environment."""
    candidates = []
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        candidates.append(Path(home) / "include")
    if nvcc := shutil.which("nvcc"):
        plan = _run([nvcc, "--dryrun", "-x", "cu", os.devnull]).stderr
        if where := re.search(r"_HERE_=(\S+)", plan):
            candidates.append(Path(where[1]).parent / "include")
    import torch

    packages = Path(torch.__file__).parents[1]
    candidates += [*sorted(packages.glob("nvidia/*/include")), packages / "triton/backends/nvidia/include"]
    for folder in candidates:
        if all((folder / header).exists() for header in ("cuda_runtime.h", "cuda_fp16.h", "crt/host_defines.h")):
            return folder
    raise BuildError(f"no CUDA headers found in {[str(c) for c in candidates]}; set CUDA_HOME")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a tool without the sanitizer that this process may have been started under."""
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(command, capture_output=True, text=True, env=env)


# ---- Rewriting. `__shared__` is the one CUDA construct that no macro can give a meaning on the host:
#   __shared__ float tile[32][33];          -> a reference to the block's variable, made by the first thread to pass
#   extern __shared__ unsigned char raw[];  -> a pointer to the launch's dynamic shared memory
# The text stays on its lines, so that reports name the lines of the original.

_ALIGN = r"(?:__align__|alignas)\s*\(([^()]*)\)"
_SHARED = re.compile(
    rf"(?P<extern>\bextern\s+)?(?:\bstatic\s+)?(?:{_ALIGN}\s*)?\b__shared__\s+(?:{_ALIGN}\s*)?"
    r"(?P<type>[^;{}()=]*?[\w>])\s+(?P<name>\w+)\s*(?P<dims>(?:\[[^\]]*\]\s*)*);"
)
_IGNORED = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def rewrite_shared(text: str, path: str) -> str:
    """The source with its __shared__ declarations turned into calls of the runtime."""
    blank = _IGNORED.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)  # same offsets, no comments or strings
    pieces, end = [], 0
    for found in _SHARED.finditer(blank):
        name, kind, dims = (" ".join(found[part].split()) for part in ("name", "type", "dims"))
        alignment = found[2] or found[3] or "1"
        if "," in re.sub(r"<.*>", "", kind):
            break  # several variables in one declaration: reported below
        if found["extern"]:
            new = f"{kind}* {name} = ::simt::shared_array<{kind}>({alignment});"
        else:
            key = "[] { static char key; return static_cast<const void*>(&key); }()"
            new = (
                f"using simt_type_of_{name} = {kind}{dims}; "
                f"auto& {name} = ::simt::shared_variable<simt_type_of_{name}>({key}, {alignment});"
            )
        pieces += [text[end : found.start()], new, "\n" * found[0].count("\n")]
        blank = blank[: found.start()] + re.sub(r"[^\n]", " ", found[0]) + blank[found.end() :]
        end = found.end()
    if left := re.search(r"\b__shared__\b", blank):
        line = blank.count("\n", 0, left.start()) + 1
        raise BuildError(f"{path}:{line}: write one variable per __shared__ declaration, without an initialiser")
    return "".join([*pieces, text[end:]])


_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_INCLUDE_FOLDERS = ("csrc/cuda", "csrc")


def closure(sources: Iterable[str], replaced: Mapping[str, str]) -> dict[str, str]:
    """The text of the sources and of every project file they include, by path from the root of the repository."""
    files: dict[str, str] = {}
    waiting = list(sources)
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files[path] = replaced[path] if path in replaced else (ROOT / path).read_text()
        for name in _INCLUDE.findall(files[path]):
            for folder in (os.path.dirname(path), *_INCLUDE_FOLDERS):
                candidate = os.path.normpath(os.path.join(folder, name))
                if (ROOT / candidate).is_file():
                    waiting.append(candidate)
                    break
    return files


def _compile(command: list[str]) -> None:
    run = _run(command)
    if run.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{run.stderr}")


@functools.cache
def _runtime_files() -> dict[str, str]:
    return {str(p.relative_to(RUNTIME)): p.read_text() for p in sorted(RUNTIME.rglob("*.*")) if p.is_file()}


def _runtime_objects(flavour: Flavour, pool: ThreadPoolExecutor) -> list[Path]:
    """The runtime's objects, compiled without the sanitizers: only what kernels do is to be watched."""
    flags = [*COMMON_FLAGS, *RUNTIME_FLAGS, *flavour.runtime_flags, "-I", str(RUNTIME), "-I", str(cuda_include())]
    sources = sorted(RUNTIME.glob("*.cpp"))

    def make(objects: Path) -> None:
        objects.mkdir()
        commands = [[CXX, *flags, "-c", str(s), "-o", str(objects / f"{s.stem}.o")] for s in sources]
        list(pool.map(_compile, commands))

    folder = kept(OUT / f"runtime-{flavour.name}-{digest(_runtime_files(), flags, CXX)}", make)
    return [folder / f"{s.stem}.o" for s in sources]


def _prefix(flags: list[str], of: str) -> Path:
    """The header that every kernel file begins with, CUDA's and the runtime's, compiled once: most of a file's text.

    of: digest of those headers.
    """

    def make(made: Path) -> None:
        made.mkdir()
        header = made / "prefix.h"
        header.write_text('#include "simt/cuda.h"\n')
        _compile([CXX, *flags, "-x", "c++-header", str(header), "-o", f"{header}.gch"])

    return kept(OUT / f"prefix-{digest(of, flags)}", make) / "prefix.h"


def _object(source: str, flavour: Flavour, replaced: Mapping[str, str]) -> Path:
    """One kernel file compiled, from the cache where neither it nor a file that it includes has changed."""
    files, include = closure([source], replaced), cuda_include()
    flags = [*COMMON_FLAGS, *flavour.kernel_flags, f"-I{RUNTIME}", f"-isystem{include}"]
    kernel_facing = digest({path: text for path, text in _runtime_files().items() if path.startswith("simt/")}, CXX)

    def make(made: Path) -> None:
        scratch = made.parent
        for path, text in files.items():
            copy = scratch / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(f'#line 1 "{path}"\n{rewrite_shared(text, path)}')
        folders = [f"-I{scratch / folder}" for folder in _INCLUDE_FOLDERS]
        prefix = ["-include", str(_prefix(flags, kernel_facing))]
        _compile([CXX, *flags, *folders, *prefix, "-x", "c++", "-c", str(scratch / source), "-o", str(made)])

    of = digest(source, files, kernel_facing, flags)
    return kept(OUT / f"object-{flavour.name}-{of}.o", make)


def build(
    sources: Iterable[str],
    flavour: str = "plain",
    replaced: Mapping[str, str] | None = None,
    among: Iterable[str] | None = None,
    defect: tuple[str, Mapping[str, str]] | None = None,
) -> Path:
    """Compiles kernel files into one library; unchanged input is answered from the cache in build/simt.

    Args:
        sources: paths from the root of the repository (.cu, or .cpp that adds plain C entry points).
        flavour: "plain", "asan" (with UBSan) or "tsan".
        replaced: text to compile instead of a file's own, by path.
        among: the sources that are compiled with `replaced`, where not all are: those that hand on what comes of it.
        defect: (source, replaced), for the compilation of this source alone; how mutants, which are plain, are made.

    Returns:
        The path of the shared library.

    Raises:
        BuildError: with the compiler's message, or the line of a __shared__ declaration that cannot be rewritten.
    """
    how, (defective, texts) = FLAVOURS[flavour], defect or ("", {})
    sources = list(sources)
    changed = {defective, *(sources if among is None else among)} if replaced else set()

    def made_from(source: str) -> Path:
        own, flavour_of = (texts, FLAVOURS["defect"]) if source == defective else ({}, how)
        return _object(source, flavour_of, {**own, **replaced} if source in changed else own)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        runtime = _runtime_objects(how, pool)
        # Of a function that was not inlined the linker takes the first definition: the defective one, or the replaced.
        order = sorted(sources, key=lambda source: (source != defective, source not in changed, source))
        objects = [*pool.map(made_from, order), *runtime]

    def link(made: Path) -> None:
        command = [CXX, "-shared", *how.kernel_flags, "-Wl,-Bsymbolic", "-pthread", *map(str, objects)]
        if flavour == "plain":
            command.append("-Wl,--no-undefined")
        _compile([*command, "-o", str(made)])

    return kept(OUT / f"kernels-{flavour}-{digest(objects)}.so", link)
