"""Checkpoints on disk: written atomically, the last k kept, loaded without running code, damaged ones skipped."""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from simclr_fast.errors import CheckpointError
from simclr_fast.tensor_file import read, write_atomically

log = logging.getLogger(__name__)

VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)\.pt")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    return sorted((p for p in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(p.name)), key=_step)


def save(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Write `content` (`training/state.py` makes it) as that of `step`; remove all others but the newest keep - 1.

    The file appears under its name only once it is whole and on disk, so that a process killed at any moment leaves
    whole checkpoints.
    """
    path = folder / f"checkpoint-{step:09d}.pt"
    write_atomically(path, {"version": VERSION, **content})
    others = [other for other in checkpoints(folder) if other != path]
    for old in others[: max(0, len(others) - (keep - 1))]:
        old.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises CheckpointError for a missing, damaged or foreign one."""
    content = read(path)
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version != VERSION:
        raise CheckpointError(f"{path}: not a checkpoint of this program's format {VERSION}")
    return content


def require_entries(content: dict[str, Any], kinds: dict[str, Any], source: str) -> None:
    """Raise CheckpointError, with the first name, where an entry is missing or of another kind; kinds: by name."""
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{source}: not a checkpoint of simclr_fast (no {name!r} in it)")


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a folder and its content, with a warning per damaged one; None without any."""
    for path in reversed(checkpoints(folder)):
        try:
            return path, load(path)
        except CheckpointError as error:
            log.warning("skipping a checkpoint: %s", error)
    return None


def set_later_aside(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints of steps after `step`, which a run that goes on from there does again; their new names."""
    return [set_aside(path) for path in checkpoints(folder) if _step(path) > step]


def set_aside(path: Path) -> Path:
    """Rename a file or folder to the first of NAME.old-1, NAME.old-2, ... that is free, and return that."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(aside)


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict, or raise CheckpointError with a readable list of what differs or is not finite."""
    if not isinstance(weights, dict):
        raise CheckpointError(f"{source}: no weights in it (a dict of tensors by name)")
    differences = describe_differences(model.state_dict(), weights)
    if differences:
        raise CheckpointError(f"{source}: the model differs from the one in the checkpoint:\n" + "\n".join(differences))
    require_finite(weights, source)
    model.load_state_dict(weights)


def require_finite(weights: dict[str, torch.Tensor], source: str) -> None:
    """Raise CheckpointError, with the names of the first tensors, where a weight is infinite or not a number."""
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise CheckpointError(f"{source}: weights that are not finite: {', '.join(broken[:3])}{more}")


def describe_differences(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor], limit: int = 20) -> list[str]:
    """One line per tensor that is missing, extra, of another shape or no plain tensor; the first `limit` of them."""
    shown = {key: _shape(value) for key, value in found.items()}
    lines = [f"  missing in the checkpoint: {key} {list(wanted[key].shape)}" for key in wanted if key not in found]
    lines += [f"  only in the checkpoint: {key} {shape}" for key, shape in shown.items() if key not in wanted]
    lines += [
        f"  another shape: {key} is {list(wanted[key].shape)}, in the checkpoint {shown[key]}"
        for key in wanted
        if key in found and str(list(wanted[key].shape)) != shown[key]
    ]
    rest = len(lines) - limit
    return lines if rest <= 0 else [*lines[:limit], f"  and {rest} more"]


def _shape(value: Any) -> str:
    """The shape of a tensor that can be copied into a parameter; otherwise what the value is instead."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    plain = value.layout == torch.strided and not value.is_meta and not value.is_quantized and not value.is_complex()
    return str(list(value.shape)) if plain else f"a {value.dtype} tensor of layout {value.layout} on {value.device}"


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])
