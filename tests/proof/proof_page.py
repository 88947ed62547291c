"""The table of docs/proof.md: what executing the generated code of every kernel of the project counted.

`python -m tests.proof.proof_page` writes it between the page's two marks, from the committed tables of docs/tables.
"""

import json
from pathlib import Path

from tests.proof.ptx import ROOT

PAGE = ROOT / "docs/proof.md"
TABLES = ROOT / "docs/tables"
BEGIN, END = "<!-- counts: written by `python -m tests.proof.proof_page` -->\n", "<!-- end of counts -->\n"
SECTOR = 32


def _load(name: str) -> dict:
    return json.loads((TABLES / f"{name}.json").read_text())


def _row(kernel: str, workload: str, flops: float, sectors: int, unique: int, model_us: float, bound: str) -> str:
    return f"| `{kernel}` | {workload} | {flops / 1e9:.3g} | {sectors} | {unique} | {model_us} | {bound} |"


def rows() -> list[str]:
    """One row per kernel and compiler: nvcc's kernels in every counted workload, then Triton's."""
    lines = [
        _row(*(launch[key] for key in ("kernel", "workload", "mma_flops", "sectors", "unique_bytes")),
             launch["model_us"], launch["model_bound"])
        for launch in _load("ptxlab_cuda")["launches"]
    ]  # fmt: skip
    lines += [
        _row(
            launch["kernel"],
            f"augment {launch['workload']}, {launch['views']} views",
            0,
            launch["sector_bytes"] // SECTOR,
            launch["unique_bytes"],
            launch["model_us"],
            launch["model_bound"],
        )
        for launch in _load("ptxlab_augment")["launches"]
    ]
    triton = _load("counts_triton")
    size = triton["size"]
    workload = f"ntxent {size['operand']}, {size['columns']} x {size['D']}, Triton"
    counted_kernels = [(kernel, workload, counted) for kernel, counted in triton["kernels"].items()]
    for name, counted in triton["other operands"].items():
        kernel, operand = name.rsplit(", ", 1)
        op = "ntxent" if kernel.startswith("ntxent") else "l2_normalize"
        counted_kernels.append((kernel, f"{op} {operand}, 1024 x {size['D']}, Triton", counted))
    lines += [
        _row(
            kernel,
            workload,
            counted["tensor-core FLOPs"],
            counted["sectors"],
            counted["unique bytes"],
            counted["modelled microseconds"],
            counted["bound"],
        )
        for kernel, workload, counted in counted_kernels
    ]
    return lines


def section() -> str:
    """The table, as it stands between the marks."""
    head = (
        "| kernel | workload | mma GFLOP | sectors | unique bytes | model, us | bound by |\n" + "|" + "---|" * 7 + "\n"
    )
    return head + "\n".join(rows()) + "\n"


def page_with(text: str, table: str) -> str:
    """The page's text with the table between its marks; ValueError where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the marks {BEGIN!r} and {END!r}")
    return before + begin + "\n" + table + "\n" + end + after


def main() -> None:
    PAGE.write_text(page_with(PAGE.read_text(), section()))
    print(f"wrote {Path(PAGE).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
