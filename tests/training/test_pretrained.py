"""--pretrained: files in the formats that people have, published weights by name, and what is neither."""

import dataclasses
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from simclr_fast.backbones.family import Spec
from simclr_fast.backbones.registry import spec_of
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
    plain = dataclasses.replace(explicit, model=dataclasses.replace(options.model, pretrained=None))
    third = TrainState.create(plain, 1, torch.device("cpu"), autocast=None)
    assert start_from(third, plain) == made
    assert third.step == 5
    assert torch.equal(third.model.backbone.conv1.weight, start + 1)
    with pytest.raises(ConfigError, match="--pretrained and --resume: pass one of them"):
        start_from(again, explicit)


VIT = ("num_layers=1", "hidden_dim=48", "num_heads=4", "mlp_dim=64")


@pytest.mark.parametrize(
    ("name", "size", "left_out", "form"),
    [
        ("convnext_tiny", 32, "classifier.2", "pth"),
        ("efficientnet_b0", 32, "classifier.1", "pth"),
        ("regnet_y_400mf", 32, "fc", "pth"),
        ("vit_b_16", 224, "heads.head", "safetensors"),
        ("timm/test_convnext", 32, "head.fc", "pth"),
        ("timm/test_vit", 160, "head", "safetensors"),
    ],
)
def test_classifiers_of_every_family_are_left_out(
    name: str, size: int, left_out: str, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = VIT if name == "vit_b_16" else ()
    options = ModelOptions(name, kwargs, head_hidden=8, head_dim=4)
    model = build_model(options, 3, size)
    weights = other_weights(model.backbone)
    classifier = {f"{left_out}.weight": torch.rand(10, 4), f"{left_out}.bias": torch.rand(10)}
    path = tmp_path / f"weights.{form}"
    save_it = torch.save if form == "pth" else safetensors.torch.save_file
    save_it(weights | classifier, path)
    head = model.head[0].weight.detach().clone()
    with caplog.at_level("INFO"):
        load_pretrained(model, str(path), spec_of(options, 3, size))
    found = model.backbone.state_dict()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert torch.equal(model.head[0].weight, head)
    assert f"starts from {path} without its classifier {left_out}, the projection head at random" in caplog.text


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torch.hub keeps files, in an empty TORCH_HOME without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def unreachable(url: str, *_: object) -> None:
        raise URLError(f"no route to {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("name", "channels"), [("DEFAULT", 1), ("IMAGENET1K_V1", 3)])
def test_torchvisions_weights_by_name(name: str, channels: int, torch_home: Path) -> None:
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), torch_home / "resnet18-f37072fd.pth")
    model = build_model(RESNET, channels, 32).eval()
    load_pretrained(model, name, Spec("resnet18", channels, 32))
    theirs.fc = nn.Identity()
    images = torch.rand(2, channels, 32, 32)
    with torch.no_grad():
        expected = theirs.eval()(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(model.backbone(images), expected, rtol=1e-4, atol=1e-5)


def test_a_vits_positions_are_interpolated(torch_home: Path) -> None:
    options = ModelOptions("vit_b_16", VIT, head_hidden=8, head_dim=4)
    weights = other_weights(build_model(options, 3, 64).backbone)
    torch.save(weights | {"heads.head.weight": torch.rand(5, 48)}, torch_home / "vit_b_16-c867db91.pth")
    model = build_model(options, 3, 32)
    load_pretrained(model, "IMAGENET1K_V1", spec_of(options, 3, 32))
    found = model.backbone.encoder.pos_embedding
    assert found.shape == (1, 5, 48)
    assert torch.equal(found[:, 0], weights["encoder.pos_embedding"][:, 0]), "the class token's stays"
    same = build_model(options, 3, 64)
    load_pretrained(same, "DEFAULT", spec_of(options, 3, 64))
    assert torch.equal(same.backbone.encoder.pos_embedding, weights["encoder.pos_embedding"])


def test_weights_that_cannot_be_downloaded_are_told_in_one_line(torch_home: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        load_pretrained(build_model(RESNET, 3, 32), "DEFAULT", Spec("resnet18", 3, 32))
    assert str(refusal.value).startswith(f"--pretrained DEFAULT: no {torch_home / 'resnet18-f37072fd.pth'}, and")
    assert "no route to https://download.pytorch.org/models/resnet18-f37072fd.pth" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_published_weights_are_read_without_running_code(torch_home: Path, tmp_path: Path) -> None:
    class Mark:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"conv1.weight": Mark()}, torch_home / "resnet18-f37072fd.pth")
    with pytest.raises(CheckpointError, match="resnet18-f37072fd.pth: damaged or no checkpoint"):
        load_pretrained(build_model(RESNET, 3, 32), "DEFAULT", Spec("resnet18", 3, 32))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        ("resnet50", "IMAGENET", r"neither a file that is there nor weights of resnet50: .*IMAGENET1K_V2, DEFAULT"),
        ("timm/test_vit", "in1k", r"neither a file that is there nor weights of timm/test_vit: default, r160_in1k"),
        ("resnet_mini", "DEFAULT", r"^--pretrained DEFAULT: not a file that is there$"),
    ],
)
def test_what_is_neither_a_name_nor_a_file(model: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        load_pretrained(nn.Module(), name, Spec(model, 3, 32))
    assert "\n" not in str(refusal.value)


def test_a_damaged_safetensors_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="a.safetensors: damaged or no safetensors file"):
        load_pretrained(nn.Module(), str(tmp_path / "a.safetensors"), Spec("resnet_mini"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, without a network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["default", "r160_in1k"])
def test_timms_weights_by_name(name: str, hub_cache: Path) -> None:
    options = ModelOptions("timm/test_vit", head_hidden=8, head_dim=4)
    model = build_model(options, 3, 160)
    weights = other_weights(model.backbone)
    spec = spec_of(options, 3, 160)
    with pytest.raises(CheckpointError) as refusal:
        load_pretrained(model, name, spec)
    folder = hub_cache / "models--timm--test_vit.r160_in1k"
    assert f"--pretrained {name}: no {folder}/snapshots/*/model.safetensors, and" in str(refusal.value)
    assert "\n" not in str(refusal.value)

    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    (folder / "snapshots" / "0123").mkdir(parents=True)
    whole = weights | {"head.weight": torch.rand(1000, 64), "head.bias": torch.rand(1000)}
    safetensors.torch.save_file(whole, folder / "snapshots" / "0123" / "model.safetensors")
    load_pretrained(model, name, spec)
    assert all(torch.equal(value, weights[key]) for key, value in model.backbone.state_dict().items())
    grey = build_model(options, 1, 32)
    load_pretrained(grey, name, spec_of(options, 1, 32))
    patches = weights["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.backbone.patch_embed.proj.weight.detach(), patches)
