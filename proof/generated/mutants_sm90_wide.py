"""Mistakes in the wide backward on Hopper, each of which must show: a wrong result, or an issue that ptxlab reports."""

from dataclasses import dataclass

from proof.generated.mutants_sm90 import fails
from proof.generated.sm90 import Case, program

KERNEL, SHARED = "ntxent_bwd_wide_sm90.cu", "ntxent_bwd_wide_sm90.cuh"
CASE = Case(130, 300, multiprocessors=2)  # five tiles a cluster, in three stages
# One kernel of the ten, so that a mutant is compiled in seconds: those after it are not to be seen.
_ONE_LAUNCH = "  return run<WideShape<1, 1>>(problem, plan, stream);\n}\n#if 0\n{\n"
ONLY = (
    (KERNEL, "  const int products = problem.product", _ONE_LAUNCH + "  const int products = problem.product"),
    (KERNEL, "}  // namespace simclr::cuda\n", "#endif\n}\n"),
)


@dataclass(frozen=True)
class Mutant:
    """`old`, which csrc/cuda/`file` has once, becomes `new`."""

    name: str
    old: str
    new: str
    file: str = KERNEL

    def __str__(self) -> str:
        return self.name

    def noticed(self) -> bool:
        """Whether one of the schedules shows a wrong result or an issue."""
        kernels = program((*ONLY, (self.file, self.old, self.new)), (KERNEL,))
        return any(fails(CASE.errors, kernels, seed, timing) for seed, timing in ((0, "lazy"), (1, "eager")))


MUTANTS = (
    Mutant(
        "a tile's copies are not fenced",
        "    wgmma::fence_proxy_async();\n    mbarrier::arrive",
        "    mbarrier::arrive",
    ),
    Mutant("a tile is announced before it is there", "    ptx::cp_async_wait_group<0>();\n    wgmma", "    wgmma"),
    Mutant("a tile is not waited for", "    mbarrier::wait(shared.full + next.stage, next.phase);\n", ""),
    Mutant("a stage is filled while it is multiplied", "    mbarrier::wait(shared.empty + stage, phase ^ 1);\n", ""),
    Mutant("S is not waited for", "      wgmma::wait<1>();\n", "      wgmma::wait<2>();\n"),
    Mutant(
        "du is not waited for", "      wgmma::wait<0>();\n      if (tile >", "      wgmma::wait<1>();\n      if (tile >"
    ),
    Mutant(
        "half of the bytes are expected",
        "expect(arrived, kWideExchangeBytes)",
        "expect(arrived, kWideExchangeBytes / 2)",
        SHARED,
    ),
    Mutant("logits are not waited for", "    cluster::wait(arrived, parity);\n", "", SHARED),
    Mutant("logits overwrite those not yet read", "    cluster::wait(arrived + kToTaken, parity ^ 1);\n", "", SHARED),
)
