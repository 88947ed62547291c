"""Threads that work ahead, say what they are at, and end with whoever started them."""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias

# How long the end waits for threads: they stop at their next image, unless they hang in a file.
END_SECONDS = 5.0
# What waits to be worked on, with where its result goes; None ends a thread.
Tasks: TypeAlias = "queue.SimpleQueue[tuple[Future, Any] | None]"


class EndedError(Exception):
    """The thread was asked to end; nobody waits for its result."""


class Work(NamedTuple):
    """What was done at all places of this process: images, and the seconds that they took, by the clock and of CPU."""

    images: int
    busy: float
    cpu: float


_done = Work(0, 0.0, 0.0)
_lock = threading.Lock()


def work_done() -> Work:
    """The work on all images that are finished."""
    return _done


class Place:
    """Which image a thread is at, and since when."""

    def __init__(self) -> None:
        self.index: int | None = None
        self.since = 0.0
        self.cpu = 0.0
        self.ended = False

    def enter(self, index: int) -> int:
        """Note that this image is begun, and return it. Raises EndedError where the thread is to end."""
        if self.ended:
            raise EndedError
        self._finish()
        self.cpu = time.thread_time()
        self.since, self.index = time.monotonic(), index
        return index

    def leave(self) -> None:
        """Note that no image is being read."""
        self._finish()
        self.index = None

    def _finish(self) -> None:
        global _done
        if self.index is None:
            return
        busy, cpu = time.monotonic() - self.since, time.thread_time() - self.cpu
        with _lock:
            _done = Work(_done.images + 1, _done.busy + busy, _done.cpu + cpu)


class Threads:
    """So many threads, which do `work(item, place)` for each item that is started, in that order.

    They end at `end()`, when this object is forgotten and when the program exits: as daemons, because one that hangs in
    a file cannot be ended and must not keep the program from exiting.
    """

    def __init__(self, work: Callable[[Any, Place], Any], count: int):
        self._todo: Tasks = queue.SimpleQueue()
        self._places = [Place() for _ in range(count)]
        # They know nothing of this object, which would never be forgotten otherwise.
        self.threads = [
            threading.Thread(target=_serve, args=(self._todo, work, place), name=f"reader {k}", daemon=True)
            for k, place in enumerate(self._places)
        ]
        for thread in self.threads:
            thread.start()
        self.end = weakref.finalize(self, _end, self._todo, self._places, self.threads)

    def start(self, item: Any) -> Future:
        """Have an item worked on; its result, or what `work` raised."""
        result: Future = Future()
        self._todo.put((result, item))
        return result

    def at(self) -> list[tuple[int, float]]:
        """The images that threads are at, and for how many seconds."""
        now = time.monotonic()
        # A thread may leave its place meanwhile: the index is looked at once.
        return [(index, now - place.since) for place in self._places if (index := place.index) is not None]


def done_at(place: Place, work: Callable[[Any, Place], Any], item: Any) -> Any:
    """What `work` makes of an item at a place, where no image is being read afterwards."""
    try:
        return work(item, place)
    finally:
        place.leave()


def _serve(todo: Tasks, work: Callable[[Any, Place], Any], place: Place) -> None:
    while (task := todo.get()) is not None:
        result, item = task
        try:
            result.set_result(done_at(place, work, item))
        except BaseException as error:  # whatever it is, it is for whoever waits for the result
            result.set_exception(error)
        del task, result, item  # the images must not lie in memory until the next ones are begun


def _end(todo: Tasks, places: list[Place], threads: list) -> None:
    for place in places:
        place.ended = True
    for _ in threads:
        todo.put(None)
    latest = time.monotonic() + END_SECONDS
    for thread in threads:
        thread.join(max(0.0, latest - time.monotonic()))
