"""The public losses: NT-Xent, its relatives, and the primitive under every loss of the family."""

from simclr_fast.losses.clip import CLIPLoss, clip_loss
from simclr_fast.losses.info_nce import InfoNCELoss, info_nce_loss
from simclr_fast.losses.ntxent import NTXentLoss, ntxent_loss
from simclr_fast.losses.similarity import similarity_logsumexp
from simclr_fast.losses.statistics import NTXentStatistics
from simclr_fast.losses.sup_con import SupConLoss, sup_con_loss

__all__ = [
    "CLIPLoss",
    "InfoNCELoss",
    "NTXentLoss",
    "NTXentStatistics",
    "SupConLoss",
    "clip_loss",
    "info_nce_loss",
    "ntxent_loss",
    "similarity_logsumexp",
    "sup_con_loss",
]
