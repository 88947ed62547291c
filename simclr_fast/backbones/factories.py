"""Backbones that a function of the user's own makes, `package.module:function`.

The function is imported, and so its code runs, wherever such a name is built; a name that a file holds is therefore
built only where the user gave the same name (`evaluation/run.py` sees to it).
"""

import importlib
import os
import re
import sys

from torch import nn
from torch.nn.parameter import is_lazy

from simclr_fast.backbones.family import Family, Spec, Stage
from simclr_fast.backbones.model_kwargs import shown
from simclr_fast.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_factory(name: str) -> bool:
    """Whether a backbone's name is that of a function."""
    return ":" in name and not name.startswith("timm/")


class FactoryFamily(Family):
    """A function of keyword arguments that returns a module, images [B, C, S, S] -> features [B, F].

    The module may have an attribute `detection_stages`: names of modules in it, finest first, whose outputs are maps
    [B, channels, H, W] for the feature pyramid.
    """

    allocates_as_told = False

    def build(self, spec: Spec) -> nn.Module:
        function = imported(spec.name)
        try:
            module = function(**spec.kwargs)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--model {spec.name}: the function raised {_shown_error(error)}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"--model {spec.name}: it returned a {type(module).__name__}; return a torch.nn.Module")
        weights = [*module.parameters(), *module.buffers()]
        if any(is_lazy(weight) for weight in weights):
            raise ConfigError(f"--model {spec.name}: it has layers without a size (torch.nn.Lazy...); give their sizes")
        if any(weight.device.type != "cpu" for weight in weights):
            raise ConfigError(f"--model {spec.name}: its weights are not on the CPU; return it where it was made")
        return module

    def stages(self, spec: Spec, module: nn.Module) -> tuple[Stage, ...]:
        return tuple(Stage(name) for name in getattr(module, "detection_stages", ()))

    def loading_code(self, spec: Spec) -> list[str]:
        module, _, function = spec.name.partition(":")
        written = ", ".join(f"{name}={value!r}" for name, value in spec.kwargs.items())
        return [f"from {module} import {function}", "", f"backbone = {function}({written})"]


def imported(name: str):
    """The function of a name; modules of the current folder are found, too. Raises ConfigError."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"--model {shown(name)}: pass package.module:function")
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # last, so that nothing here takes the place of an installed package
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the module's code does
        raise ConfigError(f"--model {shown(name)}: it cannot be imported ({_shown_error(error)})") from error
    if not callable(found):
        raise ConfigError(f"--model {shown(name)}: {function} is a {type(found).__name__}; pass a function")
    return found


def _shown_error(error: BaseException) -> str:
    return shown(f"{type(error).__name__}: {error}")
