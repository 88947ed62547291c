"""The plots of the report, and the one that the README shows."""

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report_tables import counted, number, phases_of
from benchmarks.targets import MIB, full_seconds, main_series, timed
from simclr_fast.visualize import save, subplots

# One colour for each contestant, the same in every plot (Okabe and Ito's palette, safe for colour-blind readers); who
# competes at one job only may share a colour with somebody at another.
COLORS = {
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
IMAGES_PER_SECOND = "images per second, two views each"
PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:,g}")


@dataclass(frozen=True)
class Plot:
    """A picture and the suite it belongs to."""

    suite: str
    title: str
    path: Path


def is_ours(name: str) -> bool:
    """Whether this contestant is the package's own."""
    return name in OURS or name.startswith("simclr_fast")


def _color(name: str) -> str:
    return COLORS.get(name, COLORS["cpp"] if is_ours(name) else "#444444")


def _legend_name(name: str) -> str:
    return f"simclr_fast ({name})" if name in OURS else name.replace("plain", "plain PyTorch", name != "plain PyTorch")


def _legend(axes: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _titled(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def _finish(figure: Figure, note: str, path: Path) -> None:
    figure.supxlabel(note, fontsize=7, color="#57606a", x=0.01, ha="left")
    save(figure, path, dpi=140)


def _over_n(axes: Axes, sizes: list[int], what: str, axis: str) -> None:
    """Log axes with plain numbers: every N; on the other every power of ten, or 1, 2 and 5 of each if they are few."""
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set(xlabel=what, ylabel=axis)
    low, high = axes.yaxis.get_view_interval()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if math.log10(high / low) < 2.5 else (1,)))
    axes.yaxis.set_major_formatter(PLAIN_NUMBERS)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    _legend(axes)


def against_n(axes: Axes, cases: list[dict], value, axis: str, limit=None) -> None:
    """One line per contestant over N, on log axes."""
    for name in dict.fromkeys(name for case in cases for name in case["contestants"]):
        points = [(case["case"]["n"], value(case["contestants"].get(name, {}))) for case in cases]
        points = [(n, y) for n, y in points if y]
        if points:
            style = {"linewidth": 2.6, "zorder": 3} if name == "cpp" else {"linewidth": 1.5}
            axes.loglog(*zip(*points), label=_legend_name(name), color=_color(name), marker="o", markersize=4, **style)
    sizes = [case["case"]["n"] for case in cases]
    if limit is not None:
        label = "limit: 2 M$^2$D at torch.mm's rate"
        axes.loglog(sizes, [limit(case) for case in cases], "k--", linewidth=1.2, label=label)
    _over_n(axes, sizes, "N (positive pairs)", axis)


def ntxent_time(axes: Axes, series: list[dict]) -> None:
    """Milliseconds of forward + backward over N, with the limit."""
    time = lambda figures: 1e3 * (full_seconds(figures) or 0.0)
    limit = lambda case: 1e3 * case["multiply_adds"]["least"] / case["limits"]["multiply_adds_per_second"]
    against_n(axes, series, time, "milliseconds, forward + backward", limit)


def bars(axes: Axes, rates: dict[str, float], axis: str) -> None:
    """One horizontal bar per contestant, the fastest on top."""
    names = sorted(rates, key=rates.get)
    drawn = axes.barh([_legend_name(n) for n in names], [rates[n] for n in names], color=[_color(n) for n in names])
    axes.bar_label(drawn, labels=[number(rates[n]) for n in names], padding=4, fontsize=9)
    axes.set_xlim(right=1.18 * max(rates.values()))
    axes.set_xlabel(axis)
    axes.xaxis.set_major_formatter(PLAIN_NUMBERS)


def rates_of(case: dict, count: float) -> dict[str, float]:
    """`count` per second for every contestant that was timed."""
    return {name: count / seconds for name, seconds in timed(case).items()}


def _shares(axes: Axes, case: dict) -> None:
    """Where a step's time goes, stacked."""
    taken = {name: figures["seconds"] for name, figures in case["contestants"].items() if "seconds" in figures}
    left = dict.fromkeys(taken, 0.0)
    for phase, color in zip(phases_of(case), matplotlib.colormaps["tab10"].colors):
        widths = [1e3 * seconds[phase]["median"] if phase in seconds else 0.0 for seconds in taken.values()]
        axes.barh(list(taken), widths, left=list(left.values()), label=phase, color=color)
        left = {name: left[name] + width for name, width in zip(taken, widths)}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step (medians of the phases)")
    _legend(axes)


def _scaling(axes: Axes, case: dict) -> None:
    """Milliseconds over N, one line per number of processes."""
    timed = [figures for figures in case["contestants"].values() if "seconds" in figures]
    for index, world in enumerate(case["case"]["processes"]):
        points = [(f["n"], 1e3 * full_seconds(f)) for f in timed if f["processes"] == world]
        if points:
            label = counted(world, "process")
            axes.loglog(
                *zip(*points), marker="o", markersize=4, label=label, color=matplotlib.colormaps["viridis"](index / 3)
            )
    what = "N (positive pairs, over all processes)"
    _over_n(axes, case["case"]["sizes"], what, "milliseconds, forward + backward")


def draw(found: dict[str, list[dict]], folder: Path, note: str) -> list[Plot]:
    """Draws every plot the results allow into the folder."""
    plots: list[Plot] = []

    def add(suite: str, file: str, title: str, size: tuple[float, float], fill, *arguments: object) -> None:
        figure, axes = subplots(figsize=size)
        fill(axes, *arguments)
        plots.append(Plot(suite, title, folder / file))
        _titled(axes, title)
        _finish(figure, note, plots[-1].path)

    series = main_series(found.get("ntxent", []))
    if len(series) > 1:
        title = "NT-Xent {}, D = 128, float32"
        add("ntxent", "ntxent_time.png", title.format("forward + backward"), (9, 5), ntxent_time, series)
        memory = lambda figures: figures.get("peak_bytes", 0) / MIB
        title = title.format("peak memory beyond the inputs")
        add("ntxent", "ntxent_memory.png", title, (9, 5), against_n, series, memory, "peak MiB")
    for case in found.get("augment", []):
        rates, shape = rates_of(case, case["views"] / 2), case["case"]
        if shape["ops"] == "all" and shape["channels_last"] and rates:
            title = f"SimCLR augmentation, {shape['batch']} images, {shape['side']} to {shape['size']} px"
            size = (8, 0.42 * len(rates) + 1.3)
            add("augment", f"augment_{shape['size']}.png", title, size, bars, rates, IMAGES_PER_SECOND)
    for index, case in enumerate(found.get("train_step", [])):
        rates = rates_of(case, case["images"])
        if rates:
            height, file = 0.42 * len(rates) + 1.3, f"train_rate_{index}.png"
            add("train_step", file, f"Training, {case['title']}", (8, height), bars, rates, "images per second")
            title = f"Where a training step's time goes, {case['title']}"
            add("train_step", f"train_step_{index}.png", title, (9, height), _shares, case)
    for index, case in enumerate(found.get("scaling", [])):
        title = f"NT-Xent over several processes, D = {case['case']['d']}, float32"
        add("scaling", f"scaling_{index}.png", title, (9, 4), _scaling, case)
    return plots


def draw_readme(found: dict[str, list[dict]], augment: dict, note: str, path: Path) -> None:
    """The README's picture: the loss over N beside the augmentation's bars."""
    figure, (left, right) = subplots(1, 2, figsize=(13, 4.6), width_ratios=(1.3, 1))
    ntxent_time(left, main_series(found["ntxent"]))
    left.legend(frameon=False, fontsize=8.5, loc="lower right")
    _titled(left, "NT-Xent forward + backward, D = 128, float32")
    bars(right, rates_of(augment, augment["views"] / 2), IMAGES_PER_SECOND)
    _titled(right, f"Augmentation, {augment['case']['side']} to {augment['case']['size']} px")
    _finish(figure, note, path)
