"""Training and evaluation on packed sets by --data alone, whatever the recipe's data set is."""

import json
from pathlib import Path

import torch

from simclr_fast.cli import main
from simclr_fast.data import pack
from simclr_fast.run_files import read_metrics
from tests.data.packing import packing
from tests.data.test_training_on_files import SMALL


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


TINY = [*SMALL, "--model", "resnet_mini", "--stem", "imagenet", "--size", "16"]


def test_packed_jpegs_train_and_are_evaluated(folder_root: Path, tmp_path: Path, capsys) -> None:
    packed, folder = tmp_path / "packed", tmp_path / "run"
    pack.pack(packing(folder_root, packed, size=24))
    assert main(["pretrain", *TINY, "--workers", "2", "--data", str(packed), "--output", str(folder)]) == 0
    assert len(losses(folder)) == 4
    assert set(json.loads((folder / "results.json").read_text())["few_label_linear"]) == {
        "raw",
        "random_init",
        "simclr",
    }
    assert main(["knn", "--checkpoint", str(folder), "--knn-k", "1"]) == 0
    assert main(["knn", "--checkpoint", str(folder), "--knn-k", "1", "--dataset", "cifar10"]) == 2
    said = f"--dataset cifar10: --data {packed} holds a packed set; pass --dataset auto to read it, or another --data"
    assert said in capsys.readouterr().err.splitlines()[-1]
    for named in (["--dataset", "cifar10"], ["--dataset=cifar10"]):
        assert main(["pretrain", *TINY, *named, "--data", str(packed), "--output", str(folder)]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_held_and_read_images_train_alike(folder_root: Path, tmp_path: Path) -> None:
    pack.pack(packing(folder_root, tmp_path / "packed", format="raw", size=24))
    found = []
    for kind in ("on", "off"):
        folder = tmp_path / kind
        arguments = ["--workers", "1", "--no-eval", "--knn-epochs", "0", "--resident", kind, "--output", str(folder)]
        assert main(["pretrain", *TINY, *arguments, "--data", str(tmp_path / "packed")]) == 0
        found.append(torch.tensor(losses(folder)))
    assert torch.equal(*found)


def test_a_damaged_set_ends_the_run_with_the_place(folder_root: Path, tmp_path: Path, capsys) -> None:
    pack.pack(packing(folder_root, tmp_path / "packed", format="raw", size=24))
    path = tmp_path / "packed" / "train" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 16
    path.write_bytes(content)
    arguments = ["--workers", "1", "--data", str(tmp_path / "packed"), "--output", str(tmp_path / "run")]
    assert main(["pretrain", *TINY, *arguments]) == 1
    assert f"simclr-fast pretrain: error: {path}, image 15, bytes" in capsys.readouterr().err.splitlines()[-1]
