"""Builds a module without memory for its weights, to learn names and shapes before anything is allocated."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# What is made of a size alone. Values that sizes are computed from (`arange`, `linspace`) stay values: torchvision's
# RegNet and timm's models ask for them, which is why torch.device("meta") does not serve.
_OF_A_SIZE = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint}


class WithoutMemory(TorchFunctionMode):
    """Within it, tensors that a module makes of a size are on the meta device, unless the module names another."""

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _OF_A_SIZE and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
