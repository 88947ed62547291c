"""What a defect in a real kernel is: a text in the place of another, and the tests of which one must fail."""

from dataclasses import dataclass

from proof.simt.build import ROOT

# In which source the defects of a header are shown.
_SOURCES = {
    "csrc/ntxent.h": "ntxent_fwd.cu",
    "csrc/similarity_launch.h": "similarity.cu",
    "csrc/cuda/augment_filter.cuh": "augment.cu",
    "csrc/cuda/augment_mean.cuh": "augment.cu",
    "csrc/cuda/augment_resize.cuh": "augment.cu",
    "csrc/cuda/augment_tile.cuh": "augment.cu",
    "csrc/cuda/ntxent_bwd_terms.cuh": "ntxent_bwd.cu",
    "csrc/cuda/ntxent_direct.cuh": "ntxent_resident.cu",
    "csrc/cuda/ntxent_fwd.cuh": "ntxent_fwd.cu",
    "csrc/cuda/ntxent_math.cuh": "ntxent_bwd.cu",
    "csrc/cuda/ntxent_normalize.cuh": "ntxent_normalize.cu",
    "csrc/cuda/ntxent_plan.h": "ntxent_fwd.cu",
    "csrc/cuda/ntxent_problem.h": "similarity.cu",
    "csrc/cuda/ntxent_resident_plan.h": "ntxent_fwd_bwd.cu",
    "csrc/cuda/ntxent_row_gradient.cuh": "ntxent_bwd_finish.cu",
    "csrc/cuda/ntxent_statistics.cuh": "ntxent_fwd.cu",
    "csrc/cuda/ntxent_tiles.cuh": "ntxent_fwd.cu",
    "csrc/cuda/ntxent_unit_rows.cuh": "ntxent_normalize.cu",
    "csrc/cuda/reduce.cuh": "ntxent_normalize.cu",
}


@dataclass(frozen=True)
class Mutant:
    """One defect.

    name: what is wrong. file: the kernel file. old: its text, which must occur exactly once. new: what stands there
    instead. judges: the tests that are run, as pytest takes them; at least one must fail. source: the .cu file that is
    compiled with the defect, where `file` is a header and another of those that include it than _SOURCES says; all
    others stay as they are, so that a mutant costs one compilation.
    """

    name: str
    file: str
    old: str
    new: str
    judges: tuple[str, ...]
    source: str = ""

    @property
    def compiled_in(self) -> str:
        """The path of the source that is compiled with the defect."""
        return f"csrc/cuda/{self.source or _SOURCES[self.file]}" if self.file in _SOURCES else self.file

    def text(self) -> str:
        """The file with the defect in it; ValueError where `old` does not occur exactly once."""
        original = (ROOT / self.file).read_text()
        count = original.count(self.old)
        if count != 1:
            raise ValueError(f"mutant {self.name!r}: its text occurs {count} times in {self.file}, it must occur once")
        return original.replace(self.old, self.new)
