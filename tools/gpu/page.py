"""The page for people, gpu_check.md, of what tools.gpu.results gathered."""

from tools.gpu.results import PROFILED, failures, targets

MOST_FAILURES = 25


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
    lines += [f"- {text}" for text in bad[:MOST_FAILURES]] or ["Nothing failed."]
    lines += [f"- and {len(bad) - MOST_FAILURES} more"] if len(bad) > MOST_FAILURES else []
    if "bench" in found:
        rows = []
        for what, value, sense, bound in targets(found["bench"]):
            held = "-" if value is None else "yes" if (value >= bound) == (sense == "at least") else "NO"
            rows.append([what, f"{sense} {number(bound)}", value, held])
        lines += ["", *table(["demanded", "bound", "measured", "holds"], rows)]
    return [*lines, ""]


def jobs(found: dict) -> list[str]:
    """What was run."""
    rows = [[name, job["status"], job["began"], job["seconds"], job["reason"]] for name, job in found["jobs"].items()]
    return ["## Steps", "", *table(["step", "outcome", "began, s", "took, s", "why"], rows)]


def tests(found: dict) -> list[str]:
    """Counts, failures, and what was not run."""
    if "tests" not in found:
        return []
    of = found["tests"]
    counts = ", ".join(f"{of[name]} {name}" for name in ("passed", "failed", "skipped", "cut off"))
    lines = ["## Tests that need the device", "", f"{counts}.", ""]
    failed = [(name, entry) for name, entry in of["tests"].items() if entry["outcome"] == "failed"]
    lines += [
        f"- FAILED `{name}`: {' '.join(entry['message'].split())[:400]}" for name, entry in failed[:MOST_FAILURES]
    ]
    lines += [f"- and {len(failed) - MOST_FAILURES} more"] if len(failed) > MOST_FAILURES else []
    reasons: dict[str, list[str]] = {}
    for name, entry in of["tests"].items():
        if entry["outcome"] == "skipped":
            reasons.setdefault(entry["message"], []).append(name)
    for name, entry in {**of["not run"], **found.get("tests collected", {}).get("not run", {})}.items():
        reasons.setdefault(entry["reason"].split("\n")[0], []).append(name)
    lines += [f"- {reason}: {len(names)} ({names[0]})" for reason, names in reasons.items()]
    return [*lines, ""]


def margins(found: dict) -> list[str]:
    """How near to its bound every quantity came: by test function, then by test."""
    of = found.get("tests", {})
    nearest = sorted(of.get("nearest to their bounds", {}).items(), key=lambda pair: -pair[1]["share of the bound"])
    if not nearest:
        return []
    rows = [[f"`{key}`", near["error"], near["bound"], near["share of the bound"]] for key, near in nearest]
    lines = ["## Margins", "", *table(["test, quantity", "error of its worst case", "bound", "share"], rows)]
    singles = [
        [f"`{name}`", what, error, bound, error / bound if bound else None]
        for name, entry in of["tests"].items()
        for what, (error, bound) in entry["margins"].items()
    ]
    header = ["test", "quantity", "error", "bound", "share"]
    return [*lines, "<details><summary>Every test</summary>", "", *table(header, singles), "</details>", ""]


def sanitizers(found: dict) -> list[str]:
    """What compute-sanitizer said."""
    if "sanitizer" not in found:
        return []
    rows = [
        [name, of["calls"], of["complete"], of["summary"], "; ".join(of["findings"])[:300]]
        for name, of in found["sanitizer"].items()
    ]
    lines = ["## compute-sanitizer", "", *table(["run", "calls", "complete", "summary", "findings"], rows)]
    for backend, names in found.get("kernels not reached", {}).items():
        lines.append(f"Kernels of {backend} that these calls do not reach: {', '.join(names) or 'none'}.")
    return [*lines, ""]


def profiles(found: dict) -> list[str]:
    """What ncu saw."""
    lines = []
    for name, kernels in found.get("profiles", {}).items():
        rows = [[kernel["kernel"], *(kernel.get(metric) for metric in PROFILED)] for kernel in kernels]
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
    return ["## Ceilings", "", *table(["what", "measured"], rows)]


def ntxent(bench: dict) -> list[str]:
    """Times of the loss."""
    cases = bench.get("ntxent", {})
    if not cases:
        return []
    lines = ["## NT-Xent, t = 0.1", ""]
    lines += [
        "Milliseconds of the device: CUDA-graph replay, L2 flushed, median; above 5 ms as called. limit: 2.5 M^2 D"
    ]
    lines += [
        "multiply-adds at the product's rate (ieee: three tf32 products). host: microseconds until the call returns,"
    ]
    lines += ["forward and backward. cpp / triton / plain in this order where three figures share a cell.", ""]
    header = ["case", "limit", "cpp fwd", "bwd", "both", "triton fwd", "bwd", "both", "plain", "compiled"]
    header += ["plain / best", "best / limit", "host us", "peak MiB", "gradient error"]
    rows = []
    order = lambda item: (item[1]["d"], item[1]["kind"], item[1]["n"])
    for key, case in sorted(cases.items(), key=order):
        of = case["contestants"]
        get = lambda name, what, of=of: of.get(name, {}).get(what)
        row: list[object] = [key, case.get("limit ms")]
        for name in ("cpp", "triton"):
            row += [get(name, f"{part} ms") for part in ("forward", "backward", "both")]
        row += [get("plain", "both ms") or get("plain", "failed"), get("compiled", "both ms")]
        best = min((get(name, "both ms") for name in ("cpp", "triton") if get(name, "both ms")), default=None)
        plain = get("plain", "both ms")
        row += [plain / best if plain and best else None, best / case["limit ms"] if best else None]
        for what in ("host us", "peak MiB", "gradient error"):
            row.append(" / ".join(number(get(name, what), 2) for name in ("cpp", "triton", "plain")))
        rows.append(row)
    return [*lines, *table(header, rows)]


def augmentation(bench: dict) -> list[str]:
    """Views per second."""
    cases = bench.get("augment", {})
    if not cases:
        return []
    lines = ["## Augmentation", ""]
    header = ["case", "contestant", "views/s", "ms", "over a copy of the least bytes", "views alone, ms", "host us"]
    rows = []
    for key, case in cases.items():
        rows.append([key, "a copy of the least bytes", 2 * case["batch"] / case["copy ms"] * 1e3, case["copy ms"]])
        rows[-1] += [1.0, None, None]
        for name, of in case["contestants"].items():
            cells = [of.get(what) for what in ("views/s", "ms", "over the copy", "apply ms", "host us")]
            rows.append([key, name, *cells] if "failed" not in of else [key, name, of["failed"], *[None] * 4])
    lines += table(header, rows)
    for size, errors in bench.get("augment errors", {}).items():
        lines.append(f"Against torchvision per sample, {size} px: {errors}.")
    return [*lines, ""]


def steps(bench: dict) -> list[str]:
    """Training steps."""
    if not bench.get("steps"):
        return []
    header = [
        "step",
        "batch",
        "images/s",
        "step, ms",
        "views, ms",
        "loss, ms",
        "share of both",
        "peak MiB",
        "compiled in, s",
    ]
    whats = ("images/s", "step ms", "views ms", "loss ms", "share of views and loss", "peak MiB", "compile s")
    rows = [[name, of["setting"]["batch"], *(of.get(what) for what in whats)] for name, of in bench["steps"].items()]
    return ["## Training steps: compiled, bfloat16, channels-last", "", *table(header, rows)]


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
    return ["## Peers", "", *table(["what", "peer", "case", "ms"], rows)] if rows else []


def tuning(bench: dict) -> list[str]:
    """The ranking of tiles, its head and the table's own choice."""
    lines = []
    for key, rows in bench.get("tune", {}).items():
        shown = [*rows[:6], *(row for row in rows[6:] if row.get("in the table"))]
        whats = ("ms", "in the table", "registers", "spills", "shared", "distance", "failed")
        cells = [[row["tiles"], *(row.get(what) for what in whats)] for row in shown]
        failed = sum("failed" in row for row in rows)
        header = ["tiles", *whats]
        lines += [f"### {key}", "", f"{len(rows)} candidates, {failed} of them failed.", "", *table(header, cells)]
    return ["## Tiles of the Triton kernels", "", *lines] if lines else []


def summary(found: dict) -> str:
    """The page without its long tables, for the end of the output."""
    bench = found.get("bench", {})
    parts = [tests(found), jobs(found), ceilings(bench), steps(bench), verdict(found)]
    return "\n".join(line for part in parts for line in part)


def page(found: dict) -> str:
    """All of it."""
    bench = found.get("bench", {})
    parts = [["# GPU check", ""], about(found), verdict(found), jobs(found), tests(found), margins(found)]
    parts += [sanitizers(found)]
    parts += [profiles(found)]
    parts += [part(bench) for part in (ceilings, ntxent, augmentation, steps, peers, tuning)]
    for name, job in found["jobs"].items():
        if "tail" in job:
            parts.append([f"## End of {name}'s log", "", "```", *job["tail"], "```", ""])
    return "\n".join(line for part in parts for line in part)
