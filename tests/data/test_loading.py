"""Batches: from a resident array, and decoded by worker processes with bad images replaced."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torchvision.io import ImageReadMode, decode_image

from simclr_fast.config import ConfigError, DataOptions
from simclr_fast.data import EncodedImages, ImageArrays, build_loader, load_dataset
from simclr_fast.data.decode import ChunkReader, DataError, decode_on_device, load_or_replace
from simclr_fast.data.loading import CHUNK
from simclr_fast.data.sources import BadImageError
from tests.data.conftest import write_image

CPU = torch.device("cpu")


def test_array_batches_hold_the_images_of_their_indices() -> None:
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 4, 4)
    loader = build_loader(ImageArrays(images), 6, seed=1, device=CPU, options=DataOptions())
    batches = list(loader.epoch(0))
    assert len(batches) == 3
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
    resumed = list(loader.epoch(0, start=2))
    assert len(resumed) == 1
    assert torch.equal(resumed[0].indices, batches[2].indices)
    assert list(loader.epoch(0, start=3)) == []


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size 21: the data set has only 20"):
        build_loader(ImageArrays(torch.zeros(20, 1, 2, 2, dtype=torch.uint8)), 21, 0, CPU, DataOptions())


def folder_loader(root: Path, batch_size: int, **changes):
    options = dataclasses.replace(DataOptions(dataset="imagefolder", data_dir=root, workers=0), **changes)
    source = load_dataset(options).train
    return source, build_loader(source, batch_size, seed=0, device=CPU, options=options)


@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_batches_are_the_decoded_files(folder_root: Path, workers: int) -> None:
    source, loader = folder_loader(folder_root, 5, workers=workers)
    for epoch in range(2):  # persistent workers serve the second epoch too
        batches = list(loader.epoch(epoch))
        assert len(batches) == 3
        for batch in batches:
            assert len(batch.images) == 5
            for image, index in zip(batch.images, batch.indices.tolist()):
                expected = decode_image(str(source.read.__self__.paths[index]), mode=ImageReadMode.RGB)
                assert torch.equal(image, expected)


def test_batches_larger_than_a_chunk_keep_their_order(tmp_path: Path) -> None:
    for i in range(CHUNK + 10):
        write_image(tmp_path / f"{i:03d}.jpg", 8 + i % 5, 8 + i % 7, seed=i)
    source, loader = folder_loader(tmp_path, CHUNK + 6)
    (batch,) = list(loader.epoch(0))
    assert [tuple(i.shape) for i in batch.images] == [tuple(source.decoded(k).shape) for k in batch.indices.tolist()]


def test_bad_images_are_named_replaced_and_counted(folder_root: Path, caplog) -> None:
    broken = folder_root / "train" / "cat" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:40])
    source, loader = folder_loader(folder_root, 16, max_bad_images=0.1)
    with caplog.at_level(logging.WARNING):
        (batch,) = list(loader.epoch(0))
        (again,) = list(loader.epoch(0))
    assert caplog.text.count(str(broken)) == 1, "told once"
    assert list(loader.bad) == [3]
    place = batch.indices.tolist().index(3)
    replacement = (3 + 7919) % 16
    assert torch.equal(batch.images[place], source.decoded(replacement))
    assert all(torch.equal(a, b) for a, b in zip(batch.images, again.images)), "the same replacement every time"


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_images_fail_the_run(folder_root: Path, workers: int) -> None:
    for i in (1, 2, 3):
        (folder_root / "train" / "dog" / f"{i}.jpg").write_bytes(b"no image")
    _, loader = folder_loader(folder_root, 16, max_bad_images=0.15, workers=workers)
    with pytest.raises(DataError, match=r"3 unreadable images, more than --max-bad-images"):
        list(loader.epoch(0))


def test_missing_and_empty_files_are_bad_images(folder_root: Path) -> None:
    source, _ = folder_loader(folder_root, 16)
    paths = source.read.__self__.paths
    paths[0].unlink()
    paths[1].write_bytes(b"")
    for index in (0, 1):
        with pytest.raises(BadImageError, match=str(paths[index])):
            source.decoded(index)


def test_nothing_readable_ends_the_search() -> None:
    def fail(index: int) -> torch.Tensor:
        raise BadImageError(f"file {index}: broken")

    with pytest.raises(DataError, match="10 unreadable images in a row, the last: file"):
        load_or_replace(fail, 0, 100, {})


def test_batched_decoder_agrees_and_passes_on_what_it_refuses(folder_root: Path) -> None:
    source, _ = folder_loader(folder_root, 16)
    (folder_root / "train" / "cat" / "5.jpg").write_bytes(b"broken")
    indices = list(range(8))  # 0 is PNG, which the JPEG decoder refuses; 5 is broken
    encoded = ChunkReader(source, decode=False).__getitems__(indices).images()
    bad: dict[int, str] = {}
    images = decode_on_device(encoded, indices, source, CPU, bad)
    assert list(bad) == [5]
    for index in (0, 1, 2, 3, 4, 6, 7):
        assert torch.equal(images[index], source.decoded(index))


def test_encoded_source_pickles_for_workers(folder_root: Path) -> None:
    import pickle

    source, _ = folder_loader(folder_root, 16)
    copy: EncodedImages = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.decoded(2), source.decoded(2))
