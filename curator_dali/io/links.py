"""The way to a store: its round trip and bandwidth as requests show them, and files that are read ahead over it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

CONNECTIONS = 16  # requests of one process to one store at the same time, when files are gone through

_FIRST_ROUND_TRIP, _FIRST_BANDWIDTH = 0.03, 50e6  # seconds and bytes a second, until requests have shown better ones
_ROUND_TRIPS = (1e-4, 2.0)  # the least and the most that is believed
_BANDWIDTHS = (1e6, 1e10)
SAMPLE = 2 << 20  # bytes of a piece that tells the bandwidth
_SHORT = 96 << 10  # bytes: up to here an answer tells the round trip
_ROUND_TRIPS_KEPT, _BANDWIDTHS_KEPT = 128, 9  # the latest answers of each kind
_ENOUGH = 3  # answers before they count
_QUANTILE = 8  # the eighth of the round trips that were shorter: others waited in a queue, too
_STALE = 32  # short answers since a long one, after which the bandwidth may have been another
_NEAR = 8.0  # times the break-even: a longer way is passed over whatever the bandwidth is now


class Link:
    """Estimates of one host, from the bytes and seconds of its answers. Thread-safe.

    Attributes:
        distance: Bytes between members of the tars that were scanned last; 0 where there were none.
    """

    def __init__(self) -> None:
        self.distance = 0.0
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS_KEPT)
        self._bandwidths: deque[float] = deque(maxlen=_BANDWIDTHS_KEPT)
        self._short = 0  # answers since the last long one

    @property
    def round_trip(self) -> float:
        """Seconds from a request to the first byte of its answer."""
        found = sorted(self._round_trips)
        if len(found) < _ENOUGH:
            return _FIRST_ROUND_TRIP
        return min(max(found[len(found) // _QUANTILE], _ROUND_TRIPS[0]), _ROUND_TRIPS[1])

    @property
    def bandwidth(self) -> float:
        """Bytes a second of one connection, beside all others that were in use."""
        found = sorted(self._bandwidths)
        if len(found) < _ENOUGH:
            return _FIRST_BANDWIDTH
        return min(max(found[len(found) // 2], _BANDWIDTHS[0]), _BANDWIDTHS[1])

    @property
    def break_even(self) -> int:
        """Bytes that come in the time of a round trip: a longer way is cheaper to pass over than to read."""
        return int(self.round_trip * self.bandwidth)

    def is_sample_due(self, distance: float) -> bool:
        """Whether a longer piece than is needed should be read, so that the bandwidth is known; true once.

        It matters where the distance between members is not much above the break-even.
        """
        if self._short <= _STALE or distance > _NEAR * self.break_even:
            return False
        self._short = 0
        return True

    def add(self, size: int, seconds: float) -> None:
        """Count an answer of `size` bytes that took so many seconds."""
        if size <= _SHORT:
            self._short += 1
            self._round_trips.append(seconds)
        elif size >= SAMPLE:
            self._short = 0
            # a long answer that took hardly longer than a round trip tells little: it counts as a fifth of its time
            self._bandwidths.append(size / max(seconds - self.round_trip, seconds / 5, 1e-9))


_links: dict[str, Link] = {}


def link_to(url: str) -> Link:
    """Return the link to the host, or bucket, of a URL; one for the whole process."""
    parts = urlsplit(url.rpartition("::")[2])
    return _links.setdefault(f"{parts.scheme}://{parts.netloc}", Link())


class Connections:
    """A limit of requests at the same time, and threads that wait for their answers. Survives forks and pickling."""

    def __init__(self) -> None:
        self._threads = _Threads()
        self.readers = 0

    def __reduce__(self) -> tuple[type[Connections], tuple[()]]:
        return Connections, ()

    def ask(self, url: str, function: Callable[[], T]) -> T:
        """Call a function that asks a store, once a connection is free; its time counts for the link.

        Args:
            url: What is asked for.
            function: Returns the bytes that were read, or what is known of a file.
        """
        link = link_to(url)
        with self._current().free:
            begun = time.perf_counter()
            found = function()
            link.add(len(found) if isinstance(found, bytes) else 0, time.perf_counter() - begun)
        return found

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function, which calls `ask`, on a thread."""
        return self._current().pool.submit(function, *arguments)

    def close(self) -> None:
        """Let the threads go; they come back when they are needed."""
        threads, self._threads = self._threads, _Threads()
        if threads.pid == os.getpid() and "pool" in vars(threads):
            threads.pool.shutdown(wait=False, cancel_futures=True)

    def _current(self) -> _Threads:
        if self._threads.pid != os.getpid():  # a fork has no threads, and locks as they were
            self._threads, self.readers = _Threads(), 0
        return self._threads


class _Threads:
    """The threads of one process, and how many requests it may begin."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.free = threading.BoundedSemaphore(CONNECTIONS)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="curator-dali-ahead")


class RemoteReader:
    """Reads one remote file, `(offset, length) -> bytes`, and pieces of it ahead. Not thread-safe.

    Args:
        url: The file.
        read: The same without reading ahead; called on threads.
        connections: Shared with other readers, which share its number of requests.

    Attributes:
        link: What is known of the store.
    """

    def __init__(self, url: str, read: Callable[[int, int], bytes], connections: Connections) -> None:
        self.link = link_to(url)
        self._read, self._connections = read, connections
        self._waiting: dict[tuple[int, int], Future[bytes]] = {}
        connections.readers += 1

    def __call__(self, offset: int, length: int) -> bytes:
        """Read a range; less comes at the file's end.

        Raises:
            OSError: The range cannot be read, also after trying again.
            SourceError: The store fails.
        """
        future = self._waiting.pop((offset, length), None)
        return self._read(offset, length) if future is None else future.result()

    @property
    def room(self) -> int:
        """Number of pieces that may be on their way: this reader's share of the connections."""
        return max(CONNECTIONS // max(self._connections.readers, 1), 1)

    def read_ahead(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Begin to read pieces `(offset, length)`; those on their way that are not among them are given up."""
        wanted = set(pieces)
        for piece in [piece for piece in self._waiting if piece not in wanted]:
            self._waiting.pop(piece).cancel()
        for piece in pieces:
            if piece not in self._waiting:
                self._waiting[piece] = self._connections.submit(self._read, *piece)

    def close(self) -> None:
        """Give up what is on its way. May be called again."""
        if self._connections is not None:
            self.read_ahead(())
            self._connections.readers -= 1
            self._connections = None  # type: ignore[assignment]
