"""The plots of the report."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.report_tables import median

# One colour for each contestant, the same in every plot (Okabe and Ito's palette, safe for colour-blind readers).
COLOURS = {
    "cpp": "#D55E00",
    "triton": "#CC79A7",
    "reference": "#E69F00",
    "plain": "#0072B2",
    "plain compiled": "#56B4E9",
    "lightly": "#009E73",
    "torchvision": "#0072B2",
    "kornia": "#009E73",
    "albumentations": "#56B4E9",
    "dali": "#999999",
}
OURS = ("cpp", "triton", "reference")


@dataclass(frozen=True)
class Plot:
    """A picture and the suite it belongs to."""

    suite: str
    title: str
    path: Path


def _style(name: str) -> dict:
    return {
        "color": COLOURS.get(name, "#444444"),
        "linewidth": 2.4 if name in OURS else 1.4,
        "marker": "o",
        "markersize": 4,
    }


def _legend_name(name: str) -> str:
    return f"simclr_fast ({name})" if name in OURS else name


def _finish(figure: plt.Figure, axes: plt.Axes, title: str, note: str, path: Path) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.01, note, fontsize=7, color="#57606a")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _sizes(cases: list[dict]) -> list[dict]:
    """The cases of the main series: D=128, float32, t=0.1, by N."""
    wanted = {"d": 128, "dtype": "float32", "temperature": 0.1}
    series = [case for case in cases if all(case["case"][key] == value for key, value in wanted.items())]
    return sorted(series, key=lambda case: case["case"]["n"])


def _against_n(cases: list[dict], value, limit, axis: str, title: str, note: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 5))
    for name in dict.fromkeys(name for case in cases for name in case["contestants"]):
        points = [(case["case"]["n"], value(case["contestants"].get(name, {}))) for case in cases]
        points = [(n, y) for n, y in points if y]
        if points:
            axes.loglog(*zip(*points), label=_legend_name(name), **_style(name))
    if limit is not None:
        axes.loglog(
            [case["case"]["n"] for case in cases], [limit(case) for case in cases], "k--", label="limit of the machine"
        )
    sizes = [case["case"]["n"] for case in cases]
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set(xlabel="N (positive pairs)", ylabel=axis)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    _finish(figure, axes, title, note, path)


def _bars(case: dict, note: str, path: Path, title: str) -> None:
    rates = {n: case["views"] / median(f) for n, f in case["contestants"].items() if median(f)}
    names = sorted(rates, key=rates.get)
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(names) + 1.6))
    bars = axes.barh(
        [_legend_name(n) for n in names], [rates[n] for n in names], color=[COLOURS.get(n, "#444") for n in names]
    )
    axes.bar_label(bars, labels=[f"{rates[n]:,.0f}" for n in names], padding=4, fontsize=9)
    axes.set_xlim(right=1.15 * max(rates.values()))
    axes.set_xlabel("views per second")
    _finish(figure, axes, title, note, path)


def _shares(case: dict, note: str, path: Path, title: str) -> None:
    timed = {n: f["seconds"] for n, f in case["contestants"].items() if "seconds" in f}
    phases = list(dict.fromkeys(p for s in timed.values() for p in s if p != "full"))
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(timed) + 2))
    left = dict.fromkeys(timed, 0.0)
    for phase, colour in zip(phases, plt.get_cmap("tab10").colors):
        widths = [1e3 * timed[n][phase]["median"] if phase in timed[n] else 0.0 for n in timed]
        axes.barh(list(timed), widths, left=[left[n] for n in timed], label=phase, color=colour)
        left = {n: left[n] + w for n, w in zip(timed, widths)}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step")
    axes.legend(frameon=False, fontsize=8, ncols=len(phases), loc="upper center", bbox_to_anchor=(0.45, -0.28))
    _finish(figure, axes, title, note, path)


def draw(found: dict[str, list[dict]], folder: Path, note: str) -> list[Plot]:
    """Draws every plot the results allow into the folder."""
    plots: list[Plot] = []

    def add(suite: str, file: str, title: str) -> Path:
        plots.append(Plot(suite, title, folder / file))
        return plots[-1].path

    series = _sizes(found.get("ntxent", []))
    if len(series) > 1:
        title = "NT-Xent forward + backward, D = 128, float32"
        limit = lambda case: case["multiply_adds"]["least"] / case["limits"]["multiply_adds_per_second"]
        _against_n(series, median, limit, "seconds", title, note, add("ntxent", "ntxent_time.png", title))
        title = "NT-Xent peak memory beyond the inputs, D = 128, float32"
        memory = lambda figures: figures.get("peak_bytes", 0) / 2**20
        _against_n(series, memory, None, "MiB", title, note, add("ntxent", "ntxent_memory.png", title))
    for case in found.get("augment", []):
        if case["case"]["ops"] == "all" and case["case"]["channels_last"]:
            shape = f"{case['case']['batch']} x {case['case']['side']} -> {case['case']['size']} px"
            title = f"SimCLR augmentation, two views, {shape}"
            _bars(case, note, add("augment", f"augment_{case['case']['size']}.png", title), title)
    for index, case in enumerate(found.get("train_step", [])):
        title = f"Training step, {case['title']}"
        _shares(case, note, add("train_step", f"train_step_{index}.png", title), title)
    return plots
