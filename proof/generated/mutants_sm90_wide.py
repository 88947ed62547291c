"""Mistakes in the wide backward on Hopper, each of which must show: a wrong result, or an issue that ptxlab reports."""

from proof.generated.mutants_sm90 import Mutant
from proof.generated.sm90 import Case

KERNEL, SHARED = "ntxent_bwd_wide_sm90.cu", "ntxent_bwd_wide_sm90.cuh"
CASE = Case(130, 300, multiprocessors=2)  # five tiles a cluster, in three stages
# One kernel of the ten, so that a mutant is compiled in seconds: those after it are not to be seen.
_ONE_LAUNCH = "  return run<WideShape<1, 1>>(problem, plan, stream);\n}\n#if 0\n{\n"
ONLY = (
    (KERNEL, "  const int products = problem.product", _ONE_LAUNCH + "  const int products = problem.product"),
    (KERNEL, "}  // namespace simclr::cuda\n", "#endif\n}\n"),
    (KERNEL, "ntxent_bwd_wide_sm90_kernel<true, Shape>", "ntxent_bwd_wide_sm90_kernel<false, Shape>"),
)


def _wide(name: str, old: str, new: str, file: str = KERNEL) -> Mutant:
    return Mutant(name, KERNEL, ((file, old, new), *ONLY), CASE)


MUTANTS = (
    _wide(
        "a tile's copies are not fenced",
        "    wgmma::fence_proxy_async();\n    mbarrier::arrive",
        "    mbarrier::arrive",
    ),
    _wide("a tile is announced before it is there", "    ptx::cp_async_wait_group<0>();\n    wgmma", "    wgmma"),
    _wide("a tile is not waited for", "    mbarrier::wait(shared.full + next.stage, next.phase);\n", ""),
    _wide("a stage is filled while it is multiplied", "    mbarrier::wait(shared.empty + stage, phase ^ 1);\n", ""),
    _wide("S is not waited for", "      wgmma::wait<1>();\n", "      wgmma::wait<2>();\n"),
    _wide(
        "du is not waited for", "      wgmma::wait<0>();\n      if (tile >", "      wgmma::wait<1>();\n      if (tile >"
    ),
    _wide(
        "half of the bytes are expected",
        "expect(arrived, kWideExchangeBytes)",
        "expect(arrived, kWideExchangeBytes / 2)",
        SHARED,
    ),
    _wide("logits are not waited for", "    cluster::wait(arrived, parity);\n", "", SHARED),
    _wide("logits overwrite those not yet read", "    cluster::wait(arrived + kToTaken, parity ^ 1);\n", "", SHARED),
)
