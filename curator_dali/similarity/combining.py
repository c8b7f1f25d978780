"""Groups of rows that are alike in any of several ways: equal bytes, near hashes, close embeddings.

Each way has its own idea of equal rows (one hash, one embedding), so pairs of several ways cannot be poured into one
`Pairs`: a million blank images share a hash, which is one class there, and have a million different files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.groups import Linkage, group
from curator_dali.similarity.pairs import Pairs

__all__ = ["Combined", "Likeness", "combine"]


@dataclass(frozen=True)
class Likeness:
    """One way of being alike.

    Attributes:
        pairs: Of one set of N rows; its `same` are the classes of equal rows.
        equal: The value of two equal rows: 1 for cosines, 0 for distances.
    """

    pairs: Pairs
    equal: float = 0.0

    @property
    def same(self) -> NDArray[np.int64]:
        """(N,) the class of each row: the first row that is equal to it."""
        assert self.pairs.same is not None
        return self.pairs.same


@dataclass(frozen=True)
class Combined:
    """What is kept, and for which kept row, and why, every other was dropped.

    Attributes:
        keeper: (N,) int64: the row that is kept for this one; a kept row's own number.
        way: (N,) int8: by which likeness, by its place among those given; -1 for kept rows, and where a chain led to
            the keeper.
        value: (N,) float32: the pair's value; NaN where `way` is -1.
    """

    keeper: NDArray[np.int64]
    way: NDArray[np.int8]
    value: NDArray[np.float32]


def combine(ways: Sequence[Likeness], order: NDArray[np.int64], linkage: Linkage = "star") -> Combined:
    """Group rows that are alike in any way.

    Args:
        ways: The surest first: it gives the reason where several hold. Of one and the same set of N rows.
        order: (N,) rows from the most to the least wanted, of `keep_order`.
        linkage: "star" or "components", as in `group`. With "star" a dropped row goes to the kept row that it is most
            like by the surest way, of equally like ones to the most wanted.

    Raises:
        ValueError: No ways, the linkage is unknown, pairs are between two sets, or `order` does not name each row once.
    """
    if not ways:
        raise ValueError("no likeness is given, so nothing can be alike")
    count = len(order)
    if any(way.pairs.same is None or len(way.same) != count for way in ways):
        raise ValueError(f"each likeness must be of the pairs within one set of {count} rows")
    if linkage == "star":
        if not np.array_equal(np.sort(order), np.arange(count)):
            raise ValueError(f"order names {len(np.unique(order))} different rows of {count}; it must name each once")
        return _star([_Links.of(way) for way in ways], order)
    rows = np.arange(count)
    edges = [(way.pairs.first, way.pairs.second) for way in ways] + [(way.same, rows) for way in ways]
    first, second = (np.concatenate(column) for column in zip(*edges, strict=True))
    apart = first != second
    values = np.zeros(int(apart.sum()), np.float32)
    keeper = group(Pairs(first[apart], second[apart], values, rows), order, linkage).keeper
    return _explained(ways, keeper)


@dataclass(frozen=True)
class _Links:
    """The pairs of a likeness by class, in both directions: of class c those from start[c] to start[c + 1]."""

    same: NDArray[np.int64]
    start: NDArray[np.int64]
    other: NDArray[np.int64]
    value: NDArray[np.float32]
    equal: float

    @classmethod
    def of(cls, way: Likeness) -> _Links:
        pairs = way.pairs
        first, second = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
        order = np.argsort(first, kind="stable")
        start = np.searchsorted(first[order], np.arange(len(way.same) + 1))
        return cls(way.same, start, second[order], np.concatenate([pairs.value, pairs.value])[order], way.equal)

    def involved(self) -> NDArray[np.bool_]:
        """(N,) whether a row is equal to another or in a pair."""
        sizes = np.bincount(self.same, minlength=len(self.same))
        return (sizes[self.same] > 1) | (np.diff(self.start)[self.same] > 0)


def _star(ways: Sequence[_Links], order: NDArray[np.int64]) -> Combined:
    """Keep the most wanted row, drop what is like it, and so on down."""
    count = len(order)
    keeper, way = np.arange(count), np.full(count, -1, np.int8)
    value = np.full(count, np.nan, np.float32)
    # by way and class: the kept row that is most like it so far, and how like (higher is more)
    covers = [np.full(count, -1, np.int64) for _ in ways]
    closeness = [np.full(count, -np.inf, np.float32) for _ in ways]
    involved = np.zeros(count, bool)
    for links in ways:
        involved |= links.involved()
    for row in order[involved[order]].tolist():
        classes = [int(links.same[row]) for links in ways]
        number = next((n for n, c in enumerate(classes) if covers[n][c] >= 0), -1)
        if number >= 0:
            c, sign = classes[number], _sign(ways[number])
            keeper[row], way[row], value[row] = covers[number][c], number, sign * closeness[number][c]
            continue
        for n, (links, c) in enumerate(zip(ways, classes, strict=True)):
            sign = _sign(links)
            near = slice(int(links.start[c]), int(links.start[c + 1]))
            others = np.append(links.other[near], c)
            close = sign * np.append(links.value[near], np.float32(links.equal))
            nearer = close > closeness[n][others]
            covers[n][others[nearer]], closeness[n][others[nearer]] = row, close[nearer]
    return Combined(keeper, way, value)


def _sign(links: _Links) -> float:
    return 1.0 if links.equal > 0 else -1.0  # of distances the lowest is the closest


def _explained(ways: Sequence[Likeness], keeper: NDArray[np.int64]) -> Combined:
    """By which way each row is like its keeper, where it is."""
    count = len(keeper)
    number, value = np.full(count, -1, np.int8), np.full(count, np.nan, np.float32)
    dropped = np.flatnonzero(keeper != np.arange(count))
    for n, way in enumerate(ways):
        open_ = dropped[number[dropped] < 0]
        a, b = way.same[open_], way.same[keeper[open_]]
        equal = a == b
        number[open_[equal]], value[open_[equal]] = n, way.equal
        open_, low, high = open_[~equal], np.minimum(a, b)[~equal], np.maximum(a, b)[~equal]
        keys = way.pairs.first * count + way.pairs.second  # ascending, as the pairs are
        wanted = low * count + high
        place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        hit = keys[place] == wanted if len(keys) else np.zeros(len(wanted), bool)
        number[open_[hit]], value[open_[hit]] = n, way.pairs.value[place[hit]]
    return Combined(keeper, number, value)
