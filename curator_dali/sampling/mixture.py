"""Several sources in one order, each with its share: `quantise` and `MixedOrder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.sampling.order import Order, Shuffle, mix

_PERIODS = (1000, 10_000, 100_000)  # how finely weights are told apart; each is tried until no weight is lost
_TOLERANCE = 0.005  # of a weight, by which its quantised share may differ
_SPLITMIX_STEP = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64: the odd integer nearest to 2**64 / golden ratio


def quantise(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as the smallest whole numbers with the same shares, by largest remainders.

    Args:
        weights: Positive numbers; only their ratios matter.

    Returns:
        `{"a": 7, "b": 3}` for 0.7 and 0.3: in a period of 10 draws 7 are a's. Shares are exact within 0.5% of
        themselves; weights so small that this takes more than 100,000 draws are refused.

    Raises:
        ValueError: No weights, one that is not a positive number, or one that is too small.
    """
    if not weights:
        raise ValueError("a mixture needs at least one source")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ValueError(f"the weight of {name!r} is {weight!r}; give a positive number, or leave the source out")
    shares = np.array(list(weights.values()), np.float64)
    shares = shares / shares.sum()
    for period in _PERIODS:
        counts = np.floor(shares * period + 1e-9).astype(np.int64)
        order = np.argsort(counts - shares * period, kind="stable")
        counts[order[: period - int(counts.sum())]] += 1
        if np.all(np.abs(counts - shares * period) <= _TOLERANCE * shares * period + 1e-9):
            break
    if not np.all(counts):
        name = list(weights)[int(np.argmin(counts))]
        raise ValueError(f"the weight of {name!r} is less than 1 in {_PERIODS[-1]:,} of all; leave the source out")
    divisor = gcd(*counts.tolist())
    return {name: int(count) // divisor for name, count in zip(weights, counts.tolist(), strict=True)}


class MixedOrder(Order):
    """Draws from several sources in turn, each source in its own order, from one epoch to the next.

    The draws of all epochs are one sequence. It is cut into periods, in each of which every source has exactly its
    count of draws, in an order that is shuffled anew each period. A source's draws go through its samples in a
    shuffled order, then through all of them again in another one: none is seen n + 1 times before all of that source
    were seen n times (but for the order within a period), and where an epoch has fewer draws of a source than it has
    samples, the next epoch goes on where this one stopped.

    Memory is constant (the pattern of a period).

    Args:
        shuffle: None draws each source in its own order, and spreads the sources evenly over a period (then ranks of
            a world size that divides the period do not all see every source).
        shard_sizes: For each source (S,) int64, its samples a shard.
        names: Of the sources.
        counts: Draws of each source in a period.
        num_samples: Draws an epoch.
    """

    def __init__(
        self,
        shuffle: Shuffle | None,
        shard_sizes: Sequence[NDArray[np.int64]],
        names: Sequence[str],
        counts: Sequence[int],
        num_samples: int,
    ) -> None:
        self._shuffle, self._shard_sizes, self._n = shuffle, list(shard_sizes), num_samples
        self._weights = dict(zip(names, counts, strict=True))
        self._sizes = np.array([int(sizes.sum()) for sizes in shard_sizes], np.int64)
        self._begins = np.cumsum(self._sizes) - self._sizes
        self._counts = np.array(counts, np.int64)
        self._own = [_own(shuffle, number) for number in range(len(counts))] if shuffle else []
        # slot of a period -> source, and which of the source's draws: evenly spread
        source = np.repeat(np.arange(len(counts)), self._counts)
        draw = np.concatenate([np.arange(count) for count in counts])
        spread = np.argsort((draw + 0.5) / self._counts[source], kind="stable")
        self._source, self._draw = source[spread], draw[spread]

    @property
    def num_samples(self) -> int:
        """Draws an epoch."""
        return self._n

    def indices(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Which sample each draw is.

        Returns:
            (M,) int64: i + k * N for sample i of all N of the sources one after the other, drawn for the (k+1)-th
            time; the k tells repeats apart, so that a random transform does not repeat itself with them.
        """
        periods, slots = np.divmod(epoch * self._n + positions, len(self._source))
        if self._shuffle is not None:
            distinct, rows = np.unique(periods, return_inverse=True)
            slots = self._permutations(distinct, self._shuffle.seed)[rows, slots]
        source = self._source[slots]
        passes, within = np.divmod(periods * self._counts[source] + self._draw[slots], self._sizes[source])
        if self._shuffle is not None:
            for number in np.unique(source).tolist():
                mine = source == number
                for turn in np.unique(passes[mine]).tolist():
                    rows = np.flatnonzero(mine & (passes == turn))
                    within[rows] = self._own[number].indices(within[rows], turn, self._shard_sizes[number])
        total = int(self._sizes.sum())
        found: NDArray[np.int64] = passes * total + self._begins[source] + within
        return found

    def describe(self, epoch: int = 0) -> dict[str, Any]:
        """The shuffle's, and the mixture's counts, sizes and draws an epoch."""
        shuffle = self._shuffle.describe() if self._shuffle else {"seed": None, "window": None}
        sizes = dict(zip(self._weights, self._sizes.tolist(), strict=True))
        return {**shuffle, "mixture": {"weights": dict(self._weights), "sizes": sizes, "samples": self._n}}

    def _permutations(self, periods: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """A permutation of the slots for each of some periods, (P, slots): their order by a keyed hash."""
        with np.errstate(over="ignore"):
            keys = mix(periods.astype(np.uint64) * _SPLITMIX_STEP + np.uint64(seed % 2**64))
            hashes = mix(keys[:, None] + np.arange(len(self._source), dtype=np.uint64) * _SPLITMIX_STEP)
        return np.argsort(hashes, axis=1, kind="stable")


def _own(shuffle: Shuffle, number: int) -> Shuffle:
    """Another order for each source, of the same seed."""
    return Shuffle(int(mix(np.array([shuffle.seed % 2**64 ^ (number + 1) << 32], np.uint64))[0]), shuffle.window)
