"""Results that other programs left in files: of the end of training, and of the evaluation commands."""

import json
from pathlib import Path
from typing import Any

from simclr_fast.errors import ConfigError
from simclr_fast.run_files import RESULTS_FILE


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
