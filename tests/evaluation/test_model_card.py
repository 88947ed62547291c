"""The model card: front matter that Hugging Face's library reads, with what was measured of this very checkpoint."""

import dataclasses
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.model_card import write_model_card
from simclr_fast.evaluation.run import Run
from simclr_fast.run_files import RESULTS_FILE, write_results
from tests.evaluation.conftest import demo_config, write_run

# What each command leaves, as far as the card reads it.
RESULTS = {
    "knn": {"chosen_k": {"simclr": 5}, "test": {"chosen": {"raw": 0.9, "random_init": 0.6, "simclr": 0.96}}},
    "linear": {"lbfgs": {"simclr": {"accuracy": 0.97912, "images": 4000}, "raw": {"accuracy": 0.9}}},
    "few-label": {"rarest_class": 40, "linear": {"1": {"simclr": {"mean": 0.63, "std": 0.02}}}},
    "finetune": {
        "0.01": {
            "images": 40,
            "scratch": {"mean": 0.7},
            "checkpoint": {"mean": 0.82, "std": 0.01, "draws": [0.8, 0.84]},
        }
    },
}
COMPARISON = {
    "steps": 3,
    "labels_per_class": 10,
    "train_images": 4000,
    "rarest_class": 40,
    "draws": 5,
    "test_images": 1000,
    "knn_k": {"raw": 5, "random_init": 5, "simclr": 5},
    **{
        probe: {"raw": 0.5, "random_init": 0.4, "simclr": score}
        for probe, score in (("few_label_1nn", 0.8), ("few_label_linear", 0.907), ("knn", 0.95))
    },
}


def evaluated(run: Run, step: int | None = None, **options: str) -> None:
    """Leave results of every command in the run's folder, of this checkpoint or of another step."""
    folder = run.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    for command, results in RESULTS.items():
        table = {"title": f"Table of {command}", "columns": ["", "SimCLR"], "rows": [["a|b", "96.0"]]}
        content = {"command": command, "checkpoint": str(run.checkpoint), "step": run.step if step is None else step}
        content |= {"options": {"knn_k": [1, 5], "knn_t": 0.1, **options}, "protocol": ""}
        write_results(folder / f"{command}.json", content | {"results": results, "tables": [table, table]})


def accuracies(card: ModelCard) -> dict[str, float]:
    return {result.metric_name: result.metric_value for result in card.data.eval_results or []}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(write_run(tmp_path / "run", demo_config()))


def test_card_of_a_run_that_was_not_evaluated(run: Run, tmp_path: Path) -> None:
    card = ModelCard.load(write_model_card(run, tmp_path))
    assert card.data.library_name == "simclr_fast"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert {"simclr", "self-supervised"} <= set(card.data.tags)
    assert card.data.license is None
    assert card.data.eval_results is None
    assert "Not evaluated yet." in card.text
    assert "# resnet_mini, pretrained by SimCLR on the images of mnist5k\n" in card.text
    rows = dict(line[2:-2].split(" | ") for line in card.text.splitlines() if line.count(" | ") == 1)
    assert (rows["steps done"], rows["batch_size"], rows["size"]) == ("3", "64", "28")
    assert not {"data", "download", "decode_device", "workers", "resident"} & set(rows), "how images were read"


def test_card_holds_what_was_measured(run: Run, tmp_path: Path) -> None:
    evaluated(run)
    write_results(run.folder / RESULTS_FILE, COMPARISON)
    card = ModelCard.load(write_model_card(run, tmp_path, "apache-2.0"))
    assert card.data.license == "apache-2.0"
    assert card.data.metrics == ["accuracy"]
    assert card.data.model_name == "resnet_mini by SimCLR on mnist5k"
    assert accuracies(card) == {
        "linear classifier, 10 labels per class": 0.907,
        "weighted kNN, k chosen on training images, t = 0.1": 0.96,  # the command's, which comes after
        "linear classifier, all 4000 labels (lbfgs)": 0.9791,
        "linear classifier, 1 labels per class, mean of draws": 0.63,
        "fine-tuned on 1% of the labels (40 images, mean of draws)": 0.82,
    }
    assert {(result.dataset_name, result.dataset_split) for result in card.data.eval_results} == {("mnist5k", "test")}
    assert card.text.count("Table of") == len(RESULTS)  # the first table of each
    assert "| a\\|b | 96.0 |" in card.text
    index = card.data.to_dict()["model-index"]
    assert index[0]["results"][0]["task"] == {"type": "image-classification"}
    json.dumps(index)


@pytest.mark.parametrize(("labelled", "said"), [(4000, ""), (60_000, ", 4,000 of 60,000 labels")])
def test_card_says_of_which_labels_the_knn_of_the_runs_end_is(
    labelled: int, said: str, run: Run, tmp_path: Path
) -> None:
    write_results(run.folder / RESULTS_FILE, {**COMPARISON, "labelled_images": labelled})
    names = accuracies(ModelCard.load(write_model_card(run, tmp_path)))
    assert names[f"weighted kNN, k chosen on training images{said}"] == 0.95


def left(run: Run, stem: str, results: dict, protocol: str = "", **options: object) -> None:
    """Leave results of a protocol or of a list."""
    content = {"command": stem.partition("-")[0], "checkpoint": str(run.checkpoint), "step": run.step}
    table = {"title": f"Table of {stem}", "columns": ["", "SimCLR"], "rows": []}
    content |= {"options": {"label_list": None, **options}, "protocol": protocol, "results": results, "tables": [table]}
    (run.folder / "evaluation").mkdir(exist_ok=True)
    write_results(run.folder / "evaluation" / f"{stem}.json", content)


def test_card_says_by_which_protocol_and_of_which_labels(run: Run, tmp_path: Path) -> None:
    """A part of the labels is nowhere called all of them, and a k that nobody chose is named."""
    write_results(run.folder / RESULTS_FILE, COMPARISON)
    listed = {"label_list": "lists/1percent.txt"}
    knn = {"test": {"chosen": {"simclr": 0.91}}, "chosen_k": {"simclr": 200}}
    left(run, "knn-lightly", knn, "protocol lightly", knn_k=[200], knn_t=0.1)
    linear = {"sgd": {"simclr": {"accuracy": 0.5, "images": 40}}}
    left(run, "linear-1percent", linear, **listed)
    left(run, "linear-simclr", linear, "protocol simclr, but --epochs 2")
    part = {"images": 40, "checkpoint": {"mean": 0.6, "draws": [0.6]}}
    left(run, "finetune-simclr-1percent", {"list": part}, "protocol simclr", **listed)
    left(run, "finetune", {"0.005": part, "0.999": part})
    card = ModelCard.load(write_model_card(run, tmp_path))
    assert set(accuracies(card)) == {
        "linear classifier, 10 labels per class",
        "weighted kNN, k chosen on training images",
        "weighted kNN, k = 200, t = 0.1, protocol lightly",
        "linear classifier, 40 labels of 1percent.txt (sgd)",
        "linear classifier, all 40 labels (sgd), protocol simclr, but --epochs 2",
        "fine-tuned on 1percent.txt (40 images), protocol simclr",
        "fine-tuned on 0.5% of the labels (40 images)",
        "fine-tuned on 99.9% of the labels (40 images)",
    }
    assert card.text.count("Table of") == 5


def test_card_holds_nothing_of_another_checkpoint(run: Run, tmp_path: Path) -> None:
    write_results(run.folder / RESULTS_FILE, COMPARISON | {"steps": run.step + 1})
    other = dataclasses.replace(run, checkpoint=run.checkpoint.with_name("backbone.safetensors"))
    for of, step in ((run, run.step + 1), (other, run.step)):
        evaluated(of, step)
        card = ModelCard.load(write_model_card(run, tmp_path))
        assert card.data.eval_results is None
        assert "Not evaluated yet." in card.text


@pytest.mark.parametrize(("dataset", "name"), [("imagefolder", "flowers"), (None, "flowers"), ("cifar10", "cifar10")])
def test_results_on_other_images_go_by_the_name_of_their_folder(
    dataset: str | None, name: str, run: Run, tmp_path: Path
) -> None:
    evaluated(run, dataset=dataset, data="/data/flowers")
    card = ModelCard.load(write_model_card(run, tmp_path))
    assert {result.dataset_name for result in card.data.eval_results} == {name}


def test_card_says_where_training_began(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "run", demo_config(pretrained="/home/someone/DEFAULT.pth")))
    text = write_model_card(run, tmp_path).read_text()
    assert "beginning with the weights DEFAULT.pth, whatever these had seen." in text


def test_names_with_colons_and_quotes_stay_valid(tmp_path: Path) -> None:
    config = demo_config()
    data = dataclasses.replace(config.data, dataset="imagefolder", data=Path("/data/it's: #1 [x]"))
    run = Run.open(write_run(tmp_path / "run", dataclasses.replace(config, data=data)))
    evaluated(run)
    card = ModelCard.load(write_model_card(run, tmp_path))
    assert {result.dataset_name for result in card.data.eval_results} == {"it's: #1 [x]"}


def test_a_licence_that_is_no_name_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--license Apache 2: pass a name as Hugging Face has them") as refusal:
        write_model_card(run, tmp_path, "Apache 2")
    assert "\n" not in str(refusal.value)
