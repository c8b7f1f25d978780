"""Cosine pairs and neighbours against brute force in float64, exact and in clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali.similarity import (
    Pairs,
    TooManyPairs,
    bad_rows,
    divide,
    nearest,
    pairs_between,
    similar_pairs,
)
from tests.similarity.pairs import expand
from tests.similarity.planted import planted


def cosines(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    left, right = (rows.astype(np.float64) for rows in (left, right))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right)]
    found: NDArray[np.float64] = unit[0] @ unit[1].T
    return found


def listed(pairs: Pairs) -> set[tuple[int, int]]:
    found = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert found == sorted(set(found))  # ascending, none twice
    return set(found)


def brute(embeddings: NDArray[Any], threshold: float) -> set[tuple[int, int]]:
    i, j = np.nonzero(np.triu(cosines(embeddings, embeddings) >= threshold, 1))
    return set(zip(i.tolist(), j.tolist(), strict=True))


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    """3,000 x 64: a background of 20 topics, 600 planted near-duplicates at cosines of 0.91 to 1, 30 equal rows."""
    rows = planted(2970, 64, 0.95, topics=20, share=0.2, seed=5)
    return np.concatenate([rows, rows[100:130]])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_exact_pairs_equal_brute_force(embeddings: NDArray[np.float32], dtype: Any) -> None:
    rows = embeddings.astype(dtype)
    expected = brute(rows, 0.95)
    assert len(expected) > 300
    pairs = similar_pairs(rows, 0.95)
    assert pairs.same is not None
    assert (pairs.same[2970:] == np.arange(100, 130)).all()
    assert listed(expand(pairs)) == expected
    truth = cosines(rows, rows)[pairs.first, pairs.second]
    assert np.abs(pairs.value - truth).max() < 2e-6
    assert listed(similar_pairs(torch.from_numpy(rows), 0.95)) == listed(pairs)


@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 9), st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_exact_pairs_of_any_rows(seed: int, count: int, dim: int, threshold: float) -> None:
    """Few columns and any lengths: pairs everywhere, many of them at the threshold's very edge."""
    rng = np.random.default_rng(seed)
    rows = (rng.integers(-2, 3, (count, dim)) * 10.0 ** rng.integers(-6, 7, (count, 1))).astype(np.float32)
    rows = rows[(rows != 0).any(axis=1)]
    found = expand(similar_pairs(rows, threshold))
    truth = cosines(rows, rows)
    sure = {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(truth >= threshold + 1e-12, 1)), strict=True)}
    perhaps = {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(truth >= threshold - 1e-12, 1)), strict=True)}
    assert sure <= listed(found) <= perhaps
    assert (found.value <= 1).all()


def test_pairs_do_not_depend_on_blocks(embeddings: NDArray[np.float32]) -> None:
    """More rows than one block, rows in another order: the same pairs."""
    order = np.random.default_rng(0).permutation(len(embeddings))
    pairs = expand(similar_pairs(embeddings[order], 0.95))
    back = {tuple(sorted((int(order[i]), int(order[j])))) for i, j in listed(pairs)}
    assert back == listed(expand(similar_pairs(embeddings, 0.95)))


def test_clusters_find_nearly_all_and_nothing_else(embeddings: NDArray[np.float32]) -> None:
    for threshold in (0.9, 0.95, 0.99):
        expected = brute(embeddings, threshold)
        found = listed(expand(similar_pairs(embeddings, threshold, exact=False)))
        assert found <= expected
        assert len(found) >= 0.99 * len(expected) > 30


def test_clusters_are_the_same_each_time(embeddings: NDArray[np.float32]) -> None:
    one, two = (divide(embeddings, 0.95) for _ in range(2))
    assert (one.centroids == two.centroids).all()
    assert (one.primary == two.primary).all()
    assert (one.margin, one.reach) == (two.margin, two.reach)


def test_a_crowded_cluster_is_divided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all rows are one topic: what is found stays right, and not all of it is compared with all."""
    from curator_dali.similarity import clusters

    monkeypatch.setattr(clusters, "_SPLIT_FROM", 300)
    monkeypatch.setattr(clusters, "_SPLIT", 2)
    again = []
    make = clusters.find_clusters
    monkeypatch.setattr(clusters, "find_clusters", lambda part, *a, **k: again.append(len(part)) or make(part, *a, **k))
    rng = np.random.default_rng(0)
    crowd = planted(2000, 64, 0.97, topics=1, share=0.1, seed=1) + 0.02 * rng.standard_normal(64, np.float32)
    rows = np.concatenate([crowd, planted(2000, 64, 0.97, topics=400, share=0.1, seed=2)])
    expected = brute(rows, 0.97)
    found = listed(expand(similar_pairs(rows, 0.97, exact=False)))
    assert again
    assert max(again) > 300
    assert found <= expected
    assert len(found) >= 0.98 * len(expected) > 100


@pytest.mark.parametrize("exact", [True, False])
def test_new_rows_against_old_ones(embeddings: NDArray[np.float32], exact: bool) -> None:
    old, new = embeddings[:2400], embeddings[2400:]
    truth = cosines(new, old) >= 0.95
    expected = set(zip(*(rows.tolist() for rows in np.nonzero(truth)), strict=True))
    found = listed(pairs_between(new, old, 0.95, clusters=None if exact else divide(old, 0.95)))
    assert found <= expected
    assert len(found) >= (1 if exact else 0.99) * len(expected) > 200


def test_clusters_of_other_rows_or_a_higher_threshold_are_refused(embeddings: NDArray[np.float32]) -> None:
    clusters = divide(embeddings[:2400], 0.9)
    with pytest.raises(ValueError, match=r"of 2400 rows .* are 3000"):
        pairs_between(embeddings, embeddings, 0.95, clusters=clusters)
    with pytest.raises(ValueError, match=r"0\.9 and more, not 0\.85"):
        pairs_between(embeddings, embeddings[:2400], 0.85, clusters=clusters)


def test_a_mapped_file_is_read_in_blocks(embeddings: NDArray[np.float32], tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", embeddings.astype(np.float16))
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    held = np.array(mapped)
    assert listed(similar_pairs(mapped, 0.95, exact=False)) == listed(similar_pairs(held, 0.95, exact=False))
    assert listed(pairs_between(mapped[:50], mapped, 0.95)) == listed(pairs_between(held[:50], held, 0.95))


def test_a_million_equal_rows_are_one() -> None:
    rows = np.broadcast_to(np.ones(4, np.float32), (1_000_000, 4))
    pairs = similar_pairs(rows, 0.9)
    assert len(pairs) == 0
    assert (pairs.same == 0).all()


def test_nearly_equal_rows_in_masses_are_an_error_not_the_end_of_memory() -> None:
    rows = 1 + 1e-3 * np.random.default_rng(0).standard_normal((4000, 16), np.float32)
    with pytest.raises(TooManyPairs, match=r"more than 100,000 .*raise the threshold"):
        similar_pairs(rows, 0.9, max_pairs=100_000)
    with pytest.raises(TooManyPairs, match="max_pairs"):
        similar_pairs(rows, 0.9, exact=False, max_pairs=100_000)


@pytest.mark.parametrize("k", [1, 7, 5000])
def test_nearest_equals_brute_force(embeddings: NDArray[np.float32], k: int) -> None:
    queries = embeddings[:40] + 0.01
    rows, values = nearest(queries, embeddings, k)
    truth = cosines(queries, embeddings)
    assert rows.shape == values.shape == (40, min(k, len(embeddings)))
    assert np.abs(np.take_along_axis(truth, rows, 1) - values).max() < 2e-6
    assert np.abs(-np.sort(-truth, axis=1)[:, : rows.shape[1]] - values).max() < 2e-6
    assert (np.diff(values, axis=1) <= 0).all()


def test_nearest_of_equal_ones_is_the_first() -> None:
    rows = np.tile(np.eye(4, dtype=np.float32), (50, 1))
    found, values = nearest(np.eye(4, dtype=np.float32)[1:2] * 3, rows, 6)
    assert found.tolist() == [[1, 5, 9, 13, 17, 21]]
    assert (values == 1).all()


@pytest.mark.parametrize("exact", [None, True, False])
def test_none_and_one(exact: bool | None) -> None:
    some = np.ones((3, 8), np.float32)
    for count in (0, 1):
        pairs = similar_pairs(some[:count], 0.9, exact=exact)
        assert len(pairs) == 0
        assert pairs.same is not None
        assert len(pairs.same) == count
    assert len(pairs_between(some[:0], some, 0.9)) == len(pairs_between(some, some[:0], 0.9)) == 0
    assert nearest(some, some[:0], 3)[0].shape == (3, 0)
    assert nearest(some[:0], some, 3)[0].shape == (0, 3)
    assert len(pairs_between(some[:0], some, 0.9, clusters=divide(some, 0.9))) == 0
    with pytest.raises(ValueError, match="no rows"):
        divide(some[:0], 0.9)


@pytest.mark.parametrize(
    ("values", "reason"),
    [([np.nan], "NaN or infinite"), ([np.inf], "NaN or infinite"), ([0.0] * 8, "are zero"), ([1e30], "float32 cannot")],
)
def test_rows_without_a_direction_are_named(values: list[float], reason: str) -> None:
    rows = np.ones((20_000, 8), np.float32)
    for row in (7, 17_000):
        rows[row, : len(values)] = values
    assert bad_rows(rows).tolist() == [7, 17_000]
    with pytest.raises(ValueError, match=rf"embeddings: 2 of 20000 rows .*{reason}.*row 7, 17000\)"):
        similar_pairs(rows, 0.9)
    with pytest.raises(ValueError, match="queries: 2 of"):
        pairs_between(rows, np.ones((2, 8), np.float32), 0.9)
    assert not len(bad_rows(np.delete(rows, [7, 17_000], axis=0)))


def test_other_errors_name_what_is_wrong() -> None:
    some = np.ones((3, 8), np.float32)
    for threshold in (0.0, -0.5, 1.01, float("nan"), 95):
        with pytest.raises(ValueError, match="a cosine above 0 and at most 1"):
            similar_pairs(some, threshold)
    with pytest.raises(ValueError, match=r"have 4 columns, where 8 .*another model"):
        pairs_between(some[:, :4], some, 0.9)
    with pytest.raises(ValueError, match=r"int64; float16, float32 or float64"):
        similar_pairs(np.ones((3, 8), np.int64), 0.9)
    with pytest.raises(ValueError, match=r"shape \(8,\)"):
        similar_pairs(some[0], 0.9)
    with pytest.raises(ValueError, match="k is 0"):
        nearest(some, some, 0)
    with pytest.raises(ValueError, match="9 clusters of 3 rows"):
        divide(some, 0.9, clusters=9)
