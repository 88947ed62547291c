"""torchvision's classifiers without their classifier; the names of what is left stay torchvision's own."""

import dataclasses
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from simclr_fast.backbones.family import Family, Spec, Stage
from simclr_fast.backbones.model_kwargs import refused_by_library
from simclr_fast.backbones.without_memory import WithoutMemory
from simclr_fast.errors import CheckpointError, ConfigError, first_line
from simclr_fast.tensor_file import read

# patch_size, num_layers, num_heads, hidden_dim and mlp_dim of torchvision's ViTs, whose own functions let nobody change
# them: `--model vit_b_16 --model-kwargs num_heads=6 hidden_dim=384 mlp_dim=1536` is a ViT-S/16.
VIT_ARGUMENTS = ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim")
VITS = {
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
}


@dataclasses.dataclass(frozen=True)
class TorchvisionFamily(Family):
    """Backbones whose names begin with one of the prefixes.

    classifier: the module that the identity replaces; first: the convolution that sees the images; last_stages: for
    detection, finest first; layout: of their outputs.
    """

    prefixes: tuple[str, ...]
    classifier: str
    first: str
    last_stages: tuple[str, ...] = ()
    layout: str = "NCHW"

    def names(self) -> list[str]:
        """Of its members."""
        return [n for n in torchvision.models.list_models(module=torchvision.models) if n.startswith(self.prefixes)]

    def build(self, spec: Spec) -> nn.Module:
        function, arguments = self._call(spec)
        try:
            module = getattr(torchvision.models, function)(**arguments)
        except Exception as error:  # whatever a constructor does with arguments that it did not expect
            if spec.kwargs:
                raise refused_by_library(spec.name, spec.kwargs, error) from error
            raise
        if spec.stem == "cifar":
            # Appendix B.9: small images would be reduced to nothing by the stride-2 stem and the pooling.
            module.conv1 = nn.Conv2d(spec.channels, 64, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(module.conv1.weight, mode="fan_out", nonlinearity="relu")
            module.maxpool = nn.Identity()
        elif spec.channels != 3:
            first = module.get_submodule(self.first)
            module.set_submodule(self.first, _for_grey(first))
        module.set_submodule(self.classifier, nn.Identity())
        return module

    def stages(self, spec: Spec, module: nn.Module) -> tuple[Stage, ...]:
        names = self.last_stages
        if spec.name == "efficientnet_v2_s":  # which has a stage less than all others of its family
            names = (*names[:-1], "features.6")
        return tuple(Stage(name, self.layout) for name in names)

    def weights(self, spec: Spec, name: str) -> dict[str, Tensor] | None:
        """By the names of torchvision's enumeration; for grey images, and a ViT for another size, adapted."""
        if name not in self.weight_names(spec):
            return None
        weights = downloaded(torchvision.models.get_model_weights(spec.name)[name].url, name)
        first = f"{self.first}.weight"
        if spec.channels == 1 and first in weights:
            weights[first] = weights[first].sum(1, keepdim=True)
        if spec.name in VITS and spec.size is not None:
            patch = VITS[spec.name][0]
            weights = interpolate_embeddings(spec.size, patch, weights)
        return weights

    def weight_names(self, spec: Spec) -> list[str]:
        return [*torchvision.models.get_model_weights(spec.name).__members__]

    def loading_code(self, spec: Spec) -> list[str]:
        function, arguments = self._call(spec)
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        lines = ["import torchvision", "", f"backbone = torchvision.models.{function}({written})"]
        with WithoutMemory():
            module = self.build(spec)
        if spec.stem == "cifar" or spec.channels != 3:
            conv = module.get_submodule(self.first)
            shape = f"{conv.in_channels}, {conv.out_channels}, {conv.kernel_size}, {conv.stride}, {conv.padding}"
            lines.append(f"first = torch.nn.Conv2d({shape}, bias={conv.bias is not None})")
            lines.append(f'backbone.set_submodule("{self.first}", first)')
        if spec.stem == "cifar":
            lines.append("backbone.maxpool = torch.nn.Identity()")
        lines.append(f'backbone.set_submodule("{self.classifier}", torch.nn.Identity())  # or a classifier of your own')
        return lines

    def _call(self, spec: Spec) -> tuple[str, dict[str, Any]]:
        """The function of torchvision.models, and its arguments."""
        if spec.name not in VITS:
            return spec.name, dict(spec.kwargs)
        own = dict(zip(VIT_ARGUMENTS, VITS[spec.name], strict=True))
        if spec.size is None:
            raise ValueError(f"size=None: {spec.name} is built for images of one size; pass it")
        changed = own.keys() & spec.kwargs.keys()
        arguments = own | spec.kwargs if changed else dict(spec.kwargs)
        patch = spec.kwargs.get("patch_size", own["patch_size"])
        require_patches(spec, patch)
        return "VisionTransformer" if changed else spec.name, {"image_size": spec.size, **arguments}


def require_patches(spec: Spec, patch: object) -> None:
    """Raise ConfigError where images of the spec's size are not made of whole patches of that side (pixels)."""
    if not isinstance(patch, int) or patch < 1:
        raise ConfigError(f"--model-kwargs patch_size={patch}: pass an integer >= 1")
    if spec.size is not None and spec.size % patch:
        below = spec.size // patch * patch
        choices = f"{below} or {below + patch}" if below else f"{patch}"
        raise ConfigError(
            f"--size {spec.size}: {spec.name} cuts images into patches of {patch} pixels; pass a multiple of {patch}, "
            f"such as {choices}"
        )


def _for_grey(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution that answers to a grey image as `conv` does to three copies of it."""
    grey = nn.Conv2d(1, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None)
    with torch.no_grad():
        grey.weight.copy_(conv.weight.sum(1, keepdim=True))
        if conv.bias is not None:
            grey.bias.copy_(conv.bias)
    return grey


def downloaded(url: str, name: str) -> dict[str, Tensor]:
    """The state dict behind a URL, kept where torch.hub keeps it ($TORCH_HOME/hub/checkpoints), read without running
    code. Raises CheckpointError with that file's name where it is not there and cannot be downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        digest = torch.hub.HASH_REGEX.search(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None)
        except (OSError, URLError, RuntimeError) as error:
            raise CheckpointError(
                f"--pretrained {name}: no {path}, and {url} cannot be downloaded ({first_line(error)})"
            ) from error
    return read(path)


RESNETS = TorchvisionFamily(
    ("resnet", "resnext", "wide_resnet"), "fc", "conv1", ("layer1", "layer2", "layer3", "layer4")
)
# The norm before ConvNeXt's classifier stays: what its features are was settled with it.
CONVNEXT = TorchvisionFamily(
    ("convnext_",), "classifier.2", "features.0.0", ("features.1", "features.3", "features.5", "features.7")
)
EFFICIENTNET = TorchvisionFamily(
    ("efficientnet_",), "classifier", "features.0.0", ("features.2", "features.3", "features.5", "features.7")
)
REGNET = TorchvisionFamily(("regnet_",), "fc", "stem.0", tuple(f"trunk_output.block{k}" for k in (1, 2, 3, 4)))
VIT = TorchvisionFamily(("vit_",), "heads.head", "conv_proj")
SWIN = TorchvisionFamily(
    ("swin_",), "head", "features.0.0", ("features.1", "features.3", "features.5", "features.7"), layout="NHWC"
)
FAMILIES = (RESNETS, CONVNEXT, EFFICIENTNET, REGNET, VIT, SWIN)
