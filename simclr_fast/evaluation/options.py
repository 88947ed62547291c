"""The options of every evaluation command, and the checks on them before anything is read or computed."""

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

from tyro.conf import Positional

from simclr_fast.config import (
    COUNT,
    COUNT_OR_ZERO,
    OUTPUT,
    POSITIVE,
    SEED,
    THREADS,
    AmpDtype,
    Compiler,
    DatasetName,
    Device,
    Rule,
    flag,
    require,
)
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.protocols import HELD_OUT, PROTOCOLS, ProtocolName


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Which model, and where results go.

    command: the name of the command whose options a class holds; takes_exports: whether an exported backbone will do.
    """

    command: ClassVar[str]
    takes_exports: ClassVar[bool] = False
    checkpoint: Path
    """Folder of a run (its newest checkpoint is taken), or a checkpoint file."""
    model: str | None = None
    """Name of the run's backbone, needed where a function of yours makes it (package.module:function): it is imported
    only because it is named here."""
    output: Path | None = None
    """Folder for what is written; None is one in the run's folder: `export` for exports, `evaluation` for results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeOptions(CheckpointOptions):
    """Where the work is done."""

    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is a GPU."""
    threads: int = 0
    """CPU threads of a process; 0 leaves torch's choice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataChoice(ComputeOptions):
    """Which images."""

    dataset: DatasetName | None = None
    """Kind of data set, as `pretrain` knows them; None is the run's, or auto where --data names another one."""
    data: Path | None = None
    """Folder (or file) that holds the data set; None is the run's."""
    download: bool = False
    """Download a torchvision data set that is missing from --data."""
    image_column: str | None = None
    """Column with the images (huggingface) or their paths (table); None is the run's, or is found in another --data."""
    label_column: str | None = None
    """Column with the classes, numbers or names; None is the run's, or is found in another --data."""
    seed: int = 0
    """Seed of every random choice (integer >= 0)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByProtocol(DataChoice):
    """Options of which some are as a protocol says, where they are None."""

    protocol: ProtocolName = "own"
    """Whose evaluation is followed: this package's own, or a published one, so that a figure can be put beside theirs;
    options that are given win, and the table's title names them. docs/protocols.md says what each does."""

    def __post_init__(self) -> None:
        protocol = PROTOCOLS[self.command].get(self.protocol)
        for name, value in protocol.values.items() if protocol is not None else ():  # `check` refuses unknown ones
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnOptions(ByProtocol):
    """Weighted nearest-neighbour classification of test and, leaving one out, training images."""

    command: ClassVar[str] = "knn"
    knn_k: tuple[int, ...] | None = None
    """Neighbours that vote (counts); the training images choose one, leaving one out; None is the protocol's (own: 1 5
    10 20 50 100 200)."""
    knn_t: float | None = None
    """Temperature of their weights exp(similarity / t) (no unit, > 0); None is the protocol's (own: 0.1)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearOptions(ByProtocol):
    """Linear classifier on frozen features: SGD on augmented images, and L-BFGS on cached features."""

    command: ClassVar[str] = "linear"
    method: Literal["both", "sgd", "lbfgs"] | None = None
    """SGD on augmented images, L-BFGS on the features of centre crops, or both; None is the protocol's (own: both)."""
    label_list: Path | None = None
    """File that names the labelled training images, a line each, by file name or path, as the published 1% and 10% of
    ImageNet do; None takes all."""
    epochs: int | None = None
    """Passes over the training set by SGD; None is the protocol's (own: 90, and 30 for the demo)."""
    batch_size: int | None = None
    """Images per step of SGD; None is the protocol's (own: 256)."""
    lr_base: tuple[float, ...] | None = None
    """Learning rate per 256 images of a batch: those tried at once by SGD, between which the held-out training images
    choose; None is the protocol's (own: 0.003 0.01 0.03 0.1 0.3 1.0)."""
    penalty_c: tuple[float, ...] | None = None
    """Inverse L2 penalties tried by L-BFGS, between which the held-out training images choose; None is the protocol's
    (own: 1e-4 1e-3 1e-2 1e-1 1)."""
    held_out: float = HELD_OUT
    """Share of the training images that chooses, where there is more than one value to choose from (fraction)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewLabelOptions(DataChoice):
    """Linear classifier and nearest neighbour from a few labels per class, over several draws."""

    command: ClassVar[str] = "few-label"
    per_class: tuple[int, ...] = (1, 5, 10, 20, 50)
    """Labelled images per class (counts); of a class with fewer all are taken."""
    draws: int = 5
    """Random choices of the labelled images (count)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions(ByProtocol):
    """Train backbone and classifier on a part of the labels, from the checkpoint and from scratch."""

    command: ClassVar[str] = "finetune"
    fractions: tuple[float, ...] | None = None
    """Shares of the training labels, the same in every class (fractions); None is the protocol's (own: 0.01 0.1 1)."""
    label_list: Path | None = None
    """File that names the labelled training images, a line each, by file name or path, as the published 1% and 10% of
    ImageNet do; takes the place of --fractions. None draws them."""
    draws: int | None = None
    """Random choices of the labelled images (count); all of them need one. None is 3, and 1 with --label-list."""
    init: Literal["both", "checkpoint", "scratch"] = "both"
    """Where the backbone starts."""
    epochs: tuple[int, ...] | None = None
    """Passes over the training set, for each fraction; None is the published 60 (1%) and 30 (10%, 100%), and fewer for
    the demo."""
    min_steps: int | None = None
    """Fewest steps, where epochs of a small part would be too few; None is 0, and 300 for the demo."""
    batch_size: int | None = None
    """Images per step over all processes; None is the protocol's (own: 256, and 64 for the demo)."""
    lr_base: float | None = None
    """Learning rate per 256 images of a batch; None is the protocol's (own: 0.05)."""
    amp_dtype: AmpDtype = "auto"
    """Autocast type; auto is bfloat16 on CUDA and float32 on the CPU."""
    channels_last: bool = True
    """NHWC memory layout."""
    torchcompile: Compiler = "auto"
    """Backend of torch.compile for forward and loss; auto is inductor on CUDA and off on the CPU."""

    def __post_init__(self) -> None:
        is_given = self.fractions is not None
        super().__post_init__()
        if self.label_list is not None and not is_given:
            object.__setattr__(self, "fractions", None)  # the list takes their place
        if self.draws is None:
            object.__setattr__(self, "draws", 3 if self.label_list is None else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectOptions(ComputeOptions):
    """Train a detector on the backbone, from the checkpoint and from random initialisation, at equal budget."""

    command: ClassVar[str] = "detect"
    architecture: Literal["faster-rcnn", "retinanet"] = "faster-rcnn"
    """Detector, with a feature pyramid."""
    dataset: Literal["scenes", "coco", "voc"] = "scenes"
    """Kind of data set: scenes composed of the demo's digits, or a folder in COCO's or VOC's format."""
    data: Path = Path("data")
    """Folder that holds the data set: COCO's train2017, val2017 and annotations, or VOC's VOCdevkit."""
    train_set: tuple[str, ...] = ()
    """Sets of images to train on, one or more. COCO: image folder and instances_<it>.json (train2017); VOC:
    <year>-<image set> (2012-train; as published: 2007-trainval 2012-trainval)."""
    test_set: tuple[str, ...] = ()
    """Sets of images to measure on, named as those of --train-set (val2017; 2012-val; as published: 2007-test)."""
    init: Literal["both", "checkpoint", "scratch"] = "both"
    """Where the backbone starts."""
    seeds: int = 3
    """Trainings per initialisation, which differ in their random draws (count)."""
    steps: int | None = None
    """Training steps; None is 90,000 (COCO's 1x schedule), 24,000 (VOC), or 120 (scenes)."""
    batch_size: int | None = None
    """Images per step; None is 16, and 8 for scenes."""
    lr: float | None = None
    """Peak learning rate; None is 0.02 (Faster R-CNN) or 0.01 (RetinaNet) per 16 images; on scenes,
    whichever of three serves random initialisation best on held-out scenes."""
    train_scenes: int = 100
    """Labelled scenes that are trained on (count)."""
    test_scenes: int = 300
    """Scenes that are measured on (count)."""
    min_size: int | None = None
    """Shorter side that images are resized to (pixels; COCO and VOC); None is the published 800, or the training
    images' own where it is smaller."""
    workers: int = 8
    """Processes that read and decode images (COCO and VOC); 0 reads when a batch is asked for."""
    amp_dtype: AmpDtype = "auto"
    """Autocast type; auto is bfloat16 on CUDA and float32 on the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabelOptions(ComputeOptions):
    """Linear classifiers of frozen features where an image has several classes, measured as on VOC 2007."""

    command: ClassVar[str] = "multi-label"
    data: Path = Path("data")
    """Folder that holds the data set: VOC's VOCdevkit."""
    train_set: tuple[str, ...] = ("2007-train",)
    """Sets of images to train on, as <year>-<image set>, one or more."""
    val_set: tuple[str, ...] = ("2007-val",)
    """Sets of images that choose the penalty of logistic regression; afterwards they are trained on as well."""
    test_set: tuple[str, ...] = ("2007-test",)
    """Sets of images to measure on."""
    classifier: Literal["logistic", "svm"] = "logistic"
    """Logistic regression by L-BFGS; or the linear SVM of Goyal et al. 2019, whose penalty three-fold cross-validation
    chooses for every class."""
    penalty_c: tuple[float, ...] | None = None
    """Inverse L2 penalties tried; None is 1e-5 to 10 in half powers of ten, and 0.01 to 1000 for the SVM."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions(DataChoice):
    """Features of every image of a data set as files, with nearest neighbours as a picture and near-duplicates."""

    command: ClassVar[str] = "embed"
    takes_exports: ClassVar[bool] = True
    checkpoint: Path
    """Folder of a run (its newest checkpoint is taken), a checkpoint file, an exported folder, or a
    backbone.safetensors."""
    output: Path | None = None
    """Folder for the features: new, or left by the same command, which goes on there; None is `features` in the run's
    folder."""
    split: Literal["all", "train", "labelled", "test"] = "all"
    """Which images of the data set; labelled is for data sets like STL-10, whose labels are those of other images."""
    format: Literal["parquet", "npy", "safetensors"] = "parquet"
    """Kind of the files; docs/embed.md shows how each is loaded."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in the files."""
    shard_size: int = 4096
    """Images of a shard: what is lost when the command is stopped, and with the features as files what lies in memory
    (count)."""
    query: tuple[Path, ...] = ()
    """Image files whose nearest neighbours are shown; without any, some random images of the data set ask."""
    neighbours: int = 10
    """Neighbours of each query (count, 50 at most)."""
    duplicates: float | None = 0.999
    """Cosine similarity above which two images are listed as near-duplicates (between 0 and 1); None looks for none."""
    batch_size: int = 128
    """Images per step of the encoder."""
    workers: int = 8
    """Threads that read and decode images; 0 reads when a batch is asked for."""
    amp_dtype: AmpDtype = "float32"
    """Autocast type; auto is bfloat16 on CUDA and float32 on the CPU. Lower ones gain little, as decoding takes most of
    the time, and blur small differences."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(CheckpointOptions):
    """Write the backbone for other programs, with a model card."""

    command: ClassVar[str] = "export"
    device: ClassVar[str] = "cpu"  # nothing heavy is computed
    threads: ClassVar[int] = 0
    onnx: bool = False
    """Also write ONNX (needs the packages of the extra `onnx`)."""
    license: str | None = None
    """Licence of the weights for the model card, as Hugging Face names it (apache-2.0, other); None names none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions(DataChoice):
    """Gather everything of a run into one HTML page."""

    command: ClassVar[str] = "report"
    checkpoint: Positional[Path]
    """Folder of a run (its newest checkpoint is taken), or a checkpoint file."""


SHARE: Rule = (lambda value: 0 < value <= 1, "a fraction in (0, 1]")
PROPER_SHARE: Rule = (lambda value: 0 < value < 1, "a fraction in (0, 1)")

MOST_ROWS = 100_000  # of a shard: the header of safetensors has no room for the names of very many
MOST_NEIGHBOURS = 50  # beside a query in a picture

# By the name of the option, in whichever command it is; of an option with several values each must fulfil its rule.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("threads", "workers"), THREADS),
    "seed": SEED,
    "output": OUTPUT,
    "min_steps": COUNT_OR_ZERO,
    **dict.fromkeys(("knn_k", "epochs", "batch_size", "per_class", "draws", "seeds", "steps"), COUNT),
    **dict.fromkeys(("train_scenes", "test_scenes", "min_size"), COUNT),
    "shard_size": (lambda value: 1 <= value <= MOST_ROWS, f"an integer from 1 to {MOST_ROWS}"),
    "neighbours": (lambda value: 1 <= value <= MOST_NEIGHBOURS, f"an integer from 1 to {MOST_NEIGHBOURS}"),
    **dict.fromkeys(("knn_t", "lr", "lr_base", "penalty_c"), POSITIVE),
    "fractions": SHARE,
    **dict.fromkeys(("held_out", "duplicates"), PROPER_SHARE),
}


def check(options: Any) -> None:
    """Raise ConfigError, which names the option, its value and the remedy, for a value that cannot work."""
    if isinstance(options, ByProtocol) and options.protocol not in PROTOCOLS[options.command]:
        known = ", ".join(PROTOCOLS[options.command])
        raise ConfigError(f"--protocol {options.protocol}: it has no {options.command}; pass one of {known}")
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in RULES or value is None:
            continue
        fulfils, remedy = RULES[field.name]
        several = isinstance(value, tuple)
        if several and not value:
            raise ConfigError(f"{flag(field.name)}: no value given; pass {remedy}, or several")
        for one in value if several else (value,):
            require(fulfils(one), field.name, one, f"pass {remedy}")
        if several and len(set(value)) < len(value) and field.name != "epochs":
            raise ConfigError(f"{flag(field.name)} {' '.join(map(str, value))}: pass every value once")
    if options.command == "multi-label" or (options.command == "detect" and options.dataset == "voc"):
        for name in ("train_set", "val_set", "test_set"):
            for value in getattr(options, name, ()):
                require(all(value.partition("-")), name, value, "pass the year and the image set of VOC, as 2012-train")
    for name in ("train_set", "val_set", "test_set"):
        value = getattr(options, name, ())
        require(len(set(value)) == len(value), name, " ".join(value), "pass every set once")
    label_list = getattr(options, "label_list", None)
    if label_list is not None and not os.path.isfile(label_list):
        what = "it is a folder" if os.path.isdir(label_list) else "there is no such file"
        raise ConfigError(f"--label-list {label_list}: {what}; pass a file that names an image a line")
    if isinstance(options, LinearOptions):
        _check_method(options)
    if isinstance(options, FinetuneOptions):
        _check_parts(options)


def _check_method(options: LinearOptions) -> None:
    """Raise ConfigError for a method that the protocol has no penalties for, and for options that go with another."""
    method, theirs = options.method, PROTOCOLS[options.command][options.protocol].values
    if method != "sgd" and options.penalty_c is None:
        raise ConfigError(
            f"--method {method}: --protocol {options.protocol} has no penalties for L-BFGS; pass --method sgd, a "
            "--penalty-c, or --protocol own"
        )
    for name in {"sgd": ("penalty_c",), "lbfgs": ("epochs", "batch_size", "lr_base")}.get(method, ()):
        value = getattr(options, name)
        if value != theirs.get(name):
            given = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise ConfigError(f"{flag(name)} {given}: --method {method} does not use it; leave it out")
    tried = options.lr_base * (method != "lbfgs"), (options.penalty_c or ()) * (method != "sgd")
    if options.held_out != HELD_OUT and all(len(values) < 2 for values in tried):
        raise ConfigError(
            f"--held-out {options.held_out}: with one value of each option nothing is chosen, and nothing held out; "
            "leave it out"
        )


def _check_parts(options: FinetuneOptions) -> None:
    """Raise ConfigError where the parts of the labels are named twice, or have not their number of epochs each."""
    parts = options.fractions or (1.0,)
    if options.label_list is not None and options.fractions is not None:
        given = " ".join(map(str, options.fractions))
        raise ConfigError(f"--fractions {given}: --label-list {options.label_list} takes their place; pass one of them")
    if options.label_list is not None and options.draws != 1:
        raise ConfigError(
            f"--draws {options.draws}: --label-list {options.label_list} leaves nothing to draw; leave it out"
        )
    if options.epochs is not None and len(options.epochs) != len(parts):
        of = "the --label-list" if options.label_list is not None else f"each of the {len(parts)} --fractions"
        raise ConfigError(f"--epochs {' '.join(map(str, options.epochs))}: pass one number for {of}")
