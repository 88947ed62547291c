"""Small data sets in the real on-disk formats, written by the tests."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed sets have shards of 6 images."""
    monkeypatch.setattr("simclr_fast.data.pack.SHARD", 6)


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """MNIST and Fashion-MNIST: gzipped idx files."""
    for name in ("MNIST", "FashionMNIST"):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 12), ("t10k", 5)):
            images, labels = pixels(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
            header = struct.pack(">iiii", 0x00000803, count, 28, 28)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x00000801, count) + labels.tobytes())
            for file in raw.glob(f"{part}-*ubyte"):
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    return tmp_path


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 and CIFAR-100: pickled batches, with torchvision told their checksums."""
    from torchvision.datasets import CIFAR10, CIFAR100

    def write(path: Path, content: dict) -> str:
        path.write_bytes(pickle.dumps(content))
        return hashlib.md5(path.read_bytes()).hexdigest()

    for kind, key, classes in ((CIFAR10, "labels", 10), (CIFAR100, "fine_labels", 100)):
        folder = tmp_path / kind.base_folder
        folder.mkdir()
        lists = {}
        for which, count in (("train_list", 4), ("test_list", 3)):
            lists[which] = []
            for k, (name, _) in enumerate(getattr(kind, which)):
                labels = [(k * count + i) % classes for i in range(count)]
                data = pixels(count, 3072, seed=k)
                lists[which].append([name, write(folder / name, {"data": data, key: labels})])
        names = {kind.meta["key"]: [f"class {i}" for i in range(classes)]}
        meta = {**kind.meta, "md5": write(folder / kind.meta["filename"], names)}
        for name, value in (*lists.items(), ("meta", meta)):
            monkeypatch.setattr(kind, name, value)
    return tmp_path


@pytest.fixture
def stl_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """STL-10: flat binary files, column-major images."""
    from torchvision.datasets import STL10

    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    counts = {"train": 6, "test": 4, "unlabeled": 8}
    for part, count in counts.items():
        images = pixels(count, 3, 96, 96, seed=count)
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(count)))
    (folder / "class_names.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    for which in ("train_list", "test_list"):
        listed = [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name, _ in getattr(STL10, which)]
        monkeypatch.setattr(STL10, which, listed)
    return tmp_path


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    """A smooth random picture, so that JPEG keeps it: JPEG or PNG by the name."""
    coarse = torch.from_numpy(pixels(1, 3, 4, 4, seed=seed)).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(path, smooth)


def save_image(path: Path, image: Tensor) -> None:
    """An image uint8 [C, H, W] as JPEG or PNG by the name."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=95)


@pytest.fixture
def folder_root(tmp_path: Path) -> Path:
    """ImageFolder: train/ and val/, two classes, images of different sizes, one of them PNG."""
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                suffix = "png" if i == 0 else "jpg"
                write_image(tmp_path / part / name / f"{i}.{suffix}", 20 + 3 * i, 40 - 2 * i, seed=10 * i + label)
    return tmp_path
