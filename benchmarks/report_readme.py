"""The README's share of a results file: a short table between two marker comments, and one plot.

The column of the GPU comes from the committed report of tools/gpu_check.py: after a new one,
`python -m benchmarks.report_readme` renews that column and leaves the rest.
"""

import json
import re
import sys
from pathlib import Path

from benchmarks.report_plots import draw_readme, is_ours, rates_of
from benchmarks.report_tables import label, number, table
from benchmarks.targets import MIB, augment_info, ntxent_info, timed

BEGIN = "<!-- benchmarks: written by `python -m benchmarks.report RESULTS.json --readme` -->"
END = "<!-- benchmarks: end -->"
HEADING = "## Benchmarks"
PLOT = Path("docs/images/bench.png")
SIZES = (256, 1024, 4096)
SHAPES = ((256, 32, 32), (64, 256, 224))
SHOWN = ("cpp", "triton", "simclr_fast")  # of ours; the step eager and in float32, as the others do it
NO_GPU = "run `make gpu-check`"
OURS_ON_GPU = ("cpp", "triton")
GPU_CHECK = Path("docs/tables/gpu_check.json")
# The cases of a GPU that stand beside those of the CPU, row by row: (section, case, what it is compared with, figure,
# unit). The last row is that of the training steps.
_GPU_ROWS = (
    *(("ntxent", f"N={n} D=128 fp16", "plain", "both ms", "ms, fp16") for n in SIZES),
    ("ntxent", f"N={SIZES[-1]} D=128 fp16", "plain", "peak MiB", "MiB"),
    ("augment", "1024 x 32 px to 32 px, bf16", "torchvision v2, a batch", "views/s", "views/s"),
    ("augment", "256 x 256 px to 224 px, bf16", "torchvision v2, a batch", "views/s", "views/s"),
)


def best_of(values: dict[str, float], most_is_best: bool) -> str | None:
    """Whose value is the best; None where there is none."""
    return (max if most_is_best else min)(values, key=values.get, default=None)


def times(ours: float, other: float, most_is_best: bool) -> str:
    """How many times as good ours is as the other, in brackets."""
    return f"({number(ours / other if most_is_best else other / ours)}x)"


def _gpu_cell(bench: dict, section: str, case: str, other: str, name: str, unit: str) -> str:
    """What the GPU's report says of one row; "" where it says nothing."""
    most_is_best = section == "augment"
    contestants = bench.get(section, {}).get(case, {}).get("contestants", {})
    values = {contestant: figures[name] for contestant, figures in contestants.items() if figures.get(name)}
    best = best_of({contestant: values[contestant] for contestant in OURS_ON_GPU if contestant in values}, most_is_best)
    if best is None:
        return ""
    cell = f"{best} {number(values[best])} {unit}"
    return f"{cell} {times(values[best], values[other], most_is_best)}" if other in values else cell


def gpu_cells(check: Path) -> list[str]:
    """The GPU's cell of every row, of a report of tools/gpu_check.py."""
    if not check.exists():
        return [NO_GPU] * (len(_GPU_ROWS) + 1)
    bench = json.loads(check.read_text())["bench"]
    rates = {name: figures["images/s"] for name, figures in bench.get("steps", {}).items() if "images/s" in figures}
    steps = "; ".join(f"{name}, bf16: {number(rate)} images/s" for name, rate in rates.items())
    return [*(_gpu_cell(bench, *row) for row in _GPU_ROWS), steps]


def gpu_note(check: Path) -> str:
    """On what card, with what, and of which commit the GPU's column was measured."""
    if not check.exists():
        return ""
    about = json.loads(check.read_text())["check"]
    machine = about["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "triton"))
    return (
        f" GPU: {machine['gpu']['name']}, {versions}, commit {about['commit']}, {about['began'][:10]}; device time, in "
        "brackets beside plain PyTorch or torchvision v2 on the same card, which draws once per batch."
    )


def _row(what: str, values: dict[str, float], plain: str, unit: str, most_is_best: bool) -> list[str]:
    """Ours against plain and against the best of the others; `values` are those that were measured."""
    ours = values[best_of({name: values[name] for name in SHOWN if name in values}, most_is_best)]
    others = {name: value for name, value in values.items() if not is_ours(name) and name != plain}
    cells = [what, f"{number(ours)} {unit}"]
    for other in (plain, best_of(others, most_is_best)):
        named = f"{other} " if other != plain else ""
        beside = other in values and f"{number(values[other])} {unit} {times(ours, values[other], most_is_best)}"
        cells.append(named + beside if beside else "")
    return cells


def rows(found: dict[str, list[dict]], check: Path) -> list[list[str]]:
    """The rows of the table; raises SystemExit where the run lacks one of its cases."""
    made = []
    for n in SIZES:
        info = _needed(ntxent_info(found, n), f"NT-Xent, N = {n}")
        values = {name: 1e3 * seconds for name, seconds in timed(info).items()}
        made.append(_row(f"NT-Xent forward + backward, N = {n}", values, "plain", "ms", False))
    values = {name: f["peak_bytes"] / MIB for name, f in info["contestants"].items() if "peak_bytes" in f}
    made.append(_row(f"its peak memory, N = {n}", values, "plain", "MiB", False))
    for batch, side, size in SHAPES:
        info = _needed(augment_info(found, batch, side, size), f"augmentation, {batch} x {side} to {size}")
        what = f"augmentation, {batch} images, {side} to {size} px"
        made.append(_row(what, rates_of(info, info["views"]), "torchvision", "views/s", True))
    for info in found.get("train_step", [])[:1]:
        what = f"training step, {info['title']}"
        made.append(_row(what, rates_of(info, info["images"]), "plain PyTorch", "images/s", True))
    return [[*cells, on_gpu] for cells, on_gpu in zip(made, gpu_cells(check))]


def _needed(info: dict | None, what: str) -> dict:
    if info is None:
        why = "which the README shows; take them with `make bench`"
        raise SystemExit(f"report: the results lack the case {what}, {why}")
    return info


def text(results: dict, found: dict[str, list[dict]], check: Path) -> str:
    """The block between the markers."""
    header = ["measured with `make bench`", "simclr_fast, CPU", "plain PyTorch / torchvision", "best of the others"]
    shown = table([*header, "GPU"], rows(found, check))
    foot = (
        f"{label(results)}. Float32, D = 128, t = 0.1; medians of interleaved rounds; in brackets, how "
        "many times as fast (or as small) simclr_fast is. Only contestants whose results agree are timed."
        f"{gpu_note(check)}"
    )
    return f"{BEGIN}\n{shown}\n\n{foot}\n\n![time against N, and augmentation's images per second]({PLOT})\n{END}"


def write(results: dict, found: dict[str, list[dict]], readme: Path) -> None:
    """Puts table and plot into the README: between the markers, or at the end of its Benchmarks section."""
    if results["machine_info"]["simclr_fast"]["device"] != "cpu":
        raise SystemExit("report: --readme takes the results of a CPU; a GPU's belong into its gpu-check report")
    page, block = readme.read_text(), text(results, found, readme.parent / GPU_CHECK)
    if BEGIN in page and END in page:
        page = page[: page.index(BEGIN)] + block + page[page.index(END) + len(END) :]
    else:
        section = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        if section is None:
            raise SystemExit(f"report: {readme} has neither the marker comments nor a section {HEADING!r}")
        page = f"{page[: section.start()]}{section.group().rstrip()}\n\n{block}\n\n{page[section.end() :]}"
    plot = readme.parent / PLOT
    plot.parent.mkdir(parents=True, exist_ok=True)
    draw_readme(found, augment_info(found, *SHAPES[-1]), label(results), plot)
    readme.write_text(page.rstrip("\n") + "\n")


def renew_gpu_column(readme: Path) -> None:
    """Puts the figures of the committed report of a GPU into the table that is there."""
    page, check = readme.read_text(), readme.parent / GPU_CHECK
    begin, end = page.index(BEGIN), page.index(END)
    old = re.findall(r"^\|.*\|$", page[begin:end], re.MULTILINE)[2:]  # without the header and its rule
    new = [f"{row[: row.rindex('|', 0, -1)]}| {cell} |" for row, cell in zip(old, gpu_cells(check))]
    block = page[begin:end].replace("\n".join(old), "\n".join(new))
    block = re.sub(r"(agree are timed\.).*", lambda found: found[1] + gpu_note(check), block)
    readme.write_text(page[:begin] + block + page[end:])


if __name__ == "__main__":
    renew_gpu_column(Path(sys.argv[1] if len(sys.argv) > 1 else "README.md"))
