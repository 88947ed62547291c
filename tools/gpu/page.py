"""The page for people, gpu_check.md, of what tools.gpu.results gathered."""

from collections import defaultdict

from tools.gpu import OURS
from tools.gpu.results import PROFILED, best_ms, failures, targets

MOST_FAILURES = 25
FINDING_CHARACTERS = 600  # of one stage of a search; the JSON has all of it
ABOUT_NTXENT = (
    "Milliseconds of the device: CUDA-graph replay, L2 flushed, median; above 5 ms as called. limit: 2.5 M^2 D",
    "multiply-adds at the product's rate (ieee: three tf32 products). host: microseconds until the call returns,",
    "forward and backward. cpp / triton / plain in this order where three figures share a cell.",
    "",
)


def number(value: object, digits: int = 3) -> str:
    """A figure with a few digits, a dash where there is none."""
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value)
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}g}"
    return str(value)


def table(header: list[str], rows: list[list[object]]) -> list[str]:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return [*lines, *("| " + " | ".join(number(cell).replace("|", "\\|") for cell in row) + " |" for row in rows), ""]


def section(title: str, header: list[str], rows: list[list[object]], *before: str) -> list[str]:
    """A table under a heading, with lines before it; nothing where there are no rows."""
    return [f"## {title}", "", *before, *table(header, rows)] if rows else []


def listed(said: list[str]) -> list[str]:
    """The first of them, one in a line, and how many more there are."""
    more = [f"and {len(said) - MOST_FAILURES} more"] if len(said) > MOST_FAILURES else []
    return [f"- {text}" for text in [*said[:MOST_FAILURES], *more]]


def cells(figures: dict, *names: str) -> list[object]:
    """These figures, None for one that is missing."""
    return [figures.get(name) for name in names]


def about(found: dict) -> list[str]:
    """What was checked, on what."""
    check, machine = found["check"], found["check"]["machine"]
    gpu = machine.get("gpu") or {"name": "no GPU (dry run: no figure means anything)"}
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    absent = ", ".join(name for name, version in machine["versions"].items() if not version)
    return [
        f"- card: {', '.join(f'{name} {value}' if name != 'name' else str(value) for name, value in gpu.items())}",
        f"- nvidia-smi: {machine['nvidia-smi'] or '-'}",
        f"- commit {check['commit'] or 'unknown'}, sources {check['sources']}",
        f"- Python {machine['python']}, {versions}; CUDA of torch {machine['torch' + chr(39) + 's CUDA']}",
        f"- nvcc: {machine['nvcc'] or '-'}; {machine['compiler']}; {machine['cores']} cores; {machine['system']}",
        f"- not installed: {absent or 'nothing that is asked for'}",
        f"- {check['began']}, {check['seconds']:.0f} s of {check['minutes']:g} min: `{check['command']}`",
        "",
    ]


def verdict(found: dict) -> list[str]:
    """What failed, and what is demanded beside what was measured."""
    bad = failures(found)
    lines = ["## Verdict", ""]
    if found["check"]["state"] != "finished":
        lines += [f"**This check is not complete: {found['check']['state']}.**", ""]
    lines += listed(bad) or ["Nothing failed."]
    if "bench" in found:
        rows = []
        for what, value, sense, bound in targets(found["bench"]):
            held = "-" if value is None else "yes" if (value >= bound) == (sense == "at least") else "NO"
            rows.append([what, f"{sense} {number(bound)}", value, held])
        lines += ["", *table(["demanded", "bound", "measured", "holds"], rows)]
    return [*lines, ""]


def jobs(found: dict) -> list[str]:
    """What was run."""
    rows = [[name, *cells(job, "status", "began", "seconds", "reason")] for name, job in found["jobs"].items()]
    return section("Steps", ["step", "outcome", "began, s", "took, s", "why"], rows)


def tests(found: dict) -> list[str]:
    """Counts, failures, and what was not run."""
    if "tests" not in found:
        return []
    of = found["tests"]
    counts = ", ".join(f"{of[name]} {name}" for name in ("passed", "failed", "skipped", "cut off"))
    failed, reasons = [], defaultdict(list)
    for name, entry in of["tests"].items():
        if entry["outcome"] == "failed":
            failed.append(f"FAILED `{name}`: {' '.join(entry['message'].split())[:400]}")
        elif entry["outcome"] == "skipped":
            reasons[entry["message"]].append(name)
    for name, entry in {**of["not run"], **found.get("tests collected", {}).get("not run", {})}.items():
        reasons[entry["reason"].split("\n")[0]].append(name)
    lines = ["## Tests that need the device", "", f"{counts}.", "", *listed(failed)]
    return [*lines, *(f"- {reason}: {len(names)} ({names[0]})" for reason, names in reasons.items()), ""]


def margins(found: dict) -> list[str]:
    """How near to its bound every quantity came: by test function, then by test."""
    of = found.get("tests", {})
    nearest = sorted(of.get("nearest to their bounds", {}).items(), key=lambda pair: -pair[1]["share of the bound"])
    if not nearest:
        return []
    rows = [[f"`{key}`", *cells(near, "error", "bound", "share of the bound")] for key, near in nearest]
    singles = [
        [f"`{name}`", what, error, bound, error / bound if bound else None]
        for name, entry in of["tests"].items()
        for what, (error, bound) in entry["margins"].items()
    ]
    lines = section("Margins", ["test, quantity", "error of its worst case", "bound", "share"], rows)
    every = table(["test", "quantity", "error", "bound", "share"], singles)
    return [*lines, "<details><summary>Every test</summary>", "", *every, "</details>", ""]


def sanitizers(found: dict) -> list[str]:
    """What compute-sanitizer said."""
    rows = [
        [name, *cells(of, "calls", "complete", "summary"), "; ".join(of["findings"])[:300]]
        for name, of in found.get("sanitizer", {}).items()
    ]
    lines = section("compute-sanitizer", ["run", "calls", "complete", "summary", "findings"], rows)
    if lines:
        for backend, names in found.get("kernels not reached", {}).items():
            lines.append(f"Kernels of {backend} that these calls do not reach: {', '.join(names) or 'none'}.")
        lines.append("")
    return lines


def profiles(found: dict) -> list[str]:
    """What ncu saw."""
    lines = []
    for name, kernels in found.get("profiles", {}).items():
        rows = [[kernel["kernel"], *cells(kernel, *PROFILED)] for kernel in kernels]
        lines += [f"## {name}", "", *table(["kernel", *PROFILED], rows)]
    return lines


def ceilings(bench: dict) -> list[str]:
    """The machine's own."""
    of = bench.get("ceilings")
    if not of:
        return []
    rows = [["copy on the device, GB/s", of.get("copy GB/s")]]
    rows += [[f"{kind} product of 8192^3, TFLOP/s", rate] for kind, rate in of.get("product TFLOP/s", {}).items()]
    others = ("host us of one torch op", "empty launch us", "clocks after the products")
    rows += [[name, of[name]] for name in others if name in of]
    return section("Ceilings", ["what", "measured"], rows)


def ntxent(bench: dict) -> list[str]:
    """Times of the loss."""
    header = ["case", "limit", "cpp fwd", "bwd", "both", "triton fwd", "bwd", "both", "plain", "compiled"]
    header += ["plain / best", "best / limit", "host us", "peak MiB", "gradient error"]
    rows = []
    for key, case in sorted(bench.get("ntxent", {}).items(), key=lambda item: cells(item[1], "d", "kind", "n")):
        cpp, triton, plain, compiled = (case["contestants"].get(name, {}) for name in (*OURS, "plain", "compiled"))
        row: list[object] = [key, case.get("limit ms")]
        for figures in (cpp, triton):
            row += cells(figures, "forward ms", "backward ms", "both ms")
        row += [plain.get("both ms") or plain.get("failed"), compiled.get("both ms")]
        best, plain_ms = best_ms(case), plain.get("both ms")
        row += [plain_ms / best if plain_ms and best else None, best / case["limit ms"] if best else None]
        for what in ("host us", "peak MiB", "gradient error"):
            row.append(" / ".join(number(figures.get(what), 2) for figures in (cpp, triton, plain)))
        rows.append(row)
    return section("NT-Xent, t = 0.1", header, rows, *ABOUT_NTXENT)


def augmentation(bench: dict) -> list[str]:
    """Views per second."""
    header = ["case", "contestant", "views/s", "ms", "over a copy of the least bytes", "views alone, ms", "host us"]
    rows = []
    for key, case in bench.get("augment", {}).items():
        copied = 2 * case["batch"] / case["copy ms"] * 1e3
        rows.append([key, "a copy of the least bytes", copied, case["copy ms"], 1.0, None, None])
        for name, of in case["contestants"].items():
            figures = cells(of, "views/s", "ms", "over the copy", "apply ms", "host us")
            rows.append([key, name, *([of["failed"], *[None] * 4] if "failed" in of else figures)])
    lines = section("Augmentation", header, rows)
    if lines:
        for size, errors in bench.get("augment errors", {}).items():
            lines.append(f"Against torchvision per sample, {size} px: {errors}.")
        lines.append("")
    return lines


def steps(bench: dict) -> list[str]:
    """Training steps."""
    shown = {
        "images/s": "images/s",
        "as a graph": "images/s, graph",
        "not compiled": "images/s, eager",
        "step, ms": "step ms",
        "views, ms": "views ms",
        "loss, ms": "loss ms",
        "share of both": "share of views and loss",
        "peak MiB": "peak MiB",
        "compiled in, s": "compile s",
    }
    taken = bench.get("steps", {})
    rows = [[name, of["setting"]["batch"], *cells(of, *shown.values())] for name, of in taken.items()]
    lines = section("Training steps: compiled, bfloat16, channels-last", ["step", "batch", *shown], rows)
    for name, of in taken.items():
        for stage, said in of.get("not finite", {}).items():
            lines.append(f"- {name}, where it is not finite, {stage}: {str(said)[:FINDING_CHARACTERS]}")
    return [*lines, ""] if lines else []


def peers(bench: dict) -> list[str]:
    """What could be imported."""
    rows = []
    for group, entries in bench.get("peers", {}).items():
        for name, cases in entries.items():
            if "absent" in cases:
                rows.append([group, name, cases["absent"], None])
            for case, of in cases.items():
                if isinstance(of, dict):
                    rows.append([group, name, case, of.get("failed") or of.get("both ms") or of.get("ms")])
    return section("Peers", ["what", "peer", "case", "ms"], rows)


def tuning(bench: dict) -> list[str]:
    """The ranking of tiles, its head and the table's own choice."""
    header = ["tiles", "ms", "in the table", "registers", "spills", "shared", "distance", "failed"]
    lines = []
    for key, rows in bench.get("tune", {}).items():
        shown = [*rows[:6], *(row for row in rows[6:] if row.get("in the table"))]
        count = f"{len(rows)} candidates, {sum('failed' in row for row in rows)} of them failed."
        lines += [f"### {key}", "", count, "", *table(header, [cells(row, *header) for row in shown])]
    return ["## Tiles of the Triton kernels", "", *lines] if lines else []


def summary(found: dict) -> str:
    """The page without its long tables, for the end of the output."""
    bench = found.get("bench", {})
    return "\n".join([*tests(found), *jobs(found), *ceilings(bench), *steps(bench), *verdict(found)])


def page(found: dict) -> str:
    """All of it."""
    lines = ["# GPU check", ""]
    for part in (about, verdict, jobs, tests, margins, sanitizers, profiles):
        lines += part(found)
    for part in (ceilings, ntxent, augmentation, steps, peers, tuning):
        lines += part(found.get("bench", {}))
    for name, job in found["jobs"].items():
        if "tail" in job:
            lines += [f"## End of {name}'s log", "", "```", *job["tail"], "```", ""]
    return "\n".join(lines)
