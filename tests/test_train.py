"""`simclr-fast pretrain` as a user meets it: help, errors, a whole small run, a run whose loss breaks, a profile."""

import dataclasses
import json
import re
import resource
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from simclr_fast import NTXentLoss
from simclr_fast.checkpoint import load
from simclr_fast.cli import main, parse
from simclr_fast.config import RULES, Config, check
from simclr_fast.data import load_dataset
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.features import Pixels, Preprocess, embed
from simclr_fast.evaluation.in_training import OnlineKnn
from simclr_fast.evaluation.probes import knn_accuracy
from simclr_fast.models import build_model
from simclr_fast.recipes import DEFAULT_RECIPE, RECIPES
from simclr_fast.run_files import read_metrics
from simclr_fast.training.views import Draw, Views

SMALL = ["demo", "--batch-size", "500", "--size", "8", "--epochs", "1", "--head-hidden", "32", "--threads", "1"]
SMALL += ["--log-interval", "10"]


def help_text(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *arguments, "--help"])
    assert end.value.code == 0
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("recipe", [None, *RECIPES])
def test_help_explains_every_option_with_the_recipes_default(recipe: str | None, capsys) -> None:
    text = help_text(capsys, *([recipe] if recipe else []))
    config = RECIPES[recipe or DEFAULT_RECIPE]
    groups = [getattr(config, field.name) for field in dataclasses.fields(Config) if field.name != "recipe"]
    for group in groups:
        for field in dataclasses.fields(group):
            flag = f"--{field.name.replace('_', '-')}"
            value = getattr(group, field.name)
            expected = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            shown = re.findall(rf"{flag}[ ,].*?\(default: ([^)]*)\)", text)  # other options may speak of it too
            assert expected in shown, f"{flag} is not explained with its default {expected}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imagenet", "--data", "no/such/folder"], "--data no/such/folder: there is no such folder"),
        (["demo", "--model", "resnet51"], "--model resnet51: unknown backbone; did you mean resnet50?"),
        (["demo", "--batch-size", "4001"], "--batch-size 4001: the data set has only 4000 training images"),
        (["demo", "--batch-size", "1"], "--batch-size 1: pass 2 or more; one image has no others to differ from"),
        (["demo", "--temperature", "0"], "--temperature 0.0: pass a number > 0"),
        (["demo", "--temperature", "-0.5"], "--temperature -0.5: pass a number > 0"),
        (["demo", "--temperature", "nan"], "--temperature nan: pass a number > 0"),
        (["demo", "--epochs", "2", "--warmup-epochs", "3"], "--warmup-epochs 3.0: pass 0 to 2 (--epochs)"),
        (["demo", "--micro-batch-size", "100"], "--micro-batch-size 100: it must divide the 64 images"),
        (["demo", "--resume", "no.pt"], "no.pt: there is no such checkpoint"),
        (["demo", "--mean", "0.1", "0.2", "0.3"], "--mean 0.1 0.2 0.3: the images have 1 channel(s)"),
        (["demo", "--log-wandb"], "--log-wandb True: wandb not installed; pip install 'simclr_fast[wandb]'"),
        (["--epochs", "3", "cifar10"], "cifar10: the recipe comes first"),
        (["demo", "--temperature", "warm"], "--temperature warm: pass a number"),
        (["demo", "--temperature"], "Missing value for argument '--temperature'"),
        (["demo", "x"], "Unrecognized options: x"),
    ],
)
def test_bad_option_is_one_clear_line_and_status_2(
    arguments: list[str], said: str, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed, wherever this runs
    assert main(["pretrain", *arguments, "--output", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"simclr-fast pretrain: error: {said}")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.out + printed.err


def test_every_rule_is_one_of_an_option() -> None:
    groups = (group for group in vars(Config()).values() if dataclasses.is_dataclass(group))
    assert RULES.keys() <= {field.name for group in groups for field in dataclasses.fields(group)}


def test_global_batch_must_divide_by_the_processes() -> None:
    with pytest.raises(ConfigError, match=r"--batch-size 64: it is the global batch and must divide by the 3"):
        check(RECIPES["demo"], world_size=3)


def test_a_run_leaves_everything_behind(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    assert main(["pretrain", *SMALL, "--output", str(folder), "--knn-epochs", "1", "--seed", "1", "--model-ema"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"ln\(2N - 1\) = 6\.907", re.sub(r"\s+", " ", printed))
    told = re.sub(r"\s+", " ", printed)
    assert f"Next: simclr-fast report {folder}" in told
    assert "resnet_mini with its projection head: 0.32 M parameters. 4000 images, 8 steps of 500 on 1 x cpu. " in told
    assert f"What the encoder will see: {folder / 'views.png'}" in told
    assert re.search(r"Trained 8 steps in \d+ s \(\d+ images/s\)\. Loss \d\.\d+ \(chance 6\.907\)", told)
    assert f"Written to {folder}: views.png, " in told
    assert re.search(r"linear, 10 labels/class +│ +\d\d\.\d │ +\d\d\.\d │ +\d\d\.\d", printed)

    results = json.loads((folder / "results.json").read_text())
    assert results["seed"] == 1
    assert results["train_seconds"] > 0
    assert 0.70 < results["few_label_linear"]["raw"] < 0.80

    metrics = read_metrics(folder / "metrics.jsonl")
    (step_line,) = (line for line in metrics if "loss" in line)  # the values of every step: tests/training/test_loop.py
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    assert [name for name in step_line if f"`{name}`" not in page] == [], "every value is explained"
    assert step_line["step"] == 8
    assert step_line["epoch"] == 1.0
    assert step_line["lr"] == 2e-3, "the last step of the warm-up"
    assert 0 < step_line["data_wait_share"] < 0.5, "the images are in memory"
    process_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert process_mib / 2 < step_line["peak_memory_mib"] <= process_mib
    content = load(folder / "checkpoint-000000008.pt")
    assert (content["step"], content["data"]["images"], content["data"]["channels"]) == (8, 4000, 1)
    assert content["seconds"] == pytest.approx(results["train_seconds"], abs=0.06)

    config = parse(["pretrain", *SMALL])[1]
    dataset = load_dataset(config.data)
    torch.manual_seed(1)
    random_init, trained = build_model(config.model, channels=1), build_model(config.model, channels=1)
    trained.load_state_dict({k.removeprefix("module."): v for k, v in content["ema"].items() if k != "n_averaged"})
    encoders = {"raw": Pixels(), "random_init": random_init.backbone, "simclr": trained.backbone}
    for name, encoder in encoders.items():
        features = [
            embed(encoder, source, Preprocess.of(config.augment), torch.device("cpu"))
            for source in (dataset.labelled, dataset.test)
        ]
        k = results["knn_k"][name]
        accuracy = knn_accuracy(features[0], dataset.labelled.labels, features[1], dataset.test.labels, knn_k=k)
        assert results["knn"][name] == pytest.approx(accuracy, abs=0.004), name
    knn = OnlineKnn(dataset, config, torch.device("cpu")).accuracy(trained.backbone)
    assert [line["knn"] for line in metrics if "knn" in line] == pytest.approx([knn], abs=0.01)
    assert list(folder.glob("events.out.tfevents.*"))
    for name in ("views.png", "curves.png", "embeddings.png", "neighbours.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 400

    again = [*SMALL, "--output", str(folder), "--knn-epochs", "1", "--seed", "1", "--model-ema", "--resume", "auto"]
    assert main(["pretrain", *again]) == 0
    repeated = json.loads((folder / "results.json").read_text())
    assert repeated == results, "resuming a finished run trains nothing and measures the same"


def test_non_finite_loss_stops_with_what_is_needed_to_look_into_it(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    arguments = [*SMALL, "--opt", "sgd", "--lr", "1e30", "--norm", "frozen", "--output", str(folder)]
    assert main(["pretrain", *arguments]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    found = re.search(r"error: the loss is (nan|inf) at step (\d+) \(epoch 0\); look into (.*)$", said)
    assert found, said
    assert (folder / "views.png").exists(), "what the encoder sees is shown before anything is trained"
    bundle = torch.load(found[3], weights_only=True)
    assert bundle["step"] == int(found[2]) > 0
    assert all(tensor.isfinite().all() for tensor in bundle["model"].values()) == (int(found[2]) == 1)

    config = parse(["pretrain", *arguments])[1]
    model = build_model(config.model, channels=1)
    model.load_state_dict(bundle["model"])
    draw = Draw(bundle["seed"], bundle["indices"], bundle["warp"])
    views = Views(config.augment, config.run.seed).apply(bundle["images"], draw)
    with torch.no_grad():
        loss = NTXentLoss(config.optimization.temperature)(*model.train()(views).chunk(2))
    assert not loss.isfinite(), "the bundle shows the failure again"


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_set(tf32: bool, tmp_path: Path) -> None:
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    stops_early = ["demo", "--batch-size", "4001", "--output", str(tmp_path / "run")]
    try:
        assert main(["pretrain", *stops_early, "--tf32" if tf32 else "--no-tf32"]) == 2
        assert [flag.allow_tf32 for flag in flags] == [tf32, tf32]
    finally:
        for flag, value in zip(flags, before):
            flag.allow_tf32 = value


def test_pretrained_gives_the_weights(tmp_path: Path) -> None:
    assert main(["pretrain", *SMALL, "--no-eval", "--output", str(tmp_path / "a")]) == 0
    (first,) = (tmp_path / "a").glob("checkpoint-*.pt")
    more = ["--pretrained", str(first), "--lr", "1e-12", "--norm", "frozen"]
    assert main(["pretrain", *SMALL, *more, "--no-eval", "--output", str(tmp_path / "b")]) == 0
    (second,) = (tmp_path / "b").glob("checkpoint-*.pt")
    before, after = (torch.load(path, weights_only=True)["model"] for path in (first, second))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-7)
