"""The order of an epoch as pure functions of (seed, epoch, position): shuffle, shard, resume.

A *position* counts the samples of an epoch over all ranks, 0 to N-1. `Shuffle` maps positions to sample indices;
`Shard` says which positions are a rank's. Nothing here keeps state or memory that grows with the data set, so a
resume is three integers (`Position`), whatever the world size was before.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Position", "Shard", "Shuffle", "permute", "uniforms"]

_ROUNDS = 6


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _round_keys(*numbers: int) -> NDArray[np.uint64]:
    """Keys of the rounds from any integers, through numpy's documented and stable seed hashing."""
    entropy = [n % 2**64 for n in numbers]
    return np.random.SeedSequence(entropy).generate_state(_ROUNDS, np.uint64).astype(np.uint64)


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
                left, right = right, left ^ (_mix(right + round_key) & mask)
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
        columns = _mix(_mix(indices.astype(np.uint64) + first) + second)
        rows = _mix(_mix(lanes.astype(np.uint64) + second) + third)
        bits = _mix(rows[:, None] + columns)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


@lru_cache(maxsize=64)
def _uniform_keys(key: tuple[int, ...]) -> NDArray[np.uint64]:
    return _round_keys(-1, *key)[:3]  # no permutation is over -1 samples


@dataclass(frozen=True)
class Shuffle:
    """A seeded order, another one each epoch.

    Args:
        seed: Any integer. The same seed gives the same epochs on every machine.
        window: None shuffles all samples globally: every sample is equally likely at every position. A number
            instead shuffles the shards and then the samples inside consecutive windows of that many positions, so
            that each shard is read from front to back in pieces of a window: for remote tars, whose random
            access is slow. Larger windows mix better and read less sequentially; the memory stays constant.
    """

    seed: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; give a number of samples of at least 1, or None")

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
        mixed = positions.copy()
        for start in np.unique(positions // self.window) * self.window:
            inside = (positions >= start) & (positions < start + self.window)
            size = min(self.window, n - int(start))
            mixed[inside] = start + permute(positions[inside] - start, size, self.seed, epoch, int(start))
        order = permute(np.arange(len(shard_sizes)), len(shard_sizes), self.seed, epoch, -1)
        ends = np.cumsum(shard_sizes[order])
        slot = np.searchsorted(ends, mixed, side="right")
        begins = np.cumsum(shard_sizes) - shard_sizes
        within: NDArray[np.int64] = mixed - (ends[slot] - shard_sizes[order][slot])
        return begins[order[slot]] + within


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
        """Rank and world size of `torch.distributed` if it is initialised, else of torchrun's RANK and WORLD_SIZE.

        Raises:
            ValueError: Neither is there.
        """
        import sys

        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        try:
            return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        except KeyError as error:
            raise ValueError(
                f'shard="torch": torch.distributed is not initialised and {error} is not set; start with torchrun, '
                f"call torch.distributed.init_process_group first, or give Shard(rank, world_size)"
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
