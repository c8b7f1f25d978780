"""`StreamedOrder`: the order of a source whose shards are counted one after the other, while the epoch goes on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curator_dali.sampling.order import Order, Range, Shard, Shuffle, mix_windows, order_shards

_SAMPLE_BITS = 32  # of a place; a shard has fewer samples than 2**32


class ShardCounts(Protocol):
    """Numbers of samples of S shards. `len` is S."""

    def __len__(self) -> int: ...

    @property
    def is_complete(self) -> bool:
        """Whether all are known."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(S,) int64; waits until all are known."""

    def is_known(self, number: int) -> bool:
        """Whether that of a shard is known."""

    def count(self, number: int) -> int:
        """That of a shard; waits until it is known."""


def join_places(shards: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Make places of (N,) shards and (N,) samples in these: `shard << 32 | sample`, int64."""
    return shards << _SAMPLE_BITS | samples


def split_place(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the (N,) shards and the (N,) samples in these of places."""
    return places >> _SAMPLE_BITS, places & ((1 << _SAMPLE_BITS) - 1)


class StreamedOrder(Order):
    """All samples of a source once an epoch, in its order or shuffled in windows, without knowing all of its shards.

    The samples are those of `ShuffledOrder`, in the same order. A step waits for the shards that it and its window
    need. Only the last window, and the steps that wrap around the end, wait for all.

    With a shuffle the steps are places and not indices, as an index is not known before all earlier shards are counted.

    Args:
        shuffle: One with a window; None keeps the source's order.
        counts: The source's shards.
    """

    def __init__(self, shuffle: Shuffle | None, counts: ShardCounts) -> None:
        if shuffle is not None and shuffle.window is None:
            raise ValueError("a global shuffle needs the number of all samples: use ShuffledOrder")
        self._shuffle, self._counts = shuffle, counts
        self._last: EpochShards | None = None

    @property
    def num_samples(self) -> int:
        """Samples of the source; waits for all shards."""
        return int(self._counts.sizes.sum())

    @property
    def is_counted(self) -> bool:
        """Whether `num_samples` does not wait."""
        return self._counts.is_complete

    @property
    def has_places(self) -> bool:
        """Whether steps are places."""
        return self._shuffle is not None

    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """(M,) int64 places, or indices without a shuffle; waits for the shards of their windows."""
        shards = self.shards(epoch)
        for end in np.unique(self.find_window_end(positions)).tolist():
            shards.reach(end)
        if self._shuffle is None:
            return positions
        return shards.find_places(mix_windows(self._shuffle, positions, epoch, shards.reached))

    def describe(self, epoch: int = 0) -> dict[str, Any]:
        """Seed and window of the shuffle."""
        return self._shuffle.describe() if self._shuffle else {"seed": None, "window": None}

    def steps(self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False) -> StreamedSteps:
        """See `Order.steps`; the iterator says whether its next step is known."""
        return StreamedSteps(self, epoch, start, batch_size, shard, drop_last)

    def reach(self, count: int, epoch: int) -> int:
        """Return how many of the first `count` positions of an epoch there are; waits for their shards."""
        shards = self.shards(epoch)
        return min(count, shards.reached) if not shards.reach(count) else count

    def stand_ins(self, epoch: int, position: int, count: int) -> Iterator[NDArray[np.int64]]:
        """See `Order.stand_ins`; waits for no more shards than it needs."""
        first = 0
        while (stop := self.reach(first + count, epoch)) > first:
            yield self.indices(np.arange(first, stop, dtype=np.int64), epoch)
            first = stop

    def shards(self, epoch: int) -> EpochShards:
        """The shards of an epoch, in its order."""
        last = self._last
        if last is None or last.epoch != epoch or (self._counts.is_complete and not last.is_whole):
            count = len(self._counts)
            numbers = np.arange(count) if self._shuffle is None else order_shards(self._shuffle, epoch, count)
            last = self._last = EpochShards(epoch, self._counts, numbers)
        return last

    def find_window_end(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M,) int64: the position behind the window of each position."""
        if self._shuffle is None or self._shuffle.window is None:
            return positions + 1
        return (positions // self._shuffle.window + 1) * self._shuffle.window

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}


class EpochShards:
    """The shards of an epoch in its order, as far as these are counted from the first on.

    Args:
        epoch: Which epoch.
        counts: The shards.
        numbers: (S,) int64, all shards in the epoch's order.
    """

    def __init__(self, epoch: int, counts: ShardCounts, numbers: NDArray[np.int64]) -> None:
        self.epoch, self.numbers, self._counts = epoch, numbers, counts
        self._ends = np.zeros(len(numbers) + 1, np.int64)  # behind an empty one before the first
        self._known = 0
        self._lock = threading.Lock()
        if counts.is_complete:
            np.cumsum(counts.sizes[numbers], out=self._ends[1:])
            self._known = len(numbers)

    @property
    def is_whole(self) -> bool:
        """Whether all are counted."""
        return self._known == len(self.numbers)

    @property
    def reached(self) -> int:
        """Number of positions that the counted shards hold."""
        return int(self._ends[self._known])

    def reach(self, position: int) -> bool:
        """Count shards until they hold so many positions; false if all together do not."""
        while (known := self._known) < len(self.numbers) and self._ends[known] < position:
            count = self._counts.count(int(self.numbers[known]))
            with self._lock:  # of several threads none takes back what another one counted
                self._ends[known + 1] = self._ends[known] + count
                self._known = max(self._known, known + 1)
        return bool(self._ends[self._known] >= position)

    def find_missing(self, position: int) -> int | None:
        """The shard that `reach` has to wait for first; None where all that it needs are counted."""
        while (known := self._known) < len(self.numbers) and self._ends[known] < position:
            number = int(self.numbers[known])
            if not self._counts.is_known(number):
                return number
            self.reach(int(self._ends[known]) + 1)
        return None

    def find_places(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M,) int64 places of the samples at positions, when the shards are laid end to end."""
        ends = self._ends[: self._known + 1]
        at = np.searchsorted(ends, positions, "right") - 1
        return join_places(self.numbers[at], positions - ends[at])

    def find_used(self, position: int) -> int:
        """Count the first shards that end at a position, or before it."""
        return int(np.searchsorted(self._ends[1 : self._known + 1], position, "right"))


class StreamedRanges(Iterator[Range]):
    """Ranges of at most `size` samples of a source, in its order, while its shards are counted.

    They are those into which the whole source is cut at the multiples of `size`, without what is done.

    Args:
        counts: The source's shards.
        size: Samples.
        done: Ranges that are left out, in order.

    Attributes:
        begun: Those that were taken from it, in order; whoever needs them may remove these.
    """

    def __init__(self, counts: ShardCounts, size: int, done: Sequence[Range] = ()) -> None:
        self._shards = EpochShards(0, counts, np.arange(len(counts)))
        self._size, self._done = size, done
        self._at = 0  # the end of the block that was cut last
        self._cut: deque[Range] = deque()
        self._is_over = False
        self._used = 0  # shards
        self.begun: deque[Range] = deque()

    def __next__(self) -> Range:
        while not self._cut:
            if self._is_over:
                raise StopIteration
            self._is_over = not self._shards.reach(self._at + self._size)
            stop = min(self._at + self._size, self._shards.reached)
            self._cut.extend(find_gaps(self._at, stop, self._done))
            self._at = stop
        self.begun.append(self._cut[0])
        return self._cut.popleft()

    @property
    def shards(self) -> list[int]:
        """The numbers of all shards."""
        return list(range(len(self._shards.numbers)))

    def find_missing(self) -> int | None:
        """The shard that the next range has to wait for first; None where it does not wait."""
        return None if self._cut or self._is_over else self._shards.find_missing(self._at + self._size)

    def find_used(self, stop: int) -> list[int]:
        """Further shards whose samples all lie before `stop`."""
        used = self._shards.find_used(stop)
        found = list(range(self._used, used))
        self._used = max(self._used, used)
        return found


class RangeSteps(Iterator[tuple[NDArray[np.int64], int]]):
    """The steps of `range_steps`, over ranges that may have to be waited for.

    Args:
        ranges: The ranges.
        batch_size: Samples a step at most.
    """

    def __init__(self, ranges: StreamedRanges, batch_size: int) -> None:
        self._ranges, self._batch_size = ranges, batch_size
        self._first = self._stop = self._done = 0

    def __next__(self) -> tuple[NDArray[np.int64], int]:
        if self._first >= self._stop:
            self._first, self._stop = next(self._ranges)
        last = min(self._first + self._batch_size, self._stop)
        indices = np.arange(self._first, last, dtype=np.int64)
        self._first, self._done = last, self._done + len(indices)
        return indices, self._done

    def find_missing(self) -> int | None:
        """The shard that the next step has to wait for first; None where it does not wait."""
        return None if self._first < self._stop else self._ranges.find_missing()


def find_gaps(start: int, stop: int, done: Sequence[Range]) -> Iterator[Range]:
    """Yield the ranges within [start, stop) that none of some others holds, which are in order."""
    for begin, end in done:
        if end <= start:
            continue
        if begin >= stop:
            break
        if begin > start:
            yield start, begin
        start = max(start, end)
    if start < stop:
        yield start, stop


class StreamedSteps(Iterator[tuple[NDArray[np.int64], int]]):
    """A rank's steps of a `StreamedOrder`; see `Order.steps`.

    A step whose positions all lie before the end of what is counted needs no number of all samples.
    """

    def __init__(
        self, order: StreamedOrder, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool
    ) -> None:
        self._order, self._epoch, self._start = order, epoch, start
        self._batch_size, self._shard = batch_size, shard
        self._arguments = (epoch, start, batch_size, shard, drop_last)
        self._shards = order.shards(epoch)
        self._first = 0  # samples that this rank has taken since the start
        self._used = 0  # of the first shards
        self._rest: Iterator[tuple[NDArray[np.int64], int]] | None = None  # the steps once all shards are counted

    def __next__(self) -> tuple[NDArray[np.int64], int]:
        end, needed = self._next_needs()
        if self._rest is None and (self._shards.is_whole or not self._shards.reach(needed)):
            self._rest = self._order.steps_after(self._first, *self._arguments)
        if self._rest is not None:
            return next(self._rest)
        positions = self._shard.positions(self._start, self._batch_size, end, self._first)
        self._first += self._batch_size
        return self._order.indices(positions, self._epoch), end

    def find_missing(self) -> int | None:
        """The shard that the next step has to wait for first; None where it does not wait."""
        return None if self._rest is not None else self._shards.find_missing(self._next_needs()[1])

    @property
    def shards(self) -> list[int]:
        """The numbers of all shards, in the epoch's order."""
        found: list[int] = self._shards.numbers.tolist()
        return found

    def find_used(self, position: int) -> list[int]:
        """Further shards whose samples all ranks have taken once they have reached a position."""
        window = int(self._order.find_window_end(np.zeros(1, np.int64))[0])
        used = self._shards.find_used(position // window * window)
        found: list[int] = self._shards.numbers[self._used : used].tolist()
        self._used = max(self._used, used)
        return found

    def _next_needs(self) -> tuple[int, int]:
        """The position behind the next step of all ranks if it is full, and how many positions it needs counted."""
        end = self._start + (self._first + self._batch_size) * self._shard.world_size
        return end, max(end, int(self._order.find_window_end(np.array([end - 1]))[0]))
