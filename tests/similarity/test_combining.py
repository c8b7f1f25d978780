"""Several ways of being alike, in one grouping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali.similarity import MatchSet, Pairs, combine
from tests.similarity.test_grouping import pairs_of


@st.composite
def several(draw: st.DrawFn) -> tuple[list[MatchSet], NDArray[np.int64]]:
    """One to three likenesses of up to 10 rows, cosines and distances, and an order."""
    count = draw(st.integers(1, 10))
    ways = []
    for _ in range(draw(st.integers(1, 3))):
        same = list(range(count))
        for row in range(1, count):
            if draw(st.integers(0, 3)) == 0:
                same[row] = same[draw(st.integers(0, row - 1))]
        heads = sorted(set(same))
        possible = [(a, b) for a in heads for b in heads if a < b]
        edges: dict[tuple[int, int], float] = {
            edge: draw(st.integers(1, 9)) for edge in possible if draw(st.integers(0, 4)) == 0
        }
        ways.append(MatchSet(pairs_of(count, edges, same), draw(st.sampled_from([0.0, 10.0]))))
    return ways, np.array(draw(st.permutations(range(count))), np.int64)


def alike(way: MatchSet, a: int, b: int) -> float | None:
    """The value of two rows, found the slow way; None where they are not alike."""
    x, y = sorted((int(way.same[a]), int(way.same[b])))
    if x == y:
        return way.equal
    hit = np.flatnonzero((way.pairs.first == x) & (way.pairs.second == y))
    return float(way.pairs.value[hit[0]]) if len(hit) else None


@given(several())
def test_star_is_what_one_by_one_gives(case: tuple[list[MatchSet], NDArray[np.int64]]) -> None:
    ways, order = case
    kept: list[int] = []
    found = combine(ways, order)
    for row in order.tolist():
        options = []
        for number, way in enumerate(ways):
            for rank, other in enumerate(kept):
                if (value := alike(way, row, other)) is not None:
                    options.append((number, -value if way.equal else value, rank, other, value))
        if not options:
            kept.append(row)
            assert (found.keeper[row], found.comparison[row]) == (row, -1)
            assert np.isnan(found.value[row])
        else:
            number, _, _, other, value = min(options)
            assert (found.keeper[row], found.comparison[row], found.value[row]) == (other, number, value)


@given(several())
def test_components_hang_together_and_keep_the_most_wanted(case: tuple[list[MatchSet], NDArray[np.int64]]) -> None:
    ways, order = case
    count = len(order)
    part = list(range(count))
    for _ in range(count):
        for a in range(count):
            for b in range(count):
                if any(alike(way, a, b) is not None for way in ways):
                    part[a] = part[b] = min(part[a], part[b])
    found = combine(ways, order, "components")
    for row in range(count):
        group = [other for other in order.tolist() if part[other] == part[row]]
        assert found.keeper[row] == group[0]
        values = [alike(way, row, group[0]) for way in ways]
        direct = next((n for n, value in enumerate(values) if value is not None), -1) if row != group[0] else -1
        assert found.comparison[row] == direct
        assert np.isnan(found.value[row]) if direct < 0 else found.value[row] == values[direct]


def test_a_hash_that_many_share_is_no_reason_in_another_way() -> None:
    blank = MatchSet(pairs_of(4, {}, [0, 0, 0, 3]))
    close = MatchSet(pairs_of(4, {(2, 3): 0.99}), 1.0)
    found = combine([blank, close], np.arange(4))
    assert found.keeper.tolist() == [0, 0, 0, 3]  # 3 is like 2, which is gone, and not like 0


def test_many_rows_that_share_a_hash() -> None:
    count = 200_000
    nothing = np.empty(0, np.int64)
    same = Pairs(nothing, nothing, np.empty(0, np.float32), np.zeros(count, np.int64))
    assert (combine([MatchSet(same)], np.arange(count)).keeper == 0).all()


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing can be alike"):
        combine([], np.arange(2))
    with pytest.raises(ValueError, match="each once"):
        combine([MatchSet(pairs_of(2, {}))], np.array([0, 0]))
    with pytest.raises(ValueError, match="one set of 3 rows"):
        combine([MatchSet(pairs_of(2, {}))], np.arange(3))
