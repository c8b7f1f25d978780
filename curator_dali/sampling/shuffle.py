"""`Shuffle`: from positions of an epoch to sample indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import Count, checked
from curator_dali.sampling.permutation import permute

__all__ = ["Shuffle"]


@checked
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
        mixed = positions.copy()
        for start in np.unique(positions // self.window) * self.window:
            inside = (positions >= start) & (positions < start + self.window)
            size = min(self.window, n - int(start))
            mixed[inside] = start + permute(positions[inside] - start, size, self.seed, epoch, int(start))
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
            order = permute(np.arange(len(sizes)), len(sizes), self.seed, epoch, -1)
            ends = np.cumsum(sizes[order])
            begins = np.cumsum(sizes) - sizes
            shifts = begins[order] - (ends - sizes[order])
            last = self.__dict__["_last"] = (epoch, sizes.copy(), ends, shifts)  # no setting: none of the fields
        return last[2], last[3]
