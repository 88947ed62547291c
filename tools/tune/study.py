"""A study: which changes of a recipe are tried, in which order, and the search through them.

The search is greedy. It goes through the axes once, in their order; each value is tried beside the best found so far,
with the same steps and seeds, and becomes part of it where its score is the highest by more than MARGIN. The finalists
are then trained as long as the recipe is, over several seeds; the first of them is the recipe as it is, which another
one replaces only where it is better by more than the seeds' spread.
"""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Changes = dict[str, Any]  # option -> value, as `trial.changed` takes them; "steps" is how long the candidate trains
Measure = Callable[[Changes, int, int], dict[str, Any]]  # (changes, steps, seed) -> what `trial.measure` gives

MARGIN = 0.002  # of the score; less is noise of the draws
READOUT = "backbone"  # what the score is of: the features that every command reads


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values of one thing, each as the changes that it makes."""

    title: str
    values: tuple[Changes, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is tried for a recipe.

    start: every option that the axes change, so that the study stays the same whatever the recipe becomes. steps,
    seeds: of the candidates of an axis; finalists train for final_steps over final_seeds. A value that names "steps"
    itself trains so long instead: a batch of half the size can take twice the steps. finalists: changes to the start,
    the recipe's first. held_out: fraction of every class; images: of a larger set so many are taken.
    """

    recipe: str
    start: Changes
    axes: tuple[Axis, ...]
    finalists: tuple[Changes, ...]
    steps: int
    final_steps: int
    seeds: tuple[int, ...] = (0,)
    final_seeds: tuple[int, ...] = (0, 1, 2)
    held_out: float = 0.2
    images: int | None = None


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate's changes beyond what they were tried beside, and the means of what was measured over the seeds."""

    changes: Changes
    steps: int
    step_seconds: float
    scores: dict[str, dict[str, float]]  # by readout and probe
    by_seed: tuple[float, ...]  # the score of each seed
    kept: bool = False

    @property
    def score(self) -> float:
        """The mean accuracy of the linear probe and of the nearest neighbour, from the backbone's features."""
        return statistics.mean(self.scores[READOUT][probe] for probe in ("linear", "1nn"))


class Results:
    """What was measured, one JSON line per training, kept in a file so that a search goes on where it was stopped.

    file: of one data set; identity: what tells its images from others', so that no other set's results are taken.
    """

    def __init__(self, file: Path, measure: Measure, identity: str = ""):
        self.file, self.measure, self.identity = file, measure, identity
        lines = file.read_text().splitlines() if file.exists() else []
        self.found: dict[str, dict[str, Any]] = {}
        for line in lines:
            entry = json.loads(line)
            self.found[entry["key"]] = entry

    def of(self, changes: Changes, steps: int, seed: int) -> dict[str, Any]:
        """What `measure` gives for a candidate, measured now if it is not in the file."""
        told = json.dumps([self.identity, dict(sorted(changes.items())), steps, seed])
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        if key not in self.found:
            found = self.measure(changes, steps, seed)
            entry = {"key": key, "changes": changes, "steps": steps, "seed": seed, **found}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a") as file:
                file.write(json.dumps(entry) + "\n")
            self.found[key] = entry
        return self.found[key]


def tried(results: Results, changes: Changes, shown: Changes, steps: int, seeds: tuple[int, ...]) -> Tried:
    """Measure a candidate over the seeds. shown: the part of its changes that the table names."""
    options = {name: value for name, value in changes.items() if name != "steps"}
    steps = changes.get("steps", steps)
    found = [results.of(options, steps, seed) for seed in seeds]
    scores = {
        readout: {probe: statistics.mean(of["readouts"][readout][probe] for of in found) for probe in probes}
        for readout, probes in found[0]["readouts"].items()
    }
    by_seed = tuple(statistics.mean(of["readouts"][READOUT][probe] for probe in ("linear", "1nn")) for of in found)
    return Tried(shown, steps, statistics.mean(of["step_seconds"] for of in found), scores, by_seed)


def search(study: Study, results: Results, say: Callable[[str], None] = print) -> Iterator[tuple[str, list[Tried]]]:
    """(title, candidates) of the start and of each axis in turn; the one that is gone on with is marked as kept."""
    best = dict(study.start)
    best_score = None
    for axis in (Axis("start", ({},)), *study.axes):
        rows = []
        for value in axis.values:
            rows.append(tried(results, best | value, value, study.steps, study.seeds))
            say(line(axis.title, rows[-1]))
        winner = max(rows, key=lambda row: row.score)
        if best_score is None or winner.score > best_score + MARGIN:
            best, best_score = best | winner.changes, winner.score
            rows = [dataclasses.replace(row, kept=row is winner) for row in rows]
        yield axis.title, rows


def finals(study: Study, results: Results, say: Callable[[str], None] = print) -> list[Tried]:
    """The finalists at the recipe's length, one of them marked as kept.

    It is the best one, unless the first is as good: within MARGIN, or the larger of both spreads over the seeds.
    """
    rows = []
    for value in study.finalists:
        rows.append(tried(results, study.start | value, value, study.final_steps, study.final_seeds))
        say(line("final", rows[-1]))
    if not rows:
        return []
    first, best = rows[0], max(rows, key=lambda row: row.score)
    margin = max(MARGIN, spread(first.by_seed), spread(best.by_seed))
    winner = best if best.score > first.score + margin else first
    return [dataclasses.replace(row, kept=row is winner) for row in rows]


def kept(rows: Iterable[Tried]) -> list[Changes]:
    """The changes of the candidates that are marked as kept."""
    return [row.changes for row in rows if row.kept]


def chosen(start: Changes, searched: list[Changes], last: list[Changes]) -> Changes:
    """The options of the finalist that was kept; where there was none, those that the search kept, in its order."""
    options = dict(start)
    for changes in last or searched:
        options |= changes
    return {name: value for name, value in options.items() if name != "steps"}


def spread(scores: Sequence[float]) -> float:
    """The standard deviation of the scores of several seeds; 0 of one."""
    return statistics.stdev(scores) if len(scores) > 1 else 0.0


def line(title: str, row: Tried) -> str:
    """A candidate in a line of progress."""
    own = row.scores[READOUT]
    averaged = row.scores.get("averaged weights", own)
    return (
        f"{title}: {named(row.changes)}: linear {100 * own['linear']:.1f}, 1-NN {100 * own['1nn']:.1f} (averaged "
        f"{100 * averaged['linear']:.1f}, {100 * averaged['1nn']:.1f}), {row.steps} steps of "
        f"{1000 * row.step_seconds:.0f} ms"
    )


def named(changes: Changes) -> str:
    """Changes as options of the command line."""
    words = []
    for name, value in changes.items():
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
        words.append(f"{name} {shown}")
    return ", ".join(words) or "as it is"
