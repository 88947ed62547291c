"""Raw packed sets in batches: read by threads, or held by one process, or by several, each its share."""

import dataclasses
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from simclr_fast.config import DataOptions
from simclr_fast.data import build_loader, resident
from simclr_fast.data.chunks import CHUNK
from simclr_fast.data.loading import StoredLoader
from simclr_fast.data.messages import size_text
from simclr_fast.data.resident import ShareLoader, lies_on_device, owners, share_rows
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.data.stored import KeptMemory, Records, StoredImages
from simclr_fast.errors import ConfigError
from tests.gloo_ranks import on_ranks

CPU = torch.device("cpu")
SHAPE = (5, 4, 3)


def stored(folder: Path, count: int) -> StoredImages:
    """Images of noise in one file."""
    images = np.random.default_rng(count).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    path = folder / "images"
    if not path.exists():
        path.write_bytes(images.tobytes())
    size = images[0].size
    checksums = np.array([zlib.crc32(image.data) for image in images])
    records = Records([path], [0], size * np.arange(count), np.full(count, size), checksums)
    return StoredImages(records, SHAPE, torch.arange(count))


def loader(source: StoredImages, batch: int, kind: str, threads: int = 2, rank: int = 0, world: int = 1):
    options = DataOptions(resident=kind, workers=threads)
    return build_loader(source, batch, 3, CPU, options, rank, world)


def test_memory_is_handed_out_again_once_nothing_refers_to_it() -> None:
    memory = KeptMemory()
    first, second = memory.empty(100), memory.empty(100)
    place = first.data_ptr()
    part = first.view(2, 50)[1:].permute(1, 0)
    del first
    assert not memory.free, "a part of it is in use"
    del part
    again = memory.empty(60)
    assert (again.data_ptr(), len(again), len(memory.free)) == (place, 60, 0)
    del again, second
    assert len(memory.free) == 2
    assert len(memory.empty(101)) == 101, "larger than any before"
    assert [len(kept) for kept in memory.free] == [100, 101]


@pytest.mark.parametrize("kind", ["on", "off"])
@pytest.mark.parametrize("threads", [0, 3])
def test_batches_hold_the_images_of_their_indices(kind: str, threads: int, tmp_path: Path) -> None:
    source = stored(tmp_path, 3 * CHUNK)
    batches = loader(source, CHUNK + 9, kind, threads)
    assert isinstance(batches, ShareLoader if kind == "on" else StoredLoader)
    sampler = EpochSampler(len(source), CHUNK + 9, seed=3)
    for epoch in (0, 1):
        found = list(batches.epoch(epoch))
        assert [batch.indices.tolist() for batch in found] == [step.tolist() for step in sampler.steps(epoch)]
        for batch in found:
            assert torch.equal(batch.images, source.take(batch.indices))
    (last,) = list(batches.epoch(1, start=1))
    assert torch.equal(last.images, found[1].images)
    assert list(batches.epoch(1, start=2)) == []


def test_where_images_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path, 100)
    decide = lambda kind, device="cuda": lies_on_device(
        source, EpochSampler(100, 10, 0), torch.device(device), DataOptions(resident=kind)
    )
    assert (decide("auto", "cpu"), decide("off", "cpu"), decide("on", "cpu")) == (False, False, True)
    real = torch.tensor
    monkeypatch.setattr(resident.torch, "tensor", lambda value, device: real(value))
    needed = 100 * source.image_bytes
    for free, wanted in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert decide("auto") is wanted
        assert decide("off") is False
        assert decide("on") is True
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed - 1, 0))
    with pytest.raises(ConfigError, match=r"--resident on: the images take 0.0 MB of each device, and on this"):
        decide("on")


def test_what_the_host_has_no_memory_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its free memory, which the processes of a machine share, or where a limit on the process shows."""
    source = stored(tmp_path, 100)
    (tmp_path / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable:      6 kB\n")
    monkeypatch.setattr(resident, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(resident, "CONTAINER", tmp_path)
    assert isinstance(loader(source, 5, "on"), ShareLoader)
    assert isinstance(loader(source, 5, "auto"), StoredLoader)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--resident on: the images take 0.0 MB of each device"):
        loader(source, 5, "on")
    assert isinstance(loader(source, 5, "auto"), StoredLoader)
    monkeypatch.setattr(resident, "MEMORY_INFO", tmp_path / "none")
    huge = dataclasses.replace(source, shape=(1 << 20, 1 << 20, 3))
    with pytest.raises(ConfigError, match=r"the images take 329853.5 GB of cpu, which it does not give; pass --res"):
        loader(huge, 5, "on")


@pytest.mark.parametrize(("limit", "free"), [("max", 6 << 10), ("10000", 5100), ("100000", 6 << 10)])
def test_a_container_has_what_its_limit_leaves(limit: str, free: int, tmp_path: Path, monkeypatch) -> None:
    """Of files in the cache, what was not used of late."""
    contents = {"max": limit, "current": "5000", "stat": "anon 4000\nfile 800\ninactive_file 100"}
    for name, text in contents.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable:      6 kB\n")
    monkeypatch.setattr(resident, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(resident, "CONTAINER", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert resident.free_bytes(CPU) == free


@pytest.mark.parametrize(("count", "said"), [(1.5e9, "1.5 GB"), (999e6, "999.0 MB"), (60e3, "0.1 MB")])
def test_sizes_are_told_in_units_that_show_them(count: float, said: str) -> None:
    assert size_text(count) == said


@pytest.mark.parametrize(("size", "batch", "world"), [(103, 12, 4), (96, 12, 4), (7, 6, 3), (50, 4, 2), (5, 5, 1)])
def test_shares_are_equal_and_hold_what_is_trained_on(size: int, batch: int, world: int) -> None:
    for epoch in range(3):
        samplers = [EpochSampler(size, batch, 5, rank, world) for rank in range(world)]
        owner = owners(samplers[0], epoch)
        counts = torch.bincount(owner, minlength=world)
        assert counts.max() - counts.min() <= 1
        assert counts.max() + (world if world > 1 else 0) == share_rows(size, world)
        for sampler in samplers:
            assert all((owner[step] == sampler.rank).all() for step in sampler.steps(epoch))


SIZE, BATCH = 131, 12
PLAN = ((0, 0), (1, 0), (2, 4), (5, 0))  # epochs, and the step that each begins with


def epochs_of(folder: Path, rank: int, world: int) -> dict:
    """(indices, images) of every step of the plan, and which images were read; where they lie is checked.

    Exchanged in many rounds.
    """
    source = stored(folder, SIZE)
    reads: list[int] = []
    read_into = source.records.read_into
    source.records.read_into = lambda number, buffer: (reads.append(number), read_into(number, buffer))[1]
    batches = ShareLoader(source, EpochSampler(SIZE, BATCH, 3, rank, world), CPU, threads=2, exchanged_bytes=5 * 60)
    address = batches.images.data_ptr()
    steps = []
    for epoch, start in PLAN:
        for step in batches.epoch(epoch, start):
            assert torch.equal(step.images, batches.images[step.rows])
            steps.append((step.indices, step.images))
        held = (batches.row >= 0).nonzero().flatten()
        assert torch.equal(held, (owners(batches.sampler, epoch) == rank).nonzero().flatten())
        assert sorted(batches.row[held].tolist() + batches.empty_rows) == list(range(len(batches.images)))
    assert batches.images.data_ptr() == address
    return {"steps": steps, "reads": torch.tensor(reads)}


def judge(folder: Path, ranks: list[dict]) -> None:
    """What the ranks together saw is what one process sees that reads each batch from the file."""
    reads = torch.cat([rank["reads"] for rank in ranks])
    assert torch.equal(reads.sort().values, torch.arange(SIZE)), "each image is read once, by one process"
    alone = loader(stored(folder, SIZE), BATCH, "off")
    steps = [step for epoch, start in PLAN for step in alone.epoch(epoch, start)]
    assert all(len(rank["steps"]) == len(steps) for rank in ranks)
    for number, step in enumerate(steps):
        parts = [rank["steps"][number] for rank in ranks]
        assert torch.equal(torch.cat([indices for indices, _ in parts]), step.indices)
        assert torch.equal(torch.cat([images for _, images in parts]), step.images)


def decided_and_epochs_of(folder: Path, rank: int, world: int) -> dict:
    """As `epochs_of`, of processes that agree first whether they hold the images; the second one may have no memory."""
    source, needed = stored(folder, SIZE), 3 * resident.EXCHANGED_BYTES
    resident.free_bytes = lambda _: needed * (rank == 0)
    said = ""
    try:
        loader(source, BATCH, "on", rank=rank, world=world)
    except ConfigError as error:
        said = str(error)
    resident.free_bytes = lambda _: needed
    assert isinstance(loader(source, BATCH, "on", rank=rank, world=world), ShareLoader)
    return epochs_of(folder, rank, world) | {"said": said}


def test_two_processes_see_the_order_of_one(tmp_path: Path) -> None:
    ranks = on_ranks(partial(decided_and_epochs_of, tmp_path), 2, tmp_path)
    for rank, free in zip(ranks, ("201.3 MB", "0.0 MB"), strict=True):
        assert "--resident on: the images take 134.2 MB of each device" in rank["said"], "with room for the exchange"
        assert f"on this or another device less is free (here {free})" in rank["said"]
    judge(tmp_path, ranks)


@pytest.mark.parametrize("world", [3, 4, 6])
def test_many_ranks_see_the_order_of_one(world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads in the place of processes: with more than two, more may arrive than have left."""
    stored(tmp_path, SIZE)
    ranks = threading.local()
    mail: dict[tuple[int, int], torch.Tensor] = {}
    barrier = threading.Barrier(world)

    def all_to_all(out: torch.Tensor, sent: torch.Tensor, out_sizes: list[int], sent_sizes: list[int]) -> None:
        mail.update({(ranks.own, other): part for other, part in enumerate(sent.split(sent_sizes))})
        barrier.wait(60)
        out.copy_(torch.cat([mail[other, ranks.own] for other in range(world)]))
        assert [len(mail[other, ranks.own]) for other in range(world)] == out_sizes
        barrier.wait(60)

    def work(rank: int) -> dict:
        ranks.own = rank
        return epochs_of(tmp_path, rank, world)

    monkeypatch.setattr(resident.dist, "all_to_all_single", all_to_all)
    with ThreadPoolExecutor(world) as pool:
        judge(tmp_path, list(pool.map(work, range(world))))


def test_parts_of_a_set_are_held_as_well(tmp_path: Path) -> None:
    part = dataclasses.replace(stored(tmp_path, 40), labels=torch.arange(40)).subset(torch.arange(39, 0, -3))
    assert part.labels.tolist() == part.numbers.tolist() == list(range(39, 0, -3))
    whole = stored(tmp_path, 40)
    assert (part.identity(1), part.name(1), part.read(1)) == (whole.identity(36), whole.name(36), whole.read(36))
    assert (part.channels, part.image_bytes, torch.equal(part.decode(1), whole.decode(36))) == (3, 60, True)
    for kind in ("on", "off"):
        for batch in loader(part, 5, kind).epoch(0):
            assert torch.equal(batch.images, part.take(batch.indices))
