"""The table of a study, as JSON and as a page for people."""

import dataclasses
import statistics
from typing import Any

from tools.tune.study import READOUT, Study, Tried, named
from tools.tune.trial import DRAWS, PER_CLASS

Axes = list[tuple[str, list[Tried]]]
Sizes = dict[str, int]
Scores = dict[str, float]


def table(study: Study, axes: Axes, last: list[Tried], pixels: Scores, sizes: Sizes) -> dict[str, Any]:
    """All that was measured, as JSON types."""
    return {
        "recipe": study.recipe,
        "images": sizes,
        "labels_per_class": PER_CLASS,
        "draws": DRAWS,
        "start": study.start,
        "raw_pixels": _rounded(pixels),
        "axes": [_row(title, row) for title, rows in axes for row in rows],
        "finalists": [_row("final", row) for row in last],
    }


def page(study: Study, axes: Axes, last: list[Tried], pixels: Scores, sizes: Sizes) -> str:
    """The same in Markdown."""
    seeds = ", ".join(map(str, study.seeds))
    lines = [
        f"# How the recipe `{study.recipe}` was chosen",
        "",
        f"Written by `python -m tools.tune {study.recipe}`. Candidates train on {sizes['train']:,} of the training "
        f"images and are judged on the {sizes['held_out']:,} others; no test image is looked at.",
        "",
        f"Accuracies in percent, with {PER_CLASS} labels per class, means of {DRAWS} draws: *linear* and *1-NN* from "
        "the backbone, *averaged* from the backbone of the averaged weights (decay "
        f"{study.start.get('model_ema_decay', 0.999)}). Time: of a step, in processor time of one thread.",
        "",
        f"The search starts from: {named(study.start)}.",
        "",
        f"Raw pixels: linear {_percent(pixels['linear'])}, 1-NN {_percent(pixels['1nn'])}.",
        "",
        "## Axis by axis",
        "",
        f"Each value is tried beside what was kept before it (**bold**), over {study.steps} steps where it names no "
        f"other number, seed {seeds}.",
        "",
        *_table(axes),
    ]
    if last:
        seeds = ", ".join(map(str, study.final_seeds))
        lines += [
            "",
            "## Finalists",
            "",
            f"At the recipe's length, means of seeds {seeds}; the changes are those to the start.",
            "",
            *_table([("", last)]),
            "",
            "## Where the features are read",
            "",
            "Of the finalist that was kept. *Standardised*: columns of mean 0 and variance 1 over the training images; "
            "otherwise rows are only brought to one length.",
            "",
            "| features | linear, standardised | linear | 1-NN, standardised | 1-NN |",
            "|---|---:|---:|---:|---:|",
            *_readouts(next(row for row in last if row.kept)),
        ]
    return "\n".join(lines) + "\n"


def _table(axes: Axes) -> list[str]:
    head = "| axis | candidate | linear | 1-NN | averaged: linear | 1-NN | steps | time (ms) |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for title, rows in axes:
        for row in rows:
            own, averaged = row.scores[READOUT], row.scores["averaged weights"]
            figures = [_percent(scores[probe]) for scores in (own, averaged) for probe in ("linear", "1nn")]
            shown = f"**{named(row.changes)}**" if row.kept else named(row.changes)
            cells = [title, shown, *figures, str(row.steps), f"{1000 * row.step_seconds:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _readouts(row: Tried) -> list[str]:
    columns = ("linear", "linear_unscaled", "1nn_standardised", "1nn")
    return [
        f"| {readout} | {' | '.join(_percent(scores[column]) for column in columns)} |"
        for readout, scores in row.scores.items()
    ]


def _row(title: str, row: Tried) -> dict[str, Any]:
    spread = statistics.stdev(row.by_seed) if len(row.by_seed) > 1 else None
    return {
        "axis": title,
        **{key: value for key, value in dataclasses.asdict(row).items() if key not in ("scores", "by_seed")},
        "step_seconds": round(row.step_seconds, 4),
        "score": round(row.score, 4),
        "spread": None if spread is None else round(spread, 4),
        **{readout: _rounded(scores) for readout, scores in row.scores.items()},
    }


def _rounded(scores: Scores) -> Scores:
    return {name: round(value, 4) for name, value in scores.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
