"""The distributions: what is in them, that the wheel serves every Python, and that it needs no compiler and no CUDA."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

import simclr_fast
from tools import compat, wheel

ROOT = Path(__file__).parent.parent
EXTENSION = ROOT / "simclr_fast/_C.abi3.so"  # which `make` built
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def modules(folder: Path) -> set[str]:
    """The Python files of the package, relative to `folder`."""
    return {path.relative_to(folder).as_posix() for path in (folder / "simclr_fast").rglob("*.py")}


def sources() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}


def test_a_wheel_of_what_make_built_runs_where_no_compiler_is(tmp_path: Path) -> None:
    sdist = wheel.source_distribution(tmp_path)
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    project = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.py"}
    package = modules(ROOT) | {"simclr_fast/py.typed"}
    written = {name for name in names if name.startswith("simclr_fast.egg-info/")} | {"setup.cfg"}
    assert names - written == project | package | sources()

    built = wheel.wheel_of(sdist, tmp_path, EXTENSION)
    assert re.fullmatch(rf"simclr_fast-{simclr_fast.__version__}-cp310-abi3-manylinux_2_\d+_x86_64\.whl", built.name)
    with zipfile.ZipFile(built) as archive:
        metadata = f"simclr_fast-{simclr_fast.__version__}.dist-info/"
        held = {name for name in archive.namelist() if not name.startswith(metadata) and not name.endswith("/")}
        assert f"{metadata}licenses/LICENSE" in archive.namelist()
        about = Parser().parsestr(archive.read(f"{metadata}METADATA").decode())
    assert held == package | {"simclr_fast/_C.abi3.so"}
    assert about["Version"] == simclr_fast.__version__
    assert about.get_payload().startswith("# simclr_fast")
    assert not re.search(r"\]\((?!https:)", about.get_payload()), "nothing lies beside the page of a wheel"
    assert sdist.name == f"simclr_fast-{simclr_fast.__version__}.tar.gz"

    found = wheel.try_wheel(built, tmp_path)
    assert (found["version"], found["torch"]) == (simclr_fast.__version__, torch.__version__)


@pytest.mark.parametrize("broken", [{"loss_error": float("nan")}, {"views_error": 0.1}, {"package": "/elsewhere"}])
def test_a_wheel_that_is_wrong_does_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: dict) -> None:
    environment = tmp_path / "environment"
    (environment / "lib/python3/site-packages").mkdir(parents=True)
    good = {"package": str(environment), "version": "1", "loss_error": 1e-7, "views_error": 0.0}

    def run(*command: str | Path, **options: object) -> str:
        trial, info = json.dumps(good | broken), "simclr_fast  1\n"
        return {"trial.py": trial, "info": info}.get(Path(command[-1]).name, "")

    monkeypatch.setattr(wheel, "run", run)
    with pytest.raises(SystemExit, match=r"^wheel: .*" + str(*broken.values())):
        wheel.try_wheel(tmp_path / "a.whl", tmp_path)


def interpreters() -> list[str]:
    """The Pythons on this machine that the wheel is for; that of the tests is among them."""
    found = []
    for version in PYTHONS:
        try:
            found.append(compat.interpreter(version))
        except SystemExit:
            continue
    return found


def test_one_module_loads_in_every_python_and_with_a_torch_without_cuda(tmp_path: Path) -> None:
    """libtorch.so is what leads to libtorch_cuda: the one put in its place does not."""
    subprocess.run(["c++", "-shared", "-x", "c++", os.devnull, "-o", tmp_path / "libtorch.so"], check=True)
    libraries = os.pathsep.join([str(tmp_path), str(Path(torch.__file__).parent / "lib")])
    program = f"""
import importlib.util, re
spec = importlib.util.spec_from_file_location("_C", {str(EXTENSION)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
loaded = set(re.findall(r"[\\w.]+[.]so\\S*", open("/proc/self/maps").read()))
assert "libtorch_cpu.so" in loaded and "libtorch_cuda.so" not in loaded, loaded
assert module.build_info()["built_with_torch"] == {torch.__version__!r}
"""
    environment = os.environ | {"LD_LIBRARY_PATH": libraries}
    tried = interpreters()
    assert any(Path(python).resolve() == Path(sys.executable).resolve() for python in tried)
    for python in tried:
        subprocess.run([python, "-c", program], env=environment, check=True)


def test_the_extension_asks_for_torch_and_the_system_alone() -> None:
    from elftools.elf.elffile import ELFFile

    with EXTENSION.open("rb") as file:
        tags = list(ELFFile(file).get_section_by_name(".dynamic").iter_tags())
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    assert needed - system <= set(wheel.OF_TORCH)
    assert not [tag for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]
