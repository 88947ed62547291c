"""Data sets, batches and how they reach the device."""

from simclr_fast.data.datasets import load_dataset
from simclr_fast.data.loading import Batch, build_loader
from simclr_fast.data.resident import ResidentBatch
from simclr_fast.data.sources import Dataset, EncodedImages, ImageArrays, Source

__all__ = [
    "Batch",
    "Dataset",
    "EncodedImages",
    "ImageArrays",
    "ResidentBatch",
    "Source",
    "build_loader",
    "load_dataset",
]
