"""Models of the package timm, `timm/NAME`: by the names that timm itself lists, never from a hub or a folder."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from simclr_fast.backbones.family import Family, Spec, Stage
from simclr_fast.backbones.model_kwargs import refused_by_library, shown
from simclr_fast.backbones.torchvision_families import require_patches
from simclr_fast.errors import CheckpointError, ConfigError
from simclr_fast.named_options import nearest

PREFIX = "timm/"
PYRAMID_STRIDES = (4, 8, 16, 32)


class TimmFamily(Family):
    """Every model of timm that maps images to one feature vector each."""

    def build(self, spec: Spec) -> nn.Module:
        module = self._created(spec)
        patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
        if patch is not None and "img_size" in self._arguments(spec):
            require_patches(spec, max(patch) if isinstance(patch, tuple) else patch)
        return module

    def stages(self, spec: Spec, module: nn.Module) -> tuple[Stage, ...]:
        layout = "NHWC" if getattr(module, "output_fmt", "NCHW") == "NHWC" else "NCHW"
        last = {int(info["reduction"]): info["module"] for info in getattr(module, "feature_info", ())}
        found = [Stage(last[stride], layout) for stride in PYRAMID_STRIDES if stride in last]
        return tuple(found) if len(found) >= 2 else ()

    def weights(self, spec: Spec, name: str) -> dict[str, Tensor] | None:
        """timm's `default`, or a tag such as `a1_in1k`; for another size or number of channels timm adapts them."""
        if name not in self.weight_names(spec):
            return None
        timm = _timm(spec.name)
        plain = spec.name.removeprefix(PREFIX)
        tagged = plain if name == "default" else f"{plain}.{name}"
        source = timm.get_pretrained_cfg(tagged)
        try:
            return timm.create_model(tagged, pretrained=True, **self._arguments(spec)).state_dict()
        except Exception as error:  # of a hub's client, of the network, of the file
            raise CheckpointError(
                f"--pretrained {name}: no {_published_file(source)}, and it cannot be downloaded, or it does not fit "
                f"({shown(f'{type(error).__name__}: {error}')})"
            ) from error

    def weight_names(self, spec: Spec) -> list[str]:
        plain = spec.name.removeprefix(PREFIX)
        tags = [name.partition(".")[2] for name in _timm(spec.name).list_pretrained(f"{plain}.*")]
        return ["default", *tags] if tags else []

    def loading_code(self, spec: Spec) -> list[str]:
        written = ", ".join(f"{name}={value!r}" for name, value in self._arguments(spec).items())
        return ["import timm", "", f'backbone = timm.create_model("{spec.name.removeprefix(PREFIX)}", {written})']

    def _created(self, spec: Spec) -> nn.Module:
        timm = _timm(spec.name)
        try:
            return timm.create_model(spec.name.removeprefix(PREFIX), **self._arguments(spec))
        except Exception as error:  # whatever a constructor does with arguments that it did not expect
            if spec.kwargs:
                raise refused_by_library(spec.name, spec.kwargs, error) from error
            reason = shown(f"{type(error).__name__}: {error}")
            raise ConfigError(f"--model {spec.name}: timm cannot build it for --size {spec.size} ({reason})") from error

    def _arguments(self, spec: Spec) -> dict[str, Any]:
        """Beyond the name, what `create_model` is given."""
        source = _timm(spec.name).get_pretrained_cfg(spec.name.removeprefix(PREFIX))
        sized = {"img_size": spec.size} if spec.size is not None and source.fixed_input_size else {}
        return {"num_classes": 0, "in_chans": spec.channels, **sized, **spec.kwargs}


def _published_file(source: Any) -> str:
    """Where timm looks for the weights that a `PretrainedCfg` describes."""
    if not source.hf_hub_id:
        return str(source.url or source.file)
    from huggingface_hub import constants

    folder = f"models--{source.hf_hub_id.replace('/', '--')}"
    return f"{Path(constants.HF_HUB_CACHE) / folder}/snapshots/*/{source.hf_hub_filename or 'model.safetensors'}"


def _timm(name: str) -> ModuleType:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"--model {shown(name)}: the package timm is missing; pip install 'simclr_fast[timm]'")
    import timm  # takes seconds, and only its models need it

    plain = name.removeprefix(PREFIX)
    known = timm.list_models()
    if plain not in known:
        begins, guess = plain.partition(".")[0], nearest(plain, known)
        near = [one for one in known if begins and one.startswith(begins[:12])][:4] or ([guess] if guess else [])
        remedy = f"such as {', '.join(near)}" if near else "as timm.list_models() has it"
        raise ConfigError(f"--model {shown(name)}: timm lists no such model; pass a name {remedy} (without a tag)")
    return timm
