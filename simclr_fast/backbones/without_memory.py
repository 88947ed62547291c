"""Builds a module without memory for its weights, to learn names and shapes before anything is allocated."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from simclr_fast.errors import ConfigError

# What is made of a size alone. Values that sizes are computed from (`arange`, `linspace`) stay values: torchvision's
# RegNet and timm's models ask for them, which is why torch.device("meta") does not serve.
_OF_A_SIZE = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint}


class WithoutMemory(TorchFunctionMode):
    """Within it, tensors that a module makes of a size are on the meta device, unless the module names another.

    most: how many of them a module may make before a ConfigError ends it; None for as many as it will.
    """

    def __init__(self, most: int | None = None):
        super().__init__()
        self.left = math.inf if most is None else most

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _OF_A_SIZE and kwargs.get("device") is None:
            kwargs["device"] = "meta"
            self.left -= 1
            if self.left < 0:
                raise ConfigError("it has far more layers than there are weights for")
        return func(*args, **kwargs)
