"""Everything that a run needs to go on exactly where it was: weights, optimizer, scaler, average, generators, step."""

import dataclasses
import logging
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from simclr_fast.checkpoint import load_weights
from simclr_fast.config import Config, as_dict
from simclr_fast.errors import CheckpointError
from simclr_fast.models import SimCLR, build_model
from simclr_fast.optim import build_optimizer
from simclr_fast.sync_bn import synchronize_batch_norm
from simclr_fast.training.step import random_state, set_random_state

# Options that decide what is computed: a resumed run must agree on them to go on exactly. More epochs may follow, and
# what a run began with is behind it.
EXACT_OPTIONS = ("augment", "model", "optimization")
FREE_OPTIONS = ("epochs", "initial_checkpoint")
CONTENT = {"step": int, "seconds": (int, float), "model": dict, "optimizer": dict, "scaler": dict, "random": dict}
CONTENT |= {"config": dict}

log = logging.getLogger(__name__)


@dataclasses.dataclass
class TrainState:
    """The mutable state of a run. step: steps done; seconds: training time so far, over all resumptions; data: what
    tells its training images from others (`data_identity`), None where nothing compares them.

    The order of the images, their views and the learning rate are functions of (seed, step), so they need no state.
    """

    model: SimCLR
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    step: int = 0
    seconds: float = 0.0
    data: dict[str, int | str] | None = None

    @staticmethod
    def create(
        config: Config, channels: int, device: torch.device, *, autocast: torch.dtype | None, several: bool = False
    ) -> "TrainState":
        """A fresh state on the device; the weights depend on the seed alone. several: there are several processes."""
        torch.manual_seed(config.run.seed)
        model = build_model(config.model, channels).to(device)
        if several and config.model.sync_bn:
            model = synchronize_batch_norm(model, device)
        if config.speed.channels_last:
            model = model.to(memory_format=torch.channels_last)
        ema = None
        if config.optimization.model_ema:
            average = get_ema_multi_avg_fn(config.optimization.model_ema_decay)
            ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        return TrainState(
            model=model,
            optimizer=build_optimizer(model, config.optimization),
            scaler=torch.amp.GradScaler(device.type, enabled=autocast == torch.float16),
            ema=ema,
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
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "random": {"cpu": cpu, "cuda": cuda},
            "config": as_dict(config),
            "data": self.data,
        }

    def restore(self, content: dict[str, Any], config: Config, source: str) -> None:
        """Go on from a checkpoint. Raises CheckpointError with what differs if it is another model's or run's."""
        for key, kind in CONTENT.items():
            if not isinstance(content.get(key), kind):
                raise CheckpointError(f"{source}: not a checkpoint of train.py (no {key!r} in it)")
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
                "--initial-checkpoint to reuse the weights):\n" + "\n".join(changed)
            )
        if now > then:
            log.warning("%d epochs instead of %d: from here on, the learning rate is that of the longer run", now, then)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(content["ema"])
            set_random_state((content["random"]["cpu"], content["random"]["cuda"]))
        except Exception as error:  # torch checks little of what it is given, and fails where that does not work
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{source}: the state of its optimizer, scaler (--amp-dtype) or average does not fit: {reason}"
            ) from error
        self.step, self.seconds = content["step"], content["seconds"]

    def _changes(self, content: dict[str, Any], options: dict[str, Any]) -> list[str]:
        """One line per option, or fact of the data, that is another than in the checkpoint."""
        stored = content["config"]
        pairs = [
            (f"--{name.replace('_', '-')}", options[group].get(name), value)
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
