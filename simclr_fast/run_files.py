"""The files of a run's folder that other programs read, beside its checkpoints: metrics, results, views."""

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simclr_fast.errors import ConfigError, naming

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
VIEWS_FILE = "views.png"
# Neighbours of the metric "knn"; with many more, a small data set gives the share of its largest class.
ONLINE_KNN_K = 20

log = logging.getLogger(__name__)


def chance_level(batch_size: int) -> float:
    """The NT-Xent loss of embeddings that say nothing: ln(2N - 1) for the global batch of N images (nats)."""
    return math.log(2 * batch_size - 1)


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file, with a warning for lines that a power failure spoilt.

    A last line that a killed process left unfinished is skipped.
    """
    lines, spoilt = [], 0
    for text in path.read_text(errors="replace").splitlines(keepends=True):
        if not text.endswith("\n"):
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
        else:
            spoilt += 1
    if spoilt:
        log.warning("%s: skipping %d lines that are no metrics", path, spoilt)
    return lines


def write_results(path: Path, content: dict[str, Any]) -> None:
    """`content` as JSON, in one move: where this fails, what was at `path` is still there, whole.

    Raises OSError with the path.
    """
    text = json.dumps(content, indent=2) + "\n"
    with in_one_move(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A path to write to, whose file then takes the place of what is at `path`; where writing fails, nothing does.

    Raises OSError with the path.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong is said already
            temporary.unlink()
        raise


def read_results(path: Path) -> dict[str, Any] | None:
    """What a JSON file of results holds; None where there is no such file. Raises ConfigError for a damaged one."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:  # of JSON or of UTF-8
        raise ConfigError(f"{path}: damaged ({error}); delete it, or run again what writes it") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: damaged (no JSON object); delete it, or run again what writes it")
    return content


def read_comparison(folder: Path) -> dict[str, Any] | None:
    """The comparison with the baselines from the end of a run's training, as `compare` gives it; None without one."""
    results = read_results(folder / RESULTS_FILE)
    return results if results is not None and "labels_per_class" in results else None
