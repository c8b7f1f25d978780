"""Paths of a million files in little memory, in order; and files of one stem found by hashes."""

from __future__ import annotations

import os
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_DECODING = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())  # of `os.fsdecode`, at a third of the time
_FEW_NAMES = 65_536  # that a list holds and sorts
_MOST_WIDE = 4  # times the bytes of all names may be padded to names of one length
_CHUNK_NAMES = 65_536  # that are texts at once


class Names(Sequence[str]):
    """Texts as one buffer of bytes, about nine bytes more than the text for each.

    Args:
        texts: The texts, as the system names files: bytes that are not UTF-8 are escaped as `os.fsdecode` does.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        blob, ends = bytearray(), array("q", [0])
        for text in texts:
            blob += os.fsencode(text)
            ends.append(len(blob))
        self._blob, self._ends = blob, _narrow(np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: Any) -> Any:
        blob = self._blob
        if isinstance(number, slice):
            begin, end, step = number.indices(len(self))
            if step != 1:
                return [self[at] for at in range(begin, end, step)]
            ends = self._ends[begin : max(begin, end) + 1].tolist()
            return [blob[start:stop].decode(*_DECODING) for start, stop in pairwise(ends)]
        number = range(len(self))[number]
        return blob[int(self._ends[number]) : int(self._ends[number + 1])].decode(*_DECODING)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK_NAMES):
            yield from self[start : start + _CHUNK_NAMES]

    def take(self, rows: NDArray[np.int64]) -> Names:
        """Choose texts by their (M,) numbers."""
        found: Names = object.__new__(type(self))
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.diff(self._ends)[rows], out=ends[1:])
        found._blob, found._ends = bytearray(int(ends[-1])), _narrow(ends)
        source, target = np.frombuffer(self._blob, np.uint8), np.frombuffer(found._blob, np.uint8)
        for start in range(0, len(rows), _CHUNK_NAMES):  # the places of all bytes at once would take eight times these
            at = ends[start : start + _CHUNK_NAMES + 1]
            begins = self._ends[rows[start : start + _CHUNK_NAMES]].astype(np.int64)
            # (B,) the byte of the blob that each byte of these texts is, when these are laid end to end
            places = np.arange(at[0], at[-1]) + np.repeat(begins - at[:-1], np.diff(at))
            target[at[0] : at[-1]] = source[places]
        return found

    def sort(self) -> Names:
        """Sort by code points, as `sorted` does."""
        width, count = int(np.diff(self._ends).max(initial=1)), len(self)
        if count <= _FEW_NAMES or count * width > _MOST_WIDE * len(self._blob) or not self._is_text():
            return Names(sorted(self))
        table = np.zeros((count, width), np.uint8)  # the order of the bytes of UTF-8 is that of the code points
        for start in range(0, count, _CHUNK_NAMES):
            ends = self._ends[start : start + _CHUNK_NAMES + 1]
            inside = np.arange(width) < np.diff(ends)[:, None]
            table[start : start + _CHUNK_NAMES][inside] = np.frombuffer(self._blob, np.uint8)[ends[0] : ends[-1]]
        order = np.argsort(table.view(f"S{width}")[:, 0])
        del table  # before as much is taken again
        return self.take(order)

    def _is_text(self) -> bool:
        """Whether the names are UTF-8."""
        try:
            for start in range(0, 0 if self._blob.isascii() else len(self), _CHUNK_NAMES):
                ends = self._ends[start : start + _CHUNK_NAMES + 1]
                self._blob[int(ends[0]) : int(ends[-1])].decode()
        except UnicodeDecodeError:
            return False
        return True


def _narrow(ends: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.uint32]:
    """Half the memory, unless there are 4 GiB of text."""
    return ends.astype(np.uint32) if ends[-1] < 2**32 else ends


class Paths(Sequence[str]):
    """Paths in order: each folder once, and the names as `Names`.

    Args:
        paths: The paths, with "/" between their parts.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        folders: dict[str, int] = {}
        numbers = array("I")

        def split() -> Iterator[str]:
            for path in paths:
                folder, slash, name = path.rpartition("/")
                numbers.append(folders.setdefault(folder + slash, len(folders)))
                yield name

        self._names = Names(split())
        self._folders, self._folder = list(folders), np.frombuffer(numbers, np.uint32)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(len(self)))]
        return self._folders[self._folder[number]] + self._names[number]

    def __iter__(self) -> Iterator[str]:
        folders = self._folders
        for start in range(0, len(self), _CHUNK_NAMES):
            numbers = self._folder[start : start + _CHUNK_NAMES].tolist()
            for number, name in zip(numbers, self._names[start : start + _CHUNK_NAMES], strict=True):
                yield folders[number] + name

    @property
    def folders(self) -> tuple[list[str], NDArray[np.uint32]]:
        """The folders, each with "/" at its end, "" for none; and (N,) the number of each path's folder."""
        return self._folders, self._folder

    def where(self, mask: NDArray[np.bool_]) -> Paths:
        """Choose the paths whose mask (N,) is true."""
        if mask.all():
            return self
        found: Paths = object.__new__(type(self))
        rows = np.flatnonzero(mask)
        found._names, found._folders, found._folder = self._names.take(rows), self._folders, self._folder[rows]
        return found


class HashGroups:
    """Rows by the hash of their text. Rows of one hash nearly always have one text, which the caller makes sure of.

    Args:
        texts: N texts.
        count: N.
    """

    def __init__(self, texts: Iterable[str], count: int) -> None:
        hashes = np.fromiter(map(hash, texts), np.int64, count)
        self._order = np.argsort(hashes, kind="stable").astype(np.uint32 if count < 2**32 else np.int64)
        self._sorted = hashes[self._order]

    def find(self, text: str) -> list[int]:
        """The rows that may have a text, ascending."""
        wanted = hash(text)
        start = bisect_left(self._sorted, wanted)
        stop = start
        while stop < len(self._sorted) and self._sorted[stop] == wanted:
            stop += 1
        rows: list[int] = self._order[start:stop].tolist()
        return rows

    def repeated(self) -> Iterator[list[int]]:
        """Iterate over the rows of each hash that several have."""
        same = np.flatnonzero(
            self._sorted[1:] == self._sorted[:-1]
        )  # the places of rows whose neighbour has their hash
        for run in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else ():
            yield self._order[run[0] : run[-1] + 2].tolist()
