"""What the demo's representation is good for, by the commands and defaults that the README's figures come from."""

import json
from pathlib import Path

import pytest

from simclr_fast.cli import main

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `simclr-fast pretrain demo`."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert main(["pretrain", "demo", "--no-eval", "--output", str(folder)]) == 0
    return folder


def results(run: Path, command: str) -> dict:
    assert main([command, "--checkpoint", str(run)]) == 0
    return json.loads((run / "evaluation" / f"{command}.json").read_text())["results"]


def test_a_few_labels_are_worth_more_than_on_raw_pixels_and_at_random_init(demo: Path) -> None:
    found = results(demo, "few-label")
    assert found["linear"]["10"]["simclr"]["mean"] >= 0.935
    assert found["1nn"]["10"]["simclr"]["mean"] >= 0.925
    for per_class, scores in found["linear"].items():
        means = {encoder: score["mean"] for encoder, score in scores.items()}
        assert means["simclr"] > max(means["raw"], means["random_init"]) + 0.05, f"{per_class} labels per class"


def test_nearest_neighbours_tell_more_than_raw_pixels_and_at_random_init(demo: Path) -> None:
    found = results(demo, "knn")["test"]["chosen"]
    assert found["simclr"] >= 0.962
    assert found["simclr"] > found["random_init"] + 0.09
    assert found["simclr"] > found["raw"], "with all labels, raw pixels of digits do well, too"


def test_fine_tuning_beats_training_from_scratch_and_raw_pixels(demo: Path) -> None:
    found = results(demo, "finetune")
    for fraction in ("0.01", "0.1"):
        means = {name: found[fraction][name]["mean"] for name in ("raw", "scratch", "checkpoint")}
        assert means["checkpoint"] > max(means["raw"], means["scratch"]), f"{fraction} of the labels"


def test_detection_beats_random_initialisation_at_the_same_budget(demo: Path) -> None:
    found = results(demo, "detect")
    precision = {init: found[init]["map"] for init in ("scratch", "checkpoint")}
    assert len(precision["scratch"]["seeds"]) == 3
    assert precision["checkpoint"]["mean"] > precision["scratch"]["mean"]
