"""Runs the project's CUDA launchers on a CPU by simulating the PTX that nvcc made of the kernels.

A Program compiles .cu files with nvcc for compute_80 or compute_90a and links them with recording_cudart.cpp; while
`simulated` is open, it calls a launcher and executes every kernel that it launches in ptxlab, an external PTX simulator
found through the environment variable PTXLAB or at ../shared/ptxlab beside the repository.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import cache, lru_cache
from pathlib import Path

import pytest
import torch

from proof.kept import digest, kept
from proof.simt.build import closure

ROOT = Path(__file__).parents[2]
NVCC_FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo"]


def cuda_home() -> Path | None:
    """The CUDA toolkit's root, or None."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return Path(home) if Path(home, "bin/nvcc").exists() else None


def binary_tool(name: str) -> Path | None:
    """cuobjdump or nvdisasm: the toolkit's, else the Triton package's."""
    import triton

    shipped = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    home = cuda_home()
    candidates = [home / "bin" / name] if home else []
    return next((path for path in [*candidates, shipped] if path.exists()), None)


def load_ptxlab():
    """The ptxlab module, or None where it is not installed."""
    folder = Path(os.environ.get("PTXLAB") or ROOT.parent / "shared/ptxlab")
    if not (folder / "ptxlab.py").exists():
        return None
    sys.path.insert(0, str(folder))
    os.environ.setdefault("CUDA_HOME", str(cuda_home()))
    import ptxlab

    return ptxlab


# Marks of a test that compiles kernels with nvcc and executes them. Its file says pytest.mark.proof itself: without
# these words `pytest -m proof` does not look into it (tests/conftest.py).
NEEDS_SIMULATOR = [
    pytest.mark.skipif(load_ptxlab() is None, reason="needs ptxlab (at ../shared/ptxlab, or named by PTXLAB)"),
    pytest.mark.skipif(cuda_home() is None, reason="needs a CUDA toolkit (CUDA_HOME)"),
]


def run(command: Iterable[object], errors: bool = False) -> str:
    """The command's output, with `errors` its error output instead; raises with both where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stderr if errors else done.stdout


@cache
def toolkit() -> str:
    """The version of nvcc, which decides every number of the tables."""
    return re.search(r"V([\d.]+)", run([cuda_home() / "bin/nvcc", "--version"]))[1]


def made_of(source: Path, *how: object) -> str:
    """What stands for a file, what it includes, nvcc and its flags, and `how` else it is compiled."""
    files = closure([str(source.relative_to(ROOT))], {})
    return digest(sorted(files.items()), NVCC_FLAGS, toolkit(), *how)


def _cxx(*arguments: object) -> None:
    include = [f"-I{ROOT}/csrc", f"-I{cuda_home()}/include"]
    run([os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-fPIC", *include, *arguments])


def _defines(arch: str) -> list[str]:
    """The launchers know Hopper's own kernels where this macro is given, as setup.py gives it."""
    return ["-DSIMCLR_SM90A"] if arch == "90a" else []


def _object(source: Path, arch: str) -> Path:
    """The file compiled, by nvcc for compute_`arch` if it is CUDA; from build/ptx where nothing has changed.

    What the compiler does for the host's part is left at little: launchers take a moment, and mutants are many.
    """
    defines = _defines(arch)

    def make(made: Path) -> None:
        if source.suffix == ".cpp":
            _cxx("-c", source, "-o", made)
        else:
            target = ["-gencode", f"arch=compute_{arch},code=compute_{arch}", "-Xcompiler", "-fPIC,-O0", *defines]
            run([cuda_home() / "bin/nvcc", *NVCC_FLAGS, *target, "-c", source, "-o", made])

    return kept(ROOT / "build/ptx" / f"{source.stem}-{made_of(source, arch, defines)}.o", make)


def _ptx(made: Path) -> str:
    """The PTX in a compiled .cu file, "" where it has no kernel."""
    text = run([binary_tool("cuobjdump"), "-ptx", made])
    return text[text.index(".version") :] if ".version" in text else ""


# What nvcc calls an anonymous namespace, by the contents of the file.
_ANONYMOUS = re.compile(r"_GLOBAL__N__[0-9a-f]{8}_\d+_\w+?_cu_[0-9a-f]{8}")


def _ptx_named_as(original: str, source: Path, arch: str) -> str:
    """The PTX of a changed copy of a .cu file, whose kernels are named as in the PTX of the original."""

    def make(made: Path) -> None:
        target = [f"-arch=compute_{arch}", *_defines(arch)]
        run([cuda_home() / "bin/nvcc", *NVCC_FLAGS, *target, "-ptx", source, "-o", made])

    text = kept(ROOT / "build/ptx" / f"{source.stem}-{made_of(source, arch)}.ptx", make).read_text()
    (old,), (new,) = ({*_ANONYMOUS.findall(ptx)} for ptx in (text, original))
    return text[text.index(".version") :].replace(old, new)


def ptx_of(source: Path, arch: str) -> str:
    """What a Program of this file and architecture executes, "" where it has no kernel."""
    return _ptx(_object(source, arch))


def _load(text: str):
    """PTX as a ptxlab module. A grid's barrier finds what the driver gives it: a counter's address in two registers."""
    for register, shift in ((2, 0), (1, 32)):
        half = rf"{{.reg .b64 %at; mov.u64 %at, grid_counter; shr.b64 %at, %at, {shift}; cvt.u32.u64 \1, %at;}}"
        text = re.sub(rf"mov\.u32 (%r\d+), %envreg{register};", half, text)
    if "grid_counter" in text:
        text = text.replace(".address_size 64\n", ".address_size 64\n.global .align 8 .b64 grid_counter;\n", 1)
    return load_ptxlab().Module(text)


@lru_cache(maxsize=64)  # programs share most of their files, mutants all but one
def _module(made: Path):
    """The kernels of a compiled .cu file as a ptxlab module, None where it has none."""
    text = _ptx(made)
    return _load(text) if text else None


def _cluster_of(module, kernel: str) -> tuple[int, ...]:
    """Blocks of one of the kernel's clusters in the three directions; 1, 1, 1 where it has none."""
    head = re.search(rf"\.entry {kernel}\(.*?\n{{", module.ptx, re.DOTALL)[0]
    found = re.search(r"\.reqnctapercluster (\d+), (\d+), (\d+)", head)
    return tuple(map(int, found.groups())) if found else (1, 1, 1)


def _from_block(module, first: tuple[int, ...], grid: tuple[int, ...]):
    """The module, whose kernels take their blocks to begin at block `first` of a grid of so many."""

    def number(found: re.Match) -> str:
        return f"add.u32{found[1]}, %ctaid.{found[2]}, {first['xyz'.index(found[2])]};"

    text, count = re.subn(r"mov\.u32(\s+%r\d+), %ctaid\.([xyz]);", number, module.ptx)
    if count != len(re.findall(r"%ctaid\.", module.ptx)):
        raise ValueError("%ctaid is read by another instruction than mov.u32")
    return _load(re.sub(r"%nctaid\.([xyz])", lambda found: str(grid["xyz".index(found[1])]), text))


class Program:
    """Launchers as a ctypes library, and the kernels they launch as ptxlab modules.

    Args:
        sources: .cu files, compiled by nvcc, and .cpp files with plain C entry points.
        arch: "80" (compute_80), or "90a" with Hopper's kernels, which launchers take on a device of capability 90.
    """

    def __init__(self, sources: Iterable[Path], arch: str = "80"):
        sources = list(sources)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: _object(source, arch), sources))
        self._arch = arch
        self._objects = {source: made for source, made in zip(sources, objects) if source.suffix == ".cu"}
        self.modules = [module for module in map(_module, self._objects.values()) if module]
        runtime = _object(ROOT / "proof/generated/recording_cudart.cpp", arch)
        # -Bsymbolic: the launchers call this runtime, not the libcudart that torch has loaded.
        shared = kept(
            ROOT / "build/ptx" / f"launchers-{digest(objects, runtime)}.so",
            lambda made: _cxx("-shared", "-Wl,-Bsymbolic", "-o", made, *objects, runtime),
        )
        self.library = ctypes.CDLL(str(shared))

    def with_kernels(self, source: Path, changed: Path) -> "Program":
        """The same launchers; the kernels are those of a changed copy of a source in the place of its own."""
        text = _ptx_named_as(_ptx(self._objects[source]), changed, self._arch)
        others = (_module(made) for of, made in self._objects.items() if of != source)
        made = copy(self)
        made.modules = [_load(text), *(module for module in others if module)]
        return made

    def call(self, launcher: str, *args: object) -> None:
        """Calls an extern "C" launcher that returns a cudaError_t, while `simulated` is open."""
        if status := getattr(self.library, launcher)(*map(_argument, args)):
            raise RuntimeError(f"{launcher} returned cudaError {status}")

    def value(self, function: str, *args: object) -> int:
        """Calls an extern "C" function that launches nothing and returns an int64."""
        f = getattr(self.library, function)
        f.restype = ctypes.c_int64
        return f(*map(_argument, args))

    @contextmanager
    def simulated(
        self, tensors: Callable[[], list[torch.Tensor]], *, last_block_only: bool = False, **options: object
    ) -> Iterator[list]:
        """While open, launches run in ptxlab; yields the list that their reports are appended to.

        `tensors` returns every tensor that the launcher's pointers reach. last_block_only: of every launch the last
        block, or cluster, alone runs. `options` go to ptxlab's launch.
        """
        reports, errors = [], []

        def launched(name: bytes, grid, block, shared_bytes: int, arguments, resident: int) -> int:
            kernel = name.decode()
            try:
                module = next(module for module in self.modules if kernel in module.kernels)
                sizes = [parameter["size"] for parameter in module.kernels[kernel]["params"]]
                values = [ctypes.string_at(arguments[i], size) for i, size in enumerate(sizes)]
                launch = {"shared": shared_bytes, "extra_buffers": tensors(), **options}
                blocks = tuple(grid[:3])
                if last_block_only:
                    alone = _cluster_of(module, kernel)
                    module = _from_block(module, tuple(g - a for g, a in zip(blocks, alone)), blocks)
                    blocks = alone
                if resident:  # all blocks at once, which one host thread runs
                    launch |= {"resident": grid[0] * grid[1] * grid[2], "threads": 1}
                reports.append(module.launch(kernel, blocks, tuple(block[:3]), values, **launch))
            except Exception as error:  # ctypes would print it and go on
                errors.append(error)
            return 0

        unsigned = ctypes.POINTER(ctypes.c_uint)
        arguments = ctypes.POINTER(ctypes.c_void_p)
        callback = ctypes.CFUNCTYPE(
            *(ctypes.c_int, ctypes.c_char_p, unsigned, unsigned, ctypes.c_size_t, arguments, ctypes.c_int)
        )(launched)
        self.library.simclr_set_launched(callback)
        yield reports
        if errors:
            raise errors[0]


def _argument(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else value
