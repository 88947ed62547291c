"""The table of docs/proof.md: what executing the generated code of every kernel of the project counted.

`python -m proof.generated.proof_page` writes it between the page's two marks, from the committed tables of docs/tables.
"""

from pathlib import Path
from typing import Any

from proof.generated.ptx import ROOT
from proof.generated.triton_code import committed_table
from proof.generated.triton_tables import ALSO_COUNTED, COUNTED_ARCHS

PAGE = ROOT / "docs/proof.md"
BEGIN, END = "<!-- counts: written by `python -m proof.generated.proof_page` -->\n", "<!-- end of counts -->\n"
SECTOR = 32


def _row(kernel: str, workload: str, flops: float, sectors: int, unique: int, model_us: float, bound: str) -> str:
    return f"| `{kernel}` | {workload} | {flops / 1e9:.3g} | {sectors} | {unique} | {model_us} | {bound} |"


def rows() -> list[str]:
    """One row per launch of a counted workload: nvcc's kernels, then Triton's."""
    lines = [
        _row(
            launch["kernel"],
            launch["workload"],
            launch["mma_flops"],
            launch["sectors"],
            launch["unique_bytes"],
            launch["model_us"],
            launch["model_bound"],
        )
        for launch in committed_table("ptxlab_cuda")["launches"]
    ]
    lines += _augmentation(committed_table("ptxlab_augment"), "")
    for arch in COUNTED_ARCHS:
        compiler = f", Triton sm_{arch}"
        lines += _ntxent_of_triton(arch, compiler)
        lines += _augmentation(committed_table("counts_triton_augment")[f"sm_{arch}"], compiler)
    return lines


def _ntxent_of_triton(arch: int, compiler: str) -> list[str]:
    table = committed_table("counts_triton")
    counts, lines = table[f"sm_{arch}"], []
    sizes = {size["operand"]: size for size in (table["size"], *ALSO_COUNTED)}
    for name, counted in (counts["kernels"] | counts["other operands"]).items():
        kernel, _, operand = name.partition(", ")
        size = sizes[operand or table["size"]["operand"]]
        lines.append(
            _row(
                kernel,
                f"ntxent {size['operand']}, {size['columns']} x {size['D']}{compiler}",
                counted["tensor-core FLOPs"],
                counted["sectors"],
                counted["unique bytes"],
                counted["modelled microseconds"],
                counted["bound"],
            )
        )
    return lines


def _augmentation(table: dict[str, Any], compiler: str) -> list[str]:
    return [
        _row(
            launch["kernel"],
            f"augment {launch['workload']}, {launch['views']} views{compiler}",
            0,
            launch["sector_bytes"] // SECTOR,
            launch["unique_bytes"],
            launch["model_us"],
            launch["model_bound"],
        )
        for launch in table["launches"]
    ]


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
