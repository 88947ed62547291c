"""The tables of the report, as Markdown."""

import re
from dataclasses import dataclass

MIB = 2**20
# A change is reported where the medians differ by more than this and the quartile ranges do not overlap.
NOISE = 0.10


@dataclass(frozen=True)
class Section:
    """A part of the page; `suite` says which plots belong to it."""

    suite: str
    text: str


def label(results: dict) -> str:
    """One line that says where and when the figures were taken."""
    machine = results["machine_info"]["simclr_fast"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads ({machine['cpu_capability']})"
    commit = machine["commit"] + (" + changes" if machine["modified"] else "")
    return f"{where}, torch {machine['versions']['torch']}, commit {commit}, {results['datetime'][:10]}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def milliseconds(figures: dict, phase: str) -> str:
    """Median and quartiles of a phase in ms."""
    s = figures["seconds"].get(phase)
    return "" if s is None else f"{1e3 * s['median']:.3g} ({1e3 * s['q1']:.3g} to {1e3 * s['q3']:.3g})"


def not_timed(figures: dict) -> str | None:
    """Why a contestant has no time; None if it has one."""
    if "absent" in figures:
        return f"not run: {figures['absent']}"
    if "seconds" not in figures:
        return f"**wrong**: error {figures['error']:.2g} > {figures['tolerance']:.0e}"
    return None


def median(figures: dict, phase: str = "full") -> float | None:
    """Median seconds, None where not timed."""
    return figures["seconds"][phase]["median"] if "seconds" in figures else None


def _ratio(base: float | None, mine: float) -> str:
    return "" if base is None else f"{base / mine:.2f}x"


def ntxent_case(info: dict) -> str:
    """Forward, backward, full, speed against plain PyTorch, share of the multiply-add limit, memory, error."""
    plain = info["contestants"].get("plain", {})
    rate = info["limits"]["multiply_adds_per_second"]
    least = info["multiply_adds"]["least"] / rate
    rows = []
    for name, figures in info["contestants"].items():
        if reason := not_timed(figures):
            rows.append([name, reason, *[""] * 6])
            continue
        full = median(figures)
        memory = f"{figures['peak_bytes'] / MIB:.1f}" if "peak_bytes" in figures else ""
        times = [milliseconds(figures, phase) for phase in ("forward", "backward", "full")]
        rows.append(
            [name, *times, _ratio(median(plain), full), f"{full / least:.2f}x", memory, f"{figures['error']:.1e}"]
        )
    header = ["contestant", "forward ms", "backward ms", "full ms", "against plain", "over limit", "peak MiB", "error"]
    flops, moved, bandwidth = (
        2 * info["multiply_adds"]["least"],
        info["least_bytes"],
        info["limits"]["bytes_per_second"],
    )
    limit = (
        f"Limit {1e3 * least:.3g} ms: 2 M^2 D multiply-adds ({flops / 1e9:.3g} GFLOP) at the "
        f"{2 * rate / 1e9:.0f} GFLOP/s of a large torch.mm in the same run. Least traffic {moved / MIB:.3g} MiB: "
        f"{1e3 * moved / bandwidth:.2g} ms at {bandwidth / 1e9:.0f} GB/s."
    )
    return f"### {_title(info)}\n\n{table(header, rows)}\n\n{limit}"


def augment_case(info: dict) -> str:
    """Views per second and speed against torchvision."""
    base = median(info["contestants"]["torchvision"])
    rows = []
    for name, figures in info["contestants"].items():
        if reason := not_timed(figures):
            rows.append([name, reason, *[""] * 3])
            continue
        full = median(figures)
        rate = f"{info['views'] / full:.0f}"
        moved = f"{info['least_bytes_per_view'] * info['views'] / full / 1e9:.2f}"
        rows.append([name, milliseconds(figures, "full"), rate, _ratio(base, full), moved])
    header = ["contestant", "batch ms", "views/s", "against torchvision", "GB/s (least bytes)"]
    return f"### {_title(info)}\n\n{table(header, rows)}"


def train_step_case(info: dict) -> str:
    """Images per second and the share of every phase."""
    timed = {name: f for name, f in info["contestants"].items() if "seconds" in f}
    phases = list(dict.fromkeys(phase for f in timed.values() for phase in f["seconds"] if phase != "full"))
    rows = []
    for name, figures in info["contestants"].items():
        if reason := not_timed(figures):
            rows.append([name, reason, *[""] * (1 + len(phases))])
            continue
        full = median(figures)
        shares = [
            f"{100 * figures['seconds'][phase]['median'] / full:.1f}%" if phase in figures["seconds"] else ""
            for phase in phases
        ]
        rows.append([name, milliseconds(figures, "full"), f"{info['images'] / full:.0f}", *shares])
    return f"### {_title(info)}\n\n{table(['contestant', 'step ms', 'images/s', *phases], rows)}"


def scaling_case(info: dict) -> str:
    """Seconds per step against the number of processes or the size."""
    rows = [
        [name, not_timed(figures) or milliseconds(figures, "full"), info["remarks"].get(name, "")]
        for name, figures in info["contestants"].items()
    ]
    return f"### {_title(info)}\n\n{table(['contestant', 'full ms', 'remark'], rows)}"


def _title(info: dict) -> str:
    return re.sub(r"^test_\w+\[(.*)\]$", r"\1", info["name"]).replace(",", ", ")


SUITES = {
    "ntxent": ("NT-Xent loss, forward and backward", ntxent_case),
    "augment": ("Augmentation, both views", augment_case),
    "train_step": ("Training step", train_step_case),
    "scaling": ("Scaling", scaling_case),
}


def against(found: dict[str, list[dict]], old: dict[str, list[dict]]) -> str:
    """What changed beyond noise since an earlier file."""
    before = {(s, c["name"], n): f for s, cases in old.items() for c in cases for n, f in c["contestants"].items()}
    rows, compared = [], 0
    for suite, cases in found.items():
        for case in cases:
            for name, figures in case["contestants"].items():
                earlier = before.get((suite, case["name"], name), {})
                if "seconds" not in figures or "seconds" not in earlier:
                    continue
                compared += 1
                a, b = earlier["seconds"]["full"], figures["seconds"]["full"]
                apart = a["q3"] < b["q1"] or b["q3"] < a["q1"]
                if apart and abs(b["median"] / a["median"] - 1) > NOISE:
                    word = "slower" if b["median"] > a["median"] else "faster"
                    change = f"{b['median'] / a['median']:.2f}x, {word}"
                    rows.append(
                        [
                            f"{suite} {_title(case)}: {name}",
                            f"{1e3 * a['median']:.3g}",
                            f"{1e3 * b['median']:.3g}",
                            change,
                        ]
                    )
    text = (
        f"## Against the earlier results\n\n{compared} figures compared; {len(rows)} changed by more than {NOISE:.0%} "
        "with disjoint quartiles."
    )
    return text + ("\n\n" + table(["figure", "then ms", "now ms", "change"], rows) if rows else "")


def sections(results: dict, found: dict[str, list[dict]], old: dict[str, list[dict]] | None) -> list[Section]:
    """The whole page."""
    versions = results["machine_info"]["simclr_fast"]["versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    intro = (
        f"# simclr_fast benchmarks\n\n{label(results)}.\n\nVersions: {shown}.\n\nContestants run in interleaved rounds "
        "of one process; figures are medians (quartiles in brackets). A contestant is timed only after its result "
        "agreed with the reference; one that did not is shown with its error instead."
    )
    parts = [Section("", intro)]
    for suite, (title, write_case) in SUITES.items():
        if suite in found:
            parts.append(Section(suite, f"## {title}\n\n" + "\n\n".join(write_case(case) for case in found[suite])))
    if old is not None:
        parts.append(Section("", against(found, old)))
    return parts
