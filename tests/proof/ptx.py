"""Runs the project's CUDA launchers on a CPU by simulating the PTX that nvcc made of the kernels.

`build` compiles .cu files with nvcc for compute_80 and links them with recording_cudart.cpp; `simulate` then calls a
launcher and executes every kernel it launches in ptxlab, an external PTX simulator found through the environment
variable PTXLAB or at ../shared/ptxlab beside the repository.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import torch

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


def run(command: Iterable[object]) -> str:
    """The command's output; raises with its error output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Program:
    """Launchers of some .cu files as a ctypes library, and their kernels as a ptxlab module each."""

    def __init__(self, sources: Iterable[Path], folder: Path):
        ptxlab = load_ptxlab()
        compile_to_ptx = [cuda_home() / "bin/nvcc", *NVCC_FLAGS, "-gencode", "arch=compute_80,code=compute_80"]
        objects, self.modules = [], []
        for source in sources:
            objects.append(folder / f"{source.stem}.o")
            run([*compile_to_ptx, "-Xcompiler", "-fPIC", "-c", source, "-o", objects[-1]])
            text = run([binary_tool("cuobjdump"), "-ptx", objects[-1]])
            self.modules.append(ptxlab.Module(text[text.index(".version") :]))
        shared, runtime = folder / "launchers.so", ROOT / "tests/proof/recording_cudart.cpp"
        # -Bsymbolic: the launchers call this runtime, not the libcudart that torch has loaded.
        link = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-fPIC", "-shared", "-Wl,-Bsymbolic"]
        run([*link, f"-I{cuda_home()}/include", "-o", shared, *objects, runtime])
        self.library = ctypes.CDLL(str(shared))

    def call(self, launcher: str, *args: object) -> None:
        """Calls an extern "C" launcher that returns a cudaError_t, while `simulated` is open."""
        if status := getattr(self.library, launcher)(*args):
            raise RuntimeError(f"{launcher} returned cudaError {status}")

    def value(self, function: str, *args: object) -> int:
        """Calls an extern "C" function that launches nothing and returns an int64."""
        f = getattr(self.library, function)
        f.restype = ctypes.c_int64
        return f(*(ctypes.c_int64(arg) if isinstance(arg, int) else arg for arg in args))

    def module_of(self, kernel: str):
        """The module that holds the kernel of this mangled name."""
        return next(module for module in self.modules if kernel in module.kernels)

    @contextmanager
    def simulated(self, tensors: Callable[[], list[torch.Tensor]], **options):
        """While open, launches run in ptxlab; yields the list their reports are appended to.

        `tensors` returns every tensor that the launcher's pointers reach; `options` go to ptxlab's launch.
        """
        reports, errors = [], []

        def launched(name, grid, block, shared_bytes, arguments):
            module = self.module_of(name.decode())
            sizes = [parameter["size"] for parameter in module.kernels[name.decode()]["params"]]
            values = [ctypes.string_at(arguments[i], size) for i, size in enumerate(sizes)]
            try:
                reports.append(
                    module.launch(name.decode(), tuple(grid[:3]), tuple(block[:3]), values, shared=shared_bytes,
                                  extra_buffers=tensors(), **options)
                )  # fmt: skip
            except Exception as error:  # ctypes would print it and go on
                errors.append(error)
            return 0

        unsigned = ctypes.POINTER(ctypes.c_uint)
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_char_p, unsigned, unsigned, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)
        )
        callback = prototype(launched)
        self.library.simclr_set_launched(callback)
        yield reports
        if errors:
            raise errors[0]
