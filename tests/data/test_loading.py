"""Batches: from a resident array, and decoded by threads with bad images replaced."""

import dataclasses
import gc
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torchcodec import decoders

from simclr_fast.config import DataOptions
from simclr_fast.data import Batch, EncodedImages, ImageArrays, build_loader, load_dataset
from simclr_fast.data.chunks import CHUNK
from simclr_fast.data.decode import DeviceDecoder
from simclr_fast.data.loading import EncodedLoader, ReadingLoader
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.data.unreadable import BadImageError, BadImages, load_or_replace
from simclr_fast.errors import ConfigError, DataError
from tests.data.conftest import write_image

CPU = torch.device("cpu")


def test_array_batches_hold_the_images_of_their_indices() -> None:
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 4, 4)
    loader = build_loader(ImageArrays(images), 6, seed=1, device=CPU, options=DataOptions())
    batches = list(loader.epoch(0))
    assert len(batches) == 3
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
        assert torch.equal(loader.images[batch.rows], batch.images)
    resumed = list(loader.epoch(0, start=2))
    assert len(resumed) == 1
    assert torch.equal(resumed[0].indices, batches[2].indices)
    assert list(loader.epoch(0, start=3)) == []


def test_arrays_are_told_apart_by_their_pixels_and_taken_by_their_numbers() -> None:
    images = torch.arange(24, dtype=torch.uint8).view(4, 1, 2, 3)
    source = ImageArrays(images, torch.tensor([3, 2, 1, 0]))
    assert (len(source), source.channels, source.name(2)) == (4, 1, "image 2")
    assert source.read(1) == bytes(range(6, 12))
    assert torch.equal(source.decode(3), images[3])
    part = source.subset(torch.tensor([2, 0]))
    assert (part.labels.tolist(), part.read(0)) == ([1, 3], source.read(2))
    assert part.identity(0) == source.identity(2) != source.identity(1)
    assert ImageArrays(images).subset(torch.tensor([2])).labels is None


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size 21: the data set has only 20"):
        build_loader(ImageArrays(torch.zeros(20, 1, 2, 2, dtype=torch.uint8)), 21, 0, CPU, DataOptions())


def folder_loader(root: Path, batch_size: int, **changes):
    options = dataclasses.replace(DataOptions(dataset="imagefolder", data=root, workers=0), **changes)
    source = load_dataset(options).train
    return source, build_loader(source, batch_size, seed=0, device=CPU, options=options)


@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_batches_are_the_decoded_files(folder_root: Path, workers: int) -> None:
    source, loader = folder_loader(folder_root, 5, workers=workers)
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        assert len(batches) == 3
        for batch in batches:
            assert len(batch.images) == 5
            for image, index in zip(batch.images, batch.indices.tolist()):
                assert torch.equal(image, decoders.decode_image(source.name(index)))


def test_batches_larger_than_a_chunk_keep_their_order(tmp_path: Path) -> None:
    for i in range(CHUNK + 10):
        write_image(tmp_path / f"{i:03d}.jpg", 8 + i % 5, 8 + i % 7, seed=i)
    source, loader = folder_loader(tmp_path, CHUNK + 6)
    (batch,) = list(loader.epoch(0))
    assert [tuple(i.shape) for i in batch.images] == [tuple(source.decode(k).shape) for k in batch.indices.tolist()]


def test_bad_images_are_named_replaced_and_counted(folder_root: Path, caplog) -> None:
    broken = folder_root / "train" / "dog" / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    source, loader = folder_loader(folder_root, 16, max_bad_images=0.1)
    with caplog.at_level(logging.WARNING):
        (batch,) = list(loader.epoch(0))
        (again,) = list(loader.epoch(0))
    assert caplog.text.count(str(broken)) == 1, "told once"
    assert list(loader.bad.messages) == [str(broken)]
    place = batch.indices.tolist().index(8)
    replacement = 8 + (0 + 7919) % 8  # among the eight dogs
    assert torch.equal(batch.images[place], source.decode(replacement))
    assert all(torch.equal(a, b) for a, b in zip(batch.images, again.images)), "the same replacement every time"


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_images_fail_the_run(folder_root: Path, workers: int) -> None:
    for i in (1, 2, 3):
        (folder_root / "train" / "dog" / f"{i}.jpg").write_bytes(b"no image")
    _, loader = folder_loader(folder_root, 16, max_bad_images=0.12, workers=workers)
    with pytest.raises(DataError, match=r"3 unreadable images, more than --max-bad-images"):
        list(loader.epoch(0))


def test_missing_and_empty_files_are_bad_images(folder_root: Path) -> None:
    source, _ = folder_loader(folder_root, 16)
    Path(source.name(0)).unlink()
    Path(source.name(1)).write_bytes(b"")
    for index in (0, 1):
        with pytest.raises(BadImageError, match=source.name(index)):
            source.decode(index)


def test_nothing_readable_ends_the_search() -> None:
    def fail(index: int) -> torch.Tensor:
        raise BadImageError(f"file {index}: broken")

    with pytest.raises(DataError, match="10 unreadable images in a row, the last: file"):
        load_or_replace(fail, 0, 100, {})


def encoded_images(source: EncodedImages, indices: list[int]) -> list[torch.Tensor]:
    return [source.encoded(index) for index in indices]


def test_batched_decoder_agrees_and_counts_what_it_passes_on(folder_root: Path, caplog) -> None:
    source, _ = folder_loader(folder_root, 16)
    (folder_root / "train" / "cat" / "5.jpg").write_bytes(b"broken")
    (folder_root / "train" / "cat" / "6.jpg").write_bytes(b"\xff\xd8\xff broken as well")
    indices = list(range(8))  # 0 is PNG
    bad: dict[int, str] = {}
    decoder = DeviceDecoder(source, CPU)
    images = decoder.decode(encoded_images(source, indices), indices, bad)
    assert sorted(bad) == [5, 6]
    assert decoder.on_cpu == 3
    assert caplog.text.count("0.png is no JPEG: decoded on the CPU") == 1
    assert caplog.text.count("6.jpg is refused by the GPU's decoder (") == 1
    assert "5.jpg" not in caplog.text, "one of a kind is told"
    for index in (0, 1, 2, 3, 4, 7):
        assert torch.equal(images[index], source.decode(index))


def test_device_that_decodes_nothing_is_refused(folder_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torchcodec was built without nvJPEG: training must not go on with the CPU's decoder unasked."""

    def no_nvjpeg(*_, **__):
        raise RuntimeError("decode_jpeg: torchcodec was not compiled with nvJPEG support, so\nsome stack")

    source, _ = folder_loader(folder_root, 16)
    monkeypatch.setattr(decoders, "decode_jpeg", no_nvjpeg)
    with pytest.raises(ConfigError, match=r"^--decode-device cpu: .*not compiled with nvJPEG support, so\); use cpu$"):
        DeviceDecoder(source, CPU)


def test_decoder_that_breaks_in_mid_run_ends_it(folder_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    source, _ = folder_loader(folder_root, 16)
    decoder = DeviceDecoder(source, CPU)
    monkeypatch.setattr(decoders, "decode_jpeg", broken)
    with pytest.raises(DataError, match=r"decodes no JPEG any more \(CUDA error: an illegal memory access"):
        decoder.decode(encoded_images(source, [1, 2, 3]), [1, 2, 3], {})
    assert decoder.on_cpu == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_counts_what_the_gpu_did_not_decode(folder_root: Path, workers: int) -> None:
    """The CPU stands in for the GPU: two of the 16 images are PNG."""
    options = DataOptions(dataset="imagefolder", data=folder_root, workers=workers, decode_device="cuda")
    source = load_dataset(options).train
    loader = EncodedLoader(source, EpochSampler(16, 8, seed=0), CPU, options)
    for batch in loader.epoch(0):
        for image, index in zip(batch.images, batch.indices.tolist()):
            assert torch.equal(image, source.decode(index))
    assert loader.gpu_decode_fallbacks == 2
    assert len(loader.bad) == 0


def test_gpu_decoding_without_a_gpu_is_refused(folder_root: Path) -> None:
    with pytest.raises(ConfigError, match="--decode-device cuda: training runs on cpu; use cpu"):
        folder_loader(folder_root, 16, decode_device="cuda")


def test_all_of_a_batch_is_kept_until_the_step_has_read_it(folder_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for CUDA: memory of the side stream that the step's stream reads is recorded on it, indices too."""
    _, loader = folder_loader(folder_root, 16)
    moved, current, recorded = object(), Mock(), Mock()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    loader._ready(Batch([recorded.first, recorded.second], recorded.indices), moved)
    current.wait_event.assert_called_once_with(moved)
    for tensor in (recorded.first, recorded.second, recorded.indices):
        tensor.record_stream.assert_called_once_with(current)


def test_a_step_waits_for_the_copies_of_its_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for those of the batch after it, which are queued on the side stream before it begins."""
    queued: list[int] = []  # copies on the side stream, by their step
    waited: list[list[int]] = []
    side = Mock(record_event=lambda: list(queued))
    current = Mock(wait_event=waited.append, wait_stream=lambda stream: waited.append(list(queued)))

    class Loader(ReadingLoader):
        def _reading(self, steps: list[torch.Tensor]) -> Iterator[int]:
            yield from range(len(steps))

        def _to_device(self, chunks: Iterator[int], indices: torch.Tensor) -> Batch:
            queued.append(next(chunks))
            return Batch(Mock(), Mock())

    loader = Loader(EpochSampler(12, 3, 0), CPU, BadImages())
    monkeypatch.setattr(loader, "stream", side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    begun = [list(queued) for _ in loader.epoch(0)]
    assert begun == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]], "one batch is moved ahead"
    assert waited == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_files_cannot_lie_on_the_devices(folder_root: Path) -> None:
    with pytest.raises(ConfigError, match="--resident on: only a raw packed set can lie on the devices; pack with"):
        folder_loader(folder_root, 16, resident="on")


def test_subset_of_encoded_images_renumbers() -> None:
    files = [f"image {i}".encode() for i in range(5)]
    ways = {"identity": "is {}".format, "file": "file {}".format}
    source = EncodedImages(5, files.__getitem__, "name {}".format, labels=torch.arange(5), shrink_to=7, **ways)
    part = source.subset(torch.tensor([4, 1]))
    assert (len(part), part.read(0), part.read(1), part.name(1)) == (2, files[4], files[1], "name 1")
    assert (part.identity(0), part.file(1), part.shrink_to) == ("is 4", "file 1", 7)
    without = dataclasses.replace(source, identity=None, file=None).subset(torch.tensor([0]))
    assert (without.identity, without.file) == (None, None)
    assert part.labels.tolist() == [4, 1]
    again = part.subset(torch.tensor([1]))
    assert (len(again), again.read(0), again.labels.tolist()) == (1, files[1], [1])


def test_nothing_but_broken_files_is_told_in_one_line(folder_root: Path) -> None:
    _, loader = folder_loader(folder_root, 16, max_bad_images=1.0, workers=1)
    for path in folder_root.rglob("*.*g"):
        path.write_bytes(b"broken")
    said = r"10 unreadable images in a row, the last: .*/\d\..*g: Unsupported image file.*"
    with pytest.raises(DataError) as raised:
        list(loader.epoch(0))
    assert re.fullmatch(said, str(raised.value))
    assert len(loader.bad.messages) == 10, "each of them is named"


def test_a_resumed_epoch_is_the_rest_of_it(folder_root: Path) -> None:
    _, loader = folder_loader(folder_root, 4, workers=2)
    whole = list(loader.epoch(1))
    rest = list(loader.epoch(1, start=2))
    assert len(rest) == 2
    for batch, again in zip(whole[2:], rest):
        assert torch.equal(batch.indices, again.indices)
        assert all(torch.equal(a, b) for a, b in zip(batch.images, again.images))


def readers_alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader ")]


def test_threads_end_with_the_epoch_however_it_ends(folder_root: Path) -> None:
    _, loader = folder_loader(folder_root, 4, workers=3)
    list(loader.epoch(0))
    assert readers_alive() == []
    batches = loader.epoch(0)
    next(batches)
    assert len(readers_alive()) == 3
    batches.close()
    assert readers_alive() == []
    batches = loader.epoch(0)
    next(batches)
    del batches
    assert readers_alive() == []
    with pytest.raises(KeyboardInterrupt):
        _stopped_by_its_user(loader)
    gc.collect()
    assert readers_alive() == []


def _stopped_by_its_user(loader: EncodedLoader) -> None:
    for _ in loader.epoch(0):
        raise KeyboardInterrupt


def test_two_epochs_at_once_do_not_meet(folder_root: Path) -> None:
    source, loader = folder_loader(folder_root, 4, workers=2)
    for first, second in zip(loader.epoch(0), loader.epoch(1), strict=True):
        for batch in (first, second):
            for image, index in zip(batch.images, batch.indices.tolist()):
                assert torch.equal(image, source.decode(index))
