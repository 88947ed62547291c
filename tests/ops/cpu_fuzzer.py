"""Builds a program that drives CPU kernels with random arguments, under AddressSanitizer and UBSan, and runs it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from proof.kept import digest, kept
from proof.simt.build import closure

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++17", "-Og", "-g1", "-fno-math-errno", "-Wno-psabi", "-fsanitize=address,undefined"]
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


def _compiled(source: Path, sources: Path) -> Path:
    """A file compiled with a changed copy of csrc; programs share it, where it includes nothing that they change."""
    copies = {str(Path("csrc", copy.relative_to(sources))): copy.read_text() for copy in sources.rglob("*.*")}
    of = digest(sorted(closure([str(source.relative_to(ROOT))], copies).items()), FLAGS, os.environ.get("CXX"))
    text = sources / source.relative_to(ROOT / "csrc") if source.is_relative_to(ROOT / "csrc") else source
    path = ROOT / "build/fuzz" / f"{source.stem}-{of}.o"
    return kept(path, lambda made: compile_with(f"-I{sources}", "-c", text, "-o", made))


@dataclass(frozen=True)
class Fuzzer:
    """driver: a .cpp with a main that takes a number of cases; kernels: files of csrc/cpu that it is linked with.

    typed: the kernels are compiled for four element types; main takes how many of them it may call, float32 first.
    """

    driver: Path
    kernels: tuple[str, ...]
    cases: int
    typed: bool = False

    def build(self, folder: Path, vector_bytes: int = 16, break_kernel: tuple[str, str] | None = None) -> Path:
        """The program; with break_kernel, one line of the kernels' sources is replaced first, in float32 alone.

        Its kernels are the portable ones, with vectors of so many bytes. With 64 it is the source of the AVX-512
        kernels that runs, compiled to what any processor has.
        """
        sources = folder / "csrc"
        shutil.copytree(ROOT / "csrc", sources)
        changes = [break_kernel, *(_ONE_TYPE if self.typed else ())] if break_kernel else []
        changes.append((_X86, "#if 0"))
        changes.append(tuple(_VECTOR_BYTES.replace("{bytes}", str(width)) for width in (16, vector_bytes)))
        for old, new in changes:
            touched = 0
            for path in (*sources.rglob("*.h"), *sources.rglob("*.cpp")):
                text = path.read_text()
                touched += text.count(old)
                path.write_text(text.replace(old, new))
            assert touched == 1, f"{old!r} stands in the sources {touched} times"
        program = folder / "fuzz"
        kernels = (sources / "cpu" / kernel for kernel in self.kernels)
        shared = (_compiled(source, sources) for source in (self.driver, ROOT / "csrc/cpu/isa.cpp"))
        compile_with(f"-I{sources}", *shared, *kernels, "-o", program)
        return program

    def run(self, program: Path, types: int = 4) -> subprocess.CompletedProcess[str]:
        """The program's end."""
        command = [str(program), str(self.cases), *([str(types)] if self.typed else [])]
        return subprocess.run(command, capture_output=True, text=True)

    def assert_clean(self, program: Path) -> None:
        """All cases ran and nothing was reported."""
        done = self.run(program)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout == f"{self.cases} cases\n"

    def assert_seen(self, program: Path) -> None:
        """A sanitizer, or the driver itself, reported something."""
        done = self.run(program, types=1)
        assert done.returncode != 0
        assert any(report in done.stderr for report in ("AddressSanitizer", "runtime error", "wrong"))
