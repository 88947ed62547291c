"""The table of a study, as JSON, and as a page for people that is made of the JSON alone."""

import dataclasses
from typing import Any

from tools.tune.study import READOUT, Study, Tried, named, spread
from tools.tune.trial import DRAWS, PER_CLASS

Axes = list[tuple[str, list[Tried]]]
Sizes = dict[str, int]
Scores = dict[str, float]
Row = dict[str, Any]
READOUTS = (READOUT, "averaged weights", "first layer of the head")


def table(study: Study, axes: Axes, last: list[Tried], pixels: Scores, sizes: Sizes) -> dict[str, Any]:
    """All that was measured, as JSON types."""
    return {
        "recipe": study.recipe,
        "images": sizes,
        "labels_per_class": PER_CLASS,
        "draws": DRAWS,
        "start": study.start,
        "steps": study.steps,
        "seeds": study.seeds,
        "raw_pixels": _rounded(pixels),
        "axes": [{"axis": title, **_row(row)} for title, rows in axes for row in rows],
        "final_seeds": study.final_seeds,
        "finalists": [_row(row) for row in last],
    }


def page(table: dict[str, Any]) -> str:
    """The page of a table, in Markdown."""
    sizes, pixels = table["images"], table["raw_pixels"]
    lines = [
        f"# How the recipe `{table['recipe']}` was chosen",
        "",
        f"Written by `python -m tools.tune {table['recipe']}`. Candidates train on {sizes['train']:,} of the training "
        f"images and are judged on the {sizes['held_out']:,} others; no test image is looked at.",
        "",
        f"Accuracies in percent, with {table['labels_per_class']} labels per class, means of {table['draws']} draws: "
        "*linear* and *1-NN* from the backbone, *averaged* from the backbone of the averaged weights (decay "
        f"{table['start'].get('model_ema_decay', 0.999)} where a candidate names no other). Time: of a step, in "
        "processor time of one thread.",
        "",
        f"The search starts from: {named(table['start'])}.",
        "",
        f"Raw pixels, of the size kept last: linear {_percent(pixels['linear'])}, 1-NN {_percent(pixels['1nn'])}.",
        "",
        "## Axis by axis",
        "",
        f"Each value is tried beside what was kept before it (**bold**), over {table['steps']} steps where it names no "
        f"other number, seed {_listed(table['seeds'])}.",
        "",
        "| axis | candidate | linear | 1-NN | averaged: linear | 1-NN | steps | time (ms) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
        *(_line(row["axis"], *_figures(row)) for row in table["axes"]),
    ]
    if table["finalists"]:
        lines += _finals(table)
    return "\n".join(lines) + "\n"


def _finals(table: dict[str, Any]) -> list[str]:
    kept = next(row for row in table["finalists"] if row["kept"])
    probes = ("linear", "linear_unscaled", "1nn_standardised", "1nn")
    return [
        "",
        "## Finalists",
        "",
        f"At the recipe's length, means of seeds {_listed(table['final_seeds'])}; the changes are those to the start. "
        "*Score*: the mean of linear and 1-NN, ± its standard deviation over the seeds. The first is the recipe as it "
        "is, whose place another one takes only where its score is higher by more than the larger of both deviations.",
        "",
        "| candidate | score | its seeds | linear | 1-NN | averaged: linear | 1-NN | steps | time (ms) |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
        *(_final_line(row) for row in table["finalists"]),
        "",
        "## Where the features are read",
        "",
        "Of the finalist that was kept. *Standardised*: columns of mean 0 and variance 1 over the training images; "
        "otherwise rows are only brought to one length. Neighbours are those by cosine.",
        "",
        "| features | linear, standardised | linear | 1-NN, standardised | 1-NN |",
        "|---|---:|---:|---:|---:|",
        *(_line(name, *(_percent(kept[name][probe]) for probe in probes)) for name in READOUTS),
    ]


def _final_line(row: Row) -> str:
    candidate, *figures = _figures(row)
    seeds = ", ".join(map(_percent, row["by_seed"]))
    return _line(candidate, f"{_percent(row['score'])} ± {_percent(spread(row['by_seed']))}", seeds, *figures)


def _figures(row: Row) -> list[str]:
    """The cells of a candidate: itself, its accuracies, steps and time."""
    shown = f"**{named(row['changes'])}**" if row["kept"] else named(row["changes"])
    accuracies = [_percent(row[readout][probe]) for readout in READOUTS[:2] for probe in ("linear", "1nn")]
    return [shown, *accuracies, str(row["steps"]), f"{1000 * row['step_seconds']:.0f}"]


def _row(row: Tried) -> Row:
    kept = {key: value for key, value in dataclasses.asdict(row).items() if key != "scores"}
    return kept | {
        "step_seconds": round(row.step_seconds, 4),
        "by_seed": [round(score, 4) for score in row.by_seed],
        "score": round(row.score, 4),
        **{readout: _rounded(scores) for readout, scores in row.scores.items()},
    }


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _rounded(scores: Scores) -> Scores:
    return {name: round(value, 4) for name, value in scores.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
