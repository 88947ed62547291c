"""--pretrained: files in the formats that people have, published weights by name, and what is neither."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from simclr_fast.backbones.family import Spec
from simclr_fast.checkpoint import save
from simclr_fast.config import ModelOptions
from simclr_fast.errors import CheckpointError, ConfigError
from simclr_fast.evaluation.export import STATE_DICT_FILE, export_weights
from simclr_fast.evaluation.run import Run
from simclr_fast.models import SimCLR, build_model
from simclr_fast.training.pretrained import load_pretrained
from simclr_fast.training.state import TrainState, start_from
from tests.evaluation.conftest import demo_config, write_run
from tests.training.exactness import config

RESNET = ModelOptions(model="resnet18", head_hidden=8, head_dim=4)
MINI = ModelOptions(model="resnet_mini", head_hidden=256)


def load(model: SimCLR, path: Path, name: str = "resnet_mini") -> None:
    load_pretrained(model, str(path), Spec(name))


def other_weights(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of the module's names and shapes, with values of its own."""
    torch.manual_seed(7)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value + 3
        for key, value in module.state_dict().items()
    }


def assert_backbone_is(model: SimCLR, expected: dict[str, Tensor], head_before: Tensor) -> None:
    found = model.backbone.state_dict()
    assert found.keys() == {key for key in expected if not key.startswith("fc.")}
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert torch.equal(model.head[0].weight, head_before), "the head stays as it was initialised"


@pytest.mark.parametrize(
    "form", ["with fc", "without fc", "of torch 0.4", "in a training script's checkpoint", "legacy"]
)
def test_torchvision_state_dicts(form: str, tmp_path: Path) -> None:
    path = tmp_path / "resnet18-5c106cde.pth"
    weights = other_weights(torchvision.models.resnet18())
    stored: dict = dict(weights)
    if form == "without fc":
        stored = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    elif form == "of torch 0.4":
        stored = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
        weights = {k: torch.zeros_like(v) if k.endswith("num_batches_tracked") else v for k, v in weights.items()}
    elif form == "in a training script's checkpoint":
        stored = {"epoch": 90, "arch": "resnet18", "state_dict": {f"module.{k}": v for k, v in weights.items()}}
    torch.save(stored, path, _use_new_zipfile_serialization=form != "legacy")
    model = build_model(RESNET, channels=3)
    head = model.head[0].weight.detach().clone()
    load(model, path, "resnet18")
    assert_backbone_is(model, weights, head)


def test_an_exported_backbone(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path, demo_config()))
    export_weights(run, tmp_path)
    model = build_model(MINI, channels=1)
    head = model.head[0].weight.detach().clone()
    load(model, tmp_path / STATE_DICT_FILE)
    assert_backbone_is(model, run.weights, head)


@pytest.mark.parametrize("form", ["checkpoint", "state dict"])
def test_a_whole_model(form: str, tmp_path: Path) -> None:
    model = build_model(MINI, channels=1)
    weights = other_weights(model)
    path = tmp_path / "model.pth"
    if form == "checkpoint":
        path = save(tmp_path, 3, {"step": 3, "model": weights}, keep=1)
    else:
        torch.save(weights, path)
    load(model, path)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_another_backbone_is_told_by_its_differences(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as refusal:
        load(build_model(dataclasses.replace(RESNET, stem="cifar"), channels=3), tmp_path / "a.pth")
    assert "another shape: conv1.weight is [64, 3, 3, 3], in the checkpoint [64, 3, 7, 7]" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "neither a checkpoint of simclr_fast nor a state dict"),
        ({1: torch.zeros(1)}, "neither a checkpoint of simclr_fast nor a state dict"),
        ({"state_dict": 5}, "neither a checkpoint of simclr_fast nor a state dict"),
        ({"version": 1, "step": 3}, "no weights in it"),
        ({"weight": 5}, r"missing in the checkpoint: conv1.weight \[16, 1, 3, 3\]"),
    ],
)
def test_other_content_is_told(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=said):
        load(build_model(MINI, channels=1), tmp_path / "a.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = build_model(MINI, channels=1)
    weights = other_weights(model)
    weights["backbone.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"not finite: backbone\.conv1\.weight"):
        load(model, tmp_path / "a.pth")


def test_a_job_that_is_started_again_goes_on_instead_of_beginning(tmp_path: Path) -> None:
    options = config("batch")
    first = save(tmp_path, 3, {"step": 3, "model": other_weights(build_model(options.model, 1))}, keep=1)
    options = dataclasses.replace(
        options,
        model=dataclasses.replace(options.model, pretrained=str(first)),
        optimization=dataclasses.replace(options.optimization, model_ema=True),
        run=dataclasses.replace(options.run, output=tmp_path / "run", resume="auto"),
    )
    (tmp_path / "run").mkdir()
    state = TrainState.create(options, 1, torch.device("cpu"), autocast=None)
    assert start_from(state, options) is None
    start = torch.load(first, weights_only=True)["model"]["backbone.conv1.weight"]
    assert torch.equal(state.model.backbone.conv1.weight, start)
    assert torch.equal(state.evaluated.conv1.weight, start), "the average starts there, too"

    state.step = 5
    with torch.no_grad():
        state.model.backbone.conv1.weight.add_(1)
    made = save(tmp_path / "run", 5, state.checkpoint(options), keep=1)
    again = TrainState.create(options, 1, torch.device("cpu"), autocast=None)
    assert start_from(again, options) == made
    assert again.step == 5
    assert torch.equal(again.model.backbone.conv1.weight, start + 1)

    explicit = dataclasses.replace(options, run=dataclasses.replace(options.run, resume=str(made)))
    with pytest.raises(ConfigError, match="--pretrained and --resume: pass one of them"):
        start_from(again, explicit)
