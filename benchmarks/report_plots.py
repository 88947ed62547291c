"""The plots of the report, and the one that the README shows."""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report_tables import counted, number
from benchmarks.targets import MIB, full_seconds
from simclr_fast.visualize import plt, save

# One colour for each contestant, the same in every plot (Okabe and Ito's palette, safe for colour-blind readers); who
# competes at one job only may share a colour with somebody at another.
COLOURS = {
    "cpp": "#D55E00",
    "triton": "#CC79A7",
    "reference": "#E69F00",
    "plain": "#0072B2",
    "plain compiled": "#56B4E9",
    "lightly": "#009E73",
    "pytorch-metric-learning": "#8C6BB1",
    "info-nce-pytorch": "#7F7F7F",
    "inf-cl": "#A6761D",
    "memeff": "#1B1B1B",
    "torchvision": "#0072B2",
    "kornia": "#009E73",
    "albumentations": "#56B4E9",
    "dali": "#7F7F7F",
    "plain PyTorch": "#0072B2",
}
OURS = ("cpp", "triton", "reference")


@dataclass(frozen=True)
class Plot:
    """A picture and the suite it belongs to."""

    suite: str
    title: str
    path: Path


def is_ours(name: str) -> bool:
    """Whether this contestant is the package's own."""
    return name in OURS or name.startswith("simclr_fast")


def _colour(name: str) -> str:
    return COLOURS.get(name, COLOURS["cpp"] if is_ours(name) else "#444444")


def _legend_name(name: str) -> str:
    return f"simclr_fast ({name})" if name in OURS else name.replace("plain", "plain PyTorch", name != "plain PyTorch")


def _legend(axes: plt.Axes) -> None:
    """Beside the axes, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _new(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def _finish(figure: plt.Figure, axes: plt.Axes, title: str, note: str, path: Path) -> None:
    _tidy(axes, title)
    figure.supxlabel(note, fontsize=7, color="#57606a", x=0.01, ha="left")
    save(figure, path, dpi=140)


def _tidy(axes: plt.Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def _plain_log_axis(axis) -> None:
    """Plain numbers as labels: at every power of ten, or at 1, 2 and 5 of each where there are few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if math.log10(high / low) < 2.5 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def main_series(cases: list[dict]) -> list[dict]:
    """The cases with D=128, float32, t=0.1, by N."""
    wanted = {"d": 128, "dtype": "float32", "temperature": 0.1}
    series = [case for case in cases if all(case["case"][key] == value for key, value in wanted.items())]
    return sorted(series, key=lambda case: case["case"]["n"])


def against_n(axes: plt.Axes, cases: list[dict], value, axis: str, limit=None) -> None:
    """One line per contestant over N, on log axes."""
    for name in dict.fromkeys(name for case in cases for name in case["contestants"]):
        points = [(case["case"]["n"], value(case["contestants"].get(name, {}))) for case in cases]
        points = [(n, y) for n, y in points if y]
        if points:
            style = {"linewidth": 2.6, "zorder": 3} if name == "cpp" else {"linewidth": 1.5}
            axes.loglog(*zip(*points), label=_legend_name(name), color=_colour(name), marker="o", markersize=4, **style)
    sizes = [case["case"]["n"] for case in cases]
    if limit is not None:
        axes.loglog(
            sizes, [limit(case) for case in cases], "k--", linewidth=1.2, label="limit: 2 M$^2$D at torch.mm's rate"
        )
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set(xlabel="N (positive pairs)", ylabel=axis)
    _plain_log_axis(axes.yaxis)
    axes.grid(alpha=0.25)
    _legend(axes)


def ntxent_time(axes: plt.Axes, series: list[dict]) -> None:
    """Milliseconds of forward + backward over N, with the limit."""
    time = lambda figures: 1e3 * (full_seconds(figures) or 0.0)
    limit = lambda case: 1e3 * case["multiply_adds"]["least"] / case["limits"]["multiply_adds_per_second"]
    against_n(axes, series, time, "milliseconds, forward + backward", limit)


def bars(axes: plt.Axes, rates: dict[str, float], axis: str) -> None:
    """One horizontal bar per contestant, the fastest on top."""
    names = sorted(rates, key=rates.get)
    drawn = axes.barh([_legend_name(n) for n in names], [rates[n] for n in names], color=[_colour(n) for n in names])
    axes.bar_label(drawn, labels=[number(rates[n]) for n in names], padding=4, fontsize=9)
    axes.set_xlim(right=1.18 * max(rates.values()))
    axes.set_xlabel(axis)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def rates_of(case: dict, count: float) -> dict[str, float]:
    """`count` per second for every contestant that was timed."""
    return {name: count / s for name, figures in case["contestants"].items() if (s := full_seconds(figures))}


def _shares(axes: plt.Axes, case: dict) -> None:
    """Where a step's time goes, stacked."""
    timed = {n: f["seconds"] for n, f in case["contestants"].items() if "seconds" in f}
    phases = list(dict.fromkeys(p for s in timed.values() for p in s if p != "full"))
    left = dict.fromkeys(timed, 0.0)
    for phase, colour in zip(phases, plt.get_cmap("tab10").colors):
        widths = [1e3 * timed[n][phase]["median"] if phase in timed[n] else 0.0 for n in timed]
        axes.barh(list(timed), widths, left=[left[n] for n in timed], label=phase, color=colour)
        left = {n: left[n] + w for n, w in zip(timed, widths)}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step (medians of the phases)")
    _legend(axes)


def _scaling(axes: plt.Axes, case: dict) -> None:
    """Milliseconds over N, one line per number of processes."""
    timed = [figures for figures in case["contestants"].values() if "seconds" in figures]
    for index, world in enumerate(case["case"]["processes"]):
        points = [(f["n"], 1e3 * full_seconds(f)) for f in timed if f["processes"] == world]
        if points:
            label = counted(world, "process")
            axes.loglog(*zip(*points), marker="o", markersize=4, label=label, color=plt.get_cmap("viridis")(index / 3))
    sizes = case["case"]["sizes"]
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set(xlabel="N (positive pairs, over all processes)", ylabel="milliseconds, forward + backward")
    _plain_log_axis(axes.yaxis)
    axes.grid(alpha=0.25)
    _legend(axes)


def augment_title(case: dict) -> str:
    """The shape of an augmentation case in words."""
    shape = case["case"]
    return f"SimCLR augmentation, {shape['batch']} images, {shape['side']} to {shape['size']} px"


def draw(found: dict[str, list[dict]], folder: Path, note: str) -> list[Plot]:
    """Draws every plot the results allow into the folder."""
    plots: list[Plot] = []

    def add(suite: str, file: str, title: str, size: tuple[float, float], fill) -> None:
        figure, axes = _new(*size)
        fill(axes)
        plots.append(Plot(suite, title, folder / file))
        _finish(figure, axes, title, note, plots[-1].path)

    series = main_series(found.get("ntxent", []))
    if len(series) > 1:
        title = "NT-Xent forward + backward, D = 128, float32"
        add("ntxent", "ntxent_time.png", title, (9, 5), lambda axes: ntxent_time(axes, series))
        memory = lambda figures: figures.get("peak_bytes", 0) / MIB
        title = "NT-Xent peak memory beyond the inputs, D = 128, float32"
        add("ntxent", "ntxent_memory.png", title, (9, 5), lambda axes: against_n(axes, series, memory, "peak MiB"))
    for case in found.get("augment", []):
        rates = rates_of(case, case["views"] / 2)
        if case["case"]["ops"] == "all" and case["case"]["channels_last"] and rates:
            fill = lambda axes, rates=rates: bars(axes, rates, "images per second, two views each")
            file = f"augment_{case['case']['size']}.png"
            add("augment", file, augment_title(case), (8, 0.42 * len(rates) + 1.3), fill)
    for index, case in enumerate(found.get("train_step", [])):
        rates = rates_of(case, case["images"])
        if rates:
            fill = lambda axes, rates=rates: bars(axes, rates, "images per second")
            size = (8, 0.42 * len(rates) + 1.3)
            add("train_step", f"train_rate_{index}.png", f"Training, {case['title']}", size, fill)
            title = f"Where a training step's time goes, {case['title']}"
            size = (9, 0.42 * len(rates) + 1.3)
            add("train_step", f"train_step_{index}.png", title, size, lambda axes, case=case: _shares(axes, case))
    for index, case in enumerate(found.get("scaling", [])):
        title = f"NT-Xent over several processes, D = {case['case']['d']}, float32"
        add("scaling", f"scaling_{index}.png", title, (9, 4), lambda axes, case=case: _scaling(axes, case))
    return plots


def draw_readme(found: dict[str, list[dict]], augment: dict, note: str, path: Path) -> None:
    """The README's picture: the loss over N beside the augmentation's bars."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=(1.3, 1))
    ntxent_time(left, main_series(found["ntxent"]))
    left.legend(frameon=False, fontsize=8.5, loc="lower right")
    _tidy(left, "NT-Xent forward + backward, D = 128, float32")
    bars(right, rates_of(augment, augment["views"] / 2), "images per second, two views each")
    _finish(figure, right, f"Augmentation, {augment['case']['side']} to {augment['case']['size']} px", note, path)
