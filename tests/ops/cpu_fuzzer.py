"""Builds a program that drives CPU kernels with random arguments, under AddressSanitizer and UBSan, and runs it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from proof.kept import digest, kept
from proof.simt.build import closure

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++17", "-O1", "-g1", "-fno-math-errno", "-Wno-psabi", "-fsanitize=address,undefined"]
FLAGS += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
_X86 = "#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))"
# Of the element types float32 alone: of a loss's kernels, three quarters are not compiled.
_ONE_TYPE = (
    ("  switch (z_dtype) {\n", "  return f(float{}, float{});\n#if 0\n  switch (z_dtype) {\n"),
    ("      return f(double{}, double{});\n  }\n", "      return f(double{}, double{});\n  }\n#endif\n"),
)
_VECTOR_BYTES = "namespace simclr::cpu::portable {\nconstexpr int kVectorBytes = {bytes};"


def compile_with(*arguments: object) -> None:
    """Runs the compiler, which must succeed."""
    command = [os.environ.get("CXX", "g++"), *FLAGS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def _compiled_driver(driver: Path, sources: Path) -> Path:
    """A driver compiled with a changed copy of csrc; mutants share it, where it includes nothing that they change."""
    copies = {str(Path("csrc", copy.relative_to(sources))): copy.read_text() for copy in sources.rglob("*.h")}
    of = digest(sorted(closure([str(driver.relative_to(ROOT))], copies).items()), FLAGS, os.environ.get("CXX"))
    path = ROOT / "build/fuzz" / f"{driver.stem}-{of}.o"
    return kept(path, lambda made: compile_with(f"-I{sources}", "-c", driver, "-o", made))


@dataclass(frozen=True)
class Fuzzer:
    """driver: a .cpp with a main that takes a number of cases; kernels: files of csrc/cpu that it is linked with.

    typed: the kernels are compiled for four element types; main takes how many of them it may call, float32 first.
    """

    driver: Path
    kernels: tuple[str, ...]
    cases: int
    typed: bool = False

    def build(self, folder: Path, break_kernel: tuple[str, str] | None = None, portable: int | None = None) -> Path:
        """The program; with break_kernel, one line of the kernels' sources is replaced first, in float32 alone.

        portable: only the portable code, with vectors of so many bytes. With 64 it is the source of the AVX-512 kernels
        that runs, compiled to what any processor has.
        """
        sources = folder / "csrc"
        shutil.copytree(ROOT / "csrc", sources)
        changes = [break_kernel, *(_ONE_TYPE if self.typed else ())] if break_kernel else []
        if portable:
            changes.append((_X86, "#if 0"))
            changes.append(tuple(_VECTOR_BYTES.replace("{bytes}", str(width)) for width in (16, portable)))
        for old, new in changes:
            touched = 0
            for path in (*sources.rglob("*.h"), *sources.rglob("*.cpp")):
                text = path.read_text()
                touched += text.count(old)
                path.write_text(text.replace(old, new))
            assert touched == 1, f"{old!r} stands in the sources {touched} times"
        program = folder / "fuzz"
        inputs = (sources / "cpu" / kernel for kernel in (*self.kernels, "isa.cpp"))
        compile_with(f"-I{sources}", _compiled_driver(self.driver, sources), *inputs, "-o", program)
        return program

    def run(self, program: Path, isa: str | None = None, types: int = 4) -> subprocess.CompletedProcess[str]:
        """The program's end, with the best instruction set of this processor or a named one."""
        environment = os.environ | ({"SIMCLR_FAST_ISA": isa} if isa else {})
        command = [str(program), str(self.cases), *([str(types)] if self.typed else [])]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def assert_clean(self, program: Path, isa: str | None = None) -> None:
        """All cases ran and nothing was reported."""
        done = self.run(program, isa)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout == f"{self.cases} cases\n"

    def assert_seen(self, program: Path, isa: str | None = None) -> None:
        """A sanitizer, or the driver itself, reported something."""
        done = self.run(program, isa, types=1)
        assert done.returncode != 0
        assert any(report in done.stderr for report in ("AddressSanitizer", "runtime error", "wrong"))
