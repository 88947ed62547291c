"""Large photos: brought down as they are decoded, small ones left as they are, and few bytes read ahead."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simclr_fast.config import AugmentOptions, DataOptions, check
from simclr_fast.data import EncodedImages, build_loader, chunks
from simclr_fast.data.chunks import ChunkReader
from simclr_fast.data.decode import TOGETHER, DeviceDecoder, _groups
from simclr_fast.data.shrink import shrink, side_of
from simclr_fast.errors import ConfigError
from simclr_fast.recipes import RECIPES
from tests.data.test_chunks import lists, pictures

CPU = torch.device("cpu")


def photo(width: int, height: int) -> Tensor:
    """A smooth picture, uint8 [3, height, width], in memory as decoders leave it."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [127 + 60 * np.sin(x / 9 + k) + 60 * np.cos(y / 7 - k) for k in range(3)]
    return torch.from_numpy(np.stack(waves, axis=2).astype(np.uint8)).permute(2, 0, 1)


def jpegs(*sizes: tuple[int, int]) -> EncodedImages:
    """JPEGs of (width, height)."""
    encoded = []
    for size in sizes:
        file = io.BytesIO()
        Image.fromarray(photo(*size).permute(1, 2, 0).numpy()).save(file, "JPEG")
        encoded.append(file.getvalue())
    return EncodedImages(len(encoded), encoded.__getitem__, "photo {}".format)


@pytest.mark.parametrize("size", [(40, 40), (60, 40), (160, 40), (5, 500), (1, 1)])
def test_an_image_that_is_small_enough_is_left_as_it_is(size: tuple[int, int]) -> None:
    image = photo(*size)
    assert shrink(image, 40) is image
    assert shrink(image, 0) is image


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((80, 60), (53, 40)),
        ((60, 80), (40, 53)),
        ((41, 41), (40, 40)),
        ((4000, 100), (506, 13)),
        ((9000, 1), (7589, 1)),
    ],
)
def test_a_large_one_is_brought_down_whatever_its_proportions(size, expected) -> None:
    """The shorter side to 40, and to 4 x 40^2 pixels at most, within the rounding of sides."""
    small = shrink(photo(*size), 40)
    assert tuple(small.shape) == (3, expected[1], expected[0])
    assert small.untyped_storage().nbytes() == small.numel(), "nothing of the large one is kept"


def test_it_is_the_antialiased_bicubic_resize_of_pillow() -> None:
    image = photo(600, 450)
    wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((160, 120), Image.Resampling.BICUBIC)
    difference = shrink(image, 120).permute(1, 2, 0).int() - torch.from_numpy(np.array(wanted)).int()
    assert difference.abs().max() <= 1
    assert torch.equal(shrink(image, 120), shrink(image.contiguous(), 120)), "whatever the layout"


@pytest.mark.gpu
def test_a_gpu_gives_the_same_within_one_level() -> None:
    image = photo(600, 450)
    assert (shrink(image.cuda(), 120).cpu().int() - shrink(image, 120).int()).abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_brings_large_images_down_and_leaves_others_bit_equal(workers: int) -> None:
    source = jpegs((90, 60), (30, 20), (60, 90), (33, 32))
    (batch,) = build_loader(source, 4, 0, CPU, DataOptions(workers=workers), shrink_to=32).epoch(0)
    for image, index in zip(batch.images, batch.indices.tolist()):
        whole = source.decode(index)
        assert torch.equal(image, whole if index == 1 else shrink(whole, 32))
        assert min(image.shape[1:]) <= 32


def test_a_device_decoder_brings_them_down_too() -> None:
    source = jpegs((90, 60), (30, 20))
    shrunk = EncodedImages(2, source.read, source.name, shrink_to=32)
    encoded = [source.encoded(0), source.encoded(1)]
    images = DeviceDecoder(shrunk, CPU).decode(encoded, [0, 1], {})
    assert all(torch.equal(image, shrunk.decode(k)) for k, image in enumerate(images))
    assert images[0].shape == (3, 32, 48)


def test_a_device_decodes_few_large_files_at_a_time() -> None:
    sizes = [TOGETHER // 4] * 5 + [TOGETHER + 1, 1]
    encoded = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    assert list(_groups(list(range(7)), encoded)) == [[0, 1, 2, 3], [4], [5], [6]]
    assert list(_groups([], encoded)) == []


def test_the_default_is_where_the_smallest_crop_has_the_pixels_of_a_view() -> None:
    assert side_of(AugmentOptions()) == 792
    assert side_of(AugmentOptions(size=64, scale=(0.25, 1.0))) == 128
    assert side_of(AugmentOptions(shrink_to=0)) == 0
    assert "shrink_to" not in AugmentOptions().fused()
    wrong = dataclasses.replace(RECIPES["photos"], augment=AugmentOptions(shrink_to=-1))
    with pytest.raises(ConfigError, match="--shrink-to -1: pass an integer >= 0"):
        check(wrong)


@pytest.mark.parametrize("limit", [1, 40, 10_000])
@pytest.mark.parametrize("pin", [False, True])
def test_bytes_bound_what_is_read_ahead(limit: int, pin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where one image alone is above the limit; the order stays."""
    monkeypatch.setattr(chunks, "AHEAD_BYTES", limit)
    rooms: list[chunks.Room] = []
    most = [0]

    class Watched(chunks.Room):
        def __init__(self, limit: int):
            super().__init__(limit)
            rooms.append(self)

        def take(self, number: int, size: int, place) -> None:
            super().take(number, size, place)
            with self.changed:
                most[0] = max(most[0], sum(held for of, held in self.held.items() if of > self.due))

    monkeypatch.setattr(chunks, "Room", Watched)
    reader = ChunkReader(pictures(103), 3, pin_for=torch.device("cuda") if pin else None)
    read = [image for chunk in reader.read(lists(103, 10)) for image in chunk.images]
    assert len(read) == 103
    assert all(torch.equal(image, pictures(103).decode(index)) for index, image in enumerate(read))
    assert most[0] <= limit
    assert rooms[0].held == {}


def test_threads_that_wait_for_room_end_with_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "AHEAD_BYTES", 1)
    begun: list[int] = []
    read = ChunkReader(pictures(300, begun.append), 3).read(lists(300, 10))
    next(read)
    read.close()
    assert max(begun) < 100
