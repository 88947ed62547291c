"""Backbones of every family: names, features, stems, arguments, sizes and stages; what is refused, in one line."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from simclr_fast.backbones import factories, model_kwargs, registry, torchvision_families
from simclr_fast.backbones.family import Spec
from simclr_fast.backbones.registry import (
    backbone_names,
    build,
    build_without_memory,
    detection_stages,
    family_of,
    feature_count,
)
from simclr_fast.config import ModelOptions
from simclr_fast.errors import ConfigError
from simclr_fast.models import build_model, describe_encoder

VIT = {"num_layers": 1, "hidden_dim": 48, "num_heads": 4, "mlp_dim": 64}  # a ViT that takes no time


def one_line(refusal: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize("name", [name for name in backbone_names() if name != "resnet_mini"])
def test_every_name_of_torchvision_builds_without_memory(name: str) -> None:
    size = 224 if name.startswith("vit_") else 64
    before = torch.get_rng_state()
    module = build_without_memory(Spec(name, channels=1, size=size))
    assert torch.equal(torch.get_rng_state(), before), "no draw is taken from the weights'"
    assert {p.device.type for p in (*module.parameters(), *module.buffers())} == {"meta"}
    stages, shapes = family_of(name).stages(Spec(name), module), []
    for stage in stages:
        order = (0, 3, 1, 2) if stage.layout == "NHWC" else (0, 1, 2, 3)
        noted = lambda _module, _inputs, output, order=order: shapes.append(output.permute(order).shape)
        module.get_submodule(stage.module).register_forward_hook(noted)
    assert module.eval()(torch.zeros(2, 1, size, size, device="meta")).ndim == 2
    assert [tuple(shape[2:]) for shape in shapes] == [(64 // k, 64 // k) for k in (4, 8, 16, 32)[: len(stages)]]
    assert len(stages) == (0 if name.startswith("vit_") else 4)
    widths = [shape[1] for shape in shapes]
    assert widths == sorted(widths)
    classifier = family_of(name).classifier
    assert not [key for key in module.state_dict() if key.startswith(f"{classifier}.")]


@pytest.mark.parametrize(
    ("name", "features"),
    [("convnext_tiny", 768), ("efficientnet_b0", 1280), ("regnet_y_400mf", 440), ("swin_t", 768), ("vit_b_16", 768)],
)
def test_keys_are_torchvisions(name: str, features: int) -> None:
    spec = Spec(name, size=224)
    with torchvision_families.WithoutMemory():
        theirs = getattr(torchvision.models, name)().to("meta")
    ours = build_without_memory(spec)
    assert feature_count(spec, ours) == features
    classifier = family_of(name).classifier
    kept = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith(f"{classifier}.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == kept


def test_vits_are_torchvisions() -> None:
    """Their sizes stand here a second time: torchvision lets nobody ask for them."""
    for name, numbers in torchvision_families.VITS.items():
        with torchvision_families.WithoutMemory():
            theirs = getattr(torchvision.models, name)(image_size=224)
            arguments = dict(zip(torchvision_families.VIT_ARGUMENTS, numbers))
            ours = torchvision.models.VisionTransformer(image_size=224, **arguments)
        assert (ours.patch_size, len(ours.encoder.layers)) == (theirs.patch_size, len(theirs.encoder.layers))
        assert ours.encoder.layers[0].num_heads == theirs.encoder.layers[0].num_heads
        shapes = [{key: value.shape for key, value in module.state_dict().items()} for module in (ours, theirs)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnet_y_400mf", "vit_b_16"])
def test_grey_images_are_answered_as_three_copies_of_them(name: str) -> None:
    kwargs = VIT if name == "vit_b_16" else {}
    modules = []
    for channels in (1, 3):
        torch.manual_seed(0)
        modules.append(build(Spec(name, channels, 32, kwargs=kwargs)).eval())
    grey, colour = modules
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-5)


def test_a_module_that_is_asked_itself_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the meta device cannot tell how many features it gives."""

    def fails(spec: Spec) -> nn.Module:
        raise NotImplementedError

    monkeypatch.setattr(registry, "build_without_memory", fails)
    module = build(Spec("resnet_mini"))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for training in (True, False):
        module.train(training)
        assert feature_count(Spec("resnet_mini", size=16), module) == 128
        assert {part.training for part in module.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_arguments_reach_the_backbone() -> None:
    assert build(Spec("vit_b_16", size=32, kwargs=VIT | {"patch_size": 8})).encoder.pos_embedding.shape == (1, 17, 48)
    assert (build(Spec("resnet18", kwargs={"zero_init_residual": True})).layer1[0].bn2.weight == 0).all()
    module = build(Spec("timm/resnet18", kwargs={"drop_path_rate": 0.3}))
    assert max(m.drop_prob for m in module.modules() if hasattr(m, "drop_prob")) > 0.2


def test_arguments_are_numbers_booleans_and_words() -> None:
    given = {"a": 3, "b": 0.25, "c": True, "d": False, "e": "gelu", "f": -16384, "g": 1e-6, "h": "a=b", "i": 16384}
    found = model_kwargs.parse(model_kwargs.pairs(given))
    assert found == given
    assert [type(value) for value in found.values()] == [type(value) for value in given.values()]


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("weights=DEFAULT", "named by --pretrained"),
        ("pretrained=true", "named by --pretrained"),
        ("pretrained_cfg=x", "named by --pretrained"),
        ("checkpoint_path=/tmp/a.pth", "named by --pretrained"),
        ("num_classes=10", "the classifier is left out"),
        ("image_size=32", "--size decides"),
        ("in_chans=3", "the images decide"),
        ("progress=true", "nothing is downloaded"),
        ("num_layers=16385", "at most 16384"),
        ("rate=-16384.5", "at most 16384"),
        ("rate=nan", "at most 16384"),
        ("rate=inf", "at most 16384"),
        ("depth", "pass key=value"),
        ("depth=", "pass key=value"),
        ("a-b=1", "pass key=value"),
    ],
)
def test_other_arguments_are_refused(pair: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        model_kwargs.parse([pair])
    assert one_line(refusal)
    assert str(refusal.value).startswith(f"--model-kwargs {pair}: ")


def test_an_argument_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="depth is there twice"):
        model_kwargs.parse(["depth=1", "depth=2"])


@pytest.mark.parametrize(
    ("options", "size", "said"),
    [
        ({"model": "vit_b_16"}, 100, r"^--size 100: .* patches of 16 pixels; pass a multiple of 16, such as 96 or 112"),
        ({"model": "vit_b_16"}, 8, r"^--size 8: .* such as 16$"),
        *(
            (
                {"model": "vit_b_16", "model_kwargs": (f"patch_size={patch}",)},
                32,
                f"^--model-kwargs patch_size={patch}: pass an integer >= 1$",
            )
            for patch in ("0", "-8", "2.5", "wide")
        ),
        ({"model": "timm/vit_tiny_patch16_224"}, 40, r"^--size 40: .* pass a multiple of 16, such as 32 or 48"),
        ({"model": "regnet_y_400mf", "stem": "cifar"}, 32, r"^--stem cifar: regnet_y_400mf has no such stem"),
        ({"model": "resnet_mini", "stem": "cifar"}, 32, r"^--stem cifar: resnet_mini has no such stem"),
        ({"model": "vit_b_16", "norm": "group"}, 32, r"^--norm group: vit_b_16 has no batch norm"),
        (
            {"model": "timm/convnext_atto", "norm": "frozen"},
            32,
            r"^--norm frozen: timm/convnext_atto has no",
        ),
        ({"model": "convnext_tiny"}, 16, r"^--model convnext_tiny: it cannot take images \[B, 3, 16, 16\]"),
        ({"model": "resnet18", "model_kwargs": ("depth=3",)}, 32, r"^--model-kwargs depth=3: resnet18 cannot be built"),
        (
            {"model": "timm/resnet18", "model_kwargs": ("depth=3",)},
            32,
            r"^--model-kwargs depth=3: timm/resnet18",
        ),
        (
            {"model": "resnet_mini", "model_kwargs": ("grid=3", "depth=3")},
            32,
            r"^--model-kwargs grid=3 depth=3: resnet_mini has one argument, grid; leave depth out",
        ),
        *(
            (
                {"model": "resnet_mini", "model_kwargs": (f"grid={grid}",)},
                32,
                rf"^--model-kwargs grid={grid}: pass a grid of 1 to 16 cells a side",
            )
            for grid in ("0", "17", "2.5", "true", "wide")
        ),
        (
            {"model": "resnet_mini", "model_kwargs": ("grid=4",)},
            16,
            r"^--model-kwargs grid=4: at --size 16 the last map has 2 x 2 cells; pass --model-kwargs grid=2, or",
        ),
        ({"model": "timm/hf-hub:someone/model"}, 32, r"timm lists no such model"),
        ({"model": "timm/local-dir:/tmp"}, 32, r"timm lists no such model"),
        ({"model": "timm/resnte18"}, 32, r"such as resnet18 \(without a tag\)"),
        ({"model": "timm/resnet18.a1_in1k"}, 32, r"such as resnet18, .*\(without a tag\)"),
        ({"model": "vgg16"}, 32, r"^--model vgg16: unknown backbone; .*resnet50"),
        ({"model": "convnet_tiny"}, 32, r"^--model convnet_tiny: unknown backbone; did you mean convnext_tiny\?$"),
        ({"model": "resnetmini"}, 32, r"did you mean resnet_mini\?$"),
        ({"model": "nothing_of_that:name"}, 32, r"cannot be imported \(ModuleNotFoundError"),
        ({"model": "math:nothing"}, 32, r"cannot be imported \(AttributeError"),
        ({"model": "math:pi"}, 32, r"pi is a float; pass a function"),
        ({"model": "os; import x:f"}, 32, r"pass package.module:function"),
        ({"model": "json:loads"}, 32, r"the function raised TypeError"),
        ({"model": "collections:OrderedDict"}, 32, r"it returned a OrderedDict; return a torch.nn.Module"),
        ({"model": "torch.nn:Identity"}, 32, r"it gives \[2, 3, 32, 32\] for 2 images; it must give features \[2, F\]"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options: dict, size: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        build_model(ModelOptions(head_hidden=8, head_dim=4, **options), 3, size)
    assert one_line(refusal)


def test_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simclr_fast.backbones.timm_models.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the package timm is missing; pip install 'simclr_fast\[timm\]'"):
        build(Spec("timm/resnet18"))


def test_a_size_that_timm_cannot_build_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("Input size (40) should be larger")

    monkeypatch.setattr("timm.create_model", fails)
    said = r"^--model timm/resnet18: timm cannot build it for --size 40 \(AssertionError: Input size \(40\) .*\)$"
    with pytest.raises(ConfigError, match=said):
        build(Spec("timm/resnet18", size=40))


def test_a_function_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models_of_a_test.py").write_text(
        "import torch\n"
        "def net(width=4):\n"
        "    pool = torch.nn.AdaptiveAvgPool2d(1)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), pool, torch.nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    options = ModelOptions("my_models_of_a_test:net", ("width=6",), head_hidden=8, head_dim=4)
    model = build_model(options, 3, 16)
    assert model.features == 6
    assert sys.path[-1] == os.getcwd(), "after all that is installed"
    assert {p.device.type for p in describe_encoder(options, 3, 16).parameters()} == {"meta"}


def test_a_file_says_nothing_of_more_layers_than_it_has_weights_for() -> None:
    options = ModelOptions("vit_b_16", ("num_layers=16384",))  # minutes and gigabytes, if each were described
    with pytest.raises(ConfigError, match="it has far more layers than there are weights for"):
        describe_encoder(options, 3, 224, most=700)


BROKEN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3), make
    def forward(self, x):
        return self.make(self, self.conv(x).mean((2, 3)))

made = []
def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def another_each_time():
    made.append(1)
    return nn.Sequential(nn.Conv2d(3, len(made), 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def of_the_batch():
    return Net(lambda self, y: y[:, : len(y)])
def tuple_in_training():
    return Net(lambda self, y: (y, y) if self.training else y)
def nothing():
    return Net(lambda self, y: y[:, :0])
def on_meta():
    return Net(lambda self, y: y).to("meta")
def leaves():
    raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lazy", r"layers without a size \(torch.nn.Lazy...\); give their sizes"),
        ("another_each_time", "it makes another network at its second call"),
        ("of_the_batch", "it gives 2 to 3 features; give always as many"),
        ("tuple_in_training", r"it gives a tuple for 2 images in training mode; it must give features \[2, F\]"),
        ("nothing", r"it gives \[2, 0\] for 2 images"),
        ("on_meta", "its weights are not on the CPU"),
        ("leaves", "the function raised SystemExit: 3"),
    ],
)
def test_functions_whose_checkpoints_would_serve_nobody(name: str, said: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_of_a_test.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=said) as refusal:
        build_model(ModelOptions(f"broken_of_a_test:{name}", head_hidden=8, head_dim=4), 3, 16)
    assert one_line(refusal)


def test_names_of_functions_are_told_from_others() -> None:
    assert factories.is_factory("a.b:c")
    assert not any(factories.is_factory(name) for name in ("resnet50", "timm/hf-hub:a/b", "timm/resnet50"))


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_a_norm_with_an_activation_keeps_it(norm: str) -> None:
    """timm's BatchNormAct2d ends in an activation, which a plain norm in its place would lose."""
    torch.manual_seed(0)
    options = ModelOptions("timm/efficientnet_lite0", norm=norm, head_hidden=8, head_dim=4)
    model = build_model(options, 3, 32)
    norm1 = model.backbone.bn1
    assert isinstance(norm1, nn.GroupNorm if norm == "group" else nn.BatchNorm2d)
    output = norm1(torch.randn(2, 32, 8, 8))
    assert (output.min(), output.max() <= 6) == (0, True), "ReLU6"
    assert not [m for m in model.modules() if type(m).__name__ == "BatchNormAct2d"]


def test_stages_of_a_function_are_what_its_module_says() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ConfigError, match="its module has no attribute detection_stages"):
        detection_stages(Spec("a:b"), module)
    module.detection_stages = ("0",)
    assert [stage.module for stage in detection_stages(Spec("a:b"), module)] == ["0"]


@pytest.mark.parametrize("name", ["vit_b_16", "timm/vit_tiny_patch16_224"])
def test_a_vit_has_one_scale(name: str) -> None:
    spec = Spec(name, size=32)
    with pytest.raises(ConfigError, match=r"detect needs maps of several scales .*\(it has one scale\)") as refusal:
        detection_stages(spec, build_without_memory(spec))
    assert one_line(refusal)
