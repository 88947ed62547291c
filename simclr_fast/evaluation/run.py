"""Trained backbones on disk, checked before use: a run's checkpoint with what it was trained with, or an export."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from simclr_fast.backbones.factories import is_factory
from simclr_fast.backbones.family import Stage
from simclr_fast.backbones.registry import detection_stages, spec_of
from simclr_fast.checkpoint import checkpoints, describe_differences, load, require_entries, require_finite
from simclr_fast.config import RULES, AugmentOptions, Config, ModelOptions
from simclr_fast.errors import CheckpointError, ConfigError
from simclr_fast.models import build_encoder, describe_encoder

WEIGHTS_FILE, WEIGHTS_SUFFIX = "backbone.safetensors", ".safetensors"  # of an export
EXPORT_KEY = "simclr_fast"  # entry of its header that describes the backbone
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
            names = ("model", "stem", "norm", "model_kwargs")
            options = ModelOptions(**_typed(ModelOptions(), {name: described[name] for name in names}))
            view = {"size": described["image_size"], "mean": described["mean"], "std": described["std"]}
            augment = AugmentOptions(**_typed(AugmentOptions(), view))
            channels, step = described["channels"], int(described["step"])
        except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path}: damaged, or not exported by simclr_fast ({reason})") from error
        require_named(options.model, model, path)
        require_view(augment, path)
        require_fit(options, require_channels(channels, path), augment.size, weights, path)
        return Run(path.parent, path, step, Config(model=options, augment=augment), channels, weights)

    @staticmethod
    def _of(path: Path, content: dict[str, Any], model: str | None) -> "Run":
        require_entries(content, {"model": dict, "config": dict, "step": int, "channels": int}, str(path))
        config = config_of(content["config"], path)
        require_named(config.model.model, model, path)
        require_view(config.augment, path)
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
            torch.manual_seed(self.config.run.seed if seed is None else seed)
            return build_encoder(self.config.model, self.channels, self.config.augment.size).eval()

    def stages(self, backbone: nn.Module) -> tuple[Stage, ...]:
        """Where detection taps the backbone that `encoder` or `random_init` gave. Raises ConfigError for nowhere."""
        spec = spec_of(self.config.model, self.channels, self.config.augment.size)
        return detection_stages(spec, backbone)


def require_view(augment: AugmentOptions, path: Path) -> None:
    """Raise CheckpointError for options of which evaluation cannot make its views."""
    for name, value in vars(augment).items():
        fulfils, wanted = RULES.get(name, (None, ""))
        if fulfils is not None and not fulfils(value):
            raise CheckpointError(f"{path}: its option {name} is {str(value)[:50]}, not {wanted}: no run has that")


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
        wanted = describe_encoder(options, channels, size).state_dict()
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
    try:
        return Config(
            recipe=options["recipe"],
            **{name: type(default)(**_typed(default, options[name])) for name, default in groups.items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source}: its options are not those of this version ({error})") from error


def _typed(group: object, values: dict[str, Any]) -> dict[str, Any]:
    """The values of one group with its paths as Path and its sequences as tuples. TypeError for other kinds."""
    defaults = {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    for name, value in values.items():
        if not _is_like(defaults.get(name), value):
            raise TypeError(f"{name} is {str(value)[:50]!r}")
    paths = {field.name for field in dataclasses.fields(group) if field.type in (Path, Path | None)}
    convert = lambda name, value: tuple(value) if isinstance(value, list) else Path(value) if name in paths else value
    return {name: value if value is None else convert(name, value) for name, value in values.items()}


def _is_like(default: Any, value: Any) -> bool:
    """Whether a stored value is of the kind that an option with this default has; an option without one is anything."""
    if default is None:
        return value is None or isinstance(value, int | float | str)
    if isinstance(default, tuple):
        kind = int | float if default else str  # numbers, but for the options that hold words and are empty by default
        return isinstance(value, list | tuple) and all(isinstance(entry, kind) for entry in value)
    kinds = {bool: bool, int: int, float: int | float}
    return isinstance(value, kinds.get(type(default), str))
