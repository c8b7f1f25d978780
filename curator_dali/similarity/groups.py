"""From pairs to groups, and which image of a group is kept.

There are two linkages, because A may be like B and B like C while A is not like C:

- `"star"`, the default: every dropped image is like the image that was kept for it, and no two kept images are alike.
  Images are taken in the order of the keep rule; one that is like an image kept already is dropped. So nothing is lost
  that has no likeness among the kept images, and every group can be checked by eye against one picture.
- `"components"`: whatever hangs together by a chain of likenesses is one group, of which one image is kept. It keeps
  fewer, and a chain through a crowded region can drop images that are like no kept image.

`combine` groups rows that are alike by any of several comparisons: equal bytes, near hashes, close embeddings. Each
comparison has its own classes of equal rows (one hash, one embedding), so its pairs cannot be poured into one `Pairs`:
a million blank images share a hash, which is one class there, and have a million different files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.pairs import Collector, Pairs, sort_by_label

Keep = Literal["largest", "best", "first"]
Linkage = Literal["star", "components"]


@dataclass(frozen=True)
class MatchSet:
    """The rows that one comparison found alike.

    Attributes:
        pairs: Of one set of N rows; its `same` are the classes of equal rows.
        equal: The value of two equal rows: 1 for cosines, 0 for distances. Where it is 0, lower values are closer.
    """

    pairs: Pairs
    equal: float = 0.0

    @property
    def same(self) -> NDArray[np.int64]:
        """(N,) the class of each row: the first row that is equal to it."""
        assert self.pairs.same is not None
        return self.pairs.same


@dataclass(frozen=True)
class Grouping:
    """Which rows are kept, and for which kept row, and why, every other was dropped.

    Attributes:
        keeper: (N,) int64: the row that is kept for this one; a kept row's own number.
        comparison: (N,) int8: the place of the match set that has the row's pair with its keeper; -1 for kept rows,
            and where a chain led to the keeper.
        value: (N,) float32: the cosine or distance of that pair; NaN where `comparison` is -1.
    """

    keeper: NDArray[np.int64]
    comparison: NDArray[np.int8]
    value: NDArray[np.float32]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(N,) which rows stay."""
        mask: NDArray[np.bool_] = self.keeper == np.arange(len(self.keeper))
        return mask

    def members(self) -> dict[int, list[int]]:
        """Keeper -> its group, itself first, of the groups of two and more; the largest group first."""
        dropped = np.flatnonzero(~self.kept)
        keepers, sizes = np.unique(self.keeper[dropped], return_counts=True)
        order = np.argsort(self.keeper[dropped], kind="stable")
        parts = np.split(dropped[order], np.cumsum(sizes)[:-1]) if len(keepers) else []
        by_size = sorted(range(len(keepers)), key=lambda n: (-sizes[n], keepers[n]))
        return {int(keepers[n]): [int(keepers[n]), *parts[n].tolist()] for n in by_size}


def keep_order(
    count: int,
    keep: Keep = "largest",
    *,
    pixels: Any = None,
    nbytes: Any = None,
    score: Any = None,
    earlier: Any = None,
) -> NDArray[np.int64]:
    """Rows in the order in which they are preferred, the most wanted first.

    Args:
        count: N, the number of rows.
        keep: "largest": most pixels, then most bytes. "best": highest score. "first": lowest row number. The lower row
            number decides what is still open.
        pixels: (N,) numbers, for "largest".
        nbytes: (N,) numbers, for "largest"; may be left out.
        score: (N,) numbers, for "best"; NaN comes last.
        earlier: (N,) bools: rows of an earlier run, which go before all others.

    Raises:
        ValueError: The rule is unknown, its column is missing, or a column has another length than N.
    """
    columns = {"pixels": pixels, "nbytes": nbytes, "score": score, "earlier": earlier}
    given = {name: np.asarray(column) for name, column in columns.items() if column is not None}
    for name, column in given.items():
        if column.shape != (count,):
            raise ValueError(f"{name} has the shape {column.shape}; one value for each of {count} rows is needed")
    rules: dict[str, tuple[str, ...]] = {"largest": ("nbytes", "pixels"), "best": ("score",), "first": ()}
    if keep not in rules:
        raise ValueError(f"keep is {keep!r}; allowed: {', '.join(map(repr, rules))}")
    names = rules[keep]
    if names and names[-1] not in given:  # the last one decides first, and must be there
        raise ValueError(f"keep={keep!r} goes by {names[-1]}, which were not given; or use keep='first'")
    keys: list[NDArray[Any]] = [np.arange(count)]
    keys += [-given[name].astype(np.float64) for name in names if name in given]  # NaN sorts behind all others
    if "earlier" in given:
        keys.append(~given["earlier"].astype(bool))
    return np.lexsort(keys).astype(np.int64)


def group(pairs: Pairs, order: NDArray[np.int64], linkage: Linkage = "star", *, similar: bool = True) -> Grouping:
    """Group the rows that one comparison found alike. Equal rows go together, to one keeper.

    Args:
        pairs: Of one set of N rows.
        order: (N,) rows from the most to the least wanted, of `keep_order`.
        linkage: See the head of this file.
        similar: Whether a higher value of a pair means more alike (cosines); False for distances.

    Raises:
        ValueError: The linkage is unknown, the pairs are between two sets, or `order` does not name each row once.
    """
    if pairs.same is None:
        raise ValueError("these pairs are between two sets; groups are of the pairs within one")
    same, rows = pairs.same, np.arange(len(pairs.same))
    _check_order(order, len(rows))
    # (N,) the most wanted of the rows that are equal to each: it stands for all of them
    best = np.full(len(rows), len(rows))
    np.minimum.at(best, same, np.argsort(order))
    head = order[best[same]]
    between_heads = Collector(len(pairs))
    between_heads.add(head[pairs.first], head[pairs.second], pairs.value)
    equal = 1.0 if similar else 0.0
    found = combine([MatchSet(between_heads.pairs(rows), equal)], order, linkage)
    keeper, comparison, value = found.keeper[head], found.comparison[head], found.value[head]
    follows = (keeper == head) & (head != rows)
    comparison[follows], value[follows] = 0, equal
    return Grouping(keeper, comparison, value)


def combine(match_sets: Sequence[MatchSet], order: NDArray[np.int64], linkage: Linkage = "star") -> Grouping:
    """Group the rows that any comparison found alike.

    Args:
        match_sets: The surest first: it gives the reason where several hold. Of one and the same set of N rows.
        order: (N,) rows from the most to the least wanted, of `keep_order`.
        linkage: See the head of this file. With "star" a dropped row goes to the kept row that is closest by the
            surest comparison, of equally close ones to the most wanted.

    Raises:
        ValueError: No match sets, the linkage is unknown, pairs are between two sets, or `order` does not name each
            row once.
    """
    if not match_sets:
        raise ValueError("no likeness is given, so nothing can be alike")
    if linkage not in get_args(Linkage):
        raise ValueError(f"linkage is {linkage!r}; allowed: {', '.join(map(repr, get_args(Linkage)))}")
    count = len(order)
    if any(matches.pairs.same is None or len(matches.same) != count for matches in match_sets):
        raise ValueError(f"each likeness must be of the pairs within one set of {count} rows")
    _check_order(order, count)
    if linkage == "star":
        return _link_stars(match_sets, order)
    return _explain(match_sets, _link_components(match_sets, order))


def _check_order(order: NDArray[np.int64], count: int) -> None:
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError(f"order names {len(np.unique(order))} different rows of {count}; it must name each once")


class _Coverage:
    """The kept row that is closest so far to each class of equal rows, by one comparison."""

    def __init__(self, matches: MatchSet) -> None:
        pairs, self.same, self._equal = matches.pairs, matches.same, np.float32(matches.equal)
        self._sign = 1.0 if matches.equal > 0 else -1.0  # of distances the lowest is the closest
        # every pair from both of its classes; those of class c lie from start[c] to start[c + 1]
        first, second = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
        order, self._start = sort_by_label(np.arange(len(first)), first, len(self.same))
        self._other, self._value = second[order], np.concatenate([pairs.value, pairs.value])[order]
        # (N,) by class: the keeper, or -1, and how close it is (higher is closer)
        self.keeper = np.full(len(self.same), -1, np.int64)
        self._closeness = np.full(len(self.same), -np.inf, np.float32)

    def involved(self) -> NDArray[np.bool_]:
        """(N,) whether a row is equal to another or in a pair."""
        sizes = np.bincount(self.same, minlength=len(self.same))
        return (sizes[self.same] > 1) | (np.diff(self._start)[self.same] > 0)

    def cover(self, row: int) -> None:
        """Let a kept row cover its own class and those that are like it, where no closer row does."""
        own = int(self.same[row])
        near = slice(int(self._start[own]), int(self._start[own + 1]))
        classes = np.append(self._other[near], own)
        closeness = self._sign * np.append(self._value[near], self._equal)
        closer = closeness > self._closeness[classes]
        self.keeper[classes[closer]], self._closeness[classes[closer]] = row, closeness[closer]

    def value(self, number: int) -> float:
        """The cosine or distance of a class and its keeper."""
        return float(self._sign * self._closeness[number])


def _link_stars(match_sets: Sequence[MatchSet], order: NDArray[np.int64]) -> Grouping:
    """Keep the most wanted row, drop all that are like it, and so on down."""
    count = len(order)
    keeper, comparison = np.arange(count), np.full(count, -1, np.int8)
    value = np.full(count, np.nan, np.float32)
    coverages = [_Coverage(matches) for matches in match_sets]
    involved = np.logical_or.reduce([coverage.involved() for coverage in coverages])
    for row in order[involved[order]].tolist():
        for number, coverage in enumerate(coverages):
            own = int(coverage.same[row])
            if coverage.keeper[own] >= 0:
                keeper[row], comparison[row], value[row] = coverage.keeper[own], number, coverage.value(own)
                break
        else:
            for coverage in coverages:
                coverage.cover(row)
    return Grouping(keeper, comparison, value)


def _link_components(match_sets: Sequence[MatchSet], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) every row's keeper: the most wanted of its component."""
    rows, rank = np.arange(len(order)), np.argsort(order)
    edges = [(matches.pairs.first, matches.pairs.second) for matches in match_sets]
    edges += [(matches.same, rows) for matches in match_sets]
    first, second = (rank[np.concatenate(column)] for column in zip(*edges, strict=True))
    root = rows  # (N,) by rank: a rank of the same component, never a higher one
    while True:  # hang each root below the lowest it is linked to, then shorten; halves at least the roots with links
        a, b = root[first], root[second]
        apart = a != b
        if not apart.any():
            return order[root[rank]]
        first, second, a, b = (column[apart] for column in (first, second, a, b))
        root = root.copy()
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(shorter := root[root], root):
            root = shorter


def _explain(match_sets: Sequence[MatchSet], keeper: NDArray[np.int64]) -> Grouping:
    """Find the surest comparison that has each row's pair with its keeper, where one has."""
    count = len(keeper)
    comparison, value = np.full(count, -1, np.int8), np.full(count, np.nan, np.float32)
    unmatched = np.flatnonzero(keeper != np.arange(count))
    for number, matches in enumerate(match_sets):
        # (U,) the classes of each row and of its keeper
        own, other = matches.same[unmatched], matches.same[keeper[unmatched]]
        equal = own == other
        value[unmatched[equal]] = matches.equal
        # (P,) one number a pair, ascending as the pairs are; (U,) the number of the pair that is looked for
        keys = matches.pairs.first * count + matches.pairs.second
        wanted = np.minimum(own, other) * count + np.maximum(own, other)
        place = np.searchsorted(keys, wanted)
        paired = np.isin(wanted, keys)
        value[unmatched[paired]] = matches.pairs.value[place[paired]]
        comparison[unmatched[equal | paired]] = number
        unmatched = unmatched[~(equal | paired)]
    return Grouping(keeper, comparison, value)
