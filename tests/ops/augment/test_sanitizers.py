"""The CPU kernel under AddressSanitizer and UBSan, on random sizes, layouts and parameters: never out of bounds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FLAGS = ["-std=c++17", "-O1", "-g", "-fno-math-errno", "-Wno-psabi", "-fsanitize=address,undefined"]
FLAGS += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
CASES = 4000


def build(tmp_path: Path, *, break_kernel: tuple[str, str] | None = None) -> Path:
    """The fuzzer; with break_kernel, one line of the kernel's sources is replaced first."""
    sources = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    if break_kernel:
        touched = 0
        for path in sources.rglob("*.h"):
            text = path.read_text()
            touched += text.count(break_kernel[0])
            path.write_text(text.replace(*break_kernel))
        assert touched == 1, f"{break_kernel[0]!r} stands in the sources {touched} times"
    program = tmp_path / "fuzz"
    inputs = [Path(__file__).parent / "fuzz_cpu.cpp", sources / "cpu/augment.cpp", sources / "cpu/isa.cpp"]
    command = [os.environ.get("CXX", "g++"), *FLAGS, f"-I{sources}", *map(str, inputs), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def fuzz(program: Path, isa: str | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | ({"SIMCLR_FAST_ISA": isa} if isa else {})
    return subprocess.run([str(program), str(CASES)], env=environment, capture_output=True, text=True)


@pytest.mark.proof
def test_no_access_out_of_bounds(tmp_path: Path) -> None:
    program = build(tmp_path)
    for isa in (None, "portable"):
        done = fuzz(program, isa)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout == f"{CASES} cases\n"


@pytest.mark.proof
@pytest.mark.parametrize(
    "mutant",
    [
        ("p.left = clamp_int(p.left, 0, image_width - p.width);", ""),
        ("return end < axis.in ? end : axis.in;", "return end;"),
        ("i = i + kLanes <= n ? i : n - kLanes;  // the last vector overlaps the one before", ""),
        ("store(out + c * plane + pixel + x, v, width - x < kLanes ? width - x : kLanes);",
         "store(out + c * plane + pixel + x, v, kLanes);"),
    ],
    ids=["box outside the image", "taps past the crop", "vector past the row", "vector past the output"],
)  # fmt: skip
def test_the_fuzzer_sees_a_broken_kernel(tmp_path: Path, mutant: tuple[str, str]) -> None:
    done = fuzz(build(tmp_path, break_kernel=mutant))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr or "runtime error" in done.stderr
