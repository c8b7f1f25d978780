"""`Order`: positions of an epoch to sample indices, cut into steps; with `Shuffle`, `Shard` and `Position`."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, checked

_FEISTEL_ROUNDS = 6  # of a permutation


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

    def reach(self, count: int, epoch: int) -> int:
        """Return how many of the first `count` positions of an epoch there are."""
        return min(count, self.num_samples)

    def prepare(self, epoch: int) -> None:  # noqa: B027 - only some have anything to do
        """Do what an epoch needs once before its first step, and what may take long."""

    def resume(self, state: dict[str, Any]) -> Order:
        """The order that goes on with an epoch begun elsewhere, from the state that was saved there."""
        return self

    def steps(
        self, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """A rank's steps of an epoch (re)started at position `start`; every rank makes the same number of them.

        Returns:
            Of each step the sample indices, at most `batch_size` and at least one, (M,) int64; and the position that
            all ranks together have reached after the step.
        """
        return self.steps_after(0, epoch, start, batch_size, shard, drop_last)

    def steps_after(
        self, taken: int, epoch: int, start: int, batch_size: int, shard: Shard, drop_last: bool
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """The steps without the first ones, in which each rank has taken so many samples; see `steps`."""
        n = self.num_samples
        mine = self._share(start, batch_size, shard, drop_last)
        for first in range(taken, mine, batch_size):
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


def range_steps(ranges: Iterable[Range], batch_size: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield the sample indices of each batch of some ranges, and how many samples lie before its end.

    A range begins a batch of its own, so that its batches depend neither on the ranges before it nor on who loads it.
    """
    done = 0
    for start, stop in ranges:
        for first in range(start, stop, batch_size):
            last = min(first + batch_size, stop)
            done += last - first
            yield np.arange(first, last, dtype=np.int64), done


@checked
@dataclass(frozen=True)
class Shuffle:
    """A seeded order, another one each epoch.

    Args:
        seed: Any integer. The same seed gives the same epochs on every machine.
        window: None shuffles all samples globally: every sample is equally likely at every position. A number
            instead shuffles the shards and then the samples inside consecutive windows of that many positions, so
            that each shard is read from front to back in pieces of a window: for remote tars, whose random
            access is slow. Larger windows mix better and read less sequentially; the memory stays constant. Tars
            without an index are then read while the epoch goes on, and its first batch comes after the first of them.
    """

    seed: int = 0
    window: Count | None = None

    def indices(self, positions: NDArray[np.int64], epoch: int, shard_sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample indices at positions of an epoch.

        Args:
            positions: (M,) int64 in [0, sum(shard_sizes)).
            epoch: Which epoch.
            shard_sizes: (S,) int64, samples a shard; only their sum matters without a window.

        Returns:
            (M,) int64.
        """
        n = int(shard_sizes.sum())
        if self.window is None:
            return permute(positions, n, self.seed, epoch)
        mixed = mix_windows(self, positions, epoch, n)
        ends, shifts = self._shards(epoch, shard_sizes)
        found: NDArray[np.int64] = mixed + shifts[np.searchsorted(ends, mixed, side="right")]
        return found

    def describe(self) -> dict[str, int | None]:
        """Both, as plain JSON."""
        return {"seed": self.seed, "window": self.window}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    def _shards(self, epoch: int, sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in an epoch's order: where each ends, and what makes a position in it a sample index.

        Kept until another epoch or other sizes are asked for: all shards are permuted once an epoch, not once a batch.
        """
        last = self.__dict__.get("_last")
        if last is None or last[0] != epoch or not np.array_equal(last[1], sizes):
            order = order_shards(self, epoch, len(sizes))
            ends = np.cumsum(sizes[order])
            begins = np.cumsum(sizes) - sizes
            shifts = begins[order] - (ends - sizes[order])
            last = self.__dict__["_last"] = (epoch, sizes.copy(), ends, shifts)  # no setting: none of the fields
        return last[2], last[3]


@checked
@dataclass(frozen=True)
class Shard:
    """A rank's part of every epoch: the positions p with p % world_size == rank.

    All ranks make the same number of steps. Where the world size does not divide what is left of the epoch, the
    last step is filled up from the epoch's first positions (at most world_size - 1 samples are seen twice), as
    PyTorch's `DistributedSampler` does.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank {self.rank} of world size {self.world_size}: the world size must be at least 1 and the rank "
                f"between 0 and world size - 1"
            )

    @classmethod
    def from_torch(cls) -> Shard:
        """Return rank and world size of `torch.distributed`, else of torchrun's RANK and WORLD_SIZE, else 0 of 1.

        Raises:
            ValueError: Only one of RANK and WORLD_SIZE is set, or one is no whole number.
        """
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
        if all(value is None for value in found.values()):
            return cls()
        try:
            return cls(*(int(value or "") for value in found.values()))
        except ValueError as error:
            told = ", ".join(f"{name} is {value!r}" for name, value in found.items())
            raise ValueError(
                f'shard="torch": torch.distributed is not initialised, and of the environment {told}; set both as '
                "torchrun does, or neither (rank 0 of 1); call torch.distributed.init_process_group first; or give "
                f"Shard(rank, world_size) ({error})"
            ) from None

    def num_samples(self, remaining: int) -> int:
        """Samples that every rank takes from `remaining` positions."""
        return -(-remaining // self.world_size)

    def positions(self, start: int, count: int, n: int, first: int = 0) -> NDArray[np.int64]:
        """This rank's positions, `count` of them from its `first`-th on, in an epoch resumed at position `start`.

        Args:
            start: Position at which all ranks (re)started.
            count: How many.
            n: Samples in the epoch; positions beyond it wrap to the epoch's beginning.
            first: How many this rank has taken since `start`.
        """
        return (start + self.rank + (first + np.arange(count, dtype=np.int64)) * self.world_size) % n


@dataclass(frozen=True)
class Position:
    """Where a run stands: all that a resume needs.

    Attributes:
        seed: The shuffle's seed; None for the source's own order.
        epoch: Which epoch.
        position: Positions of the epoch consumed by all ranks together.
    """

    seed: int | None
    epoch: int
    position: int


def mix_windows(shuffle: Shuffle, positions: NDArray[np.int64], epoch: int, count: int) -> NDArray[np.int64]:
    """Shuffle positions within the windows of a shuffle.

    Args:
        shuffle: Has a window.
        positions: (M,) int64 in [0, count).
        epoch: Which epoch.
        count: Samples in all, or in so many windows from the first on; the last window ends there.

    Returns:
        (M,) int64 positions among the samples of the shards, which are laid end to end in the epoch's order.
    """
    assert shuffle.window is not None
    mixed = positions.copy()
    for start in np.unique(positions // shuffle.window) * shuffle.window:
        inside = (positions >= start) & (positions < start + shuffle.window)
        size = min(shuffle.window, count - int(start))
        mixed[inside] = start + permute(positions[inside] - start, size, shuffle.seed, epoch, int(start))
    return mixed


def order_shards(shuffle: Shuffle, epoch: int, count: int) -> NDArray[np.int64]:
    """(count,) int64: the numbers of all shards in an epoch's order, with a window."""
    return permute(np.arange(count), count, shuffle.seed, epoch, -1)


def permute(positions: NDArray[np.int64], n: int, *key: int) -> NDArray[np.int64]:
    """A keyed permutation of 0..n-1, evaluated at `positions` only.

    A balanced Feistel network over the smallest even number of bits that holds n, with cycle walking (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a value outside 0..n-1 is sent through again, at most
    four times on average.

    Args:
        positions: (M,) int64 in [0, n).
        n: Size of the domain.
        key: Integers that choose the permutation.

    Returns:
        (M,) int64, distinct for distinct positions.
    """
    if n <= 1:
        return np.zeros(len(positions), np.int64)
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    keys = _round_keys(n, *key)
    out = positions.astype(np.uint64)
    todo = np.arange(len(out))
    with np.errstate(over="ignore"):
        while len(todo):
            left, right = out[todo] >> shift, out[todo] & mask
            for round_key in keys:
                left, right = right, left ^ (mix(right + round_key) & mask)
            out[todo] = (left << shift) | right
            todo = todo[out[todo] >= np.uint64(n)]
    return out.astype(np.int64)


def uniforms(key: tuple[int, ...], indices: NDArray[np.int64], lanes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform random numbers as a pure function of (key, index, lane): no state, and no order of drawing.

    Counter-based (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), with SplitMix64's finaliser.

    Args:
        key: Integers, such as (seed, epoch).
        indices: (N,) int64, such as the samples' indices.
        lanes: (K,) int64, one for each number that a sample needs.

    Returns:
        (K, N) float64 in [0, 1), multiples of 2**-53.
    """
    first, second, third = _uniform_keys(key)
    with np.errstate(over="ignore"):
        columns = mix(mix(indices.astype(np.uint64) + first) + second)
        rows = mix(mix(lanes.astype(np.uint64) + second) + third)
        bits = mix(rows[:, None] + columns)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _round_keys(*numbers: int) -> NDArray[np.uint64]:
    """Keys of the rounds from any integers, through numpy's documented and stable seed hashing."""
    entropy = [n % 2**64 for n in numbers]
    return np.random.SeedSequence(entropy).generate_state(_FEISTEL_ROUNDS, np.uint64).astype(np.uint64)


@lru_cache(maxsize=64)
def _uniform_keys(key: tuple[int, ...]) -> NDArray[np.uint64]:
    return _round_keys(-1, *key)[:3]  # no permutation is over -1 samples
