"""Runs of other families than ResNets at tiny sizes: three steps, going on exactly, kNN, export, loading again."""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torchvision.models import convnext, efficientnet, regnet, resnet, swin_transformer

from simclr_fast import load_backbone
from simclr_fast.cli import main
from simclr_fast.errors import CheckpointError
from simclr_fast.evaluation.export import export_weights
from simclr_fast.evaluation.model_card import loading_code
from simclr_fast.evaluation.run import WEIGHTS_FILE, Run

STEPS = "--batch-size 4 --epochs 1 --warmup-epochs 0 --log-interval 1 --checkpoint-minutes 1e-9 --checkpoint-hist 5"
SMALL = "--size 32 --head-hidden 16 --head-dim 8 --threads 1 --workers 0 --no-eval --knn-epochs 0"
SMALL_VIT = "--model-kwargs num_layers=2 num_heads=3 hidden_dim=96 mlp_dim=96"
RUNS = {
    "resnet50": "--opt lars --lr 0.1",
    "convnext_tiny": "--opt adamw --lr 1e-3",  # with stochastic depth
    "vit_b_16": f"--opt lars --lr 0.1 {SMALL_VIT} dropout=0.1",
    "timm/test_convnext": "--opt sgd --lr 1e-2 --model-kwargs drop_path_rate=0.5",
}
# Where the libraries hand a family its depth, and what they are made to hand it: some layers of every kind. With all of
# them a member takes three times as long to train and to export, and goes through the same code.
OF_CONVNEXT = [convnext.CNBlockConfig(96, 192, 1), convnext.CNBlockConfig(192, None, 1)]
OF_EFFICIENTNET = [efficientnet.MBConvConfig(1, 3, 1, 32, 16, 1), efficientnet.MBConvConfig(6, 5, 2, 16, 24, 2)]
OF_REGNET = regnet.BlockParams([1, 2], [48, 104], [8, 8], [1.0, 1.0], [2, 2], 0.25)
SHALLOW = (
    (resnet, "_resnet", {"layers": [1, 1, 1, 1]}),
    (convnext, "_convnext", {"block_setting": OF_CONVNEXT}),
    (efficientnet, "_efficientnet", {"inverted_residual_setting": OF_EFFICIENTNET}),
    (regnet, "_regnet", {"block_params": OF_REGNET}),
    (swin_transformer, "_swin_transformer", {"depths": [2, 2]}),  # the second block of a stage shifts its windows
    (timm.models.swin_transformer, "_create_swin_transformer", {"depths": (2, 2), "num_heads": (3, 6)}),
)
DRAWS = {"convnext_tiny", "vit_b_16", "timm/test_convnext"}  # from the generators that a checkpoint keeps


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    """The libraries' families, built from what SHALLOW says."""

    def built_from(build: Callable, changes: dict) -> Callable:
        signature = inspect.signature(build)

        def changed(*args, **kwargs):
            given = signature.bind(*args, **kwargs)
            for name, value in changes.items():
                (given.arguments if name in signature.parameters else given.arguments["kwargs"])[name] = value
            return build(*given.args, **given.kwargs)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        for module, name, changes in SHALLOW:
            patch.setattr(module, name, built_from(getattr(module, name), changes))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 8 test images of 40 pixels, in two classes: 3 steps of 4 images an epoch."""
    root, generator = tmp_path_factory.mktemp("photos"), torch.Generator().manual_seed(0)
    for i in range(20):
        folder = root / ("train" if i < 12 else "val") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        squares = torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
        torchvision.io.write_png(squares.repeat_interleave(5, 1).repeat_interleave(5, 2), str(folder / f"{i}.png"))
    return root


def pretrain(photos: Path, output: Path, model: str, options: str, *more: str) -> dict:
    """Runs the command; gives its last checkpoint."""
    arguments = f"pretrain imagenet --dataset imagefolder --model {model} {options} {STEPS} {SMALL}".split()
    assert main([*arguments, "--data", str(photos), "--output", str(output), *more]) == 0
    return torch.load(output / "checkpoint-000000003.pt", weights_only=True)


@pytest.fixture(scope="module", params=RUNS, ids=lambda name: name.replace("/", "-"))
def trained(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory):
    """(name of the model, folder of its run, its last checkpoint)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return request.param, folder, pretrain(photos, folder, request.param, RUNS[request.param])


def test_it_goes_on_exactly_evaluates_and_exports(trained, photos: Path, tmp_path: Path, monkeypatch) -> None:
    name, folder, whole = trained
    (tmp_path / "cut").mkdir()
    shutil.copy(folder / "checkpoint-000000001.pt", tmp_path / "cut")
    again = pretrain(photos, tmp_path / "cut", name, RUNS[name], "--resume", "auto")
    different = [key for key, value in whole["model"].items() if not torch.equal(value, again["model"][key])]
    assert not different, "bit-identical"
    first = torch.load(folder / "checkpoint-000000001.pt", weights_only=True)["random"]["cpu"]
    assert torch.equal(first, whole["random"]["cpu"]) == (name not in DRAWS)
    assert all(value.isfinite().all() for value in whole["model"].values())

    assert main(["knn", "--checkpoint", str(folder), "--output", str(tmp_path), "--threads", "1", "--knn-k", "1"]) == 0
    results = json.loads((tmp_path / "knn.json").read_text())["results"]
    assert "simclr" in json.dumps(results)

    run = Run.open(folder)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = run.encoder()(images)
    assert expected.shape == (3, {"resnet50": 2048, "convnext_tiny": 192, "vit_b_16": 96}.get(name, 64))
    export_weights(run, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path / WEIGHTS_FILE, model=name)(images), expected)
        monkeypatch.chdir(tmp_path)
        names: dict = {}
        exec(loading_code(run), names)  # what the model card says
        assert "simclr_fast" not in loading_code(run)
        torch.testing.assert_close(names["backbone"](images), expected)


def test_a_function_of_ones_own_from_training_to_export(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its module is imported where the user names it, and nowhere else."""
    (tmp_path / "own_net_of_a_test.py").write_text(
        "import pathlib, torch\n"
        "pathlib.Path('imported').touch()\n"
        "def net(width=4):\n"
        "    convolution = torch.nn.Conv2d(3, width, 3)\n"
        "    return torch.nn.Sequential(convolution, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    name, folder = "own_net_of_a_test:net", tmp_path / "run"
    pretrain(photos, folder, name, "--model-kwargs width=6 --opt sgd --lr 0.1")
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(__import__("sys").modules, "own_net_of_a_test")

    remedy = f"pass --model {name}"
    for command in ("knn", "export"):
        assert main([command, "--checkpoint", str(folder)]) == 2
        assert remedy in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=remedy) as refusal:
        load_backbone(folder)
    assert "\n" not in str(refusal.value)
    with pytest.raises(CheckpointError, match=f"its backbone is {name}, not --model json:loads"):
        load_backbone(folder, model="json:loads")
    assert not (tmp_path / "imported").exists()

    assert main(["export", "--checkpoint", str(folder), "--model", name]) == 0
    assert (tmp_path / "imported").exists()
    with pytest.raises(CheckpointError, match=remedy):
        load_backbone(folder / "export")
    images = torch.rand(2, 3, 32, 32)
    expected = load_backbone(folder, model=name)(images)
    assert torch.equal(load_backbone(folder / "export", model=name)(images), expected)
    assert "from own_net_of_a_test import net\n\nbackbone = net(width=6)" in (folder / "export/README.md").read_text()


@pytest.mark.proof
@pytest.mark.parametrize(
    "options",
    [
        "resnet50",
        "convnext_tiny",
        "efficientnet_b0",
        "regnet_y_400mf --norm group",
        f"vit_b_16 {SMALL_VIT}",
        "swin_v2_t",
        "timm/test_vit",
        "timm/test_efficientnet --norm group",
        "timm/swin_tiny_patch4_window7_224",  # the first Swin, whose layers torchvision's swin_t has, too
    ],
    ids=lambda options: options.split()[0].replace("/", "-"),
)
def test_every_family_is_exported_and_reported(options: str, photos: Path, tmp_path: Path) -> None:
    """`export` compares every format with the model, ONNX by ONNX Runtime; here at another batch size, too."""
    name, _, more = options.partition(" ")
    pretrain(photos, tmp_path, name, f"{more} --opt sgd --lr 1e-3")
    assert main(["export", "--checkpoint", str(tmp_path), "--onnx"]) == 0
    run = Run.open(tmp_path)
    images = torch.rand(7, 3, 32, 32)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "export/backbone.pt2").module()(images)
        torch.testing.assert_close(found, run.encoder()(images), rtol=1e-4, atol=1e-4)
    assert main(["report", str(tmp_path), "--threads", "1"]) == 0
    finetune = ["--fractions", "1.0", "--draws", "1", "--epochs", "1", "--batch-size", "4", "--threads", "1"]
    assert main(["finetune", "--checkpoint", str(tmp_path), *finetune]) == 0
