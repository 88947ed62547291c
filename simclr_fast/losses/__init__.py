"""The public losses: NT-Xent, and the primitive under every loss of its family."""

from simclr_fast.losses.ntxent import NTXentLoss, ntxent_loss
from simclr_fast.losses.similarity import similarity_logsumexp

__all__ = ["NTXentLoss", "ntxent_loss", "similarity_logsumexp"]
