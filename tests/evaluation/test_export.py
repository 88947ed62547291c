"""Exports: torchvision alone computes the same features from them, and every format agrees with the model."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torchvision

from simclr_fast import load_backbone
from simclr_fast.cli import main
from simclr_fast.errors import CheckpointError
from simclr_fast.evaluation import export
from simclr_fast.evaluation.model_card import CARD_FILE, describe, loading_code, write_model_card
from simclr_fast.evaluation.run import Run
from tests.evaluation.conftest import demo_config, plain_config, write_run

# Loads what folders hold as somebody would who has never heard of this package: {folder: what the model card says}.
FOREIGN_PROCESS = """
import os, sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "simclr_fast":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
for folder, loading in {folders!r}.items():
    os.chdir(folder)
    names = dict()
    exec(loading, names)
    images = names["torch"].load("images.pt")
    names["torch"].save(names["backbone"].to(images.dtype)(images).detach(), "features.pt")
"""
MODELS = {
    "resnet18": ({"model": "resnet18"}, 3),
    "cifar stem": ({"model": "resnet18", "stem": "cifar"}, 3),
    "gray, group norm": ({"model": "resnet18", "norm": "group"}, 1),
    "resnet50, frozen norm": ({"model": "resnet50", "norm": "frozen"}, 3),
}


def in_foreign_process(folders: dict[Path, str]) -> list[torch.Tensor]:
    """The features of each folder's images.pt, by its loading code; all in one process, which imports torch once."""
    program = FOREIGN_PROCESS.format(folders={str(folder): loading for folder, loading in folders.items()})
    subprocess.run([sys.executable, "-c", program], cwd=next(iter(folders)), check=True)
    return [torch.load(folder / "features.pt") for folder in folders]


def test_torchvision_alone_gives_the_same_features(tmp_path: Path) -> None:
    folders, expected = {}, []
    for name, (model, channels) in MODELS.items():
        folder = tmp_path / name
        run = Run.open(write_run(folder / "run", demo_config(**model), channels))
        export.export_weights(run, folder)
        # In float64: float32 sums in another order for another number of threads; a random ResNet-50 amplifies that.
        images = export.sample_images(run).double()
        torch.save(images, folder / "images.pt")
        folders[folder] = loading_code(run)
        with torch.no_grad():
            expected.append(run.encoder().double()(images))
    for name, found, features in zip(MODELS, in_foreign_process(folders), expected, strict=True):
        assert features.std() > 0.01, name
        assert (found - features).abs().max() <= 1e-10 * (1 + features.abs().max()), name


def test_plain_keys(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path, demo_config(model="resnet18"), channels=3))
    export.export_weights(run, tmp_path)
    weights = torch.load(tmp_path / export.STATE_DICT_FILE, weights_only=True)
    missing, unexpected = torchvision.models.resnet18().load_state_dict(weights, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert not unexpected


@pytest.fixture(scope="module")
def export_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    assert main(["export", "--checkpoint", str(run_folder), "--output", str(folder)]) == 0
    return folder


def test_command_writes_and_compares_every_format(export_folder: Path) -> None:
    differences = json.loads((export_folder / "export.json").read_text())["results"]["files"]
    assert set(differences) == {"backbone.pth", "backbone.safetensors", "backbone.pt2"}
    assert all(difference <= 1e-6 for difference in differences.values())
    card = (export_folder / "README.md").read_text()
    assert "resnet_mini" in card
    assert f"| temperature | {demo_config().optimization.temperature} |" in card


@pytest.mark.parametrize("name", ["backbone.pth", "backbone.safetensors", "backbone.pt2"])
def test_what_was_written_is_compared_with_the_model(
    name: str, run_folder: Path, export_folder: Path, tmp_path: Path
) -> None:
    """A file of other weights than the model's is found, whichever it is."""
    run = Run.open(run_folder)
    other = dataclasses.replace(run, weights={key: 0.9 * value for key, value in run.weights.items()})
    folder = Path(shutil.copytree(export_folder, tmp_path / "export"))
    export.export_program(other, tmp_path) if name.endswith("pt2") else export.export_weights(other, tmp_path)
    shutil.move(tmp_path / name, folder / name)
    found = export.compare(SimpleNamespace(run=run, options=SimpleNamespace(onnx=False)), folder)
    assert {key for key, difference in found.items() if difference > 0.01} == {name}


@pytest.mark.parametrize(("difference", "refused"), [(0.9e-5, False), (1.1e-5, True), (float("nan"), True)])
def test_an_export_that_differs_is_refused(
    difference: float, refused: bool, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for write in ("export_weights", "export_program"):
        monkeypatch.setattr(export, write, lambda run, folder: (folder / "backbone.pth").touch())
    monkeypatch.setattr(export, "compare", lambda *_: {"backbone.pth": difference})
    monkeypatch.setattr(export, "require_onnx", None)  # nobody asked for it
    assert main(["export", "--checkpoint", str(run_folder), "--output", str(tmp_path)]) == (2 if refused else 0)
    said = f"{tmp_path / 'backbone.pth'}: its features differ from the model's by {difference:.1e}"
    assert (said in capsys.readouterr().err) == refused
    assert (tmp_path / "README.md").exists() != refused


WRITERS = {
    export.STATE_DICT_FILE: export.export_weights,
    export.WEIGHTS_FILE: export.export_weights,
    export.PROGRAM_FILE: export.export_program,
    export.ONNX_FILE: export.export_onnx,
    CARD_FILE: write_model_card,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said_with_the_file_and_leaves_what_was_there(
    name: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, small = Run.open(run_folder), torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),))
    monkeypatch.setattr(export, "_program", lambda run: small)
    (tmp_path / name).write_text("what was there")
    (tmp_path / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as raised:
        WRITERS[name](run, tmp_path)
    assert raised.value.filename == str(tmp_path / name)
    assert (tmp_path / name).read_text() == "what was there"
    assert not list(tmp_path.glob("*.partial"))


def test_card_and_export_say_how_images_are_normalised(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path, plain_config(mean=(0.3,), std=(0.6,))))
    described = describe(run)
    assert (described["mean"], described["std"], described["image_size"]) == ([0.3], [0.6], 28)
    assert "mean [0.3] and standard deviation [0.6]" in write_model_card(run, tmp_path).read_text()


def test_card_survives_what_options_may_hold(tmp_path: Path) -> None:
    config = demo_config()
    odd = dataclasses.replace(config.data, dataset="imagefolder", data=Path("fotos \udcfc"), image_column="a|b\nc")
    run = Run.open(write_run(tmp_path, dataclasses.replace(config, data=odd)))
    card = write_model_card(run, tmp_path).read_text(encoding="utf-8")
    assert "| image_column | a\\|b c |\n" in card
    assert "fotos \\xfc" in card


def test_program_runs_without_this_package_at_any_batch_size(run_folder: Path, export_folder: Path) -> None:
    run = Run.open(run_folder)
    images = export.sample_images(run, count=7)
    torch.save(images, export_folder / "images.pt")
    (found,) = in_foreign_process({export_folder: loading_code(run)})
    with torch.no_grad():
        expected = run.encoder()(images)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_load_backbone_reads_an_export(run_folder: Path, export_folder: Path) -> None:
    images = torch.rand(2, 1, 28, 28)
    expected = Run.open(run_folder).encoder()(images)
    for path in (export_folder, export_folder / "backbone.safetensors"):
        assert torch.equal(load_backbone(path)(images), expected)


def test_hub_entry(run_folder: Path) -> None:
    root = str(Path(__file__).parents[2])
    backbone = torch.hub.load(root, "backbone", source="local", path=str(run_folder))
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(backbone(images), Run.open(run_folder).encoder()(images))


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "foreign", "other shape", "not finite", "channels that no memory holds"]
)
def test_bad_exports_are_refused(kind: str, export_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    whole = (export_folder / "backbone.safetensors").read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[:1000])
    elif kind == "foreign":
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    elif kind in ("not finite", "channels that no memory holds"):
        channels = 1 if kind == "not finite" else 10**10
        described = {"model": "resnet_mini", "stem": "imagenet", "norm": "batch", "channels": channels}
        weights = safetensors.torch.load(whole)
        weights["bn1.weight"][0] = torch.inf
        safetensors.torch.save_file(weights, path, metadata={"simclr_fast": json.dumps(described)})
    elif kind == "other shape":
        described = {"model": "resnet_mini", "stem": "imagenet", "norm": "batch", "channels": 1}
        weights = safetensors.torch.load(whole) | {"conv1.weight": torch.zeros(1)}
        safetensors.torch.save_file(weights, path, metadata={"simclr_fast": json.dumps(described)})
    with pytest.raises(CheckpointError, match="backbone.safetensors") as refusal:
        load_backbone(path)
    assert "\n" not in str(refusal.value)
    if kind in ("truncated", "foreign"):
        assert f"{path}: damaged, or not exported by simclr_fast (" in str(refusal.value)


def test_onnx_names_what_is_missing(run_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    find = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    assert main(["export", "--checkpoint", str(run_folder), "--output", str(tmp_path), "--onnx"]) == 2
    assert "--onnx: not installed: onnx; pip install" in capsys.readouterr().err
    assert not list(tmp_path.glob("backbone.*")), "said before anything is worked out"
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name)
    export.require_onnx()


@pytest.mark.proof
def test_onnx_agrees(run_folder: Path, tmp_path: Path) -> None:
    run = Run.open(run_folder)
    export.export_onnx(run, tmp_path)
    images = export.sample_images(run, count=5)
    with torch.no_grad():
        expected = run.encoder()(images)
    found = export.run_onnx(tmp_path / export.ONNX_FILE, images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
