"""The threads of one pass over a source: readers (bytes and headers) and one that runs the decoder.

They keep a bounded number of batches under way, hand them over in order, and stop when the pass ends, is left or is
collected. An error in any of them comes out where the consumer takes its next batch.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curator_dali.dali import check_process, use_device
from curator_dali.decoding import Decoded, Decoder, Gated, Screen, read_gated
from curator_dali.sources import Source
from curator_dali.threads import Background, HandOver, run_ahead, uninterrupted

logger = logging.getLogger(__name__)


@dataclass
class Item:
    """A decoded batch, the order's position behind it, and the seconds that its threads spent on it."""

    decoded: Decoded
    end: int
    read_seconds: float
    gate_seconds: float
    decode_seconds: float


class Pass:
    """The threads of one pass. They hold no reference to the loader, so a forgotten loader stops them.

    Until the pass ends, the decoder is this pass's alone; `prefetch` batches are under way or waiting besides the
    consumer's. `steps` are the sample indices of each batch and the order's position behind it, `members` says
    whether to read whole samples, random transforms follow from `key`, (seed, epoch), and `screen` leaves images out.

    Attributes:
        stopped: Whether the pass was stopped before its end.
    """

    stopped = False

    def __init__(
        self,
        steps: Iterator[tuple[NDArray[np.int64], int]],
        source: Source,
        decoder: Decoder,
        prefetch: int,
        members: bool,
        key: tuple[int, int],
        screen: Screen | None = None,
    ) -> None:
        self._batches: HandOver[Item] = HandOver(prefetch + 1)  # one is the consumer's, until it asks for the next
        self._over = False
        self._in_use = False
        with uninterrupted():
            self._thread = Background(
                _decode_all,
                steps, source, decoder, prefetch, members, key, screen, self._batches,
                name="curator-dali-decode",
            )  # fmt: skip
            weakref.finalize(self, _stop, self._thread, self._batches)

    def next_batch(self) -> Item | None:
        """Return the next decoded batch, or None at the end. Raise the exception that ended the threads."""
        check_process()  # a forked child has no threads to wait for
        if self._over:
            return None
        if self._in_use:
            self._batches.free()
        self._in_use = True
        try:
            item = self._batches.take()
        except Exception:
            self._over = True
            raise
        self._over = item is None
        return item

    def stop(self) -> None:
        """End the threads and wait for them. May be called again, and must be if the waiting was interrupted."""
        self.stopped |= not self._over
        self._over = True
        _stop(self._thread, self._batches)


def _stop(thread: Background, batches: HandOver[Item]) -> None:
    batches.cancel()
    thread.join()


def _decode_all(
    steps: Iterator[tuple[NDArray[np.int64], int]],
    source: Source,
    decoder: Decoder,
    prefetch: int,
    members: bool,
    key: tuple[int, int],
    screen: Screen | None,
    batches: HandOver[Item],
) -> None:
    """Keep `read_ahead` reads and `prefetch` batches under way, and hand the batches over in order."""
    submitted: deque[tuple[Gated, int]] = deque()

    def read(step: tuple[NDArray[np.int64], int]) -> tuple[Gated, int]:
        indices, end = step
        return read_gated(source, indices, members, decoder.max_pixels, screen), end

    def hand_over() -> None:
        began = time.perf_counter()
        decoded = decoder.collect()
        gated, end = submitted.popleft()
        batches.put(Item(decoded, end, gated.read_seconds, gated.gate_seconds, time.perf_counter() - began))

    readers = ThreadPoolExecutor(max(1, source.read_ahead), thread_name_prefix="curator-dali-read")
    reads = run_ahead(readers, read, steps, source.read_ahead)
    try:
        use_device(decoder.device)
        while True:
            # submitted batches come first when DALI's queue is full, or with no slot left for another batch
            while decoder.under_way >= prefetch or not batches.reserve(wait=not decoder.under_way):
                hand_over()
            if batches.cancelled:
                return
            step = next(reads, None)
            if step is None:
                break
            submitted.append(step)
            decoder.submit(step[0], key)
        while decoder.under_way and not batches.cancelled:
            hand_over()
        batches.finish()
    except BaseException as error:  # raised where the consumer asks for a batch
        batches.finish(error)
    finally:
        reads.close()
        readers.shutdown(wait=True)
        while decoder.under_way:  # a left pass must not leave batches for the next one
            try:
                decoder.collect()
            except RuntimeError:
                logger.debug("a batch of a stopped pass failed", exc_info=True)
