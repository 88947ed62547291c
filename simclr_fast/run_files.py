"""The files of a run's folder that other programs read, beside its checkpoints: metrics and results."""

import json
import logging
import math
from pathlib import Path

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
ONLINE_KNN_K = (
    20  # neighbours of the metric "knn"; with many more, a small data set gives the share of its largest class
)

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
