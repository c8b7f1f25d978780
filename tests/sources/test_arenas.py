"""Buffers that are used again, but never while somebody looks at them."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curator_dali.sources.tar import Arenas

MB = 1 << 20


def address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_buffer_comes_back_when_its_last_view_is_gone() -> None:
    arenas = Arenas()
    arena = arenas.allocate(4 * MB)
    first, piece, window = address(arena), arena[100:200], arena.data[5:9]
    del arena
    others = [arenas.allocate(4 * MB) for _ in range(2)]  # a slice and a memoryview still look at it
    del window
    others += [arenas.allocate(4 * MB), arenas.allocate(4 * MB)]
    assert first not in map(address, others)
    assert piece.base is not None
    del piece
    again = [arenas.allocate(4 * MB - n) for n in range(2)]
    assert first in map(address, again)
    assert all(array.flags.writeable for array in again)


def test_growing_and_shrinking_sizes() -> None:
    arenas = Arenas()
    for size in (2 * MB, 2 * MB + 100, 50 * MB, 3 * MB, 10, 0):
        assert arenas.allocate(size).shape == (size,)
    del size
    assert len(pickle.loads(pickle.dumps(arenas)).allocate(2 * MB)) == 2 * MB


def test_only_a_few_are_kept() -> None:
    arenas = Arenas()
    many = [arenas.allocate(MB) for _ in range(20)]
    many.clear()
    assert len(arenas._free) == 4
    arenas.clear()
    assert not arenas._free


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=40))
def test_living_buffers_never_overlap(steps: list[tuple[int, int]]) -> None:
    arenas = Arenas()
    held: dict[int, NDArray[np.uint8]] = {}
    for slot, size in steps:
        held.pop(slot, None)
        held[slot] = arenas.allocate(size * MB)[: size * MB // 2]
        spans = sorted((address(a), address(a) + 2 * len(a)) for a in held.values())
        assert all(spans[n][1] <= spans[n + 1][0] for n in range(len(spans) - 1))
