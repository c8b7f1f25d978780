"""Keyed permutations and random numbers, evaluated where they are needed: no state, no memory, whatever n is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["mix", "permute", "uniforms"]

_ROUNDS = 6


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _round_keys(*numbers: int) -> NDArray[np.uint64]:
    """Keys of the rounds from any integers, through numpy's documented and stable seed hashing."""
    entropy = [n % 2**64 for n in numbers]
    return np.random.SeedSequence(entropy).generate_state(_ROUNDS, np.uint64).astype(np.uint64)


def permute(positions: NDArray[np.int64], n: int, *key: int) -> NDArray[np.int64]:
    """A keyed permutation of 0..n-1, evaluated at `positions` only.

    A balanced Feistel network over the smallest even number of bits that holds n, with cycle walking (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a value outside 0..n-1 is sent through again, at most
    four times on average.

    Args:
        positions: (M,) int64 in [0, n).
        n: Size of the domain.
        key: Integers that choose the permutation.

    Returns:
        (M,) int64, distinct for distinct positions.
    """
    if n <= 1:
        return np.zeros(len(positions), np.int64)
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    keys = _round_keys(n, *key)
    out = positions.astype(np.uint64)
    todo = np.arange(len(out))
    with np.errstate(over="ignore"):
        while len(todo):
            left, right = out[todo] >> shift, out[todo] & mask
            for round_key in keys:
                left, right = right, left ^ (mix(right + round_key) & mask)
            out[todo] = (left << shift) | right
            todo = todo[out[todo] >= np.uint64(n)]
    return out.astype(np.int64)


def uniforms(key: tuple[int, ...], indices: NDArray[np.int64], lanes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform random numbers as a pure function of (key, index, lane): no state, and no order of drawing.

    Counter-based (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), with SplitMix64's finaliser.

    Args:
        key: Integers, such as (seed, epoch).
        indices: (N,) int64, such as the samples' indices.
        lanes: (K,) int64, one for each number that a sample needs.

    Returns:
        (K, N) float64 in [0, 1), multiples of 2**-53.
    """
    first, second, third = _uniform_keys(key)
    with np.errstate(over="ignore"):
        columns = mix(mix(indices.astype(np.uint64) + first) + second)
        rows = mix(mix(lanes.astype(np.uint64) + second) + third)
        bits = mix(rows[:, None] + columns)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


@lru_cache(maxsize=64)
def _uniform_keys(key: tuple[int, ...]) -> NDArray[np.uint64]:
    return _round_keys(-1, *key)[:3]  # no permutation is over -1 samples
