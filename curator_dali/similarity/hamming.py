"""Perceptual hashes that differ in a few bits: all pairs, exactly, without comparing all with all.

The 64 bits are dealt into m bands. Two hashes that differ in at most k bits agree in at least m - k bands, so it is
enough to compare hashes that agree in some a = m - k bands: for each choice of a bands out of m, sort by these bits and
compare within equal ones (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012, have
a = 1). The number of bands is chosen so that equal ones are few and choices not many.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.similarity.pairs import MAX_PAIRS, Collector, Pairs

_COMPARISONS_AT_ONCE = 2**21  # comparisons; 16 MB an array
_SORT_TIME, _COMPARE_TIME = 200.0, 10.0  # nanoseconds: to sort and to look up a hash, to compare two


def near_pairs(hashes: NDArray[np.uint64], distance: int, *, max_pairs: int = MAX_PAIRS) -> Pairs:
    """All pairs of hashes that differ in at most `distance` bits; none is missing.

    Equal hashes (blank images have one, however many they are) are found first, and take part once.

    Args:
        hashes: (N,) uint64.
        distance: Bits, 0 to 16. Up to 6 a million hashes take seconds; the time grows steeply with more.
        max_pairs: More than these are an error.

    Returns:
        Pairs of rows, with their distance.

    Raises:
        ValueError: `distance` is out of range, or the hashes are not (N,) uint64.
        TooManyPairs: More than `max_pairs` pairs of different hashes.
    """
    hashes = _checked(hashes, "hashes", distance)
    values, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    same = first[group].astype(np.int64)
    found = Collector(max_pairs)
    for choice in _choices(len(values), distance) if distance else []:
        keys = values & choice.bits
        order = np.argsort(keys)
        keys, ordered = keys[order], values[order]
        # from each to the last that agrees with it
        bounds = np.flatnonzero(np.concatenate([keys[1:] != keys[:-1], np.ones(min(1, len(keys)), bool)])) + 1
        stop = np.repeat(bounds, np.diff(bounds, prepend=0))
        for i, j, apart in compare(ordered, ordered, np.arange(1, len(keys) + 1), stop, distance, choice.passed_over):
            found.add(first[order[i]].astype(np.int64), first[order[j]].astype(np.int64), apart)
    return found.pairs(same)


def near_between(
    queries: NDArray[np.uint64], hashes: NDArray[np.uint64], distance: int, *, max_pairs: int = MAX_PAIRS
) -> Pairs:
    """All pairs of a query and a hash that differ in at most `distance` bits: new images against old ones.

    Hashes are not compared with each other. Equal hashes are all listed.

    Args:
        queries: (Q,) uint64.
        hashes: (N,) uint64.
        distance: As in `near_pairs`; so are the other arguments and errors.
        max_pairs: More than these are an error.

    Returns:
        Pairs of rows of `queries` (first) and of `hashes` (second), with their distance.
    """
    queries, hashes = _checked(queries, "queries", distance), _checked(hashes, "hashes", distance)
    found = Collector(max_pairs, within=False)
    for choice in _choices(max(len(queries), len(hashes)), distance):
        keys = hashes & choice.bits
        order = np.argsort(keys)
        keys, wanted = keys[order], queries & choice.bits
        start, stop = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        for i, j, apart in compare(queries, hashes[order], start, stop, distance, choice.passed_over):
            found.add(i, order[j].astype(np.int64), apart)
    return found.pairs()


def _checked(hashes: NDArray[np.uint64], name: str, distance: int) -> NDArray[np.uint64]:
    if not 0 <= distance <= 16:
        raise ValueError(f"the distance is {distance!r} bits; 0 to 16 of 64 can be asked for, 4 to 6 is usual")
    hashes = np.asarray(hashes)
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise ValueError(f"{name} are {hashes.dtype} of shape {hashes.shape}; (N,) uint64 is needed, see from_hex")
    return hashes


@cache
def _plan(count: int, distance: int) -> tuple[int, int]:
    """Bands in all, and bands to agree in, by what sorting and comparing evenly spread hashes would cost."""

    def cost(agree: int) -> float:
        bands = distance + agree
        together: float = count / 2.0 ** (64 * agree / bands)
        return comb(bands, agree) * count * (_SORT_TIME + _COMPARE_TIME * together / 2)

    agree = min((a for a in range(1, 6) if distance + a <= 64), key=cost)
    return distance + agree, agree


class _Choice(NamedTuple):
    """Bits in which hashes are to agree.

    Attributes:
        bits: Mask of the chosen bands.
        passed_over: Masks of the bands before the last chosen one that were not chosen: a pair that agrees in one of
            these as well was found with an earlier choice.
    """

    bits: np.uint64
    passed_over: tuple[np.uint64, ...]


def _choices(count: int, distance: int) -> list[_Choice]:
    """Sets of bits such that any two hashes `distance` bits apart agree in one of them."""
    if not distance:
        return [_Choice(np.uint64(2**64 - 1), ())]
    bands, agree = _plan(count, distance)
    # dealt in turn: neighbouring bits are of neighbouring pixels or frequencies and go together too often
    dealt = [np.uint64(sum(1 << bit for bit in range(band, 64, bands))) for band in range(bands)]
    choices = []
    for chosen in combinations(range(bands), agree):
        passed_over = tuple(dealt[band] for band in range(chosen[-1]) if band not in chosen)
        choices.append(_Choice(np.bitwise_or.reduce([dealt[band] for band in chosen]), passed_over))
    return choices


def compare(
    left: NDArray[np.uint64],
    right: NDArray[np.uint64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    distance: int,
    passed_over: tuple[np.uint64, ...] = (),
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Compare every row of `left` with rows start to stop of `right`; (row, row, bits) of what is near, in parts.

    Pairs that agree in a band that was passed over are left out.
    """
    # rows of `left` with anything to compare, how many comparisons each needs, and how many all up to it need
    rows = np.flatnonzero(stop > start)
    counts = (stop - start)[rows]
    ends = np.cumsum(counts)
    done = 0
    while done < len(rows):
        before = int(ends[done - 1]) if done else 0
        upto = max(done + 1, int(np.searchsorted(ends, before + _COMPARISONS_AT_ONCE, "right")))
        part, number = rows[done:upto], counts[done:upto]
        # (C,) each row of the part as often as it is compared, and what it is compared with: start, start + 1, ...
        i = np.repeat(part, number)
        j = np.arange(before, int(ends[upto - 1])) + np.repeat(start[part] - (ends[done:upto] - number), number)
        different = left[i] ^ right[j]
        near = np.flatnonzero(np.bitwise_count(different) <= distance)
        different = different[near]
        for band in passed_over:
            new = (different & band) != 0
            near, different = near[new], different[new]
        yield i[near], j[near], np.bitwise_count(different).astype(np.float32)
        done = upto
