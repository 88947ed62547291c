"""Row L2-normalisation with an epsilon."""

from simclr_fast.ops.l2_normalize.ops import l2_normalize

__all__ = ["l2_normalize"]
