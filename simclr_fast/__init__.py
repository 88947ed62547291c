"""Fast, exact SimCLR in PyTorch: the public names.

Each is imported when it is first asked for, so that what needs no torch, such as `simclr-fast --help`, loads none.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simclr_fast.api import PretrainedRun, load_backbone, pretrain
    from simclr_fast.augmentation import SimCLRAugment, SimCLREval
    from simclr_fast.losses import (
        CLIPLoss,
        InfoNCELoss,
        NTXentLoss,
        SupConLoss,
        clip_loss,
        info_nce_loss,
        ntxent_loss,
        similarity_logsumexp,
        sup_con_loss,
    )
    from simclr_fast.temperature import LearnedTemperature

__version__ = "0.1.0"

__all__ = [
    "CLIPLoss",
    "InfoNCELoss",
    "LearnedTemperature",
    "NTXentLoss",
    "PretrainedRun",
    "SimCLRAugment",
    "SimCLREval",
    "SupConLoss",
    "__version__",
    "clip_loss",
    "info_nce_loss",
    "load_backbone",
    "ntxent_loss",
    "pretrain",
    "similarity_logsumexp",
    "sup_con_loss",
]

# Where the names that are not in `losses` come from.
_MODULES = {
    "LearnedTemperature": "temperature",
    "PretrainedRun": "api",
    "SimCLRAugment": "augmentation",
    "SimCLREval": "augmentation",
    "load_backbone": "api",
    "pretrain": "api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'losses')}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
