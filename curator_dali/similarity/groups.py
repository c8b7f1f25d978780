"""From pairs to groups, and which image of a group is kept.

Two ways to read "alike", because A may be like B and B like C while A is not like C:

- `"star"`, the default: every dropped image is like the image that was kept for it, and no two kept images are alike.
  Images are taken in the order of the keep rule; one that is like an image kept already is dropped. So nothing is lost
  that has no likeness among what stays, and every group can be checked by eye against one picture.
- `"components"`: whatever hangs together by a chain of likenesses is one group, of which one image is kept. It keeps
  fewer, and a chain through a crowded region can drop images that are like nothing that stays.

`combine` makes groups of rows that are alike in any of several ways: equal bytes, near hashes, close embeddings. Each
way has its own idea of equal rows (one hash, one embedding), so pairs of several ways cannot be poured into one
`Pairs`: a million blank images share a hash, which is one class there, and have a million different files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.pairs import Pairs

__all__ = ["Combined", "Groups", "Keep", "Likeness", "Linkage", "combine", "group", "keep_order"]

Keep = Literal["largest", "best", "first"]
Linkage = Literal["star", "components"]


@dataclass(frozen=True)
class Groups:
    """What is kept, and for which kept row every other was dropped.

    Attributes:
        keeper: (N,) int64: the row that is kept for this one; a kept row's own number.
        value: (N,) float32: the cosine or distance between a dropped row and its keeper; NaN for kept rows, and where
            a chain led to the keeper.
    """

    keeper: NDArray[np.int64]
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
    needs = {"largest": "pixels", "best": "score", "first": None}
    if keep not in needs:
        raise ValueError(f"keep is {keep!r}; allowed: {', '.join(map(repr, needs))}")
    need = needs[keep]
    if need is not None and need not in given:
        raise ValueError(f"keep={keep!r} goes by {need}, which were not given; or use keep='first'")
    names = {"largest": ("nbytes", "pixels"), "best": ("score",), "first": ()}[keep]
    keys: list[NDArray[Any]] = [np.arange(count)]
    keys += [-given[name].astype(np.float64) for name in names if name in given]  # NaN sorts behind all others
    if "earlier" in given:
        keys.append(~given["earlier"].astype(bool))
    return np.lexsort(keys).astype(np.int64)


def group(pairs: Pairs, order: NDArray[np.int64], linkage: Linkage = "star", *, similar: bool = True) -> Groups:
    """Groups of rows that are alike, and the row of each that is kept.

    Args:
        pairs: Of one set of N rows.
        order: (N,) rows from the most to the least wanted, of `keep_order`.
        linkage: See the head of this file.
        similar: Whether a higher value of a pair means more alike (cosines); False for distances. Of the
            kept rows that are more wanted than a dropped one, it goes to that which it is most like.

    Raises:
        ValueError: The linkage is unknown, the pairs are between two sets, or `order` does not name each row once.
    """
    if linkage not in ("star", "components"):
        raise ValueError(f"linkage is {linkage!r}; allowed: 'star', 'components'")
    if pairs.same is None:
        raise ValueError("these pairs are between two sets; groups are of the pairs within one")
    same = pairs.same
    rank = np.full(len(same), -1, np.int64)
    if len(order) == len(same):
        rank[order] = np.arange(len(order))
    if (rank < 0).any():
        raise ValueError(f"order names {len(np.unique(order))} different rows of {len(same)}; it must name each once")
    # Equal rows are alike to the same rows: the best of them stands for all.
    best = np.full(len(same), len(same), np.int64)
    np.minimum.at(best, same, rank)
    head = order[best[same]] if len(order) else same  # every row's most wanted equal
    first, second = rank[head[pairs.first]], rank[head[pairs.second]]
    better, worse = np.minimum(first, second), np.maximum(first, second)
    closeness = pairs.value if similar else -pairs.value
    keeper = (_star_of_pairs if linkage == "star" else _components)(len(same), better, worse, closeness)  # among ranks
    keeper = order[keeper[rank[head]]] if len(order) else keeper
    return Groups(keeper, _values(pairs, head, keeper, 1.0 if similar else 0.0))


def _star_of_pairs(
    count: int, better: NDArray[np.int64], worse: NDArray[np.int64], closeness: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Every rank's keeper: the best-ranked is kept, what is like it dropped, and so on down."""
    edges = np.argsort(better, kind="stable")
    heads, starts = np.unique(better[edges], return_index=True)
    stops = np.append(starts, len(edges))[1:]
    followers = worse[edges]
    kept = np.ones(count, bool)
    for head, start, stop in zip(heads.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if kept[head]:
            kept[followers[start:stop]] = False
    links = np.flatnonzero(kept[better] & ~kept[worse])
    links = links[np.lexsort((better[links], -closeness[links], worse[links]))]
    dropped, place = np.unique(worse[links], return_index=True)
    keeper = np.arange(count)
    keeper[dropped] = better[links[place]]
    return keeper


def _components(
    count: int, better: NDArray[np.int64], worse: NDArray[np.int64], closeness: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Every rank's keeper: the best-ranked of its component."""
    keeper = np.arange(count)
    while True:  # hang each root below the lowest it is linked to, then shorten; halves at least the roots with links
        a, b = keeper[better], keeper[worse]
        open_links = a != b
        if not open_links.any():
            return keeper
        better, worse, a, b = (column[open_links] for column in (better, worse, a, b))
        np.minimum.at(keeper, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = keeper[keeper]
            if (shorter == keeper).all():
                break
            keeper = shorter


def _values(pairs: Pairs, head: NDArray[np.int64], keeper: NDArray[np.int64], equal: float) -> NDArray[np.float32]:
    """The value of every dropped row's pair with its keeper."""
    count = len(keeper)
    value = np.full(count, np.nan, np.float32)
    first, second = head[pairs.first], head[pairs.second]
    for child, parent in ((first, second), (second, first)):
        hits = keeper[child] == parent
        value[child[hits]] = pairs.value[hits]
    value = value[head]  # equal rows share it
    value[(keeper == head) & (np.arange(count) != keeper)] = equal
    value[keeper == np.arange(count)] = np.nan
    return value


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
        return _star_of_ways([_Links.of(way) for way in ways], order)
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


def _star_of_ways(ways: Sequence[_Links], order: NDArray[np.int64]) -> Combined:
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
