"""Which files a Hugging Face data set on disk consists of: those in its own folder. It may say otherwise, and is not
followed: what was downloaded must not have other files of this machine read, or more fetched.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simclr_fast.errors import ConfigError


def is_saved(root: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (root / "dataset_dict.json").exists() or (root / "state.json").exists()


def folders_of(root: Path) -> list[Path]:
    """Below which images may lie that the data set's rows name: its own, and where `datasets` unpacks its archives."""
    import datasets

    return [root if root.is_dir() else root.parent, Path(datasets.config.EXTRACTED_DATASETS_PATH)]


def require_inside(root: Path) -> None:
    """Raises ConfigError where the description of a downloaded repository names files elsewhere.

    To be called before `datasets` looks for them, which fetches what has a URL.
    """
    import datasets
    import yaml
    from huggingface_hub import DatasetCard

    card, settings = root / datasets.config.REPOCARD_FILENAME, root / datasets.config.REPOYAML_FILENAME
    described = {
        card: DatasetCard.load(card).data.to_dict() if card.is_file() else None,
        settings: yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else None,
    }
    for path, content in described.items():
        configs = content.get("configs") if isinstance(content, dict) else None
        for name in _texts(configs):
            _require_below(root, path, name)


def require_inside_saved(root: Path) -> None:
    """Raises ConfigError where what `save_to_disk` noted names splits or files elsewhere."""
    folders = [root]
    if (root / "dataset_dict.json").exists():
        splits = json.loads((root / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        for name in splits:
            _require_below(root, root / "dataset_dict.json", name)
        folders = [root / name for name in splits]
    for folder in folders:
        state = folder / "state.json"
        if state.exists():
            for name in _texts(json.loads(state.read_text(encoding="utf-8")).get("_data_files")):
                _require_below(root, state, name)


def _texts(content: Any) -> Iterator[str]:
    """All text in lists and mappings of them."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _texts(inner)


def _require_below(root: Path, described: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if "://" in name or "::" in name or os.path.isabs(name) or ".." in parts or parts[0].startswith("~"):
        raise ConfigError(
            f"--data {root}: {described.name} names what lies elsewhere ({name}), and nothing outside the folder is "
            f"read or fetched; take that out of {described}, or pass a table of paths"
        )
