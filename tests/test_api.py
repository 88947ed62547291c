"""The call does what the command line does, and checks what it is given."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import simclr_fast
from simclr_fast import PretrainedRun, api
from simclr_fast.checkpoint import checkpoints
from simclr_fast.errors import CheckpointError, ConfigError
from tests.data.conftest import write_image


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PretrainedRun:
    """A demo of one epoch at 8 pixels."""
    options = {"batch_size": 500, "size": 8, "head_hidden": 32, "threads": 1, "knn_epochs": 0, "eval": False}
    return simclr_fast.pretrain("demo", output=tmp_path_factory.mktemp("call") / "run", epochs=1, **options)


def test_a_run_gives_its_backbone_and_the_results_of_commands(run: PretrainedRun) -> None:
    assert [path.name for path in checkpoints(run.path)] == ["checkpoint-000000008.pt"]
    assert run.backbone()(torch.rand(2, 1, 8, 8)).shape == (2, 128)
    found = run.knn(knn_k=[1, 5], threads=1)
    assert found == json.loads((run.path / "evaluation" / "knn.json").read_text())
    assert found["options"]["knn_k"] == [1, 5]
    assert 0.5 < found["results"]["test"]["5"]["raw"] < 1
    again = PretrainedRun(checkpoints(run.path)[-1]).few_label(per_class=[1], draws=1, threads=1, output=run.path / "x")
    assert again == json.loads((run.path / "x" / "few-label.json").read_text())
    assert run.knn(knn_k=5, threads=1)["options"]["knn_k"] == [5]
    page = run.report(threads=1)["results"]["page"]
    assert "<html" in Path(page).read_text()
    exported = PretrainedRun(str(run.path)).export()
    assert (run.path / "export" / exported["results"]["card"]).is_file()


def test_every_method_is_a_command_of_the_same_name() -> None:
    from simclr_fast.cli import COMMANDS

    methods = {name.replace("_", "-") for name, value in vars(PretrainedRun).items() if callable(value)}
    on_checkpoints = {name for name, command in COMMANDS.items() if "evaluation" in command.options}
    assert on_checkpoints <= methods


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: there is no such run; pass the folder"):
        PretrainedRun("nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        PretrainedRun(tmp_path).knn()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "deno"}, "deno: there is no such recipe; did you mean demo?"),
        ({"recipe": 3}, "3: there is no such recipe; choose one of photos, demo"),
        ({"epocs": 3}, "epocs: there is no such option; did you mean epochs?"),
        ({"epochs": "3"}, "--epochs '3': pass an integer"),
        ({"epochs": 3.0}, "--epochs 3.0: pass an integer"),
        ({"epochs": True}, "--epochs True: pass an integer"),
        ({"epochs": 0}, "--epochs 0: pass an integer >= 1"),
        ({"lr": "fast"}, "--lr 'fast': pass a number or None"),
        ({"opt": "adam"}, "--opt 'adam': pass one of lars, sgd, adamw"),
        ({"eval": 1}, "--eval 1: pass True or False"),
        ({"scale": (0.5,)}, "--scale (0.5,): pass a list of 2 numbers"),
        ({"mean": "0.5"}, "--mean '0.5': pass a list, each a number"),
        ({"recipe": "photos/"}, "photos/: no recipe but a path; pass it as --data photos/ (in Python data='photos/')"),
        ({"recipe": Path(__file__)}, f"{__file__}: no recipe but a path; pass it as --data"),
        ({"interval": 3}, "interval: there is no such option; did you mean log_interval?"),
        ({"data": 3}, "--data 3: pass a path"),
        ({"output": "a\0b"}, "--output 'a\\x00b': pass a path"),
        ({"std": ()}, "--std (): pass one number > 0, or three"),
        ({"ratio": (1, float("inf"))}, "--ratio (1.0, inf): pass two numbers, 0 < low <= high"),
        ({"seed": 2**70}, f"--seed {2**70}: pass an integer in [0, 2^63)"),
        ({"workers": 10**6}, "--workers 1000000: pass an integer in [0, 1024]"),
        ({"threads": 10**9}, "--threads 1000000000: pass an integer in [0, 1024]"),
        ({"head_hidden": 10**12}, "--head-hidden 1000000000000: pass an integer in [1, 65536]"),
        ({"model": nn.Identity()}, "--model 'Identity': pass its name, since a checkpoint builds the network anew"),
        ({"model": nn.Identity}, "--model 'Identity': pass its name"),
        ({"batch_size": 4001}, "--batch-size 4001: the data set has only 4000 training images; pass --batch-size 4000"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_options_are_named(options: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        api.pretrain(**{"recipe": "demo", "output": tmp_path / "run", **options})
    assert str(raised.value).startswith(said)
    assert not list(tmp_path.glob("run/*.pt"))


def test_wrong_options_of_a_command_are_named(run: PretrainedRun) -> None:
    with pytest.raises(ConfigError, match=r"^knnk: there is no such option; did you mean knn_k\?"):
        run.knn(knnk=3)
    with pytest.raises(ConfigError, match=r"^k: there is no such option; did you mean knn_k\?"):
        run.knn(k=3)
    with pytest.raises(ConfigError, match=r"^--knn-k '3': pass a list, each an integer"):
        run.knn(knn_k="3")
    with pytest.raises(ConfigError, match=r"^--knn-t -1.0: pass a number > 0"):
        run.knn(knn_t=np.int64(-1))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(7):
        write_image(tmp_path / "photos" / f"{i}.jpg", 20 + i, 30, seed=i)
    return tmp_path / "photos"


TINY = {"model": "resnet18", "size": 32, "epochs": 1, "workers": 0, "head_hidden": 8, "head_dim": 8, "threads": 1}


def test_a_few_photos_train_by_the_default_recipe(photos: Path, tmp_path: Path, caplog) -> None:
    run = simclr_fast.pretrain(data=str(photos), output=str(tmp_path / "run"), **TINY, log_interval=1, eval=False)
    assert "the recipe's batch of 256 is cut to the data set: --batch-size 7, peak learning rate 0.198" in caplog.text
    saved = torch.load(checkpoints(run.path)[-1], weights_only=True)
    assert saved["config"]["recipe"] == "photos"
    assert saved["config"]["optimization"]["batch_size"] == 7
    assert saved["step"] == 1
    assert "the recipe's warm-up of 10 epochs is cut to a tenth of the run: --warmup-epochs 0.1" in caplog.text
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])["lr"] == pytest.approx(0.198, rel=0.01)


def test_a_batch_that_was_named_is_not_cut(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--batch-size 256: the data set has only 7 .*; pass --batch-size 7 or less"):
        simclr_fast.pretrain(data=photos, output=tmp_path / "run", **TINY, batch_size=256)
    for path in list(photos.iterdir())[1:]:
        path.unlink()
    with pytest.raises(ConfigError, match=r"too few training images \(1\); two per step are needed"):
        simclr_fast.pretrain(data=photos, output=tmp_path / "run", **TINY)


def test_arguments_of_the_backbone_may_be_a_dict(photos: Path, tmp_path: Path) -> None:
    options = TINY | {"model": "vit_b_16", "model_kwargs": {"num_layers": 1, "num_heads": 2, "hidden_dim": 8}}
    run = simclr_fast.pretrain(data=photos, output=tmp_path / "run", **options, eval=False)
    assert run.backbone()(torch.rand(1, 3, 32, 32)).shape == (1, 8)


def test_a_run_of_ones_own_function_is_used_by_its_name(photos: Path, tmp_path: Path) -> None:
    name = "torchvision.models:resnet18"
    run = simclr_fast.pretrain(data=photos, output=tmp_path / "run", **TINY | {"model": name}, eval=False)
    assert run == PretrainedRun(run.path, model=name)
    assert run.backbone()(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
    assert run.report(threads=1)["options"]["model"] == name
    with pytest.raises(CheckpointError, match=name):
        PretrainedRun(run.path).backbone()
