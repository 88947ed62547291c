"""How a run's figures stand beside what was published for its recipe: one line at the end of training, kept with it."""

from collections.abc import Sequence
from typing import Any

from simclr_fast.config import Config
from simclr_fast.data import Dataset
from simclr_fast.evaluation.comparison import PROBES, few_labels, knn_labels
from simclr_fast.evaluation.tables import ResultTable, percent
from simclr_fast.expectations import EXPECTATIONS, IMAGES, Expectation, headline
from simclr_fast.recipes import RECIPES

# Below a result that was published for no longer a training, by more than this (fraction), something is wrong rather
# than different: seeds move dkobak's figures by up to 0.003, and k from 1 to 20 moves the demo's by less than 0.01.
FAR_BELOW = 0.03
WHAT_TO_CHECK = "docs/recipes.md says what to check"
NETWORK = ("model", "model_kwargs", "stem", "norm")  # the options that make the network whose features are measured


def beside_published(config: Config, data: Dataset, results: dict[str, Any]) -> dict[str, Any] | None:
    """What is said of a finished run, and the published results; None where there is nothing that it may be beside.

    results: what `compare` gives; "line" is what is shown, "far_below" whether it is a warning. A run may stand beside
    them on the same images (however they are stored) with the same network and side of the views; epochs and batches
    are stated. Of the others it is said how they are measured.
    """
    recipe = config.recipe
    if recipe not in EXPECTATIONS or not _same_images(recipe, data) or not _same_network(config):
        return None
    epochs, batch = config.optimization.epochs, config.optimization.batch_size
    near = [one for one in EXPECTATIONS[recipe] if one.result is not None]
    # Of neighbours, a part of the training images has worse ones than all of them have.
    if near and (near[0].result != "knn" or results["train_images"] == len(data.labelled)):
        line, far_below = _compared([one for one in near if one.result == near[0].result], config, results)
    else:
        one = headline(recipe, epochs, batch)
        line = f"Published: {_published([one])}; to measure it: {one.command_for(config.run.output)}"
        far_below = False
    if far_below:
        line = f"warning: {line}: far below; {WHAT_TO_CHECK}"
    rows = [_row(one, config.run.output) for one in EXPECTATIONS[recipe]]
    return {"recipe": recipe, "epochs": epochs, "line": line, "far_below": far_below, "published": rows}


def published_table(found: dict[str, Any]) -> ResultTable:
    """The published results beside the commands that measure them on this run; found: of `beside_published`."""
    columns = ["", "%", "epochs", "batch", "source", "differs", "measured by"]
    names = ("measure", "accuracy", "epochs", "batch_size", "source", "differs", "command")
    rows = [[_cell(name, row[name]) for name in names] for row in found["published"]]
    return ResultTable("Published for this data set and network (test accuracy)", columns, rows)


def _same_images(recipe: str, data: Dataset) -> bool:
    test = 0 if data.test is None else len(data.test)
    return IMAGES[recipe].are(len(data.train), test, data.classes or ())


def _same_network(config: Config) -> bool:
    """Whether the recipe's network was trained from random weights, at the recipe's side of a view."""
    model, own = config.model, RECIPES[config.recipe]
    same = all(getattr(model, name) == getattr(own.model, name) for name in NETWORK)
    return same and model.pretrained is None and config.augment.size == own.augment.size


def _compared(published: Sequence[Expectation], config: Config, results: dict[str, Any]) -> tuple[str, bool]:
    """The line, and whether the run is far below; published: results of one probe of `results`."""
    probe, epochs, batch = published[0].result, config.optimization.epochs, config.optimization.batch_size
    measured = results[probe]["simclr"]
    title = PROBES[probe].format(few=few_labels(results), all=knn_labels(results))
    k = f" (k = {results['knn_k']['simclr']})" if probe == "knn" else ""
    by_epochs = sorted(published, key=lambda one: one.epochs)
    shorter = [one for one in by_epochs if one.epochs <= epochs]
    longer = [one for one in by_epochs if one.epochs > epochs]
    beside = [*shorter[-1:], *([] if shorter and shorter[-1].epochs == epochs else longer[:1])]
    word = "expected" if beside[0].source.is_ours else "published"
    trained = f"{epochs} {'epoch' if epochs == 1 else 'epochs'} of batches of {batch}"
    line = f"{title}{k}: {_percent(measured)} after {trained}; {word} {_published(beside, titled=False)}"
    # Larger batches than the recipe's take fewer steps in as many epochs; what was trained otherwise gives no bar.
    usual = RECIPES[config.recipe].optimization.batch_size
    bars = [one.accuracy for one in shorter if not one.differs and batch <= max(usual, one.batch_size or 0)]
    return line, bool(bars) and measured < bars[-1] - FAR_BELOW


def _published(several: Sequence[Expectation], titled: bool = True) -> str:
    """Results of one source and measure in words; what differs in all of them is said once."""
    first = several[0]
    common = first.differs if len({one.differs for one in several}) == 1 else ""
    figures = (
        f"{_percent(one.accuracy)} after {one.epochs}" + f" ({one.differs})" * (one.differs not in ("", common))
        for one in several
    )
    details = [first.source.name, *([] if titled or first.source.is_ours else [first.measure])]
    details += [f"batch {first.batch_size}"] if first.batch_size else []
    details += [common] if common else []
    return (f"{first.measure} " if titled else "") + f"{' and '.join(figures)} ({'; '.join(details)})"


def _row(one: Expectation, folder: object) -> dict[str, Any]:
    """A result in JSON's types."""
    source = {"source": one.source.name, "url": one.source.url}
    figures = {name: getattr(one, name) for name in ("measure", "accuracy", "epochs", "batch_size", "differs")}
    return figures | source | {"command": one.command_for(folder)}


def _cell(name: str, value: Any) -> str:
    return percent(value) if name == "accuracy" else "-" if value is None else str(value)


def _percent(share: float) -> str:
    return f"{percent(share)}%"
