"""Chunks: in order whichever comes first, few at a time, buffered as they are, slow files named, threads that end."""

import dataclasses
import logging
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor

from simclr_fast.data import EncodedImages, chunks, threads
from simclr_fast.data.chunks import AHEAD, ChunkReader
from simclr_fast.data.unreadable import BadImageError

PATIENCE = 600  # seconds that no machine needs, however busy it is


def picture(index: int) -> Tensor:
    """An image whose size and pixels are its number's."""
    return torch.full((3, 1 + index % 5, 1 + index % 7), index % 251, dtype=torch.uint8)


@dataclasses.dataclass(frozen=True)
class Pictures(EncodedImages):
    """Images that cost nothing to decode; `before` is called first, with the number."""

    before: object = None

    def decode(self, index: int) -> Tensor:
        if self.before is not None:
            self.before(index)
        return picture(index)


def pictures(size: int, before=None) -> Pictures:
    return Pictures(size, lambda index: b"%d" % index, "picture {}".format, before=before)


def lists(size: int, each: int) -> list[Tensor]:
    return list(torch.arange(size).split(each))


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("pin", [False, True])
def test_chunks_come_in_order_whichever_is_ready_first(count: int, pin: bool) -> None:
    slow_at_first = lambda index: time.sleep(0.02 if index < 10 else 0.0)
    reader = ChunkReader(pictures(103, slow_at_first), count, pin_for=torch.device("cuda") if pin else None)
    before = threads.work_done()
    read = list(reader.read(lists(103, 10)))
    after = threads.work_done()
    assert after.images - before.images == 103
    busy, cpu = after.busy - before.busy, after.cpu - before.cpu
    assert busy >= 10 * 0.02
    assert 0 <= cpu <= busy - 0.9 * 10 * 0.02, "a thread that sleeps has no core"
    assert [len(chunk.images) for chunk in read] == [10] * 10 + [3]
    images = [image for chunk in read for image in chunk.to(torch.device("cpu"))]
    for index, image in enumerate(images):
        assert torch.equal(image, picture(index)), index
    assert all((chunk.buffer is not None) == pin for chunk in read)


def test_images_of_a_buffer_lie_one_after_the_other_as_decoded() -> None:
    """Channels last, and turned ones too, in a buffer that grows."""
    turned = torch.arange(60, dtype=torch.uint8).view(5, 4, 3).permute(2, 1, 0)
    planar = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    buffer = chunks.ChunkBuffer(7, pin=False)
    for image in (planar, turned, planar):
        buffer.add(image)
    assert buffer.filled().tolist() == [
        value for image in (planar, turned, planar) for value in image.permute(1, 2, 0).flatten().tolist()
    ]


def test_encoded_images_are_left_as_they_are() -> None:
    (chunk,) = ChunkReader(pictures(3), 1, decode=False, pin_for=torch.device("cuda")).read(lists(3, 3))
    assert [bytes(image.tolist()) for image in chunk.images] == [b"0", b"1", b"2"]
    assert chunk.buffer is None


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_than_two_chunks_a_thread_are_held(count: int) -> None:
    begun: list[int] = []
    read = ChunkReader(pictures(100, begun.append), count).read(lists(100, 5))
    for taken in range(1, 4):
        next(read)
        time.sleep(0.05)  # long enough to begin more, were that allowed
        most = taken - 1 + AHEAD * count
        assert max(begun) // 5 < most
    read.close()


def test_unreadable_images_are_replaced_in_threads_as_elsewhere() -> None:
    def before(index: int) -> None:
        if index == 4:
            raise BadImageError("picture 4: broken")

    here, there = ([*ChunkReader(pictures(20, before), count).read(lists(20, 6))] for count in (0, 2))
    assert [chunk.bad for chunk in here] == [chunk.bad for chunk in there] == [{4: "picture 4: broken"}, {}, {}, {}]
    for a, b in zip(here, there):
        assert all(torch.equal(one, other) for one, other in zip(a.images, b.images))


def test_a_defect_in_a_thread_is_raised_where_its_chunk_is_taken() -> None:
    def before(index: int) -> None:
        if index == 12:
            raise ZeroDivisionError("a defect")

    read = ChunkReader(pictures(20, before), 2).read(lists(20, 5))
    assert len(next(read).images) == len(next(read).images) == 5
    with pytest.raises(ZeroDivisionError, match="a defect"):
        next(read)


def test_a_file_that_hangs_is_named_and_waited_for(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(chunks, "SLOW_SECONDS", 0.1)
    released = threading.Event()
    read = ChunkReader(pictures(6, lambda index: index != 2 or released.wait(PATIENCE)), 2).read(lists(6, 3))

    def release() -> None:
        end = time.monotonic() + PATIENCE
        while "the run waits for" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.4)  # long enough to be named again, were it named every time
        released.set()

    watcher = threading.Thread(target=release)
    watcher.start()
    with caplog.at_level(logging.WARNING):
        assert [len(chunk.images) for chunk in read] == [3, 3]
    watcher.join()
    assert re.findall(r"the run waits for (.*), which takes \d+ s so far", caplog.text) == ["picture 2"]
    assert caplog.text.count("the run waits for") == 1


def test_the_end_waits_for_images_and_not_for_a_file_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "END_SECONDS", 0.2)
    released, reached, over = threading.Event(), threading.Event(), threading.Event()

    def before(index: int) -> None:
        if index == 7:
            reached.set()
            released.wait(PATIENCE)
            over.set()

    read = ChunkReader(pictures(10, before), 1).read(lists(10, 5))
    next(read)
    assert reached.wait(PATIENCE)
    read.close()
    assert not over.is_set()
    released.set()


def test_the_end_leaves_a_chunk_unfinished() -> None:
    begun: list[int] = []
    read = ChunkReader(pictures(405, lambda index: begun.append(index) or time.sleep(0.05)), 1).read(
        torch.arange(405).split([5, 400])
    )
    next(read)
    read.close()
    assert len(begun) < 405


def test_a_program_ends_in_the_middle_of_an_epoch() -> None:
    """With threads at work and nothing closed; the status is the program's own."""
    program = """
import sys, time, torch
from tests.data.test_chunks import ChunkReader, lists, pictures
read = ChunkReader(pictures(10000, lambda index: time.sleep(0.001)), 4).read(lists(10000, 50))
next(read)
sys.exit(7)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert (run.returncode, run.stderr) == (7, "")
