"""Hamming search against brute force."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali.similarity import Pairs, TooManyPairs, near_between, near_pairs, phash
from tests import helpers
from tests.similarity.pairs import expand


def listed(pairs: Pairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.value.astype(int).tolist(), strict=True))


def brute(left: NDArray[np.uint64], right: NDArray[np.uint64], distance: int) -> list[tuple[int, int, int]]:
    apart = np.bitwise_count(left[:, None] ^ right)
    return [(int(i), int(j), int(apart[i, j])) for i, j in zip(*np.nonzero(apart <= distance), strict=True)]


@st.composite
def hash_sets(draw: st.DrawFn) -> NDArray[np.uint64]:
    """Few centres, and hashes a few flipped bits away: so that there are pairs at every distance, and equal ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(0, 80))
    centres = rng.integers(0, 2**64, draw(st.integers(1, 6)), np.uint64)
    hashes = rng.choice(centres, count)
    for _ in range(draw(st.integers(0, 9))):
        flip = rng.random(count) < 0.7
        hashes[flip] ^= np.uint64(1) << rng.integers(0, 64, flip.sum()).astype(np.uint64)
    return hashes


@given(hash_sets(), st.integers(0, 16))
@settings(max_examples=150, deadline=None)
def test_equals_brute_force(hashes: NDArray[np.uint64], distance: int) -> None:
    expected = [pair for pair in brute(hashes, hashes, distance) if pair[0] < pair[1]]
    assert listed(expand(near_pairs(hashes, distance), equal=0)) == expected


@given(hash_sets(), hash_sets(), st.integers(0, 16))
@settings(max_examples=100, deadline=None)
def test_between_equals_brute_force(left: NDArray[np.uint64], right: NDArray[np.uint64], distance: int) -> None:
    right = np.concatenate([right, left[: len(left) // 2] ^ np.uint64(5)])
    assert listed(near_between(left, right, distance)) == brute(left, right, distance)


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 9, 16])
def test_other_plans_for_more_hashes(distance: int) -> None:
    """3,000 hashes are divided into other bands than 80 are."""
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 3000, np.uint64)
    for n in range(1000):  # the n-th is up to 19 bits from the one 1,000 before it
        bits = rng.choice(64, n % 20, replace=False).astype(np.uint64)
        hashes[1000 + n] = hashes[n] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    expected = [pair for pair in brute(hashes, hashes, distance) if pair[0] < pair[1]]
    assert len(expected) >= 50 * (distance + 1)
    assert listed(expand(near_pairs(hashes, distance), equal=0)) == expected
    assert listed(near_between(hashes[:500], hashes[500:], distance)) == brute(hashes[:500], hashes[500:], distance)


def test_a_million_blank_images() -> None:
    hashes = np.zeros(1_000_000, np.uint64)
    hashes[7] = 3
    start = time.process_time()
    pairs = near_pairs(hashes, 6)
    assert time.process_time() - start < 5
    assert listed(pairs) == [(0, 7, 2)]
    assert pairs.same is not None
    assert np.unique(pairs.same).tolist() == [0, 7]


def test_too_many_pairs_are_an_error_and_name_a_row() -> None:
    dense = np.arange(4096, dtype=np.uint64)  # all within 12 bits
    with pytest.raises(TooManyPairs, match=r"more than 10,000 .*row \d+ alone"):
        near_pairs(dense, 12, max_pairs=10_000)


@pytest.mark.parametrize("distance", [-1, 17])
def test_distances_out_of_range(distance: int) -> None:
    with pytest.raises(ValueError, match="0 to 16"):
        near_pairs(np.zeros(2, np.uint64), distance)


@pytest.mark.parametrize("hashes", [np.zeros(3, np.int64), np.zeros((3, 1), np.uint64)])
def test_what_is_no_hash(hashes: NDArray[np.uint64]) -> None:
    with pytest.raises(ValueError, match=r"\(N,\) uint64"):
        near_pairs(hashes, 3)


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count: int) -> None:
    hashes = np.arange(count, dtype=np.uint64)
    assert len(near_pairs(hashes, 6)) == len(near_between(hashes, hashes[:0], 6)) == 0
    assert len(near_between(hashes, hashes, 6)) == count


def test_copies_of_photographs_are_found(photos: dict[str, NDArray[np.uint8]]) -> None:
    """Each photograph, and its JPEG at a low quality."""
    import io

    from PIL import Image

    worse = [np.array(Image.open(io.BytesIO(helpers.encode(photo, quality=30)))) for photo in photos.values()]
    hashes = phash([*photos.values(), *worse])
    count = len(photos)
    pairs = expand(near_pairs(hashes, 4), equal=0)
    assert {(i, j) for i, j, _ in listed(pairs)} == {(i, i + count) for i in range(count)}
