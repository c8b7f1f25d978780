"""Bytes of the parts of a data set's index: a few of each sample of a batch, in a few calls."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import LRU, AtomicFile, Storage, cache_path, is_remote, join, one_line
from curator_dali.sources.entries import coalesce

logger = logging.getLogger(__name__)

_MOST_OPEN = 128  # parts that are open
_PART_MEMORY = 256 << 20  # bytes of remote parts that no folder can keep
_GAP = 2048  # bytes that are cheaper to read than to pass over
_PIECE = 16 << 20  # of a part that is fetched
_FETCHED_AT_ONCE = 8
_REPAIR = "`curator-dali prepare --anew` repairs it"

Read = Callable[[int, int], bytes]
"""(bytes, offset) -> bytes, fewer at the part's end; as `os.pread` has it."""


class IndexParts:
    """The parts of an index, opened when they are asked for. Thread-safe.

    Remote parts are fetched once into the cache folder, by one of the processes that want them. Where that folder
    cannot be written to, the latest are kept in memory.

    Args:
        folder: The index's folder.
        names: The parts.
        sizes: Bytes of each.
    """

    def __init__(self, folder: str, names: Sequence[str], sizes: Sequence[int]) -> None:
        self._folder, self._names, self._sizes = folder, list(names), list(sizes)
        self._start()

    def gather(
        self, part: NDArray[np.int64], offset: NDArray[np.int64], size: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
        """Read pieces of parts, M of them.

        Args:
            part: (M,) numbers of parts.
            offset: (M,) where each piece begins.
            size: (M,) bytes of each.

        Returns:
            A buffer; (M,) where each piece begins in it; piece -> why it could not be read.
        """
        extent_of, parts, starts, ends, position = coalesce(part, offset, size, _GAP)
        lengths = ends - starts
        spans = zip(parts.tolist(), lengths.tolist(), starts.tolist(), strict=True)
        used = list(dict.fromkeys(parts.tolist()))
        readers = self._open_all(used)
        bad: dict[int, str] = {}
        pieces: list[bytes] = []
        try:
            pieces = [readers[number](length, start) for number, length, start in spans]  # type: ignore[operator]
        except (OSError, TypeError):
            pieces = []
        if sum(map(len, pieces)) != int(lengths.sum()):
            pieces, bad = self._read_each(readers, parts, starts, lengths)
        failed = {piece: bad[extent] for piece, extent in enumerate(extent_of.tolist()) if extent in bad} if bad else {}
        return np.frombuffer(b"".join(pieces), np.uint8), position, failed

    def close(self) -> None:
        """Close the parts. A later read opens them again."""
        self._open.clear()
        self._held.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_names": self._names, "_sizes": self._sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        self._open: LRU[int, Read] = LRU(_MOST_OPEN)
        self._held: LRU[int, bytes] = LRU(_PART_MEMORY, len)

    def _open_all(self, numbers: Sequence[int]) -> dict[int, Read | str]:
        """Open parts: number -> function that reads it, or why it cannot be read."""
        if len(numbers) == 1 or not is_remote(self._folder):
            return {number: self._try_open(number) for number in numbers}
        with ThreadPoolExecutor(_FETCHED_AT_ONCE, thread_name_prefix="curator-dali-index") as pool:
            return dict(zip(numbers, pool.map(self._try_open, numbers), strict=True))

    def _try_open(self, number: int) -> Read | str:
        try:
            return self._open.get(number, lambda: self._open_part(number))
        except (OSError, SourceError) as error:
            return (
                f"the index {self._folder} cannot be read now: {one_line(error)}. `curator-dali prepare` may have made "
                "another one since: open the source again. `curator-dali prepare --anew` repairs one that is damaged"
            )

    def _open_part(self, number: int) -> Read:
        url, size = join(self._folder, self._names[number]), self._sizes[number]
        if not is_remote(url):
            return _PartFile(url, size).read
        path = cache_path("index", f"{url} {size}", ".arrow")
        with contextlib.suppress(OSError, SourceError):
            return _PartFile(path, size).read
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with _locked(f"{path}.lock"):
                with contextlib.suppress(OSError, SourceError):  # another process has fetched it meanwhile
                    return _PartFile(path, size).read
                with AtomicFile(path, sync=False) as file:
                    for piece in _fetch(url, size):
                        file.write(piece)
            return _PartFile(path, size).read
        except OSError as error:
            logger.warning("cannot keep parts of an index in %s: %s", os.path.dirname(path), one_line(error))

        def read(length: int, start: int) -> bytes:
            return self._held.get(number, lambda: b"".join(_fetch(url, size)))[start : start + length]

        read(0, 0)
        return read

    def _read_each(
        self,
        readers: dict[int, Read | str],
        parts: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> tuple[list[bytes], dict[int, str]]:
        """Read extents one by one: their bytes, zeros where there are none, and extent -> why."""
        pieces: list[bytes] = []
        bad: dict[int, str] = {}
        for extent, (number, start, length) in enumerate(
            zip(parts.tolist(), starts.tolist(), lengths.tolist(), strict=True)
        ):
            reader = readers[number]
            try:
                data = reader(length, start) if not isinstance(reader, str) else b""
                reason = reader if isinstance(reader, str) else f"{self._names[number]} of the index is cut: {_REPAIR}"
            except OSError as error:
                data, reason = b"", f"the index cannot be read: {one_line(error)}"
            if len(data) < length:
                bad[extent] = reason
            pieces.append(data.ljust(length, b"\0"))
        return pieces, bad


class _PartFile:
    """An open part, which closes with its last user.

    Raises:
        OSError: It is not there.
        SourceError: It has another size than it had when it was written.
    """

    def __init__(self, path: str, size: int) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self._fd).st_size
        if found != size:
            raise SourceError(f"{path} has {found:,} bytes, not {size:,}")

    def read(self, length: int, start: int) -> bytes:
        """Read bytes."""
        return os.pread(self._fd, length, start)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a lock that ends with its process, where the filesystem has locks."""
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(url: str, size: int) -> Iterable[bytes]:
    """Fetch a remote part, piece by piece.

    Raises:
        SourceError: It cannot be read, or is another one.
    """
    storage = Storage()
    try:
        for start in range(0, size, _PIECE):
            end = min(start + _PIECE, size)
            (data,) = storage.cat([(url, start, end)])
            if isinstance(data, BaseException):
                raise SourceError(f"{url} cannot be fetched: {one_line(data)}") from data
            if len(data) != end - start:
                raise SourceError(f"{url} has another size than {size:,} bytes")
            yield data
    finally:
        storage.close()
