"""Recipes of published results take real steps on their own data sets, in the layout of their files."""

from pathlib import Path

import pytest

from simclr_fast.checkpoint import load
from simclr_fast.cli import main
from simclr_fast.config import as_dict
from simclr_fast.recipes import RECIPES
from simclr_fast.run_files import METRICS_FILE, read_metrics

# Two steps at a size that takes a second; network, views, loss, optimizer and data set stay the recipe's own.
SMALL = ["--size", "8", "--head-hidden", "16", "--epochs", "1", "--warmup-epochs", "0", "--threads", "1"]
SMALL += ["--workers", "1", "--log-interval", "1", "--knn-epochs", "0", "--no-eval"]


@pytest.mark.parametrize(
    ("recipe", "files", "batch"),
    [
        ("cifar10-r18", "cifar_root", 10),
        ("stl10", "stl_root", 4),
        ("imagenet-100ep", "folder_root", 8),
    ],
)
def test_two_steps(recipe: str, files: str, batch: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    output = tmp_path / "run"
    data = ["--data", str(request.getfixturevalue(files)), "--batch-size", str(batch)]
    assert main(["pretrain", recipe, *data, *SMALL, "--output", str(output)]) == 0
    assert [line["step"] for line in read_metrics(output / METRICS_FILE)] == [1, 2]
    trained = load(output / "checkpoint-000000002.pt")["config"]
    own = as_dict(RECIPES[recipe])
    assert trained["recipe"] == recipe
    for kept in ("opt", "temperature", "weight_decay", "lr_base", "lr_base_scale"):
        assert trained["optimization"][kept] == own["optimization"][kept]
    assert trained["model"]["model"] == own["model"]["model"]


@pytest.mark.parametrize(
    ("files", "options", "channels"),
    [("mnist_root", ["--dataset", "fashion-mnist", "--batch-size", "6"], 1), ("folder_root", ["--batch-size", "8"], 3)],
)
def test_small_images_takes_grey_ones_and_those_in_colour(
    files: str, options: list[str], channels: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    data = ["--data", str(request.getfixturevalue(files)), *options]
    assert main(["pretrain", "small-images", *data, *SMALL, "--size", "25", "--output", str(output)]) == 0
    trained = load(output / "checkpoint-000000002.pt")
    assert trained["channels"] == channels
    assert trained["model"]["head.0.weight"].shape == (16, 128 * 4 * 4), "the places of the last map are features"
