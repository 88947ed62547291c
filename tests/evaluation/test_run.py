"""Opening a run: what it gives, and the one clear line for a checkpoint that cannot be used."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simclr_fast import load_backbone
from simclr_fast.checkpoint import load
from simclr_fast.cli import main
from simclr_fast.errors import CheckpointError
from simclr_fast.evaluation.run import Run
from simclr_fast.models import build_model
from tests.evaluation.conftest import COMMANDS, demo_config, write_run


def test_encoder_has_the_weights_of_the_checkpoint(run_folder: Path) -> None:
    run = Run.open(run_folder)
    assert (run.step, run.channels, run.config) == (3, 1, demo_config())
    saved = load(run.checkpoint)["model"]
    for name, value in run.encoder().state_dict().items():
        assert torch.equal(value, saved[f"backbone.{name}"])
    assert not run.encoder().training


def test_random_init_is_that_of_training(run_folder: Path) -> None:
    run = Run.open(run_folder)
    torch.manual_seed(run.config.run.seed)
    fresh = build_model(run.config.model, 1).backbone.state_dict()
    before = torch.get_rng_state()
    found = run.random_init().state_dict()
    assert all(torch.equal(found[name], fresh[name]) for name in fresh)
    assert not torch.equal(run.random_init(seed=1).state_dict()["conv1.weight"], fresh["conv1.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_averaged_weights_win_where_they_are_kept(tmp_path: Path) -> None:
    path = write_run(tmp_path, demo_config())
    content = load(path)
    content["ema"] = {f"module.{name}": value + 1 for name, value in content["model"].items()}
    torch.save(content, path)
    weights = Run.open(path).weights
    assert torch.equal(weights["conv1.weight"], content["model"]["backbone.conv1.weight"] + 1)


def test_load_backbone_takes_a_folder_and_a_file(run_folder: Path) -> None:
    images = torch.rand(2, 1, 28, 28)
    run = Run.open(run_folder)
    expected = run.encoder()(images)
    for path in (run_folder, str(run_folder), run.checkpoint):
        backbone = load_backbone(path)
        assert not backbone.training
        assert torch.equal(backbone(images), expected)


class _Marks:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def _bad_checkpoint(kind: str, whole: Path, folder: Path) -> Path:
    path = folder / "checkpoint-000000003.pt"
    content = load(whole)
    if kind == "truncated":
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a checkpoint\n" * 100)
    elif kind == "state dict":
        torch.save(content["model"], path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(_Marks(folder / "executed"), protocol=2))
    elif kind == "pickle in torch's format":
        torch.save({**content, "extra": _Marks(folder / "executed")}, path)
    elif kind == "other options":
        content["config"]["model"]["depth"] = 3
        torch.save(content, path)
    elif kind == "other weights":
        content["config"]["model"]["model"] = "resnet18"
        torch.save(content, path)
    elif kind == "no model":
        del content["model"]
        torch.save(content, path)
    elif kind == "weights that are not finite":
        content["model"]["backbone.bn1.weight"][0] = torch.nan
        torch.save(content, path)
    elif kind in CRAFTED:
        CRAFTED[kind](content)
        torch.save(content, path)
    else:
        assert kind in ("missing", "empty folder")
    return folder if kind == "empty folder" else path


CRAFTED = {
    "a head that no memory holds": lambda content: content["config"]["model"].update(
        head_hidden=10**13, model="resnet18"
    ),
    "channels that no memory holds": lambda content: content.update(channels=10**10),
    "channels that are true": lambda content: content.update(channels=True),
    "channels of other weights": lambda content: content.update(channels=3),
    "arguments that name weights": lambda content: content["config"]["model"].update(
        model="resnet18", model_kwargs=["weights=DEFAULT"]
    ),
    "arguments that are numbers": lambda content: content["config"]["model"].update(model_kwargs=[3]),
    "more layers than anyone builds": lambda content: content["config"]["model"].update(
        model="vit_b_16", model_kwargs=["num_layers=1000000000"]
    ),
    "a backbone that no memory holds": lambda content: (
        content["config"]["model"].update(model="vit_b_16", model_kwargs=["hidden_dim=16384", "num_heads=16"]),
        content["config"]["augment"].update(size=32),
    ),
    "a function that nobody named": lambda content: content["config"]["model"].update(model="shutil:rmtree"),
    "a hub of models": lambda content: content["config"]["model"].update(model="timm/hf-hub:someone/model"),
    "a backbone of no name": lambda content: content["config"]["model"].update(model="resnet"),
    "a name that is a number": lambda content: content["config"]["model"].update(model=3),
    "a size that is text": lambda content: content["config"]["augment"].update(size="28"),
    "views that no memory holds": lambda content: content["config"]["augment"].update(size=10**9),
    "views of no size": lambda content: content["config"]["augment"].update(scale=[0.5]),
    "no deviations": lambda content: content["config"]["augment"].update(std=[]),
    "means of seven channels": lambda content: content["config"]["augment"].update(mean=[0.5] * 7),
    "a mean that is no number": lambda content: content["config"]["augment"].update(mean=[float("nan")]),
    "a jitter that is infinite": lambda content: content["config"]["augment"].update(jitter=[float("inf"), 0, 0, 0]),
    "a seed that no generator takes": lambda content: content["config"]["run"].update(seed=2**70),
    "a norm of no name": lambda content: content["config"]["model"].update(norm="weird"),
    "a stem of no name": lambda content: content["config"]["model"].update(stem="x" * 1000),
    "a recipe of no name": lambda content: content["config"].update(recipe="mine"),
    "a recipe that is a list": lambda content: content["config"].update(recipe=["demo"]),
    "options by number": lambda content: content["config"].update(model={3: 4}),
    "options that are a list": lambda content: content["config"].update(augment=[1]),
    "options that lack a group": lambda content: content["config"].pop("augment"),
    "means that are text": lambda content: content["config"]["augment"].update(mean="0"),
    "an average that is a list": lambda content: content.update(ema=[1, 2]),
    "weights by number": lambda content: content.update(model=dict(enumerate(content["model"].values()))),
    "a weight that is a number": lambda content: content["model"].update({"backbone.bn1.weight": 3.0}),
}

BAD = [
    "weights that are not finite",
    *CRAFTED,
    "missing",
    "empty folder",
    "truncated",
    "empty",
    "text",
    "state dict",
    "pickle",
    "pickle in torch's format",
    "other options",
    "other weights",
    "no model",
]


@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoints_are_refused_in_one_line(kind: str, run_folder: Path, tmp_path: Path) -> None:
    path = _bad_checkpoint(kind, Run.open(run_folder).checkpoint, tmp_path)
    with pytest.raises(CheckpointError) as refusal:
        Run.open(path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_at_any_length(share: float, run_folder: Path, tmp_path: Path) -> None:
    whole = Run.open(run_folder).checkpoint.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="damaged"):
        Run.open(path)


def test_a_damaged_newest_checkpoint_is_not_replaced_by_an_older_one(run_folder: Path, tmp_path: Path) -> None:
    shutil.copy(Run.open(run_folder).checkpoint, tmp_path / "checkpoint-000000001.pt")
    (tmp_path / "checkpoint-000000002.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="checkpoint-000000002.pt"):
        Run.open(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["missing", "truncated", "state dict"])
def test_every_command_exits_with_2_and_one_line(
    command: str, kind: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = _bad_checkpoint(kind, Run.open(run_folder).checkpoint, tmp_path)
    flag = [] if command == "report" else ["--checkpoint"]
    assert main([command, *flag, str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"simclr-fast {command}: error: {path}")
    assert shown.err.count("\n") == 1


def test_an_output_that_is_no_folder_is_refused_at_once(run_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["knn", "--checkpoint", str(run_folder), "--output", str(tmp_path / "file"), "--threads", "1"]) == 2
    assert f"--output {tmp_path / 'file'}: nothing can be written there" in capsys.readouterr().err


def test_package_imports_without_the_evaluation_extras() -> None:
    # load_backbone is a public name of a package that needs torch and tyro: torchvision comes with its first call.
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torchmetrics', 'safetensors', 'rich'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import simclr_fast; simclr_fast.load_backbone\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
