"""Builds simclr_fast._C: C++ kernels where there is a C++17 compiler, CUDA kernels where there is a CUDA toolkit.

Environment: USE_CUDA=0 leaves the CUDA kernels out, FORCE_CUDA=1 fails where they cannot be built,
TORCH_CUDA_ARCH_LIST chooses architectures (default below), CUDA_HOME names the toolkit, CXX the compiler.
Without a compiler the package installs as pure Python; `python -m simclr_fast.info` says what was built.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from setuptools import setup

DEFAULT_CUDA_ARCHS = "8.0;8.6;8.9;9.0;10.0+PTX"
# The oldest torch whose stable C++ ABI the bindings use: one build runs on it and on every later torch.
TORCH_TARGET_VERSION = "0x020a000000000000"
# torch turns the operators and conversions of half types off in device code; the kernels use them.
NVCC_UNDEFINES = ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
ROOT = Path(__file__).parent


def note(message: str) -> None:
    """Says something in the build log."""
    print(f"simclr_fast: {message}", flush=True)


def cxx_compiler() -> str | None:
    """The C++17 compiler on this machine, or None; proven by compiling a program with it."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <optional>\nint main() { return std::optional<int>(0).value(); }\n")
        command = [*compiler.split(), "-std=c++17", str(source), "-o", str(source.with_suffix(".out"))]
        try:
            probe = subprocess.run(command, capture_output=True)
        except OSError:
            return None
    return compiler if probe.returncode == 0 else None


def cuda_toolkit() -> Path | None:
    """The root of the CUDA toolkit: CUDA_HOME, else asked of nvcc itself, since nvcc on PATH may be a wrapper."""
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return Path(home)
    if nvcc := shutil.which("nvcc"):
        plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        if where := re.search(r"_HERE_=(\S+)", plan):
            return Path(where[1]).parent
    return Path("/usr/local/cuda") if Path("/usr/local/cuda/bin/nvcc").exists() else None


def usable_cuda(torch_cuda: str | None) -> tuple[Path, str] | None:
    """(toolkit root, its version) where CUDA kernels can be built for this torch; else None, saying why."""
    if os.environ.get("USE_CUDA", "1").upper() in ("0", "OFF", "NO"):
        note("CUDA kernels left out (USE_CUDA=0)")
        return None
    reason, toolkit = "", cuda_toolkit()
    if torch_cuda is None:
        reason = "this torch was built without CUDA"
    elif toolkit is None or not (toolkit / "bin/nvcc").exists():
        reason = "no CUDA toolkit found (set CUDA_HOME)"
    else:
        text = subprocess.run([str(toolkit / "bin/nvcc"), "--version"], capture_output=True, text=True).stdout
        version = re.search(r"release (\d+\.\d+)", text)[1]
        if version.split(".")[0] == torch_cuda.split(".")[0]:
            return toolkit, version
        reason = f"the CUDA toolkit is {version}, torch was built with {torch_cuda}; the major versions must agree"
    if os.environ.get("FORCE_CUDA", "0") == "1":
        raise SystemExit(f"simclr_fast: FORCE_CUDA=1, but {reason}")
    note(f"CUDA kernels left out: {reason}")
    return None


def extension() -> dict:
    """setup() arguments that build simclr_fast._C, or none where it cannot be built."""
    if (compiler := cxx_compiler()) is None:
        if os.environ.get("FORCE_CUDA", "0") == "1":
            raise SystemExit("simclr_fast: FORCE_CUDA=1, but there is no C++17 compiler (install g++ or set CXX)")
        note("no C++17 compiler found: installing without the compiled kernels")
        return {}
    try:
        import torch
    except ImportError:
        note("torch is not importable here: installing without the compiled kernels (use --no-build-isolation)")
        return {}

    cuda = usable_cuda(torch.version.cuda)
    if cuda:
        # torch.utils.cpp_extension reads both at import.
        os.environ["CUDA_HOME"] = str(cuda[0])
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-DSIMCLR_TORCH_VERSION={torch.__version__}"]
    flags = {"cxx": ["-O3", "-std=c++17", "-fno-math-errno", "-Wall", "-Wno-psabi", *defines]}
    if cuda:
        sources += ROOT.glob("csrc/cuda/*.cu")
        archs = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";")
        flags["cxx"] += ["-DUSE_CUDA", f"-DSIMCLR_CUDA_VERSION={cuda[1]}", f"-DSIMCLR_CUDA_ARCHS={archs}"]
        flags["nvcc"] = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo"]
        flags["nvcc"] += [f"-U__CUDA_NO_{name}__" for name in NVCC_UNDEFINES]
        note(f"building C++ and CUDA kernels with {compiler}, CUDA {cuda[1]} for {archs}")
    else:
        note(f"building C++ kernels with {compiler}")
    kind = CUDAExtension if cuda else CppExtension
    module = kind(
        "simclr_fast._C",
        sources=sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=[pybind11.get_include()],
        extra_compile_args=flags,
        depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*h")),
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


setup(**extension())
