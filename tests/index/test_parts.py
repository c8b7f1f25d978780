"""The parts of an index: digests, hashes and vectors, against comparing all with all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curator_dali.index.index import digests_of
from curator_dali.index.lookup import DigestIndex, HashIndex, VectorIndex
from curator_dali.similarity import pairs_between
from curator_dali.similarity.pairs import Collector
from tests.similarity.planted import planted


def test_digests_compare_all_bytes(tmp_path: Path) -> None:
    digests = np.zeros((6, 16), np.uint8)
    digests[1, 15] = 1  # zeros at the end, or nothing but zeros, are bytes like others
    digests[2, 0] = 1
    digests[3, [0, 15]] = 255
    digests[4] = digests[2]
    digests[5] = 200
    rows = np.array([3, 5, 8, 9, 11, 20])
    DigestIndex.write(str(tmp_path), "a", digests, rows)
    index = DigestIndex.load(str(tmp_path), "a")
    other = np.full((1, 16), 255, np.uint8)
    places, found = index.find(np.concatenate([digests[::-1], other, other * 0 + 1]))
    assert places.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.tolist() == [20, 8, 9, 8, 5, 3]
    with pytest.raises(ValueError, match="'abc' is no digest of 32"):
        digests_of(["00" * 16, "abc"])
    with pytest.raises(ValueError, match="is no digest of 32"):
        digests_of(["zz" * 16])


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 16])
def test_hashes_by_lanes_and_by_a_scan_are_all_that_are_near(distance: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 300, np.uint64)
    queries = np.concatenate([hashes[:50], rng.integers(0, 2**64, 10, np.uint64)])
    for bits in range(18):  # up to 17 bits away
        queries[bits * 2 : 36] ^= np.uint64(1) << rng.integers(0, 64, 36 - bits * 2).astype(np.uint64)
    hashes[100:110] = hashes[:10]  # found as the first of them
    rows = np.arange(300) * 3
    apart = np.bitwise_count(queries[:, None] ^ hashes[None])
    apart[:, 100:110] = 64
    i, j = np.nonzero(apart <= distance)
    HashIndex.write(str(tmp_path), "h", hashes, rows)
    index = HashIndex.load(str(tmp_path), "h")
    from curator_dali.index.lookup import _deal

    for find in (index._scan, index._look_up):
        found = Collector(10_000, within=False)
        find(found, _deal(queries), distance)
        pairs = found.pairs()
        assert pairs.first.tolist() == i.tolist()
        assert pairs.second.tolist() == rows[j].tolist()
        assert pairs.value.tolist() == apart[i, j].tolist()
    assert index.near(queries, distance).second.tolist() == rows[j].tolist()
    assert len(i) > 10


def test_hashes_are_looked_up_where_that_costs_less(tmp_path: Path) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 50_000, np.uint64)
    HashIndex.write(str(tmp_path), "h", hashes, np.arange(50_000))
    index = HashIndex.load(str(tmp_path), "h")
    assert not index._cheaper_to_scan(4)
    assert index._cheaper_to_scan(16)
    assert len(index.near(hashes[:0], 4)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dim", [2, 100, 200])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_a_sketch_rules_out_nothing_that_is_similar(
    dim: int, threshold: float, dtype: type[np.floating], tmp_path: Path
) -> None:
    rows = planted(1000, dim, min(threshold, 0.97), topics=20, seed=dim).astype(dtype)
    old, new = rows[:750] * dtype(2), np.concatenate([rows[750:], rows[:20]])
    numbers = np.arange(750) * 2
    about = VectorIndex.write(str(tmp_path), old, numbers, threshold, device="cpu")
    index = VectorIndex.load(str(tmp_path), about)
    everywhere = replace(index, clusters=replace(index.clusters, reach=2.0))
    found = everywhere.similar(new, threshold)
    exact = pairs_between(new, old, threshold)
    assert found.first.tolist() == exact.first.tolist()
    assert found.second.tolist() == numbers[exact.second].tolist()
    assert found.value == pytest.approx(exact.value, abs=2e-6)
    assert len(exact) >= 1
    usual = index.similar(new, threshold)
    assert len(usual) >= 0.99 * len(exact)


def test_a_sketch_rules_most_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curator_dali.index import lookup

    rows = planted(5000, 512, 0.9, topics=50)
    about = VectorIndex.write(str(tmp_path), rows[:4000], np.arange(4000), 0.9, device="cpu")
    looked: list[int] = []
    real = lookup.collect

    def counting(*arguments: object) -> None:
        looked.append(len(arguments[3]))  # type: ignore[arg-type]
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lookup, "collect", counting)
    found = VectorIndex.load(str(tmp_path), about).similar(rows[4000:], 0.9)
    assert 0 < len(found) <= sum(looked) < 4000 * 1000 // 50
