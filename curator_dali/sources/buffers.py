"""`Arenas`: writable buffers that are used again."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

_LEAST_ARENA = 1 << 20  # bytes; below, the allocator keeps memory itself
_MOST_ARENAS = 4
_MOST_SLACK = 8  # a buffer so many times larger than what is asked for is let go


class Arenas:
    """Hands out writable buffers. One comes back when the last view of it is gone, and is handed out again.

    New memory costs a page fault every 4 KiB, a third of what reading from the page cache costs in all; a warm loop
    over batches of like size takes none. Up to four buffers that nobody uses are kept. Thread-safe without a lock
    (list operations are atomic), as a buffer may come back in the midst of anything, by garbage collection.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def __reduce__(self) -> tuple[type[Arenas], tuple[()]]:
        return Arenas, ()

    def allocate(self, size: int) -> NDArray[np.uint8]:
        """(size,) uint8, not initialised."""
        if size < _LEAST_ARENA:
            return np.empty(size, np.uint8)
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        if not size <= len(buffer) <= _MOST_SLACK * size:
            buffer = np.empty(size + size // 8, np.uint8)  # room for the next batch, which may be a little larger
        # Over a memoryview, as numpy makes slices of an array over an *array* point at that one: then this array would
        # end before its slices do.
        arena = np.frombuffer(buffer.data, np.uint8, size)
        weakref.finalize(arena, _give_back, self._free, buffer).atexit = False
        return arena

    def clear(self) -> None:
        """Let go of the buffers that nobody uses."""
        self._free.clear()


def _give_back(free: list[NDArray[np.uint8]], buffer: NDArray[np.uint8]) -> None:
    if len(free) < _MOST_ARENAS:
        free.append(buffer)
