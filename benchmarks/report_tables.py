"""The tables of the report, as Markdown."""

import math
import re
from dataclasses import dataclass

from benchmarks.targets import MIB, Target, full_seconds, over_limit, targets, timed

# A change is reported where the medians differ by more than this and the quartile ranges do not overlap.
NOISE = 0.10


@dataclass(frozen=True)
class Section:
    """A part of the page; `suite` says which plots belong to it."""

    suite: str
    text: str


def counted(count: int, what: str) -> str:
    """`1 process`, `2 processes`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('s') else 's'}"


def label(results: dict) -> str:
    """One line that says where and when the figures were taken."""
    machine = results["machine_info"]["simclr_fast"]
    where = machine.get("gpu") or f"CPU {machine['processor']}, {counted(machine['threads'], 'thread')}"
    commit = (machine["commit"] or "unknown") + (" + changes" if machine["modified"] else "")
    return f"{where}, torch {machine['versions']['torch']}, commit {commit}, {results['datetime'][:10]}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value: float) -> str:
    """Three significant digits, without an exponent, thousands separated."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def milliseconds(figures: dict, phase: str) -> str:
    """Median and quartiles of a phase in ms; "" where it has none."""
    of = {name: number(1e3 * value) for name, value in figures["seconds"].get(phase, {}).items()}
    return "{median} ({q1}-{q3})".format(**of) if of else ""


def not_timed(figures: dict) -> str | None:
    """Why a contestant has no time; None if it has one."""
    if "absent" in figures:
        return f"not run: {figures['absent']}"
    if "failed" in figures:
        return f"**failed**: {figures['failed']}"
    if "error" in figures and not figures["error"] <= figures["tolerance"]:  # so that NaN is wrong
        return f"**wrong**: error {figures['error']:.2g} > {figures['tolerance']:.0e}"
    return None


def _ratio(base: float | None, mine: float) -> str:
    return "" if base is None else f"{number(base / mine)}x"


def remarks(info: dict) -> list[str]:
    """Who was not timed and why, and in what the timed differ from the others."""
    found = {name: not_timed(figures) or figures.get("note") for name, figures in info["contestants"].items()}
    return [f"- {name}: {remark}" for name, remark in found.items() if remark]


def contestants_table(info: dict, common: list[str], header: list[str], row) -> str:
    """One row per timed contestant, `row(figures, seconds)` behind its name; below it the remarks not in `common`."""
    rows = [[name, *row(info["contestants"][name], seconds)] for name, seconds in timed(info).items()]
    own = "\n".join(remark for remark in remarks(info) if remark not in common)
    return f"### {title(info)}\n\n" + table(["contestant", *header], rows) + ("\n\n" + own if own else "")


def phases_of(info: dict) -> list[str]:
    """The phases of the timed contestants, in their order."""
    timed_ones = (figures["seconds"] for figures in info["contestants"].values() if "seconds" in figures)
    return list(dict.fromkeys(phase for seconds in timed_ones for phase in seconds if phase != "full"))


def ntxent_case(info: dict, common: list[str]) -> str:
    """Forward, backward, full, against plain PyTorch, rate of arithmetic and traffic, memory, error."""
    plain = full_seconds(info["contestants"].get("plain", {}))
    rate, bandwidth = info["limits"]["multiply_adds_per_second"], info["bytes_per_second"]
    least, moved = info["multiply_adds"]["least"], info["least_bytes"]

    def row(figures: dict, full: float) -> list[str]:
        times = [milliseconds(figures, phase) for phase in ("forward", "backward", "full")]
        achieved = [number(2 * least / full / 1e9), f"{number(over_limit(info, full))}x", number(moved / full / 1e9)]
        memory = f"{figures['peak_bytes'] / MIB:.1f}" if "peak_bytes" in figures else ""
        return [*times, _ratio(plain, full), *achieved, memory, f"{figures['error']:.1e}"]

    header = ["forward ms", "backward ms", "full ms", "against plain", "GFLOP/s", "over limit", "GB/s", "peak MiB"]
    product = {
        0: "a large torch.mm",
        1: "a large torch.mm in float16",
        3: "a large torch.mm in float16, of which three make one in float32,",
    }[info["half_products"]]
    limit = (
        f"Limit {number(1e3 * least / rate)} ms: 2 M^2 D multiply-adds ({number(2 * least / 1e9)} GFLOP) at the "
        f"{number(2 * rate / 1e9)} GFLOP/s of {product} in the same rounds. GFLOP/s counts these, whatever "
        f"a contestant really does. Least traffic {number(moved / MIB)} MiB; a copy reaches "
        f"{number(bandwidth / 1e9)} GB/s."
    )
    return contestants_table(info, common, [*header, "error"], row) + "\n\n" + limit


def memory_case(info: dict, common: list[str]) -> str:
    """Peak memory where plain PyTorch has no room."""
    peaks = {name: of["peak_bytes"] for name, of in info["contestants"].items() if "peak_bytes" in of}
    rows = [[name, f"{peak / MIB:.1f}"] for name, peak in peaks.items()]
    return f"### {title(info)}\n\n" + table(["contestant", "peak MiB, forward + backward"], rows)


def host_case(info: dict, common: list[str]) -> str:
    """Microseconds forward, backward and full, beyond the kernels', and as a share of plain PyTorch's."""
    kernels, plain = (full_seconds(info["contestants"].get(name, {})) for name in ("kernels", "plain"))

    def row(figures: dict, full: float) -> list[str]:
        phases = [number(1e6 * figures["seconds"][phase]["median"]) for phase in ("forward", "backward", "full")]
        beyond = "" if kernels is None else number(1e6 * (full - kernels))
        return [*phases, beyond, "" if plain is None else number(full / plain)]

    header = ["forward us", "backward us", "full us", "beyond the kernels us", "share of plain's"]
    return contestants_table(info, common, header, row)


def losses_case(info: dict, common: list[str]) -> str:
    """Forward, backward, full, against plain PyTorch, error."""
    plain = full_seconds(info["contestants"].get("plain", {}))

    def row(figures: dict, full: float) -> list[str]:
        times = [milliseconds(figures, phase) for phase in ("forward", "backward", "full")]
        return [*times, _ratio(plain, full), f"{figures['error']:.1e}"]

    header = ["forward ms", "backward ms", "full ms", "against plain", "error"]
    return contestants_table(info, common, header, row)


def augment_case(info: dict, common: list[str]) -> str:
    """Views per second, against torchvision, and traffic."""
    base = full_seconds(info["contestants"]["torchvision"])

    def row(figures: dict, full: float) -> list[str]:
        moved = info["least_bytes_per_view"] * info["views"] / full / 1e9
        views = info["views"] / full
        return [milliseconds(figures, "full"), number(views), number(views / 2), _ratio(base, full), number(moved)]

    header = ["batch ms", "views/s", "images/s (2 views)", "against torchvision", "GB/s (least bytes)"]
    return contestants_table(info, common, header, row)


def loading_case(info: dict, common: list[str]) -> str:
    """Images per second, and per second and core, against the DataLoader."""
    base = full_seconds(info["contestants"].get("DataLoader", {}))

    def row(figures: dict, full: float) -> list[str]:
        rate = info["images"] / full
        return [milliseconds(figures, "full"), number(rate), number(rate / info["cores"]), _ratio(base, full)]

    return contestants_table(info, common, ["epoch ms", "images/s", "images/s per core", "against DataLoader"], row)


def train_step_case(info: dict, common: list[str]) -> str:
    """Images per second and the share of every phase."""
    phases = phases_of(info)

    def row(figures: dict, full: float) -> list[str]:
        seconds = figures["seconds"]
        shares = [f"{100 * seconds[phase]['median'] / full:.1f}%" if phase in seconds else "" for phase in phases]
        return [milliseconds(figures, "full"), number(info["images"] / full), *shares]

    return contestants_table(info, common, ["step ms", "images/s", *phases], row)


def train_step_files_case(info: dict, common: list[str]) -> str:
    """Images per second against lightly, CPU time, and how much of it passes before the model."""
    base = full_seconds(info["contestants"].get("lightly", {}))

    def row(figures: dict, full: float) -> list[str]:
        wall = sum(figures["seconds"].get(phase, {"median": 0.0})["median"] for phase in ("data", "augment")) / full
        cpu = [number(1e3 * figures["cpu_seconds_per_image"]), f"{figures['cpu_share_before_model']:.1%}"]
        return [milliseconds(figures, "full"), number(info["images"] / full), _ratio(base, full), *cpu, f"{wall:.1%}"]

    header = ["epoch ms", "images/s", "against lightly", "CPU ms per image", "of it loading + augmentation"]
    return contestants_table(info, common, [*header, "waiting + augmentation, of the time"], row)


def scaling_case(info: dict, common: list[str]) -> str:
    """Milliseconds by N and number of processes, what N costs, and what processes bring."""
    case = info["case"]
    found = {(figures["n"], figures["processes"]): figures for figures in info["contestants"].values()}
    seconds = {key: full_seconds(figures) for key, figures in found.items()}
    first, *more = case["processes"]
    header = ["N", *(f"{counted(w, 'process')}, ms" for w in case["processes"])]
    header += [*(f"{w} against {first}" for w in more), "exponent of N"]
    rows, before = [], None
    for n in case["sizes"]:
        one = seconds[n, first]
        row = [str(n), *(not_timed(found[n, w]) or milliseconds(found[n, w], "full") for w in case["processes"])]
        row += [_ratio(one, seconds[n, w]) if seconds[n, w] else "" for w in more]
        exponent = math.log(one / before[1]) / math.log(n / before[0]) if one and before else None
        rows.append([*row, "" if exponent is None else f"{exponent:.2f}"])
        before = (n, one) if one else before
    text = (
        "Forward and backward of `NTXentLoss(gather_distributed=True)`, one thread per process, the global batch split "
        "among them. Exponent: of N in the time of one process since the row above; the arithmetic is quadratic. "
        "Several processes do 3 M^2 D multiply-adds together, one does 2 M^2 D."
    )
    return f"### D = {case['d']}, float32\n\n{table(header, rows)}\n\n{text}"


def title(info: dict) -> str:
    """The case as its test's name has it."""
    return re.sub(r"^test_\w+\[(.*)\]$", r"\1", info["name"]).replace(",", ", ")


SUITES = {
    "ntxent": ("NT-Xent loss, forward and backward", ntxent_case),
    "ntxent_memory": ("NT-Xent memory at large N", memory_case),
    "host": ("Host time of the loss, a tiny batch on the CPU", host_case),
    "losses": ("CLIP, SupCon, memory bank: forward and backward, float32, t = 0.1", losses_case),
    "losses_memory": ("Their memory at large N", memory_case),
    "augment": ("Augmentation, both views", augment_case),
    "loading": ("Reading and decoding JPEG files, on the CPU", loading_case),
    "train_step": ("Training step", train_step_case),
    "train_step_files": ("Training step from JPEG files, on the CPU", train_step_files_case),
    "scaling": ("Scaling", scaling_case),
}


def targets_table(rows: list[Target]) -> str:
    """Demanded against measured."""
    cells = []
    for target in rows:
        sign = ">=" if target.at_least else "<="
        measured = f"not measured: {target.reason}"
        if target.measured is not None:
            measured = number(target.measured) + target.unit
        verdict = {True: "met", False: "**missed**", None: ""}[target.met]
        cells.append([target.what, f"{sign} {target.demanded:g}{target.unit}", measured, verdict])
    return table(["on the CPU (cpp, forward + backward, float32)", "demanded", "measured", ""], cells)


def against(found: dict[str, list[dict]], old: dict[str, list[dict]], old_label: str) -> str:
    """What changed beyond noise since an earlier file: times, and peak memory."""
    before = {(s, c["name"], n): f for s, cases in old.items() for c in cases for n, f in c["contestants"].items()}
    now = [(s, case, n, f) for s, cases in found.items() for case in cases for n, f in case["contestants"].items()]
    rows, compared = [], 0

    def note(changed: bool, then: float, now: float, unit: str, more: str, less: str) -> None:
        nonlocal compared
        compared += 1
        if changed and abs(now / then - 1) > NOISE:
            change = f"{number(now / then)}x, {more if now > then else less}"
            rows.append([what, f"{number(then)} {unit}", f"{number(now)} {unit}", change])

    for suite, case, name, figures in now:
        earlier = before.get((suite, case["name"], name), {})
        what = f"{suite} {title(case)}: {name}"
        if "seconds" in figures and "seconds" in earlier:
            a, b = earlier["seconds"]["full"], figures["seconds"]["full"]
            apart = a["q3"] < b["q1"] or b["q3"] < a["q1"]
            note(apart, 1e3 * a["median"], 1e3 * b["median"], "ms", "slower", "faster")
        if figures.get("peak_bytes") and earlier.get("peak_bytes"):
            a, b = earlier["peak_bytes"] / MIB, figures["peak_bytes"] / MIB
            note(abs(b - a) > 1, a, b, "MiB", "larger", "smaller")
    text = (
        f"## Against the earlier results\n\nThen: {old_label}.\n\n{compared} figures compared; {len(rows)} changed by "
        f"more than {NOISE:.0%} (times: with disjoint quartiles; memory: by more than 1 MiB)."
    )
    return text + ("\n\n" + table(["figure", "then", "now", "change"], rows) if rows else "")


def machine_list(results: dict) -> str:
    """Hardware, clocks, versions, and how busy the machine was."""
    machine = results["machine_info"]["simclr_fast"]
    rows = [
        ["GPU", machine.get("gpu")],
        ["GPU clocks (SM, memory, most SM), power limit, driver", machine.get("clocks")],
        ["processor", f"{machine['processor']}, {machine['cores']} cores, {machine['cpu_capability']}"],
        ["clock when the run began", machine["cpu_mhz"] and f"{machine['cpu_mhz']:.0f} MHz"],
        ["memory", f"{machine['memory_gib']} GiB"],
        ["load average when the run began", f"{machine['load_before']}"],
        ["threads of torch", str(machine["threads"])],
        ["system", f"{machine['system']}, Python {machine['python']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)],
        ["extent", f"`--scale {machine['scale']}`"],
    ]
    return "\n".join(f"- {name}: {value}" for name, value in rows if value)


def sections(results: dict, found: dict[str, list[dict]], old: dict | None, old_found: dict | None) -> list[Section]:
    """The whole page."""
    machine = results["machine_info"]["simclr_fast"]
    intro = (
        f"# simclr_fast benchmarks\n\n{label(results)}.\n\n{machine_list(results)}\n\nContestants run in interleaved "
        "rounds of one process; figures are medians (quartiles in brackets). A contestant is timed only after its "
        "result agreed with the reference; one that did not is shown with its error instead."
    )
    if machine["device"] == "cpu":
        intro += f"\n\n## Targets\n\n{targets_table(targets(found))}"
    parts = [Section("", intro)]
    for suite, (heading, write_case) in SUITES.items():
        if suite in found:
            cases = found[suite]
            common = [remark for remark in remarks(cases[0]) if all(remark in remarks(case) for case in cases)]
            parts.append(Section(suite, f"## {heading}" + ("\n\n" + "\n".join(common) if common else "")))
            parts += [Section("", write_case(case, common)) for case in cases]
    if old is not None:
        parts.append(Section("", against(found, old_found, label(old))))
    return parts
