"""Embeds small data sets in tests."""

from pathlib import Path

import numpy as np
import torch

from simclr_fast.cli import main
from simclr_fast.config import DataOptions
from simclr_fast.data import load_dataset
from simclr_fast.data.parts import AllImages, parts_of
from simclr_fast.evaluation.features import embed, preprocess_of
from simclr_fast.evaluation.run import Run

# What the command writes beside the features.
OTHERS = ("embed.json", "neighbours.png", "neighbours.json", "duplicates.csv", "duplicates.json", ".lock")


def embedded(run: Path, data: Path, output: Path, *more: str) -> int:
    """The exit status of the command, in shards of 6 images."""
    sizes = ("--shard-size", "6", "--batch-size", "4", "--neighbours", "2", "--workers", "2")
    place = ("--checkpoint", str(run), "--data", str(data), "--output", str(output))
    return main(["embed", *place, *sizes, *more])


def contents(folder: Path) -> dict[str, bytes]:
    """The files with features, and what is known of them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in OTHERS}


def truth(run: Path, data: Path) -> tuple[list[str], np.ndarray, list[int]]:
    """Names, features by the evaluation's own function, and classes of all images of a folder in order."""
    opened, dataset = Run.open(run), load_dataset(DataOptions(data=data))
    parts = parts_of(dataset)
    images = AllImages(parts, data)
    features = [
        embed(opened.encoder(), part.source, preprocess_of(opened), torch.device("cpu")) for part in parts.values()
    ]
    codes = torch.cat([part.codes for part in parts.values()]).tolist()
    return [images.name(number) for number in range(len(images))], torch.cat(features).numpy(), codes
