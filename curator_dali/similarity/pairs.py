"""Pairs of rows that are alike, and a collector that keeps their number in bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import CuratorDaliError

__all__ = ["MAX_PAIRS", "Collector", "Pairs", "TooManyPairs"]

MAX_PAIRS = 50_000_000
"""Pairs that a search may find unless told otherwise: 1 GB, and three times that while they are sorted."""


class TooManyPairs(CuratorDaliError, ValueError):
    """So many pairs are alike that listing them would fill the memory."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows that are alike, ascending by (first, second), none twice.

    Equal rows would make pairs by the square of their number, so within one set only the first of them, their
    representative, appears in pairs. `expand` lists what that stands for.

    Attributes:
        first: (P,) int64 row numbers. Within one set less than `second`; between two sets rows of the first.
        second: (P,) int64 row numbers; between two sets rows of the second.
        value: (P,) float32: the cosine, or the Hamming distance.
        same: Within one set (N,) int64, every row's representative: the first row equal to it, often itself.
            Between two sets None.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    value: NDArray[np.float32]
    same: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def where(self, mask: NDArray[np.bool_]) -> Pairs:
        """The pairs that (P,) `mask` keeps: those of a higher threshold, say."""
        return Pairs(self.first[mask], self.second[mask], self.value[mask], self.same)

    def expand(self, equal: float = 1.0) -> Pairs:
        """All pairs of rows, equal ones among them: for small sets.

        Args:
            equal: The value of two equal rows: 1 for cosines, 0 for distances.
        """
        if self.same is None:
            return self
        order = np.argsort(self.same, kind="stable")
        start = np.searchsorted(self.same[order], np.arange(len(self.same) + 1))
        members = [order[start[row] : start[row + 1]] for row in range(len(self.same))]
        found = Collector(MAX_PAIRS)
        for group in members:
            i, j = np.triu_indices(len(group), 1)
            found.add(group[i], group[j], np.full(len(i), equal, np.float32))
        for a, b, value in zip(self.first.tolist(), self.second.tolist(), self.value.tolist(), strict=True):
            i, j = (grid.ravel() for grid in np.meshgrid(members[a], members[b], indexing="ij"))
            found.add(i, j, np.full(len(i), value, np.float32))
        return found.pairs()


@dataclass
class Collector:
    """Takes what a search finds, block by block, in any order and more than once.

    Args:
        max_pairs: How many different ones there may be.
        within: Whether both rows are of one set: then the lower one becomes the first.

    Raises:
        TooManyPairs: From `add`, past `max_pairs`, before the memory is full.
    """

    max_pairs: int
    within: bool = True
    _parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=list)
    _held: int = 0

    def add(self, first: NDArray[np.int64], second: NDArray[np.int64], value: NDArray[np.float32]) -> None:
        """Add pairs."""
        if not len(first):
            return
        if self.within:
            first, second = np.minimum(first, second), np.maximum(first, second)
        self._parts.append((first, second, value))
        self._held += len(first)
        if self._held > self.max_pairs:
            self._parts = [self._merged()]  # what was found twice counts once
            self._held = len(self._parts[0][0])
            if self._held > self.max_pairs:
                rows, counts = np.unique(np.concatenate(self._parts[0][:2]), return_counts=True)
                raise TooManyPairs(
                    f"more than {self.max_pairs:,} pairs are this alike (row {rows[counts.argmax()]} alone is in "
                    f"{counts.max():,} of those found so far): raise the threshold, take exact duplicates out first, "
                    "or allow more with max_pairs (20 bytes each, three times that for a while)"
                )

    def pairs(self, same: NDArray[np.int64] | None = None) -> Pairs:
        """What was added, sorted, once each."""
        return Pairs(*self._merged(), same)

    def _merged(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        first, second, value = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        # of a pair that was found twice, with cosines that differ in their last bit, the same one in whatever order
        order = np.lexsort((-value, second, first))
        first, second, value = first[order], second[order], value[order]
        new = np.ones(len(first), bool)
        new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        return (first, second, value) if new.all() else (first[new], second[new], value[new])
