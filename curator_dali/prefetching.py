"""The threads of one pass over a source: readers (bytes and headers) and one that runs the decoder.

They keep a bounded number of batches under way, hand them over in order, and stop when the pass ends, is left or is
collected. An error in any of them comes out where the consumer takes its next batch.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curator_dali.decoding import Decoded, Decoder, Gated, gate
from curator_dali.sources.base import Source

__all__ = ["Item", "Pass"]

logger = logging.getLogger(__name__)


@dataclass
class Item:
    """A decoded batch, and what it cost its threads in seconds."""

    decoded: Decoded
    read_seconds: float
    gate_seconds: float
    decode_seconds: float


class Pass:
    """The threads of one pass. They hold no reference to the loader, so a forgotten loader stops them."""

    def __init__(
        self,
        reads: Iterator[NDArray[np.int64]],
        source: Source,
        decoder: Decoder,
        prefetch: int,
        members: bool,
        key: tuple[int, int] = (0, 0),
    ) -> None:
        self._stopping = threading.Event()
        self._ready: queue.SimpleQueue[Item | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(prefetch + 1)  # one is the consumer's, until it asks for the next
        self._thread = threading.Thread(
            target=_decode_all,
            args=(reads, source, decoder, prefetch, members, key, self._ready, self._room, self._stopping),
            name="curator-dali-decode",
            daemon=True,
        )
        self._over = False
        self._lent = False
        weakref.finalize(self, _stop, self._thread, self._stopping, self._room)
        try:
            self._thread.start()  # waits for the thread, so an interrupt is likely to come here
        except BaseException:
            self.stop()
            raise

    def take(self) -> Item | None:
        """The next decoded batch, or None at the end; raises what ended the threads."""
        if self._over or self._stopping.is_set():
            return None
        if self._lent:
            self._room.release()
        self._lent = True
        item = self._ready.get()
        if item is None or isinstance(item, BaseException):
            self._over = True
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the threads and wait for them. May be called again, and must be if the waiting was interrupted."""
        self._over = True
        _stop(self._thread, self._stopping, self._room)


def _stop(thread: threading.Thread, stopping: threading.Event, room: threading.Semaphore) -> None:
    stopping.set()
    room.release()
    if thread is not threading.current_thread():
        with suppress(RuntimeError):  # it has not started yet: it will see that it must not
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
    ready: queue.SimpleQueue[Item | BaseException | None],
    room: threading.Semaphore,
    stopping: threading.Event,
) -> None:
    """The decoding thread: keeps `read_ahead` reads and `prefetch` batches under way, and hands them over in order."""
    if stopping.is_set():  # the pass was interrupted while this thread started; the decoder may be another pass's now
        return
    reading: deque[Future[tuple[Gated, float, float]]] = deque()
    times: deque[tuple[float, float]] = deque()
    readers = ThreadPoolExecutor(max(1, source.read_ahead), thread_name_prefix="curator-dali-read")

    def read_on() -> None:
        while len(reading) <= source.read_ahead and (indices := next(reads, None)) is not None:
            reading.append(readers.submit(_read, source, indices, members, decoder.max_pixels))

    def hand_over() -> None:
        began = time.perf_counter()
        decoded = decoder.collect()
        ready.put(Item(decoded, *times.popleft(), time.perf_counter() - began))

    try:
        read_on()
        while reading:
            # what is under way comes first when DALI's queue is full, or with no room left for another batch
            while decoder.under_way >= prefetch or not room.acquire(blocking=not decoder.under_way):
                hand_over()
            if stopping.is_set():
                return
            gated, *spent = reading.popleft().result()
            read_on()
            times.append((spent[0], spent[1]))
            decoder.submit(gated, key)
        while decoder.under_way and not stopping.is_set():
            hand_over()
        ready.put(None)
    except BaseException as error:  # handed to the consumer, whose thread is the one that counts
        ready.put(error)
    finally:
        for read in reading:
            read.cancel()
        readers.shutdown(wait=True)
        while decoder.under_way:  # a left pass must not leave batches for the next one
            try:
                decoder.collect()
            except RuntimeError:
                logger.debug("a batch of a stopped pass failed", exc_info=True)
