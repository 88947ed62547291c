"""`pretrain` from end to end on image files of different sizes, read by threads."""

import json
import re
from pathlib import Path

from simclr_fast.cli import main
from simclr_fast.run_files import read_metrics

SMALL = ["imagenet", "--model", "resnet18", "--stem", "cifar", "--size", "32", "--head-hidden", "32"]
SMALL += ["--batch-size", "8", "--epochs", "2", "--warmup-epochs", "1", "--knn-epochs", "2", "--log-interval", "1"]


def test_image_folder_trains_and_is_evaluated(folder_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*SMALL, "--workers", "2", "--data", str(folder_root), "--output", str(folder)]
    assert main(["pretrain", *arguments]) == 0
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]
    results = json.loads((folder / "results.json").read_text())
    assert set(results["few_label_linear"]) == {"raw", "random_init", "simclr"}
    assert (folder / "embeddings.png").exists()


def test_unreadable_files_within_the_share_are_counted(folder_root: Path, tmp_path: Path) -> None:
    next((folder_root / "train" / "cat").glob("2.*")).write_bytes(b"broken")
    arguments = [*SMALL, "--workers", "0", "--data", str(folder_root), "--output", str(tmp_path / "run")]
    assert main(["pretrain", *arguments, "--max-bad-images", "0.1"]) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["unreadable_images"] for line in lines if "loss" in line][-1] == 1
    assert "knn" in lines[-1], "online kNN reads the same image, and the pictures and the comparison do"
    assert (tmp_path / "run" / "results.json").exists()


def test_unreadable_files_past_the_share_end_the_run(folder_root: Path, tmp_path: Path, capsys) -> None:
    for i in range(3):
        next((folder_root / "train" / "cat").glob(f"{i}.*")).write_bytes(b"broken")
    arguments = [*SMALL, "--workers", "0", "--data", str(folder_root), "--output", str(tmp_path / "run")]
    assert main(["pretrain", *arguments]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"simclr-fast pretrain: error: \d unreadable images, more than --max-bad-images allows .*: Unsupported", said
    )
