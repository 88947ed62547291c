"""Trained backbones on disk, checked before use: a run's checkpoint with what it was trained with, or an export."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from torch import Tensor, nn

from simclr_fast.backbones.factories import is_factory
from simclr_fast.backbones.family import Stage
from simclr_fast.backbones.registry import detection_stages, spec_of
from simclr_fast.checkpoint import checkpoints, describe_differences, load, require_entries, require_finite
from simclr_fast.config import AugmentOptions, Config, ModelOptions, check_values
from simclr_fast.errors import CheckpointError, ConfigError, first_line
from simclr_fast.models import build_encoder, describe_encoder
from simclr_fast.named_options import made
from simclr_fast.recipes import RECIPES

WEIGHTS_FILE, WEIGHTS_SUFFIX = "backbone.safetensors", ".safetensors"  # of an export
EXPORT_KEY = "simclr_fast"  # entry of its header that describes the backbone
Options = TypeVar("Options")
BACKBONE = "backbone."  # prefix of the backbone's weights in a checkpoint


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model as evaluation needs it.

    folder: of the run; checkpoint: the file; step: training steps done; channels: of the images (1 or 3); weights: of
    the backbone, by the names they have in it; the averaged ones where the run kept them.
    """

    folder: Path
    checkpoint: Path
    step: int
    config: Config
    channels: int
    weights: dict[str, Tensor]

    @staticmethod
    def open(path: Path, model: str | None = None) -> "Run":
        """The newest checkpoint of a run's folder, or one checkpoint file.

        model: the name of its backbone; needed where that is a function of somebody's own, which is imported only
        because it is named here. Raises CheckpointError, with one line saying why, for what is missing, damaged or no
        checkpoint of this program. A damaged newest checkpoint is refused rather than replaced by an older one, which
        would be another model.
        """
        path = Path(path)
        if path.is_dir():
            found = checkpoints(path)
            if not found:
                raise CheckpointError(f"{path}: there is no checkpoint-*.pt in this folder")
            path = found[-1]
        return Run._of(path, load(path), model)

    @staticmethod
    def open_any(path: Path, model: str | None = None) -> "Run":
        """As `open`; or an exported folder, or the backbone.safetensors of one.

        Of an export, config holds the model and its view alone: what it says of data and training are defaults.
        """
        path = Path(path)
        if path.suffix == WEIGHTS_SUFFIX:
            return Run._of_export(path, model)
        if (path / WEIGHTS_FILE).is_file():
            return Run._of_export(path / WEIGHTS_FILE, model)
        return Run.open(path, model)

    @staticmethod
    def _of_export(path: Path, model: str | None) -> "Run":
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                described = json.loads((file.metadata() or {}).get(EXPORT_KEY, "null"))
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
            model_options = {name: described[name] for name in ("model", "stem", "norm", "model_kwargs")}
            view = {"size": described["image_size"], "mean": described["mean"], "std": described["std"]}
            channels, step = described["channels"], int(described["step"])
        except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}: damaged, or not exported by simclr_fast ({first_line(error)})") from error
        options, augment = options_of(ModelOptions, model_options, path), options_of(AugmentOptions, view, path)
        require_named(options.model, model, path)
        require_fit(options, require_channels(channels, path), augment.size, weights, path)
        return Run(path.parent, path, step, Config(model=options, augment=augment), channels, weights)

    @staticmethod
    def _of(path: Path, content: dict[str, Any], model: str | None) -> "Run":
        require_entries(content, {"model": dict, "config": dict, "step": int, "channels": int}, str(path))
        config = config_of(content["config"], path)
        require_named(config.model.model, model, path)
        average = content.get("ema")
        source, prefix = (average, f"module.{BACKBONE}") if average else (content["model"], BACKBONE)
        named = source.items() if isinstance(source, dict) else ()
        weights = {str(key).removeprefix(prefix): value for key, value in named if str(key).startswith(prefix)}
        channels = require_channels(content["channels"], path)
        require_fit(config.model, channels, config.augment.size, weights, path)
        return Run(path.parent, path, content["step"], config, channels, weights)

    @property
    def is_export(self) -> bool:
        """Whether it comes from an export, which knows nothing of data and training."""
        return self.checkpoint.suffix == WEIGHTS_SUFFIX

    def encoder(self) -> nn.Module:
        """The trained backbone, images [B, C, S, S] -> features [B, D]; in eval mode, float32, on the CPU."""
        backbone = self.random_init()
        backbone.load_state_dict(self.weights)
        return backbone

    def random_init(self, seed: int | None = None) -> nn.Module:
        """The backbone as it was before training (or as another seed makes it), in eval mode."""
        with torch.random.fork_rng(devices=[]):
            # Of the CPU alone, where it is built: those of GPUs are the caller's.
            torch.default_generator.manual_seed(self.config.run.seed if seed is None else seed)
            return build_encoder(self.config.model, self.channels, self.config.augment.size).eval()

    def stages(self, backbone: nn.Module) -> tuple[Stage, ...]:
        """Where detection taps the backbone that `encoder` or `random_init` gave. Raises ConfigError for nowhere."""
        spec = spec_of(self.config.model, self.channels, self.config.augment.size)
        return detection_stages(spec, backbone)


def require_named(stored: str, model: str | None, path: Path) -> None:
    """Raise CheckpointError where a file's backbone is another than the user named, or a function that nobody named.

    Importing a function runs code: what a file says must not be enough for that.
    """
    shown = stored[:80]
    if model is not None and model != stored:
        raise CheckpointError(f"{path}: its backbone is {shown}, not --model {model}; leave --model out or name that")
    if model is None and is_factory(stored):
        raise CheckpointError(
            f"{path}: its backbone is made by {shown}, code that is run only where you name it; if you trust it, pass "
            f"--model {shown} (in Python: model={shown!r})"
        )


def require_channels(channels: object, path: Path) -> int:
    """Raise CheckpointError for a number of channels that no images have."""
    if type(channels) is not int or channels not in (1, 3):
        raise CheckpointError(f"{path}: its images have {str(channels)[:50]} channels, not 1 or 3: no run has that")
    return channels


def require_fit(options: ModelOptions, channels: int, size: int, weights: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError where weights are not those of the backbone of these options, or not finite.

    Nothing is allocated by what a file says before its weights agree with it.
    """
    try:
        # Layers are made of a few tensors for every weight; what a file says of their number may be anything.
        wanted = describe_encoder(options, channels, size, most=100 + 4 * len(weights)).state_dict()
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    different = describe_differences(wanted, weights)
    if different:
        raise CheckpointError(
            f"{path}: its weights are not those of --model {options.model}; first difference:{different[0]}"
        )
    require_finite(weights, str(path))


def config_of(options: dict[str, Any], source: Path) -> Config:
    """The options that `as_dict` wrote into a checkpoint. Raises CheckpointError for those of another version."""
    groups = {field.name: field.default for field in dataclasses.fields(Config) if field.name != "recipe"}
    missing = [name for name in ("recipe", *groups) if name not in options]
    if missing or options["recipe"] not in [*RECIPES]:  # which a list, too, can be asked about
        raise CheckpointError(
            f"{source}: its options are not those of this version (no {', '.join(missing) or 'recipe'})"
        )
    found = {name: options_of(type(default), options[name], source) for name, default in groups.items()}
    return Config(recipe=options["recipe"], **found)


def options_of(kind: type[Options], values: object, source: Path) -> Options:
    """Options of a class from what a file says. Raises CheckpointError for a name, type or value that no run has."""
    try:
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise ConfigError(f"{str(values)[:50]!r} in place of {kind.__name__}")
        group = made(kind, values)
        check_values(vars(group), remedy="no run has that, only {}")
    except ConfigError as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 200 else f"{reason[:100]} ... {reason[-90:]}"
        raise CheckpointError(f"{source}: its options are not those of this version ({reason})") from error
    return group
