"""Pieces of remote files in memory: bytes that were read once and are wanted again soon."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict


class Pieces:
    """Pieces of files by their places. Once all pass a limit, the files go whose pieces came first. Thread-safe.

    Args:
        limit: Bytes of all pieces. The latest file stays even where its pieces alone are larger.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._files: OrderedDict[str, dict[int, bytes]] = OrderedDict()  # URL -> offset -> piece
        self._sorted: dict[str, list[int]] = {}  # URL -> offsets in order
        self._held = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return self._held

    def put(self, url: str, offset: int, data: bytes) -> None:
        """Keep a piece of a file that begins at an offset."""
        with self._lock:
            pieces = self._files.setdefault(url, {})
            if len(data) <= len(pieces.get(offset, b"")):
                return
            self._held += len(data) - len(pieces.get(offset, b""))
            pieces[offset] = data
            self._sorted.pop(url, None)
            while self._held > self.limit and len(self._files) > 1:
                self._drop(next(iter(self._files)))

    def find(self, url: str, start: int, end: int) -> bytes | None:
        """Return the bytes [start, end) of a file; None where pieces do not hold all of them."""
        with self._lock:
            pieces = self._files.get(url)
            if pieces is None:
                return None
            offsets = self._sorted.get(url)
            if offsets is None:
                offsets = self._sorted[url] = sorted(pieces)
            found: list[memoryview] = []
            at = start
            while at < end:
                piece = _covering(pieces, offsets, at)
                if piece is None:
                    return None
                begin, data = piece
                found.append(memoryview(data)[at - begin : end - begin])
                at += len(found[-1])
        return bytes(found[0]) if len(found) == 1 else b"".join(found)

    def forget(self, url: str) -> None:
        """Let the pieces of a file go."""
        with self._lock:
            self._drop(url)

    def clear(self) -> None:
        """Let all pieces go."""
        with self._lock:
            self._files.clear()
            self._sorted.clear()
            self._held = 0

    def _drop(self, url: str) -> None:
        self._held -= sum(map(len, self._files.pop(url, {}).values()))
        self._sorted.pop(url, None)


def _covering(pieces: dict[int, bytes], offsets: list[int], at: int) -> tuple[int, bytes] | None:
    """Find a piece that holds the byte `at`: one of the two that begin last before it, as windows overlap a little."""
    number = bisect_right(offsets, at)
    for begin in reversed(offsets[max(number - 2, 0) : number]):
        if at < begin + len(pieces[begin]):
            return begin, pieces[begin]
    return None
