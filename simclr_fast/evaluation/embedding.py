"""Images to features, shard by shard: threads read, decode and resize ahead, beside them the encoder works batch by
batch.

An image that cannot be read is left out and named; no other takes its place. What a batch holds depends on the shard
size and the batch size alone, so that features are the same however often the work was stopped.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from simclr_fast.data.chunks import work_ahead
from simclr_fast.data.parts import AllImages
from simclr_fast.data.threads import Place
from simclr_fast.data.unreadable import BadImageError
from simclr_fast.errors import DataError
from simclr_fast.evaluation.feature_files import Rows
from simclr_fast.evaluation.feature_set import FeatureSet
from simclr_fast.evaluation.features import Preprocess

PIECE = 16  # images that a thread reads at a time
HELD_PIXELS = 1 << 24  # of images as they are, per thread, until they are resized
DISK_TRIES = 10  # images in a row that the disk refuses before the work stops: a disk that is gone has lost no image

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Some images of a batch: numbers of those that could be read, their views float32 [n, C, S, S], and (number,
    message, whether the disk refused it) of the others."""

    numbers: list[int]
    views: Tensor
    bad: list[tuple[int, str, bool]]


class Encoder:
    """A backbone on its device, in eval mode, with its test-time view. autocast: None computes in float32."""

    def __init__(
        self,
        backbone: nn.Module,
        preprocess: Preprocess,
        channels: int,
        device: torch.device,
        autocast: torch.dtype | None,
    ):
        self.backbone = backbone.eval().to(device, memory_format=torch.channels_last)
        self.preprocess, self.channels, self.device, self.autocast = preprocess, channels, device, autocast

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """[C, S, S] of a view."""
        return self.channels, self.preprocess.size, self.preprocess.size

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> Tensor:
        """Views float32 [n, C, S, S] to features float32 [n, D] on the CPU."""
        views = views.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.backbone(views).float().cpu()

    def width(self) -> int:
        """Numbers in a feature."""
        return self(torch.zeros(2, *self.view_shape)).shape[1]


def embed_missing(found: FeatureSet, images: AllImages, encoder: Encoder, batch_size: int, workers: int) -> None:
    """Make the shards that a feature set lacks. Raises DataError for features that are not finite, and where the disk
    refuses ten images in a row; OSError with the path for a full one."""
    size, total, dtype = found.shard_size, len(images), np.dtype(found.journal["options"]["dtype"])
    first = min(len(found.shards) * size, total)
    batches = [
        (begin, min(begin + batch_size, shard + size, total))
        for shard in range(first, total, size)
        for begin in range(shard, min(shard + size, total), batch_size)
    ]
    reading = _read_ahead(images, encoder, batches, workers)
    with contextlib.closing(reading) as pieces, tqdm(total=total, initial=first, desc="embed", unit=" images") as bar:
        features: list[Tensor] = []
        numbers: list[int] = []
        left_out: list[tuple[int, str]] = []
        refused = 0
        for begin, end in batches:
            parts = [next(pieces) for _ in range(-(-(end - begin) // PIECE))]
            bad = {number: (message, is_disk) for part in parts for number, message, is_disk in part.bad}
            for number in range(begin, end):
                message, is_disk = bad.get(number, ("", False))
                refused = refused + 1 if is_disk else 0
                if message:
                    log.warning("unreadable image, left out: %s", message)
                    left_out.append((number, message))
                if refused == DISK_TRIES:
                    raise DataError(
                        f"{refused} images in a row that the disk refuses, the last: {message}; once it is there, the "
                        "same command goes on"
                    )
            numbers += (kept := [number for part in parts for number in part.numbers])
            if kept:
                features.append(_checked(encoder(torch.cat([part.views for part in parts])), kept, images, dtype))
            if end % size == 0 or end == total:
                found.add(_rows(features, numbers, images, found), left_out)
                features, numbers, left_out = [], [], []
            bar.update(end - begin)


def _read_ahead(images: AllImages, encoder: Encoder, batches: list[tuple[int, int]], workers: int) -> Iterator[Piece]:
    """The pieces of all batches in their order, read by so many threads."""

    def read(numbers: range, place: Place) -> Piece:
        kept: list[int] = []
        views: list[Tensor] = []
        bad: list[tuple[int, str, bool]] = []
        held: list[Tensor] = []
        for number in numbers:
            try:
                held.append(images.load(place.enter(number)))
                kept.append(number)
            except BadImageError as error:
                bad.append((number, str(error), isinstance(error.__cause__, OSError) and bool(error.__cause__.errno)))
            # Photographs as they are would fill the memory; views are small.
            if sum(image[0].numel() for image in held) > HELD_PIXELS:
                views.append(encoder.preprocess(held))
                held = []
        if held:
            views.append(encoder.preprocess(held))
        return Piece(kept, torch.cat(views) if views else torch.empty(0, *encoder.view_shape), bad)

    pieces = (range(at, min(at + PIECE, end)) for begin, end in batches for at in range(begin, end, PIECE))
    return work_ahead(read, pieces, workers, images.message_name)


def _checked(features: Tensor, numbers: list[int], images: AllImages, dtype: np.dtype) -> Tensor:
    """The features as they are stored. Raises DataError with the first image whose features are not finite."""
    stored = features if dtype == np.float32 else features.half()
    finite = stored.isfinite().all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        remedy = "" if dtype == np.float32 else "; --dtype float32 holds larger numbers"
        raise DataError(f"{images.message_name(numbers[first])}: its features are not finite as {dtype}{remedy}")
    return stored


def _rows(features: list[Tensor], numbers: list[int], images: AllImages, found: FeatureSet) -> Rows:
    """The rows of a shard."""
    dtype, width = found.journal["options"]["dtype"], found.journal["width"]
    codes = np.array([images.code(number) for number in numbers], dtype=np.int64)
    return Rows(
        torch.cat(features).numpy() if features else np.empty((0, width), dtype),
        [images.name(number) for number in numbers],
        [images.place(number)[0] for number in numbers],
        codes if found.journal["labelled"] else None,
    )
