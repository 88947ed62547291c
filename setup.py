"""Builds simclr_fast._C: C++ kernels where there is a C++17 compiler, CUDA kernels where there is a CUDA toolkit.

Environment: USE_CUDA=0 leaves the CUDA kernels out, FORCE_CUDA=1 fails where they cannot be built,
TORCH_CUDA_ARCH_LIST chooses architectures, spelled as for torch's own extensions (default below),
CUDA_HOME names the toolkit, CXX the compiler.
Without a compiler the package installs as pure Python; `simclr-fast info` says what was built.
Where there is one and it fails, the installation ends with what the compiler lacked.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from setuptools import setup

# Devices of compute capability 8.6 and 8.9 run the binaries for 8.0: their own had the same instructions but for two to
# eight registers of a few kernels, and took half of the time that nvcc needs.
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"
# The oldest torch whose stable C++ ABI the bindings use: one build runs on it and on every later torch.
TORCH_TARGET_VERSION = "0x020b000000000000"
# torch turns the operators and conversions of half types off in device code; the kernels use them.
NVCC_UNDEFINES = ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
CUDA_REMEDY = "install the whole CUDA toolkit or name another one by CUDA_HOME; USE_CUDA=0 leaves the CUDA kernels out"
ARCH_REMEDY = "name architectures as in TORCH_CUDA_ARCH_LIST='8.0;9.0+PTX', or leave it out for " + DEFAULT_CUDA_ARCHS
# One module for every Python from 3.10 on; a Python without the global lock has no limited API, and gets its own.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# The start of a header's name, as a regular expression, and what to do where the compiler does not find it.
HEADER_REMEDIES = {
    r"Python\.h|pyconfig\.h": f"install the headers of Python (Debian and Ubuntu: {PYTHON}-dev)",
    r"torch/|c10/|ATen/": "this torch came without its C++ headers; reinstall it from its wheel",
    r"cu|crt/|nv": CUDA_REMEDY,
    r"": "install the C and C++ standard headers (Debian and Ubuntu: build-essential)",
}
# What other failures look like in the output of compilers, linkers and shells, and what to do about them.
FAILURE_REMEDIES = {
    r".*unsupported (?:GNU|clang) version.*": "name an older compiler: CXX and NVCC_PREPEND_FLAGS='-ccbin=COMPILER'",
    r".*Unsupported gpu architecture.*": "name architectures that this nvcc knows by TORCH_CUDA_ARCH_LIST",
    r".*\bKilled\b.*": "the machine ran out of memory: compile fewer files at once with MAX_JOBS=1",
    r".*(?:cicc|ptxas|fatbinary|cudafe\+\+).*(?:not found|No such file).*": CUDA_REMEDY,
    r".*cannot find -l.*": "install that library, or name the folder that has it by LIBRARY_PATH",
}
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


def diagnose(log: str) -> str:
    """What a failed build lacked and what to do about it, as far as its output `log` says so."""
    if header := re.search(r"fatal error: '?([^\s':]+)'?(?:: No such file| file not found)", log):
        remedy = next(remedy for start, remedy in HEADER_REMEDIES.items() if re.match(start, header[1]))
        return f"the compiler does not find {header[1]}: {remedy}"
    for pattern, remedy in FAILURE_REMEDIES.items():
        if failure := re.search(pattern, log):
            return f"{failure[0].strip()}\n  {remedy}"
    first = re.search(r".*\b(?:error|fatal)\b.*", log)
    return f"the first error is\n  {first[0].strip()}" if first else "the output above says why"


def with_copied_output(task: Callable[[], None]) -> tuple[str, Exception | None]:
    """Runs `task`; returns what it and its child processes printed, which is shown as ever, and its exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    shown, errors, finished, failure = os.dup(1), os.dup(2), threading.Event(), None
    # A file and not a pipe: a compiler cache's server outlives the build and would keep a pipe open.
    with tempfile.TemporaryFile() as log:

        def show() -> None:
            offset, last = 0, False
            while not last:
                last = finished.wait(0.1)
                while chunk := os.pread(log.fileno(), 1 << 16, offset):
                    offset += os.write(shown, chunk)

        showing = threading.Thread(target=show)
        showing.start()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            task()
        except Exception as error:
            failure = error
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(shown, 1)
            os.dup2(errors, 2)
            finished.set()
            showing.join()
            os.close(shown)
            os.close(errors)
        log.seek(0)
        return log.read().decode(errors="replace"), failure


def explaining(build_extension: type) -> type:
    """The build_ext command whose failure ends with what was missing, in place of a traceback."""

    class BuildOrExplain(build_extension):
        def build_extensions(self) -> None:
            os.environ["LC_ALL"] = "C"  # the compilers' messages are looked for in English
            log, failure = with_copied_output(super().build_extensions)
            if failure:
                raise SystemExit(f"simclr_fast: the kernels cannot be built: {failure}\n  {diagnose(log)}") from failure

    return BuildOrExplain


def cuda_archs(wanted: str) -> list[str]:
    """The architectures that `wanted` of TORCH_CUDA_ARCH_LIST names: ["8.0", "9.0a+PTX"], "" for the default.

    torch resolves the text: numbers, names ("Hopper") and "native", the GPUs of this machine. Between architectures
    may stand commas, too. 9.0 becomes 9.0a, since Hopper's binaries are made for sm_90a, which every device of compute
    capability 9.0 runs and which alone has wgmma.
    """
    import torch
    from torch.utils import cpp_extension

    text = ";".join(re.split(r"[\s,;]+", wanted.strip(" \t\n,;"))) or DEFAULT_CUDA_ARCHS
    if text == "native" and not torch.cuda.is_available():
        raise SystemExit("simclr_fast: TORCH_CUDA_ARCH_LIST=native, but torch finds no GPU here; " + ARCH_REMEDY)
    os.environ["TORCH_CUDA_ARCH_LIST"] = text  # which is where torch reads it
    try:
        flags = " ".join(cpp_extension._get_cuda_arch_flags())
    except ValueError as error:
        raise SystemExit(f"simclr_fast: TORCH_CUDA_ARCH_LIST={wanted!r}: {error}; {ARCH_REMEDY}") from None
    archs: dict[tuple[int, int, str], bool] = {}  # whether PTX is asked for
    for major, minor, letter, kind in re.findall(r"arch=compute_(\d+)(\d)([a-z]?),code=(sm|compute)_", flags):
        arch = (int(major), int(minor), "a" if major + minor == "90" else letter)
        archs[arch] = archs.get(arch, False) or kind == "compute"
    return [f"{major}.{minor}{letter}" + "+PTX" * ptx for (major, minor, letter), ptx in sorted(archs.items())]


def cuda_targets(archs: list[str]) -> list[str]:
    """nvcc's flags for what `cuda_archs` found: binaries, and PTX where it is asked for.

    PTX for sm_90a would run on no later device: of such an architecture it is compute_90. SIMCLR_SM90A tells the
    launchers that Hopper's kernels are there.
    """
    flags = []
    for arch in archs:
        binary = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{binary},code=sm_{binary}")
        if arch.endswith("+PTX"):
            portable = re.match(r"\d+", binary)[0]
            flags.append(f"-gencode=arch=compute_{portable},code=compute_{portable}")
    if any("sm_90a" in flag for flag in flags):
        note("9.0 is compiled for sm_90a, all of whose instructions every device of compute capability 9.0 has")
        flags.append("-DSIMCLR_SM90A")
    return flags


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
    oldest = tuple(bytes.fromhex(TORCH_TARGET_VERSION[2:])[:2])
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < oldest:
        raise SystemExit(f"simclr_fast: torch {torch.__version__} is too old; install {oldest[0]}.{oldest[1]} or newer")

    cuda = usable_cuda(torch.version.cuda)
    if cuda:
        os.environ["CUDA_HOME"] = str(cuda[0])  # torch.utils.cpp_extension reads it at import
    # The ninja of an environment that is not activated is beside its Python, and not on PATH.
    os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-DSIMCLR_TORCH_VERSION={torch.__version__}"]
    # -g0: Python's own flags ask for debugging information, which would be two thirds of the module.
    flags = {"cxx": ["-O3", "-g0", "-std=c++17", "-fno-math-errno", "-Wall", "-Wno-psabi", *defines]}
    if cuda:
        sources += ROOT.glob("csrc/cuda/*.cu")
        archs = cuda_archs(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
        built_for = ";".join(archs)
        flags["cxx"] += ["-DUSE_CUDA", f"-DSIMCLR_CUDA_VERSION={cuda[1]}", f"-DSIMCLR_CUDA_ARCHS={built_for}"]
        flags["nvcc"] = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo", *cuda_targets(archs)]
        flags["nvcc"] += [f"-U__CUDA_NO_{name}__" for name in NVCC_UNDEFINES]
        if int(cuda[1].split(".")[0]) >= 13:  # whose drivers all unpack it; a fifth of the size
            flags["nvcc"].append("-compress-mode=size")
        note(f"building C++ and CUDA kernels with {compiler}, CUDA {cuda[1]} for {built_for}")
    else:
        note(f"building C++ kernels with {compiler}")
    kind = CUDAExtension if cuda else CppExtension
    module = kind(
        "simclr_fast._C",
        sources=sorted(str(path.relative_to(ROOT)) for path in sources),
        extra_compile_args=flags,
        depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*h")),
        py_limited_api=LIMITED_API,
    )
    if cuda:
        # The CUDA runtime inside, and nothing of torch that only a torch with CUDA has: one build serves torch of any
        # CUDA version that the driver serves, and on the CPU one without CUDA.
        module.libraries = [name for name in module.libraries if name not in ("cudart", "c10_cuda", "torch_cuda")]
        module.libraries += ["cudart_static", "dl", "pthread", "rt"]
        # libtorch.so leads to libtorch_cuda where torch has one; no symbol is in it, and linkers would leave it out.
        module.extra_link_args = ["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"]
    wheel = {"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {}
    return {"ext_modules": [module], "cmdclass": {"build_ext": explaining(BuildExtension)}, "options": wheel}


def readme() -> str:
    """README.md as the page of the distributions, where there are none of the files that it links to or shows."""
    text = re.sub(r"!\[[^\]]*\]\((?!\w+:)[^)]*\)\n", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    return re.sub(r"\[([^\]]*)\]\((?!\w+:)[^)\s]*\)", r"\1", text)


if __name__ == "__main__":
    setup(long_description=readme(), long_description_content_type="text/markdown", **extension())
