"""The threads of one pass over a source: readers (bytes and headers) and one that runs the decoder.

They keep a bounded number of batches under way, hand them over in order, and stop when the pass ends, is left or is
collected. An error in any of them comes out where the consumer takes its next batch.
"""

from __future__ import annotations

import logging
import queue
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curator_dali.dali import check_process, use_device
from curator_dali.decoding import Decoded, Decoder, Gated, gate
from curator_dali.sources import Source
from curator_dali.threads import Background, uninterrupted

__all__ = ["Pass"]

logger = logging.getLogger(__name__)


class Pass:
    """The threads of one pass. They hold no reference to the loader, so a forgotten loader stops them.

    Attributes:
        stopped: Whether the pass was stopped before its end.
    """

    stopped = False

    def __init__(
        self,
        reads: Iterator[NDArray[np.int64]],
        source: Source,
        decoder: Decoder,
        prefetch: int,
        members: bool,
        key: tuple[int, int] = (0, 0),
    ) -> None:
        self._shared = _Shared(prefetch + 1)  # one is the consumer's, until it asks for the next
        self._over = False
        self._lent = False
        with uninterrupted():
            self._thread = Background(
                _decode_all,
                reads, source, decoder, prefetch, members, key, self._shared,
                name="curator-dali-decode",
            )  # fmt: skip
            weakref.finalize(self, _stop, self._thread, self._shared)

    def take(self) -> Item | None:
        """The next decoded batch, or None at the end; raises what ended the threads."""
        check_process()  # a forked child has no threads to wait for
        if self._over or self._shared.stopping:
            return None
        if self._lent:
            self._shared.room.put(None)
        self._lent = True
        item = self._shared.ready.get()
        if item is None or isinstance(item, BaseException):
            self._over = True
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the threads and wait for them. May be called again, and must be if the waiting was interrupted."""
        self.stopped |= not self._over
        self._over = True
        _stop(self._thread, self._shared)


@dataclass
class Item:
    """A decoded batch, and what it cost its threads in seconds."""

    decoded: Decoded
    read_seconds: float
    gate_seconds: float
    decode_seconds: float


class _Shared:
    """What a pass's threads and its consumer tell each other by, at whatever moment an interrupt comes."""

    def __init__(self, room: int) -> None:
        self.ready: queue.SimpleQueue[Item | BaseException | None] = queue.SimpleQueue()
        self.room: queue.SimpleQueue[None] = queue.SimpleQueue()  # holds one for each batch that may be made
        for _ in range(room):
            self.room.put(None)
        self.stopping = False

    def has_room(self, wait: bool) -> bool:
        """Take the room for a batch."""
        try:
            self.room.get(block=wait)
        except queue.Empty:
            return False
        return True


def _stop(thread: Background, shared: _Shared) -> None:
    shared.stopping = True
    shared.room.put(None)
    thread.join()


def _read(source: Source, indices: NDArray[np.int64], members: bool, max_pixels: int) -> tuple[Gated, float, float]:
    began = time.perf_counter()
    encoded = source.read(indices, members=members)
    read = time.perf_counter()
    gated = gate(encoded, max_pixels)
    if gated.learnt:
        rows = np.array(gated.learnt)
        source.learn(encoded.indices[rows], encoded.headers[rows])
    return gated, read - began, time.perf_counter() - read


def _decode_all(
    reads: Iterator[NDArray[np.int64]],
    source: Source,
    decoder: Decoder,
    prefetch: int,
    members: bool,
    key: tuple[int, int],
    shared: _Shared,
) -> None:
    """The decoding thread: keeps `read_ahead` reads and `prefetch` batches under way, and hands them over in order."""
    reading: deque[Future[tuple[Gated, float, float]]] = deque()
    times: deque[tuple[float, float]] = deque()
    readers = ThreadPoolExecutor(max(1, source.read_ahead), thread_name_prefix="curator-dali-read")

    def read_on() -> None:
        while len(reading) <= source.read_ahead and (indices := next(reads, None)) is not None:
            reading.append(readers.submit(_read, source, indices, members, decoder.max_pixels))

    def hand_over() -> None:
        began = time.perf_counter()
        decoded = decoder.collect()
        shared.ready.put(Item(decoded, *times.popleft(), time.perf_counter() - began))

    try:
        use_device(decoder.device)
        read_on()
        while reading:
            # what is under way comes first when DALI's queue is full, or with no room left for another batch
            while decoder.under_way >= prefetch or not shared.has_room(wait=not decoder.under_way):
                hand_over()
            if shared.stopping:
                return
            gated, *spent = reading.popleft().result()
            read_on()
            times.append((spent[0], spent[1]))
            decoder.submit(gated, key)
        while decoder.under_way and not shared.stopping:
            hand_over()
        shared.ready.put(None)
    except BaseException as error:  # handed to the consumer, whose thread is the one that counts
        shared.ready.put(error)
    finally:
        for read in reading:
            read.cancel()
        readers.shutdown(wait=True)
        while decoder.under_way:  # a left pass must not leave batches for the next one
            try:
                decoder.collect()
            except RuntimeError:
                logger.debug("a batch of a stopped pass failed", exc_info=True)
