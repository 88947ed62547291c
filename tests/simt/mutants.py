"""Defects put into the real kernels, each of which must make a test fail. tests/simt/test_mutants.py runs them."""

from dataclasses import dataclass

from tests.simt.build import ROOT


@dataclass(frozen=True)
class Mutant:
    """One defect.

    name: what is wrong. file: the kernel file. old: its text, which must occur exactly once. new: what stands there
    instead. judges: the tests that are run, as pytest takes them; at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    judges: tuple[str, ...]

    def text(self) -> str:
        """The file with the defect in it; ValueError where `old` does not occur exactly once."""
        original = (ROOT / self.file).read_text()
        count = original.count(self.old)
        if count != 1:
            raise ValueError(f"mutant {self.name!r}: its text occurs {count} times in {self.file}, it must occur once")
        return original.replace(self.old, self.new)


def replaced_by(name: str) -> dict[str, str]:
    """The file texts that the mutant of that name replaces, as build() takes them."""
    mutant = next(m for m in MUTANTS if m.name == name)
    return {mutant.file: mutant.text()}


def _l2(name: str, old: str, new: str) -> Mutant:
    judge = "tests/simt/test_l2_normalize.py::test_matches_float64"
    return Mutant(f"l2_normalize: {name}", "csrc/cuda/l2_normalize.cu", old, new, (judge,))


MUTANTS = (
    _l2("warp sum without its last step", "offset > 0; offset /= 2", "offset > 1; offset /= 2"),
    _l2("Jacobian term missing", "r * (du[k] - u[k] * along)", "r * du[k]"),
    _l2("clamped rows keep the Jacobian", "norm_was_clamped(r, args.eps) ? T(0) : ", ""),
)
