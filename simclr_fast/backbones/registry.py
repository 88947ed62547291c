"""Builds a backbone by its name: which family it is of, how many features it gives, and where detection taps it."""

import copy

import torch
import torchvision
from torch import Tensor, nn

from simclr_fast.backbones import model_kwargs, resnet_mini, timm_models
from simclr_fast.backbones.factories import FactoryFamily, is_factory
from simclr_fast.backbones.family import Family, Spec, Stage
from simclr_fast.backbones.torchvision_families import FAMILIES, RESNETS
from simclr_fast.backbones.without_memory import WithoutMemory
from simclr_fast.config import ModelOptions
from simclr_fast.errors import ConfigError, first_line
from simclr_fast.named_options import nearest

PROBE_SIZE = 64  # pixels; of a backbone whose images may have any size
MODELS = (
    "pass one of torchvision's ResNet, ResNeXt, ConvNeXt, EfficientNet, RegNet, ViT or Swin by its name (resnet50, "
    "convnext_tiny, vit_b_16), timm/NAME, package.module:function, or resnet_mini"
)


def backbone_names() -> list[str]:
    """The names of torchvision's that are known, and this project's own; timm's and functions' come beside them."""
    return [resnet_mini.NAME, *(name for family in FAMILIES for name in family.names())]


def family_of(name: str) -> Family:
    """The family of a name as --model has it. Raises ConfigError for a name of none."""
    if name.startswith(timm_models.PREFIX):
        return timm_models.TimmFamily()
    if is_factory(name):
        return FactoryFamily()
    if name == resnet_mini.NAME:
        return resnet_mini.MiniFamily()
    if name in torchvision.models.list_models(module=torchvision.models):
        for family in FAMILIES:
            if name.startswith(family.prefixes):
                return family
    near = nearest(name, backbone_names())
    remedy = f"did you mean {near}?" if near else MODELS
    raise ConfigError(f"--model {model_kwargs.shown(name)}: unknown backbone; {remedy}")


def spec_of(options: ModelOptions, channels: int, size: int | None) -> Spec:
    """What the options say of the backbone, for images of 1 or 3 channels and `size` pixels a side."""
    return Spec(options.model, channels, size, options.stem, model_kwargs.parse(options.model_kwargs))


def build(spec: Spec) -> nn.Module:
    """The backbone, images [B, C, S, S] -> features [B, F], with randomly initialised weights, on the CPU.

    Raises ConfigError for a name, size, stem or argument that cannot work.
    """
    family = family_of(spec.name)
    if spec.stem != "imagenet" and family is not RESNETS:
        raise ConfigError(
            f"--stem {spec.stem}: {spec.name} has no such stem, only torchvision's ResNets; pass --stem imagenet"
        )
    return family.build(spec)


def build_without_memory(spec: Spec, most: int | None = None) -> nn.Module:
    """As `build`, with weights on the meta device: names and shapes alone, before anything is allocated.

    A function of the user's own is called as it is: what it allocates is its affair. most: as `WithoutMemory` takes it.
    """
    if not family_of(spec.name).allocates_as_told:
        return build(spec).to("meta")
    with torch.random.fork_rng(devices=[]), WithoutMemory(most):
        return build(spec).to("meta")


def feature_count(spec: Spec, module: nn.Module) -> int:
    """How many features a module that `build` made gives. Raises ConfigError where it gives no [B, F].

    It is asked with images of the spec's size, so that images too small for it are told before a training begins.
    """
    if not family_of(spec.name).allocates_as_told:
        _require_the_same_again(spec, module)
        return _asked_in_every_way(spec, module)
    try:
        return _answer(build_without_memory(spec), spec)
    except Exception:  # too small an image, or an operation that needs values: the module itself tells which
        return _answer(module, spec)


def _require_the_same_again(spec: Spec, module: nn.Module) -> None:
    """Raise ConfigError where a function makes other weights the second time: no checkpoint of it could be loaded."""
    with torch.random.fork_rng(devices=[]):
        again = build(spec)
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (module, again)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"--model {spec.name}: it makes another network at its second call; let it depend on nothing")


def _asked_in_every_way(spec: Spec, module: nn.Module) -> int:
    """The number of features, which is the same in eval and training mode and for any number of images."""
    with torch.random.fork_rng(devices=[]):
        copy_of_it = copy.deepcopy(module)  # training mode moves running statistics
        counts = {_answer(copy_of_it, spec, batch, mode) for batch in (2, 3) for mode in (False, True)}
    if len(counts) > 1:
        raise ConfigError(f"--model {spec.name}: it gives {min(counts)} to {max(counts)} features; give always as many")
    return counts.pop()


@torch.no_grad()
def _answer(module: nn.Module, spec: Spec, batch: int = 2, training: bool = False) -> int:
    """The number of features that the module makes of black images. Raises ConfigError where they are none."""
    mode, weight = module.training, next(module.parameters(), torch.empty(0))
    size = spec.size if spec.size is not None else PROBE_SIZE
    try:
        found = module.train(training)(torch.zeros(batch, spec.channels, size, size, device=weight.device))
    except Exception as error:  # whatever a network does with images that it cannot take
        reason = model_kwargs.shown(first_line(error))
        raise ConfigError(
            f"--model {spec.name}: it cannot take images [B, {spec.channels}, {size}, {size}] ({reason}); pass another "
            "--size or --model"
        ) from error
    finally:
        module.train(mode)
    shape = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    good = isinstance(found, Tensor) and found.ndim == 2 and found.shape[0] == batch and found.shape[1] >= 1
    if not good or not found.is_floating_point():
        when = " in training mode" if training else ""
        raise ConfigError(
            f"--model {spec.name}: it gives {shape} for {batch} images{when}; it must give features [{batch}, F]"
        )
    return found.shape[1]


def build_backbone(
    name: str, stem: str = "imagenet", channels: int = 3, *, size: int | None = None
) -> tuple[nn.Module, int]:
    """The backbone of a name with randomly initialised weights, and the number of its features.

    channels: of the input images, 1 or 3; size: their side (pixels), where the backbone is built for one. Raises
    ConfigError for an unknown name.
    """
    spec = Spec(name, channels, size, stem)
    module = build(spec)
    return module, feature_count(spec, module)


def detection_stages(spec: Spec, module: nn.Module) -> tuple[Stage, ...]:
    """The stages of a backbone that a feature pyramid is built on, finest first. Raises ConfigError without any."""
    stages = family_of(spec.name).stages(spec, module)
    if not stages:
        reason = "its module has no attribute detection_stages" if is_factory(spec.name) else "it has one scale"
        raise ConfigError(
            f"--model {spec.name}: detect needs maps of several scales for its feature pyramid ({reason}); "
            "torchvision's ResNets, ConvNeXts, EfficientNets, RegNets and Swins have them"
        )
    return stages
