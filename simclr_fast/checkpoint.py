"""Checkpoints on disk: written atomically, the last k kept, loaded without running code, damaged ones skipped."""

import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    return sorted((p for p in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(p.name)), key=_step)


def save(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Write `content` as the checkpoint of `step`, then remove all but the newest `keep`.

    The file appears under its name only once it is whole and on disk, so that a process killed at any moment leaves
    whole checkpoints.
    """
    path = folder / f"checkpoint-{step:09d}.pt"
    write_atomically(path, {"version": VERSION, **content})
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """torch.save to a temporary file, fsync, rename."""
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises CheckpointError for a missing or damaged one."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to unpickle anyway, which would run whatever code the file holds.
        reason = "truncated, not written by torch.save, or with objects that only running code could rebuild"
        raise CheckpointError(f"{path}: damaged or no checkpoint ({reason})") from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise CheckpointError(f"{path}: damaged or no checkpoint ({reason})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise CheckpointError(f"{path}: not a checkpoint of this program's format {VERSION}")
    return content


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a folder and its content, with a warning per damaged one; None without any."""
    for path in reversed(checkpoints(folder)):
        try:
            return path, load(path)
        except CheckpointError as error:
            log.warning("skipping a checkpoint: %s", error)
    return None


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict, or raise CheckpointError with a readable list of what differs in name or shape."""
    differences = describe_differences(model.state_dict(), weights)
    if differences:
        raise CheckpointError(f"{source}: the model differs from the one in the checkpoint:\n" + "\n".join(differences))
    model.load_state_dict(weights)


def describe_differences(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor], limit: int = 20) -> list[str]:
    """One line per tensor that is missing, extra or of another shape; the first `limit` of them."""
    lines = [f"  missing in the checkpoint: {key} {list(wanted[key].shape)}" for key in wanted if key not in found]
    lines += [f"  only in the checkpoint: {key} {list(found[key].shape)}" for key in found if key not in wanted]
    lines += [
        f"  another shape: {key} is {list(wanted[key].shape)}, in the checkpoint {list(found[key].shape)}"
        for key in wanted
        if key in found and wanted[key].shape != found[key].shape
    ]
    rest = len(lines) - limit
    return lines if rest <= 0 else [*lines[:limit], f"  and {rest} more"]


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])
