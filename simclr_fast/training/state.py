"""Everything that a run needs to go on exactly: what a checkpoint holds, when one is written, how a run starts from it.

A checkpoint holds weights, optimizer, scaler, average, generators, step, time, options and what the images were. A run
goes on from one (--resume), or begins with weights alone (--pretrained).
"""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simclr_fast.backbones.registry import spec_of
from simclr_fast.checkpoint import load, load_newest, load_weights, require_entries, save
from simclr_fast.config import Config, as_dict, flag
from simclr_fast.data import Source
from simclr_fast.errors import CheckpointError, ConfigError, first_line
from simclr_fast.models import SimCLR, build_model
from simclr_fast.optim import build_optimizer, load_optimizer_state, optimizer_state
from simclr_fast.sync_bn import synchronize_batch_norm
from simclr_fast.training.average import WeightAverage
from simclr_fast.training.pretrained import load_pretrained
from simclr_fast.training.step import random_state, set_random_state

# Options that decide what is computed: a resumed run must agree on them to go on exactly. More epochs may follow, and
# what a run began with is behind it.
EXACT_OPTIONS = ("augment", "model", "optimization")
FREE_OPTIONS = ("epochs", "pretrained")
CONTENT = {
    "step": int,
    "seconds": (int, float),
    "channels": int,
    **dict.fromkeys(("model", "optimizer", "scaler", "random", "config"), dict),
}
IDENTITY_SAMPLE = 32  # images that are compared, evenly spread, so that a data set of millions takes no time

log = logging.getLogger(__name__)


@dataclasses.dataclass
class TrainState:
    """The mutable state of a run. channels: of the images; step: steps done; seconds: training time so far, over all
    resumptions; data: what tells its training images from others (`data_identity`), None where nothing compares them.

    The order of the images, their views and the learning rate are functions of (seed, step), so they need no state.
    """

    model: SimCLR
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None
    channels: int
    step: int = 0
    seconds: float = 0.0
    data: dict[str, int | str] | None = None

    @staticmethod
    def create(
        config: Config, channels: int, device: torch.device, *, autocast: torch.dtype | None, several: bool = False
    ) -> "TrainState":
        """A fresh state on the device; the weights depend on the seed alone. several: there are several processes."""
        torch.manual_seed(config.run.seed)
        model = build_model(config.model, channels, config.augment.size).to(device)
        if several and config.model.sync_bn:
            model = synchronize_batch_norm(model, device)
        if config.speed.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return TrainState(
            model=model,
            optimizer=build_optimizer(model, config.optimization),
            scaler=torch.amp.GradScaler(device.type, enabled=autocast == torch.float16),
            ema=WeightAverage(model, config.optimization.model_ema_decay) if config.optimization.model_ema else None,
            channels=channels,
        )

    @property
    def evaluated(self) -> nn.Module:
        """The backbone that evaluation uses: that of the averaged weights where they are kept."""
        return self.ema.module.backbone if self.ema is not None else self.model.backbone

    def checkpoint(self, config: Config) -> dict[str, Any]:
        """The state as tensors and plain values, which load with weights_only=True."""
        cpu, cuda = random_state()
        return {
            "step": self.step,
            "seconds": self.seconds,
            "channels": self.channels,
            "model": self.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "random": {"cpu": cpu, "cuda": cuda},
            "config": as_dict(config),
            "data": self.data,
        }

    def restore(self, content: dict[str, Any], config: Config, source: str) -> None:
        """Go on from a checkpoint. Raises CheckpointError with what differs if it is another model's or run's."""
        require_entries(content, CONTENT, source)
        load_weights(self.model, content["model"], source)
        try:
            changed = self._changes(content, as_dict(config))
            now, then = config.optimization.epochs, content["config"]["optimization"]["epochs"]
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{source}: its options are not those of this version ({error!r})") from error
        if now < then:
            changed.append(f"  --epochs: now {now}, in the checkpoint {then}; pass as many or more")
        if changed:
            raise CheckpointError(
                f"{source}: other options or data than this run's, so it cannot go on exactly (start afresh with "
                "--pretrained to reuse the weights):\n" + "\n".join(changed)
            )
        if now > then:
            log.warning("%d epochs instead of %d: from here on, the learning rate is that of the longer run", now, then)
        try:
            load_optimizer_state(self.optimizer, content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(content["ema"])
            set_random_state((content["random"]["cpu"], content["random"]["cuda"]))
        except Exception as error:  # torch checks little of what it is given, and fails where that does not work
            reason = first_line(error)
            raise CheckpointError(
                f"{source}: the state of its optimizer, scaler (--amp-dtype) or average does not fit: {reason}"
            ) from error
        self.step, self.seconds = content["step"], content["seconds"]

    def _changes(self, content: dict[str, Any], options: dict[str, Any]) -> list[str]:
        """One line per option, or fact of the data, that is another than in the checkpoint."""
        stored = content["config"]
        pairs = [
            (flag(name), options[group].get(name), value)
            for group in EXACT_OPTIONS
            for name, value in stored[group].items()
            if name not in FREE_OPTIONS
        ]
        pairs.append(("--seed", options["run"]["seed"], stored["run"]["seed"]))
        data = content.get("data")
        if self.data is not None and data is not None:
            names = {"images": "training images", "channels": "channels", "sha256": "digest of the training images"}
            pairs += [(name, self.data[key], data.get(key)) for key, name in names.items()]
        return [f"  {name}: now {a}, in the checkpoint {b}" for name, a, b in pairs if _plain(a) != _plain(b)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class CheckpointSaver:
    """Saves the state to the run's folder, in the main process only; every process keeps the state's time.

    settle: called before the state is read, raises where its last step failed, so that no such state is saved.
    """

    def __init__(self, config: Config, state: TrainState, *, enabled: bool, settle: Callable[[], None]):
        self.config = config
        self.state = state
        self.enabled = enabled
        self.settle = settle
        self.begun = time.monotonic() - state.seconds
        self.saved = time.monotonic()

    def save(self) -> None:
        """Save now."""
        self.settle()
        self.state.seconds = time.monotonic() - self.begun
        if self.enabled:
            run = self.config.run
            save(run.output, self.state.step, self.state.checkpoint(self.config), run.checkpoint_hist)
        self.saved = time.monotonic()

    def save_if_due(self) -> None:
        """Save if the last checkpoint is older than --checkpoint-minutes."""
        if time.monotonic() - self.saved > 60 * self.config.run.checkpoint_minutes:
            self.save()


def start_from(state: TrainState, config: Config) -> Path | None:
    """Put the state where --resume or --pretrained says; returns the checkpoint that the run goes on from.

    Both together are the command line of a job that may be started again: --resume auto goes on from a checkpoint in
    the folder if there is one, and begins with the initial weights if there is none.
    """
    resume, initial = config.run.resume, config.model.pretrained
    if resume not in (None, "auto") and initial is not None:
        raise ConfigError("--pretrained and --resume: pass one of them")
    found = None
    if resume == "auto":
        found = load_newest(config.run.output)
    elif resume is not None:
        found = Path(resume), load(Path(resume))
    if found is not None:
        path, content = found
        state.restore(content, config, str(path))
        log.info("going on from %s", path)
        return path
    if initial is not None:
        load_pretrained(state.model, initial, spec_of(config.model, state.channels, config.augment.size))
        if state.ema is not None:
            state.ema.module.load_state_dict(state.model.state_dict())
    return None


def data_identity(source: Source) -> dict[str, int | str]:
    """Number of images, channels, and a digest of some of the images by their places: {"images", "channels", "sha256"}.

    Names and folders do not matter, so a data set may be moved; the order of the images does, since draws depend on it.
    """
    size = len(source)
    count = min(size, IDENTITY_SAMPLE)
    digest = hashlib.sha256()
    for k in range(count):
        data = _stored(source, k * (size - 1) // max(1, count - 1))
        digest.update(len(data).to_bytes(8, "little") + data)
    return {"images": size, "channels": source.channels, "sha256": digest.hexdigest()[:16]}


def _stored(source: Source, index: int) -> bytes:
    try:
        return source.read(index)
    except OSError:
        return b"unreadable"  # the loader reports it and replaces it; it is the same in a run that goes on
