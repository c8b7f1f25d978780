"""Groups: what is kept, by which rule, and what hangs together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali.similarity import Linkage, Pairs, group, keep_order
from tests.similarity.pairs import expand


def pairs_of(count: int, edges: dict[tuple[int, int], float], same: list[int] | None = None) -> Pairs:
    edges = dict(sorted(edges.items()))
    first = np.array([a for a, _ in edges], np.int64)
    second = np.array([b for _, b in edges], np.int64)
    own = np.arange(count) if same is None else np.array(same, np.int64)
    return Pairs(first, second, np.array(list(edges.values()), np.float32), own)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Pairs, NDArray[np.int64]]:
    """Pairs of up to 14 rows with equal rows among them, and an order."""
    count = draw(st.integers(1, 14))
    same = list(range(count))
    for row in range(1, count):
        if draw(st.booleans()):
            same[row] = same[draw(st.integers(0, row - 1))]
    heads = sorted(set(same))
    possible = [(a, b) for a in heads for b in heads if a < b]
    edges = {edge: draw(st.integers(1, 9)) / 10 for edge in possible if draw(st.integers(0, 3)) == 0}
    return pairs_of(count, edges, same), np.array(draw(st.permutations(range(count))), np.int64)


@given(graphs())
def test_star_is_what_one_by_one_gives(graph: tuple[Pairs, NDArray[np.int64]]) -> None:
    pairs, order = graph
    alike = {}
    rank = np.argsort(order)
    whole = expand(pairs)
    for a, b, value in zip(whole.first.tolist(), whole.second.tolist(), whole.value, strict=True):
        alike[a, b] = alike[b, a] = value
    kept: list[int] = []
    for row in order.tolist():
        if not any((row, other) in alike for other in kept):
            kept.append(row)
    groups = group(pairs, order)
    assert np.flatnonzero(groups.kept).tolist() == sorted(kept)
    for row in np.flatnonzero(~groups.kept).tolist():
        keeper = int(groups.keeper[row])
        near = [(-alike[row, other], kept.index(other), other) for other in kept if (row, other) in alike]
        equal = np.flatnonzero(pairs.same == pairs.same[row])
        best = min(rank[equal])  # equal rows go together
        near = [entry for entry in near if rank[entry[2]] < best or entry[2] in equal]
        assert keeper == min(near)[2]
        assert groups.value[row] == alike[row, keeper]
    assert np.isnan(groups.value[groups.kept]).all()


@given(graphs())
def test_components_are_connected_and_keep_the_best(graph: tuple[Pairs, NDArray[np.int64]]) -> None:
    pairs, order = graph
    whole = expand(pairs)
    reach = np.eye(len(order), dtype=bool)
    reach[whole.first, whole.second] = reach[whole.second, whole.first] = True
    for _ in order:
        reach = reach @ reach
    rank = np.argsort(order)
    expected = [order[min(rank[other] for other in np.flatnonzero(reach[row]))] for row in range(len(order))]
    groups = group(pairs, order, "components")
    assert groups.keeper.tolist() == expected


@given(graphs(), st.sampled_from(["star", "components"]))
def test_a_group_stands_and_falls_together(graph: tuple[Pairs, NDArray[np.int64]], linkage: Linkage) -> None:
    groups = group(*graph, linkage)
    assert groups.kept[groups.keeper].all()  # a keeper is kept
    members = groups.members()
    assert sorted(row for rows in members.values() for row in rows[1:]) == np.flatnonzero(~groups.kept).tolist()
    assert all(rows[0] == keeper and len(rows) > 1 for keeper, rows in members.items())
    assert [len(rows) for rows in members.values()] == sorted((len(rows) for rows in members.values()), reverse=True)


def test_a_chain() -> None:
    """0 ~ 1 ~ 2 ~ 3, but no others: the star keeps what is like nothing that stays."""
    chain = pairs_of(4, {(0, 1): 0.96, (1, 2): 0.97, (2, 3): 0.98})
    order = np.arange(4)
    assert group(chain, order).keeper.tolist() == [0, 0, 2, 2]
    assert group(chain, order, "components").keeper.tolist() == [0, 0, 0, 0]
    best_first = np.array([1, 3, 0, 2])
    assert group(chain, best_first).keeper.tolist() == [1, 1, 3, 3]


def test_a_long_chain_and_a_large_star() -> None:
    count = 200_000
    order = np.random.default_rng(0).permutation(count)
    line = Pairs(np.arange(count - 1), np.arange(1, count), np.ones(count - 1, np.float32), np.arange(count))
    assert len(np.unique(group(line, order, "components").keeper)) == 1
    kept = group(line, order).kept
    assert not (kept[1:] & kept[:-1]).any()
    assert (kept | np.append(kept[1:], False) | np.append(False, kept[:-1])).all()
    star = Pairs(np.zeros(count - 1, np.int64), np.arange(1, count), np.ones(count - 1, np.float32), np.arange(count))
    assert group(star, np.arange(count)).kept.sum() == 1
    assert group(star, np.arange(count)[::-1]).kept.sum() == count - 1


def test_of_distances_the_smallest_is_nearest() -> None:
    pairs = pairs_of(3, {(0, 2): 6, (1, 2): 2})
    assert group(pairs, np.arange(3), similar=False).keeper.tolist() == [0, 1, 1]
    assert group(pairs, np.arange(3), similar=False).value[2] == 2
    assert group(pairs, np.arange(3)).keeper.tolist() == [0, 1, 0]


def test_keep_rules_and_their_ties() -> None:
    pixels, nbytes = [10, 20, 20, 20], [9, 5, 7, 7]
    assert keep_order(4, "largest", pixels=pixels, nbytes=nbytes).tolist() == [2, 3, 1, 0]
    assert keep_order(4, "largest", pixels=pixels).tolist() == [1, 2, 3, 0]
    assert keep_order(4, "first").tolist() == [0, 1, 2, 3]
    assert keep_order(4, "best", score=[0.5, np.nan, 0.9, 0.9]).tolist() == [2, 3, 0, 1]
    earlier = [False, False, False, True]
    assert keep_order(4, "best", score=[0.5, np.nan, 0.9, -1], earlier=earlier).tolist() == [3, 2, 0, 1]


def test_an_earlier_row_is_never_dropped_for_a_new_one() -> None:
    pairs = pairs_of(3, {(0, 1): 0.99, (1, 2): 0.99})
    order = keep_order(3, "largest", pixels=[1, 100, 2], earlier=[True, False, True])
    assert group(pairs, order).kept.tolist() == [True, False, True]


def test_no_rows_and_no_pairs() -> None:
    for linkage in ("star", "components"):
        assert len(group(pairs_of(0, {}), keep_order(0, "first"), linkage).keeper) == 0
        assert group(pairs_of(3, {}), keep_order(3, "first"), linkage).kept.all()
    assert group(pairs_of(3, {}), keep_order(3, "first")).members() == {}


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"'smallest'.*'largest', 'best', 'first'"):
        keep_order(3, "smallest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="goes by score"):
        keep_order(3, "best")
    with pytest.raises(ValueError, match=r"pixels has the shape \(2,\)"):
        keep_order(3, "largest", pixels=[1, 2])
    pairs = pairs_of(3, {(0, 1): 1})
    with pytest.raises(ValueError, match="'star', 'components'"):
        group(pairs, np.arange(3), "chain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name each once"):
        group(pairs, np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="between two sets"):
        group(Pairs(pairs.first, pairs.second, pairs.value), np.arange(3))
