"""The package installs and works without a compiler, and the build says what it leaves out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_installs_and_imports_without_a_compiler(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": str(bare)}
    environment.pop("CXX", None)
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if name.startswith(("simclr_fast/", "csrc/")) or name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
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


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"USE_CUDA": "0"}, "CUDA kernels left out (USE_CUDA=0)"),
        ({"CUDA_HOME": "/nonexistent"}, "CUDA kernels left out: no CUDA toolkit found (set CUDA_HOME)"),
        ({"CUDA_HOME": "/nonexistent", "FORCE_CUDA": "1"}, "FORCE_CUDA=1, but no CUDA toolkit found"),
        ({"CXX": "/bin/false", "FORCE_CUDA": "1"}, "FORCE_CUDA=1, but there is no C++17 compiler"),
        ({"CXX": "/bin/false"}, "no C++17 compiler found: installing without the compiled kernels"),
    ],
)
def test_build_switches(environment: dict[str, str], message: str) -> None:
    run = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in run.stdout + run.stderr
    assert (run.returncode != 0) == ("FORCE_CUDA" in environment)
