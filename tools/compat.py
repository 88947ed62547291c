"""Builds the package for other versions of torch and Python, each in a virtual environment, and runs fast tests there.

    python -m tools.compat             every pair of PAIRS
    python -m tools.compat --oldest    the first of them
    python -m tools.compat --install   only the virtual environments, 2 to 3 minutes each; also with --oldest

A pair lives in .compat/TORCH-PYTHON: `venv`, and `source`, a copy of the checkout that the package is built in, because
the modules that two versions of torch compile have one name. Both are kept for the next run. The kernels are built
without nvcc; the bindings of the CUDA kernels are compiled against the headers of each torch. At last a pair and .venv,
which `make` made, try each other's modules as wheels.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".compat"
# What a version of torch can break, one test of each kind: choice of backend, schemas and their fakes, autograd,
# torch.compile, collectives, the compiled kernels behind the stable ABI, the names of architectures, torchcodec's
# library, and the launches by the Triton that this torch pins. `info` and an installation are run beside them.
FAST_TESTS = (
    "tests/data/test_pixels.py",
    "tests/ops/ntxent/test_autograd.py",
    "tests/ops/ntxent/test_normalize.py",
    "tests/ops/augment/test_public.py",
    "tests/test_backends.py",
    "tests/test_distributed.py",
    "tests/test_install.py::test_architectures_are_named_as_torch_names_them",
    "tests/test_losses.py",
    "tests/test_triton_binder.py",
)
# Of these files, seconds of work that are the same with every torch: memory that is counted, imports that are refused.
OF_NO_TORCH = (
    "tests/data/test_pixels.py::test_the_loss_and_the_data_sets_in_memory_do_without_it",
    "tests/test_losses.py::test_memory_is_linear",
)
# The same Triton's interpreter.
FAST_TRITON_TESTS = ("tests/ops/ntxent/test_normalize.py",)


@dataclass(frozen=True)
class Pair:
    """A version of torch, the torchvision that belongs to it, and a version of Python; torch pins its own Triton."""

    torch: str
    torchvision: str
    python: str

    @property
    def folder(self) -> Path:
        return FOLDER / f"{self.torch}-python{self.python}"


def pinned(package: str) -> str:
    """The version of `package` that requirements.txt pins."""
    return re.search(rf"^{package}==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


# The oldest versions that pyproject.toml allows, those of the machine with a GPU, and the pinned ones on the newest
# Python; `make test` runs the pinned ones on the Python that made .venv.
PAIRS = (
    Pair("2.11.0", "0.26.0", "3.10"),
    Pair("2.11.0", "0.26.0", "3.12"),
    Pair(pinned("torch"), pinned("torchvision"), "3.13"),
)


def interpreter(version: str) -> str:
    """The path of a Python of this version: this one, one on PATH or one of pyenv's. SystemExit where there is none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for candidate in (shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        # What pyenv puts on PATH fails for the versions that it has, but that are not active.
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    raise SystemExit(f"compat: no Python {version} on PATH or in {pyenv}; install one")


def copy_checkout(target: Path) -> None:
    """Makes `target` hold the checkout's files with their times, so that what has not changed is not compiled again."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    wanted = {name for name in names if name and (ROOT / name).is_file()}
    stamp = target / "copied.txt"
    for name in set(stamp.read_text().split("\n") if stamp.exists() else []) - wanted:
        (target / name).unlink(missing_ok=True)
    for name in wanted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    stamp.write_text("\n".join(sorted(wanted)))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Prints the command and runs it. CalledProcessError where it fails."""
    print("compat:", *command, flush=True)
    subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, check=True)


def install(pair: Pair) -> None:
    """Makes the pair's virtual environment, unless it is what is wanted. CalledProcessError where a step fails."""
    venv, requirements = pair.folder / "venv", ROOT / "requirements-compat.txt"
    stamp, wanted = venv / "dependencies.txt", f"{pair}\n{requirements.read_text()}"
    if not stamp.exists() or stamp.read_text() != wanted:
        run(interpreter(pair.python), "-m", "venv", "--clear", venv)
        packages = [f"torch=={pair.torch}", f"torchvision=={pair.torchvision}", f"--requirement={requirements}"]
        run(venv / "bin/python", "-m", "pip", "install", "--quiet", "--no-compile", *packages)
        stamp.write_text(wanted)


def check(pair: Pair) -> None:
    """Builds, imports and tests one pair. CalledProcessError where a step fails."""
    install(pair)
    venv, source = pair.folder / "venv", pair.folder / "source"
    python = str(venv / "bin/python")
    copy_checkout(source)
    run_here = partial(run, cwd=source)
    target = re.search(r'^TORCH_TARGET_VERSION = "(\w+)"', (source / "setup.py").read_text(), re.MULTILINE)[1]
    (headers,) = venv.glob("lib/python*/site-packages/torch/include")
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Werror", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={target}"]
    for binding in sorted(source.glob("csrc/*_binding.cpp")):
        run_here(os.environ.get("CXX", "c++"), *flags, f"-isystem{headers}", binding)

    run_here(python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--editable", ".", USE_CUDA="0")
    run_here(python, "-m", "simclr_fast", "info")
    # In one process: half a minute of tests, of which the start and the imports of workers would make a whole one.
    run_here(python, "-m", "pytest", "-q", *(f"--deselect={test}" for test in OF_NO_TORCH), *FAST_TESTS)
    run_here(python, "-m", "pytest", "-q", "-m", "interpret", *FAST_TRITON_TESTS)
    exchange_wheels(pair)


def exchange_wheels(pair: Pair) -> None:
    """Tries what this pair compiled with the pinned torch, and what `make` compiled with this pair's torch and Python.

    Both are packed as wheels. That is what torch's stable ABI and Python's limited API promise. CalledProcessError
    where a wheel does not serve.
    """
    pinned_python, python = str(ROOT / ".venv/bin/python"), str(pair.folder / "venv/bin/python")
    for made_in, tried_with in ((pair.folder / "source", pinned_python), (ROOT, python)):
        wheels = pair.folder / "wheels"
        extension = made_in / "simclr_fast/_C.abi3.so"
        run(pinned_python, "-m", "tools.wheel", f"--extension={extension}", f"--output={wheels}", "--build-only")
        (wheel,) = wheels.glob("*.whl")
        run(tried_with, "-m", "tools.wheel", f"--try={wheel}")


def main() -> int:
    """Checks the pairs and prints a line for each; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--oldest", action="store_true", help="only the oldest versions")
    parser.add_argument("--install", action="store_true", help="only the virtual environments")
    options = parser.parse_args()
    pairs, step = PAIRS[:1] if options.oldest else PAIRS, install if options.install else check
    verdicts, failed = [], False
    for pair in pairs:
        start, verdict = time.monotonic(), "is installed" if options.install else "passes"
        try:
            step(pair)
        except subprocess.CalledProcessError as failure:
            failed, verdict = True, f"FAILS: {failure}"
        verdicts.append(f"torch {pair.torch}, Python {pair.python}: {verdict} ({time.monotonic() - start:.0f} s)")
    print("\n".join(verdicts))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
