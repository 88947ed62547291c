"""The command line as calls: pretrain, what is done with a pretrained run, and its backbone for use elsewhere.

Every option of a command is an argument of the same name, with underscores for hyphens; values are checked as on the
command line, and messages name options as they are written there. `simclr-fast COMMAND --help` explains them all.
Progress is shown by tqdm and rich, which draw in a notebook as well (TQDM_DISABLE=1 in the environment hides bars).
"""

import dataclasses
import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simclr_fast.config import Config
from simclr_fast.errors import CheckpointError
from simclr_fast.named_options import changed, made, unknown_recipe
from simclr_fast.recipes import DEFAULT_RECIPE, RECIPES

if TYPE_CHECKING:
    from torch import nn

    from simclr_fast.evaluation.options import CheckpointOptions


def pretrain(
    recipe: str = DEFAULT_RECIPE,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    model: str | None = None,
    epochs: int | None = None,
    **options: Any,
) -> "PretrainedRun":
    """Train an encoder with SimCLR, as `simclr-fast pretrain` does, and return the run.

    Random generators, torch's number of threads and its precisions are those of the caller again afterwards; equal
    seeds give equal runs, whatever the caller has set. Ctrl-C ends the training after the step that it is at, with a
    checkpoint: KeyboardInterrupt, and SystemExit after SIGTERM. In a thread other than the main one signals are left
    to the caller; while one thread trains or evaluates, another is refused, since generators and settings are the
    whole process's.

    Args:
        recipe: What every option that is not named is by default: photos, or another recipe of docs/recipes.md.
        data: Folder or file of the images.
        output: Folder of the run (checkpoints, metrics, pictures).
        model: Name of the backbone.
        epochs: Passes over the training set.
        **options: Any other option of `simclr-fast pretrain`, whose `--help` explains them all, such as batch_size
            (images per step), lr (peak learning rate), size (side of a view, pixels), seed, workers (threads that read
            images), resume="auto" (go on after a stop), device; model_kwargs may be a dict.

    Returns:
        The run, with a method for every command that takes one.

    Raises:
        ConfigError: An option does not exist or cannot work.
        CheckpointError: A checkpoint to start from cannot be used.
        DataError: The data cannot be trained on.
        NonFiniteLossError: The loss, or the norm of its gradient, is infinite or not a number.

    Examples:
        >>> run = simclr_fast.pretrain(data="photos/", output="runs/photos", epochs=100)
        >>> run.linear()["results"]
    """
    from simclr_fast.backbones.model_kwargs import pairs
    from simclr_fast.caller import callers_state, log_shown
    from simclr_fast.training.pretrain import pretrain as train

    if recipe not in RECIPES:
        raise unknown_recipe(str(recipe))
    own = {"data": data, "output": output, "model": model, "epochs": epochs}
    values = {name: value for name, value in own.items() if value is not None} | options
    if isinstance(values.get("model_kwargs"), Mapping):
        values["model_kwargs"] = pairs(values["model_kwargs"])
    config: Config = changed(RECIPES[recipe], values)
    with callers_state("pretrain"), log_shown(logging.INFO):
        status = train(config, frozenset(values))
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if status != 0:
        raise SystemExit(status)
    return PretrainedRun(config.run.output, model=config.model.model if ":" in config.model.model else None)


@dataclasses.dataclass(frozen=True)
class PretrainedRun:
    """A run of `pretrain`, and the commands that take one.

    Each method takes the options of its command by name (`simclr-fast COMMAND --help` explains them), returns what
    `<command>.json` holds, as nested dicts of plain values ("results": accuracies as fractions; "seconds"; "options";
    ...), and writes tables and pictures to the run's folder. Each raises ConfigError, CheckpointError and DataError.

    Args:
        path: Folder of the run, or one of its checkpoints.
        model: Name of its backbone, needed for one that a function of yours makes (`package.module:function`), because
            nothing that a file names is imported.

    Raises:
        CheckpointError: There is nothing at the path.
    """

    path: Path
    model: str | None = None

    def __init__(self, path: str | Path, model: str | None = None):
        object.__setattr__(self, "path", Path(path))
        object.__setattr__(self, "model", model)
        if not self.path.exists():
            raise CheckpointError(f"{path}: there is no such run; pass the folder that `pretrain` wrote (its --output)")

    def backbone(self) -> "nn.Module":
        """The trained backbone: normalised images [B, C, H, W] to features [B, D]. See `load_backbone`."""
        return load_backbone(self.path, model=self.model)

    def knn(self, **options: Any) -> dict[str, Any]:
        """Classify test images by their nearest neighbours among the training images."""
        return self._command("knn", options)

    def linear(self, **options: Any) -> dict[str, Any]:
        """Train a linear classifier on frozen features, with all labels."""
        return self._command("linear", options)

    def few_label(self, **options: Any) -> dict[str, Any]:
        """Train a linear classifier from a few labels per class, over several draws of them."""
        return self._command("few-label", options)

    def finetune(self, **options: Any) -> dict[str, Any]:
        """Train backbone and classifier on a part of the labels, from the checkpoint and from scratch."""
        return self._command("finetune", options)

    def detect(self, **options: Any) -> dict[str, Any]:
        """Train an object detector on the backbone, from the checkpoint and from scratch."""
        return self._command("detect", options)

    def multi_label(self, **options: Any) -> dict[str, Any]:
        """Train linear classifiers on frozen features where an image has several classes, as in VOC 2007."""
        return self._command("multi-label", options)

    def export(self, **options: Any) -> dict[str, Any]:
        """Write the backbone for other programs, with a model card."""
        return self._command("export", options)

    def report(self, **options: Any) -> dict[str, Any]:
        """Gather everything of the run on one HTML page, whose path is `["results"]["page"]`."""
        return self._command("report", options)

    def embed(self, **options: Any) -> dict[str, Any]:
        """Write the features of images, and look for neighbours and near-duplicates among them."""
        return self._command("embed", options)

    def _command(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        from simclr_fast.caller import callers_state, log_shown
        from simclr_fast.cli import COMMANDS, imported

        command = COMMANDS[name]
        chosen: CheckpointOptions = made(
            imported(command.options), {"checkpoint": self.path, "model": self.model, **options}
        )
        with callers_state(name), log_shown(command.log_level):
            return imported(command.work)(chosen)


def load_backbone(path: str | Path, model: str | None = None) -> "nn.Module":
    """The backbone that SimCLR trained, mapping normalised images [B, C, H, W] to features [B, D].

    It is in eval mode, float32, on the CPU, without a classifier, for images of the size that it was trained on where
    the backbone is built for one (ViT). Nothing that a file names is imported, and nothing in it executed.

    Args:
        path: A run's folder (its newest checkpoint is taken), a checkpoint file, an exported folder, or a
            backbone.safetensors.
        model: Name of its backbone, needed for one that a function of yours makes (`package.module:function`).

    Raises:
        CheckpointError: What is there is missing, damaged or foreign.
        ConfigError: Another thread of the process trains or evaluates meanwhile.

    Examples:
        >>> backbone = load_backbone("runs/demo")
        >>> features = backbone(images)
    """
    from simclr_fast.caller import alone, plain_torch
    from simclr_fast.evaluation.run import Run

    with alone("load_backbone"), plain_torch():
        return Run.open_any(Path(path), model).encoder()
