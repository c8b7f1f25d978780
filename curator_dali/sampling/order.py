"""`Order`: what the positions of an epoch hold, and how they are cut into steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.sampling.shard import Shard
from curator_dali.sampling.shuffle import Shuffle

__all__ = ["Order", "PartsOrder", "Range", "ShuffledOrder"]


class Order(ABC):
    """Positions of an epoch to sample indices; a pure function of (seed, epoch, position)."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Positions of an epoch."""

    @abstractmethod
    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Sample indices at positions, (M,) int64 in [0, num_samples), of an epoch."""

    @abstractmethod
    def describe(self, epoch: int = 0) -> dict[str, Any]:
        """What the order of an epoch depends on, as plain JSON: kept in a loader's state to refuse a wrong resume."""

    def prepare(self, epoch: int) -> None:  # noqa: B027 - only some have anything to do
        """Do what an epoch needs once before its first step, and what may take long."""

    def resume(self, state: dict[str, Any]) -> Order:
        """The order that goes on with an epoch begun elsewhere, from the state that was saved there."""
        return self

    def steps(
        self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """A rank's steps of an epoch (re)started at position `start`; every rank makes the same number of them.

        Yields:
            Sample indices, at most `batch_size` and at least one, (M,) int64; and the position that all ranks
            together have reached after the step.
        """
        n = self.num_samples
        mine = self._share(start, batch_size, shard, drop_last)
        for first in range(0, mine, batch_size):
            count = min(batch_size, mine - first)
            positions = shard.positions(start, count, n, first)
            yield self.indices(positions, epoch), min(start + (first + count) * shard.world_size, n)

    def count(self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False) -> int:
        """How many steps `steps` yields."""
        return -(-self._share(start, batch_size, shard, drop_last) // batch_size)

    def stand_ins(self, epoch: int, position: int, count: int) -> Iterator[NDArray[np.int64]]:
        """Samples that may stand in for those before `position`, in the order of preference, `count` at a time."""
        for first in range(0, self.num_samples, count):
            yield self.indices(np.arange(first, min(first + count, self.num_samples), dtype=np.int64), epoch)

    def _share(self, start: int, batch_size: int, shard: Shard, drop_last: bool) -> int:
        remaining = self.num_samples - start
        if drop_last:
            return remaining // (batch_size * shard.world_size) * batch_size
        return shard.num_samples(remaining)


class ShuffledOrder(Order):
    """All samples of a source once an epoch, shuffled or in the source's order.

    Args:
        shuffle: None keeps the source's order.
        shard_sizes: (S,) int64, the source's samples a shard.
    """

    def __init__(self, shuffle: Shuffle | None, shard_sizes: NDArray[np.int64]) -> None:
        self._shuffle, self._shard_sizes, self._n = shuffle, shard_sizes, int(shard_sizes.sum())

    @property
    def num_samples(self) -> int:
        """Samples of the source."""
        return self._n

    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """See `Shuffle.indices`."""
        return positions if self._shuffle is None else self._shuffle.indices(positions, epoch, self._shard_sizes)

    def describe(self, epoch: int = 0) -> dict[str, Any]:
        """Seed and window of the shuffle."""
        return self._shuffle.describe() if self._shuffle else {"seed": None, "window": None}


Range = tuple[int, int]
"""Samples [start, stop) of a source."""


class PartsOrder(Order):
    """Ranges of samples in the order given.

    Every range begins a batch of its own, so that what comes out of it depends on nothing else: not on the ranges
    before it, nor on who does it.
    """

    def __init__(self, parts: Sequence[Range]) -> None:
        self.parts = list(parts)

    @property
    def num_samples(self) -> int:
        """Samples in all ranges."""
        return sum(stop - start for start, stop in self.parts)

    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Sample indices at positions."""
        starts, stops = (np.array(column, np.int64) for column in zip(*self.parts, strict=True))
        ends = np.cumsum(stops - starts, dtype=np.int64)
        part = np.searchsorted(ends, positions, "right")
        found: NDArray[np.int64] = stops[part] - (ends[part] - positions)
        return found

    def describe(self, epoch: int = 0) -> dict[str, Any]:
        """The ranges."""
        return {"parts": self.parts}

    def steps(
        self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Every range's batches; `start`, `shard` and `drop_last` are always those of a whole pass of one process."""
        done = 0
        for begin, stop in self.parts:
            for first in range(begin, stop, batch_size):
                last = min(first + batch_size, stop)
                done += last - first
                yield np.arange(first, last, dtype=np.int64), done
