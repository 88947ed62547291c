"""The fused augmentation: every view of every image in one call."""

from simclr_fast.ops.augment.images import ImageBatch
from simclr_fast.ops.augment.ops import augment, sample
from simclr_fast.ops.augment.params import ORDERS, AugmentParams, AugmentRecipe

__all__ = ["ORDERS", "AugmentParams", "AugmentRecipe", "ImageBatch", "augment", "sample"]
