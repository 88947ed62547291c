"""The scratch folder: a copy of the checkout with the extension built into it, so that the checkout stays as it is.

    SCRATCH/src                 the copy, which is what runs
    SCRATCH/extension/KEY/      built extensions, by their sources, CUDA's major version and the architecture
    SCRATCH/{triton,inductor}/  caches of compiled kernels

The same folder may serve again: what has been built and compiled is then found there. SCRATCH/extension alone may be
carried to another machine, of another Python and torch, too: that is what the module's ABIs, both stable, are for.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.environment import ROOT

COPIED = (
    *("simclr_fast", "csrc", "tests", "proof", "benchmarks", "tools", "docs/tables"),
    *("setup.py", "pyproject.toml", "README.md", "LICENSE", "train.py", "hubconf.py", "Makefile"),
)
BUILT_OF = ("csrc", "setup.py")
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc", "*.o", ".pytest_cache")
PROBE = "from simclr_fast import _extension as e; print(e.missing_because or e.build_info())"
ASK = (  # the major version of torch's CUDA, without importing torch, which takes seconds
    "import importlib.util, pathlib, runpy; torch = pathlib.Path(importlib.util.find_spec('torch').origin);"
    "print(str(runpy.run_path(str(torch.with_name('version.py')))['cuda']).split('.')[0])"
)


class Scratch:
    """The folder, and the processes' environment in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.source = folder / "src"
        self.logs, self.results = folder / "logs", folder / "results"

    def prepare(self) -> None:
        """Copies the checkout anew; logs and results of an earlier run go."""
        for folder in (self.source, self.logs, self.results):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for name in COPIED:
            origin, target = ROOT / name, self.source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, target, ignore=IGNORED)
            elif origin.exists():
                shutil.copy2(origin, target)
        # `tests` is a namespace, which an installed package of that name would hide.
        if self.ask("import tests; print(tests.__file__)") != "None":
            (self.source / "tests" / "__init__.py").touch()

    def bring(self, extensions: Path) -> None:
        """Adds the extensions that lie in such a folder `extension`, carried here."""
        shutil.copytree(extensions, self.folder / "extension", dirs_exist_ok=True)

    def environment(self, **more: str) -> dict[str, str]:
        """For every process: the copy first on the path, caches in the scratch folder."""
        inherited = os.environ.get("PYTHONPATH")
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.source), *([inherited] if inherited else [])]),
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            **more,
        }

    def ask(self, program: str) -> str:
        """What a short program prints."""
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=self.source, env=self.environment(), capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else f"error: {done.stderr.strip()[-300:]}"


def digest(folder: Path, names: tuple[str, ...]) -> str:
    """Twelve hexadecimal digits that change with any of the files."""
    found = hashlib.sha256()
    for name in names:
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]


def build(scratch: Scratch, arch: str | None, also_from: Path | None) -> int:
    """Puts the extension into the copy, an earlier one of the same sources or a new one, and returns an exit status.

    arch: compute capability ("9.0"), or None for CPU kernels only. also_from: a folder whose extension will do if
    it can be loaded, whatever it was built of.
    """
    built_for = (arch or "cpu").replace("9.0a", "9.0")  # setup.py builds the same for both
    key = f"{digest(scratch.source, BUILT_OF)}, CUDA {scratch.ask(ASK)}, {built_for}"
    kept = scratch.folder / "extension" / hashlib.sha256(key.encode()).hexdigest()[:16]
    package = scratch.source / "simclr_fast"
    for origin in (kept, *([also_from] if also_from else [])):
        libraries = [Path(shutil.copy2(library, package)) for library in origin.glob("_C*.so")]
        if libraries and loads(scratch, f"taken from {origin}"):
            return 0
        for library in libraries:
            library.unlink()
    if kept.parent.exists():
        said = [text.read_text().strip() for text in kept.parent.glob("*/key.json")]
        print(f"build: compiling for {key!r}: what was built before is {', '.join(said) or 'none'}", flush=True)
    chosen = {"TORCH_CUDA_ARCH_LIST": arch, "FORCE_CUDA": "1"} if arch else {"USE_CUDA": "0"}
    jobs = os.environ.get("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    command += ["--build-temp", str(scratch.folder / "build")]
    status = subprocess.run(command, cwd=scratch.source, env=scratch.environment(MAX_JOBS=jobs, **chosen)).returncode
    if status != 0 or not loads(scratch, "built"):
        return status or 1
    kept.mkdir(parents=True, exist_ok=True)
    for library in package.glob("_C*.so"):
        shutil.copy2(library, kept)
    (kept / "key.json").write_text(json.dumps(key) + "\n")
    return 0


def loads(scratch: Scratch, what: str) -> bool:
    """Whether the copy's extension can be imported; prints what it says of itself, or why it cannot."""
    answer = scratch.ask(PROBE)
    print(f"build: {what}: {answer}", flush=True)
    return answer.startswith("{")


def main() -> int:
    """python -m tools.gpu.scratch FOLDER ARCH|cpu [ALSO_FROM]: `build` as a process of its own."""
    folder, arch, *also_from = sys.argv[1:]
    return build(Scratch(Path(folder)), None if arch == "cpu" else arch, Path(also_from[0]) if also_from else None)


if __name__ == "__main__":
    sys.exit(main())
