"""The package installs and works without a compiler, and the build says what it leaves out and what it lacks."""

import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
PROJECT_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


def copy_of_project(target: Path, *patterns: str) -> Path:
    """Makes `target` a project that can be installed, with the files of this one that match the patterns."""
    for path in (path for pattern in (*PROJECT_FILES, *patterns) for path in ROOT.glob(pattern) if path.is_file()):
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


def test_installs_and_imports_without_a_compiler(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": str(bare)}
    environment.pop("CXX", None)
    source = copy_of_project(tmp_path / "source", "simclr_fast/**/*.py", "csrc/**/*")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
    ]
    log = subprocess.run([*install, "-v", str(source)], env=environment, capture_output=True, text=True, check=False)
    assert log.returncode == 0, log.stdout + log.stderr
    assert "no C++17 compiler found: installing without the compiled kernels" in log.stdout + log.stderr

    optional = ("torchvision", "tyro", "matplotlib", "sklearn", "mlxtend", "tensorboard", "rich", "tqdm", "safetensors")
    program = (
        "import sys; sys.modules.update(dict.fromkeys({optional!r}));"  # importing any of them fails
        # An editable install would lend its compiled module to the package under test.
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')];"
        "import simclr_fast, torch; from simclr_fast import NTXentLoss, ntxent_loss, SimCLRAugment;"
        "assert simclr_fast.__file__.startswith({site!r}), simclr_fast.__file__;"
        "z = torch.randn(8, 4, requires_grad=True); NTXentLoss(0.5)(z, z.flip(0)).backward();"
        "assert z.grad.isfinite().all()"
    ).format(optional=optional, site=str(tmp_path / "site"))
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "runs as plain PyTorch" in run.stderr


def compiler_without(folder: str, path: Path) -> str:
    """A compiler that looks for headers in no folder whose name matches the shell pattern `folder`."""
    path.write_text(
        "#!/bin/bash\n"
        'for argument in "$@"; do\n'
        f'  case $argument in -I{folder}) ;; *) kept+=("$argument") ;; esac\n'
        "done\n"
        'exec c++ "${kept[@]}"\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("absent", "source", "header", "remedy"),
    [
        ("*/include/python3*", "module.cpp", "Python.h", "install the headers of Python"),
        ("*/torch/include*", "augment_binding.cpp", "torch/", "this torch came without its C++ headers"),
    ],
)
def test_a_failed_build_ends_with_the_missing_header(
    tmp_path: Path, absent: str, source: str, header: str, remedy: str
) -> None:
    compiler = compiler_without(absent, tmp_path / "cxx")
    project = copy_of_project(tmp_path / "project", "csrc/*.h", f"csrc/{source}")
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=project,
        env={**os.environ, "CXX": compiler, "USE_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "#include" in run.stdout + run.stderr, "the compiler's own words are shown"
    error, reason = run.stderr.splitlines()[-2:]
    assert error.startswith("simclr_fast: the kernels cannot be built")
    assert reason.startswith(f"  the compiler does not find {header}")
    assert remedy in reason


# What compilers, linkers and shells print, and what the build makes of it.
FAILURES = {
    "clang": ("a.cpp:1:10: fatal error: 'Python.h' file not found", "does not find Python.h: install the headers"),
    "toolkit": ("<command-line>: fatal error: cuda_runtime.h: No such file or directory", "USE_CUDA=0 leaves the CUDA"),
    "toolkit's parts": ("sh: 1: cicc: not found", "sh: 1: cicc: not found\n  install the whole CUDA toolkit"),
    "standard library": ("/a.cpp:3:10: fatal error: cstdint: No such file or directory", "build-essential"),
    "host compiler": (
        "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported!",
        "name an older compiler",
    ),
    "architecture": ("nvcc fatal   : Unsupported gpu architecture 'compute_70'", "TORCH_CUDA_ARCH_LIST"),
    "memory": ("g++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
    "library": ("/usr/bin/ld: cannot find -lcudart: No such file or directory", "LIBRARY_PATH"),
    "another": (
        "a.cpp:7: warning: w\na.cpp:8:1: error: expected ';'\nb",
        "first error is\n  a.cpp:8:1: error: expected ';'",
    ),
    "silence": ("", "the output above says why"),
}


@pytest.fixture
def setup_functions(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What setup.py defines."""
    # The real one refuses to be imported after distutils, which another test's packages may have brought in.
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(setup=None))
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


@pytest.mark.parametrize(
    ("environment", "function", "message"),
    [
        ({"USE_CUDA": "0"}, "usable_cuda", "CUDA kernels left out (USE_CUDA=0)"),
        ({"CUDA_HOME": "/nonexistent"}, "usable_cuda", "CUDA kernels left out: no CUDA toolkit found (set CUDA_HOME)"),
        (
            *({"CUDA_HOME": "/nonexistent", "FORCE_CUDA": "1"}, "usable_cuda"),
            "FORCE_CUDA=1, but no CUDA toolkit found",
        ),
        ({"CXX": "/bin/false", "FORCE_CUDA": "1"}, "extension", "FORCE_CUDA=1, but there is no C++17 compiler"),
        ({"CXX": "/bin/false"}, "extension", "no C++17 compiler found: installing without the compiled kernels"),
    ],
)
def test_build_switches(
    environment: dict[str, str],
    function: str,
    message: str,
    setup_functions: dict,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("USE_CUDA", "CUDA_PATH", "FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused = "FORCE_CUDA" in environment
    with pytest.raises(SystemExit, match=re.escape(message)) if refused else contextlib.nullcontext():
        arguments = ["13.0"] * (function == "usable_cuda")  # the CUDA version of torch
        assert not setup_functions[function](*arguments), "nothing is built"
    assert refused or message in capsys.readouterr().out


@pytest.mark.parametrize("failure", FAILURES)
def test_what_a_failed_build_says(failure: str, setup_functions: dict) -> None:
    output, expected = FAILURES[failure]
    assert expected in setup_functions["diagnose"](output)


def test_hopper_is_compiled_with_all_of_its_instructions(setup_functions: dict) -> None:
    targets = setup_functions["cuda_targets"]
    ampere, hopper = "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"
    assert targets(["8.0", "9.0a"]) == [ampere, hopper, "-DSIMCLR_SM90A"]
    assert targets(["9.0a+PTX"]) == [hopper, "-gencode=arch=compute_90,code=compute_90", "-DSIMCLR_SM90A"]
    assert targets(["8.0+PTX"]) == [ampere, "-gencode=arch=compute_80,code=compute_80"]
    assert targets(["10.0"]) == ["-gencode=arch=compute_100,code=sm_100"]


# What TORCH_CUDA_ARCH_LIST may say, and what is built.
ARCH_LISTS = {
    "": "8.0 9.0a 10.0+PTX",
    " ; ": "8.0 9.0a 10.0+PTX",
    "8.0": "8.0",
    "9.0": "9.0a",
    "9.0a": "9.0a",
    "9.0+PTX": "9.0a+PTX",
    "9.0a+PTX": "9.0a+PTX",
    "9.0;9.0a": "9.0a",
    "8.0 9.0+PTX": "8.0 9.0a+PTX",
    "8.0; 8.6,9.0 ;": "8.0 8.6 9.0a",
    "10.0;8.0": "8.0 10.0",
    "12.0a": "12.0a",
    "Hopper": "9.0a+PTX",
    "Ampere": "8.0 8.6+PTX",
    "Ampere, Hopper": "8.0 8.6+PTX 9.0a+PTX",
}
# What it may not say here, and what the build says of it.
REFUSED_ARCH_LISTS = {
    "native": "TORCH_CUDA_ARCH_LIST=native, but torch finds no GPU here; name architectures as in",
    "Hoper": "TORCH_CUDA_ARCH_LIST='Hoper': Unknown CUDA arch (Hoper)",
    "8.0;sm_90": "TORCH_CUDA_ARCH_LIST='8.0;sm_90': Unknown CUDA arch (sm_90)",
    "9": "Unknown CUDA arch (9)",
}


def test_architectures_are_named_as_torch_names_them() -> None:
    """In a process that has imported neither distutils nor torch, as a build."""
    program = f"""
import json, runpy
archs = runpy.run_path("setup.py", run_name="setup")["cuda_archs"]
def answer(text):
    try:
        return " ".join(archs(text))
    except SystemExit as error:
        return str(error)
print(json.dumps([answer(text) for text in {[*ARCH_LISTS, *REFUSED_ARCH_LISTS]!r}]))
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    answers = json.loads(run.stdout)
    assert dict(zip(ARCH_LISTS, answers)) == ARCH_LISTS
    for (text, message), said in zip(REFUSED_ARCH_LISTS.items(), answers[len(ARCH_LISTS) :], strict=True):
        assert message in said, text
        assert "leave it out for 8.0;" in said, "the remedy"


def test_what_the_build_needs_of_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("__version__ = '2.9.1+cu128'")
    run = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "USE_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "torch 2.9.1+cu128 is too old; install 2.11 or newer" in run.stderr.splitlines()[-1]


def test_training_steps_can_be_built_without_the_command_line() -> None:
    absent = ("tyro", "mlxtend", "datasets", "tensorboard", "rich", "tqdm", "safetensors")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}));"
        "from simclr_fast.recipes import RECIPES; from simclr_fast.models import build_model;"
        "from simclr_fast.optim import build_optimizer; from simclr_fast.training.step import TrainStep;"
        "from simclr_fast.training.views import Views; options = RECIPES['demo'];"
        "build_optimizer(build_model(options.model, 1), options.optimization); Views(options.augment, seed=0)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
