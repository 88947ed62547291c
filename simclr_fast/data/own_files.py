"""Folders that this program wrote: runs, results, features, exports, packed sets.

What lies in one is no image of a data set around it, or the pictures of a run would be trained on by the next one.
"""

import re
from pathlib import Path

from simclr_fast.errors import ConfigError

# Any of these names marks such a folder. They are spelled out here, since what writes them imports the data sets.
BY_NAME = re.compile(r"checkpoint-\d+\.pt|metrics\.jsonl|embedd(ed|ing)\.json|pack(ed|ing)\.json|backbone\.safetensors")
# Others may lie among anybody's images, so that they must also begin as this program's do.
BY_CONTENT = {
    re.compile(r"\.lock"): re.compile(rb"process \d+ on "),
    re.compile(r"(knn|linear|few-label|finetune|detect|multi-label|export|report|embed)(-.+)?\.json"): re.compile(
        rb'\{\s*"command": "'
    ),
    re.compile(r"ignored\.txt"): re.compile(rb"[^\n]+\t"),
}
SUFFIXES = (".pt", ".jsonl", ".json", ".safetensors", ".lock", ".txt")  # of all of them: most files have none of these
BEGINNING = 4096  # bytes that are looked at


def mark_among(folder: str, names: list[str]) -> str | None:
    """The first of the names of what lies in a folder that shows that this program wrote it; None without any."""
    for name in (name for name in names if name.endswith(SUFFIXES)):
        if BY_NAME.fullmatch(name):
            return name
        for pattern, begins in BY_CONTENT.items():
            if pattern.fullmatch(name) and begins.match(_beginning(Path(folder, name))):
                return name
    return None


def _beginning(path: Path) -> bytes:
    """The first bytes of a file; none where it is no regular file or cannot be read."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            return file.read(BEGINNING)
    except OSError:
        return b""


def require_apart(output: Path, data: Path, is_renamed: bool) -> None:
    """Raises ConfigError where results would lie among the images, whose next reader took the pictures for data.

    is_renamed: whether a later run renames the folder of results, which must then not be one around the images either.
    """
    if not data.exists():
        return
    output_path, data_path = output.resolve(), data.resolve()
    if output_path == data_path or (is_renamed and data_path.is_relative_to(output_path)):
        raise ConfigError(
            f"--output {output}: the images of --data {data} lie in it; pass a folder of its own, such as "
            f"{output / 'results'}"
        )
