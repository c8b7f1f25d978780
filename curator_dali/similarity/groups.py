"""From pairs to groups, and which image of a group is kept.

Two ways to read "alike", because A may be like B and B like C while A is not like C:

- `"star"`, the default: every dropped image is like the image that was kept for it, and no two kept images are alike.
  Images are taken in the order of the keep rule; one that is like an image kept already is dropped. So nothing is lost
  that has no likeness among what stays, and every group can be checked by eye against one picture.
- `"components"`: whatever hangs together by a chain of likenesses is one group, of which one image is kept. It keeps
  fewer, and a chain through a crowded region can drop images that are like nothing that stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.pairs import Pairs

__all__ = ["Groups", "Keep", "Linkage", "group", "keep_order"]

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
        linkage: See the head of this module.
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
    keeper = (_star if linkage == "star" else _components)(len(same), better, worse, closeness)  # among ranks
    keeper = order[keeper[rank[head]]] if len(order) else keeper
    return Groups(keeper, _values(pairs, head, keeper, 1.0 if similar else 0.0))


def _star(
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
