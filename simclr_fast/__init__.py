"""Fast, exact SimCLR in PyTorch: the public names."""

from simclr_fast.augmentation import SimCLRAugment, SimCLREval
from simclr_fast.backbone import load_backbone
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
    "SimCLRAugment",
    "SimCLREval",
    "SupConLoss",
    "__version__",
    "clip_loss",
    "info_nce_loss",
    "load_backbone",
    "ntxent_loss",
    "similarity_logsumexp",
    "sup_con_loss",
]
