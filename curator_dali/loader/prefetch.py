"""The threads of one pass over a source: readers (bytes and headers) and one that runs the decoder.

They keep a bounded number of batches under way, hand them over in order, and stop when the pass ends, is left or is
collected. An error in any of them comes out where the consumer takes its next batch.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curator_dali.dali import check_process, use_device
from curator_dali.decoding import Decoded, Decoder, Gated, Screen, read_gated
from curator_dali.sources import ReadAhead, Source
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


class Steps(Iterator[tuple[NDArray[np.int64], int]]):
    """The steps of a pass: the sample indices of each, and the order's position behind it.

    Args:
        steps: The steps.
        stream: Reads shards ahead that are not indexed; the steps wait for these.
        find_missing: The shard that the next step has to wait for first; None where it does not wait.
        find_used: From the samples of a step and the position behind it, shards whose samples were all read then.

    Attributes:
        taken: How many were taken.
    """

    def __init__(
        self,
        steps: Iterator[tuple[NDArray[np.int64], int]],
        stream: ReadAhead | None = None,
        find_missing: Callable[[], int | None] = lambda: None,
        find_used: Callable[[NDArray[np.int64], int], Iterable[int]] = lambda indices, end: (),
    ) -> None:
        self._steps, self._stream, self._find_used = steps, stream, find_used
        self._find_missing = find_missing
        self.taken = 0

    def __next__(self) -> tuple[NDArray[np.int64], int]:
        # wait here, where `cancel` wakes this thread
        while self._stream is not None and (number := self._find_missing()) is not None:
            if not self._stream.wait(number):
                break
        step = next(self._steps)
        self.taken += 1
        return step

    def is_ready(self) -> bool:
        """Whether the next step comes without waiting for a shard."""
        return self._stream is None or self._find_missing() is None

    def finish(self, indices: NDArray[np.int64], end: int) -> None:
        """Let shards go; the samples of this step and of all steps before it were read."""
        if self._stream is not None:
            self._stream.release(self._find_used(indices, end))

    def cancel(self) -> None:
        """Wake who waits for a step."""
        if self._stream is not None:
            self._stream.cancel()

    def close(self) -> None:
        """No longer read ahead."""
        if self._stream is not None:
            self._stream.close()


def read_ahead(source: Source, numbers: Iterable[int]) -> ReadAhead | None:
    """Begin to read those shards of a pass ahead that are not indexed; say once how an index is made."""
    stream = None if source.streamed is None else source.streamed.read_ahead(numbers)
    if stream is not None:
        logger.warning(
            "%d tars of %s have no index: each process reads and indexes them while its pass goes on. Indexes are kept "
            "here for later runs, unless index='none'. `curator-dali prepare` makes an index for all machines",
            stream.total,
            source.name,
        )
    return stream


class Pass:
    """The threads of one pass. They hold no reference to the loader, so a forgotten loader stops them.

    Until the pass ends, the decoder is this pass's alone; `prefetch` batches are under way or waiting besides the
    consumer's. `members` says whether to read whole samples, random transforms follow from `key`, (seed, epoch), and
    `screen` leaves images out.

    Attributes:
        stopped: Whether the pass was stopped before its end.
    """

    stopped = False

    def __init__(
        self,
        steps: Steps,
        source: Source,
        decoder: Decoder,
        prefetch: int,
        members: bool,
        key: tuple[int, int],
        screen: Screen | None = None,
    ) -> None:
        self._steps = steps
        self._batches: HandOver[Item] = HandOver(prefetch + 1)  # one is the consumer's, until it asks for the next
        self._over = False
        self._in_use = False
        with uninterrupted():
            self._thread = Background(
                _decode_all,
                steps, source, decoder, prefetch, members, key, screen, self._batches,
                name="curator-dali-decode",
            )  # fmt: skip
            weakref.finalize(self, _stop, self._thread, self._batches, steps)

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
        _stop(self._thread, self._batches, self._steps)


def _stop(thread: Background, batches: HandOver[Item], steps: Steps) -> None:
    batches.cancel()
    steps.cancel()
    thread.join()


def _decode_all(
    steps: Steps,
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
    done = 0  # steps that were read

    def read(step: tuple[NDArray[np.int64], int]) -> tuple[Gated, int]:
        indices, end = step
        return read_gated(source, indices, members, decoder.max_pixels, screen), end

    def hand_over() -> None:
        began = time.perf_counter()
        decoded = decoder.collect()
        gated, end = submitted.popleft()
        batches.put(Item(decoded, end, gated.read_seconds, gated.gate_seconds, time.perf_counter() - began))

    readers = ThreadPoolExecutor(max(1, source.read_ahead), thread_name_prefix="curator-dali-read")
    reads = run_ahead(readers, read, steps, source.read_ahead, steps.is_ready)
    try:
        use_device(decoder.device)
        while True:
            # submitted batches come first when DALI's queue is full, or with no slot left for another batch
            while decoder.under_way >= prefetch or not batches.reserve(wait=not decoder.under_way):
                hand_over()
            if batches.cancelled:
                return
            while decoder.under_way and steps.taken == done and not steps.is_ready():
                hand_over()  # while the next step waits for a shard
            step = next(reads, None)
            if step is None:
                break
            done += 1
            steps.finish(step[0].encoded.indices, step[1])
            submitted.append(step)
            decoder.submit(step[0], key)
        while decoder.under_way and not batches.cancelled:
            hand_over()
        batches.finish()
    except BaseException as error:  # raised where the consumer asks for a batch
        batches.finish(error)
    finally:
        steps.close()
        reads.close()
        readers.shutdown(wait=True)
        while decoder.under_way:  # a left pass must not leave batches for the next one
            try:
                decoder.collect()
            except RuntimeError:
                logger.debug("a batch of a stopped pass failed", exc_info=True)
