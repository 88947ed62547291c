"""Counts, by executing the PTX that nvcc emits for Hopper, what a step of the loss does there.

`python -m proof.generated.ptxlab_sm90` writes docs/tables/ptxlab_sm90.json and .md. Everything there is a count, or
a model on counts; nothing is a measured speed.
"""

from proof.generated import ptxlab_cuda
from proof.generated.ptx import ROOT, toolkit
from proof.generated.sm90 import HALF, hopper, program
from proof.generated.workloads import Workload, ntxent
from tools.tables import write_table

TABLE = ROOT / "docs/tables/ptxlab_sm90.json"
H100 = hopper(132)
MODELLED = Workload("ntxent fp16, 8192 x 128", ntxent(4096, 128, HALF, temperature=0.5, check=False, device=H100))
WORKLOADS = (
    Workload("ntxent fp16, 2048 x 128", ntxent(1024, 128, HALF, check=False, device=H100)),
    Workload("ntxent fp16, 1024 x 512", ntxent(512, 512, HALF, check=False, device=H100)),
    MODELLED,
)
# The limit that the loss is measured by: 2.5 M^2 D multiply-adds at what large products reach, in FLOP/s.
REACHABLE = 800e12


def limit_us(rows: int, d: int) -> float:
    """Time in us of 2.5 rows^2 d multiply-adds at the rate of large products."""
    return 2 * 2.5 * rows**2 * d / REACHABLE * 1e6


def render(table: dict) -> str:
    total, limit = ptxlab_cuda.modelled_us(table, MODELLED, "reached_us"), limit_us(8192, 128)
    return "\n".join(
        [
            *ptxlab_cuda.heading("ptxlab_sm90", "What the generated code does on Hopper", table, "90a"),
            *ptxlab_cuda.launches(table),
            "",
            f"Forward + backward at M = 8192, D = 128, fp16: modelled {total:.1f} us over all launches, where",
            f"mma.sync may reach 62 % of the tensor cores' peak and wgmma all of it; {total / limit:.2f} times the",
            f"{limit:.1f} us of 2.5 M^2 D multiply-adds at 800 TFLOP/s, the rate of large products.",
            "",
        ]
    )


def main() -> None:
    kernels = program()
    launches = [row for workload in WORKLOADS for row in ptxlab_cuda.count(kernels, workload)]
    table = {"nvcc": toolkit(), "launches": launches}
    write_table(TABLE, table, render(table))
    print(f"wrote {TABLE.relative_to(ROOT)}: {len(launches)} launches")


if __name__ == "__main__":
    main()
