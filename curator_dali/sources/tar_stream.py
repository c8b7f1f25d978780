"""`ShardStream`: remote tars without an index, read once: whole, ahead of a pass, and indexed as their bytes arrive."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol

from curator_dali.errors import PassEndedError, SourceError
from curator_dali.io import RemoteReader, Stat, Storage
from curator_dali.sources.tar_headers import Scan, scan_tar
from curator_dali.sources.tar_index import TarIndex
from curator_dali.threads import Background, DaemonPool

logger = logging.getLogger(__name__)

_CONNECTIONS = 16  # ranges that are asked for at once, of all tars together
_RANGE_BYTES = 8 << 20  # the least that is asked for at once
_AHEAD_BYTES = 256 << 20  # of tars that are read and not used up
_LEAST_AHEAD = 2  # tars, as far as these can be kept
_WINDOW = 1 << 20  # bytes that the walk through the headers looks at, at once


class Tars(Protocol):
    """The tars that a stream reads; see `tar_shards.Shards`."""

    urls: Sequence[str]
    stats: list[Stat]

    def index(self, number: int, scan: Callable[[str, Stat], TarIndex] | None = None) -> object:
        """Index a tar, unless that is done."""

    def explain(self, number: int, error: BaseException) -> SourceError:
        """Make the exception that names a tar, and why it cannot be indexed."""

    def end(self, stream: ShardStream) -> None:
        """No longer wait for a stream."""


class ShardStream:
    """Reads remote tars for a pass in the order given, indexes these, and keeps their bytes until they are used up.

    Two tars at least are held, and further ones as long as all hold at most 256 MiB. A tar that somebody waits for is
    read in any case. A tar for which `Storage` has no room is indexed only, and its samples are read later.

    Args:
        shards: The source's tars.
        storage: Keeps the bytes.
        numbers: Of the tars, in the order in which the pass needs these. None has an index.
    """

    def __init__(self, shards: Tars, storage: Storage, numbers: Iterable[int]) -> None:
        self._shards, self._storage = shards, storage
        self._numbers = list(numbers)
        self._place = {number: place for place, number in enumerate(self._numbers)}
        self._wanted = 0  # how many of the first tars somebody waits for
        self._held: dict[int, int] = {}  # number -> bytes, of tars that are asked for and not used up
        self._errors: dict[int, SourceError] = {}
        self._done: set[int] = set()
        self._cancelled = self._told = False
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._ranges = DaemonPool(_CONNECTIONS, "curator-dali-stream")
        self._scans = DaemonPool(_CONNECTIONS, "curator-dali-scan")
        self._thread = Background(self._run, name="curator-dali-ahead")

    @property
    def total(self) -> int:
        """Number of tars that are read in all."""
        return len(self._numbers)

    def wait(self, number: int) -> bool:
        """Wait until a tar is indexed; see `ReadAhead.wait`."""
        place = self._place.get(number)
        if place is None or os.getpid() != self._process:  # a forked child has no threads of it
            return False
        with self._changed:
            self._wanted = max(self._wanted, place + 1)
            self._changed.notify_all()
            while number not in self._done and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise PassEndedError
            if (error := self._errors.pop(number, None)) is not None:
                raise error
        return True

    def release(self, numbers: Iterable[int]) -> None:
        """Let the bytes of tars go, whose samples the pass has read."""
        with self._changed:
            for number in numbers:
                if self._held.pop(number, None) is not None:
                    self._storage.forget(self._shards.urls[number])
            self._changed.notify_all()

    def cancel(self) -> None:
        """End the reading, and wake who waits. Does not wait. May be called again."""
        self._shards.end(self)
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
        for pool in (self._scans, self._ranges):
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the reading, and let all bytes go. Ranges that are under way end on their own."""
        self.cancel()
        self.release(list(self._held))

    def _run(self) -> None:
        """Start to read one tar after the other, as far as the memory for these allows."""
        for place, number in enumerate(self._numbers):
            size = self._shards.stats[number].size
            with self._changed:
                while not self._cancelled and place >= self._wanted and not self._has_room(size):
                    self._changed.wait()
                if self._cancelled:
                    return
                keep = sum(self._held.values()) + size <= self._storage.keep_limit
                self._held[number] = size if keep else 0
                self._scans.submit(self._take, number, keep)

    def _has_room(self, size: int) -> bool:
        """Whether a tar may be read that nobody waits for."""
        limit, total = self._storage.keep_limit, sum(self._held.values()) + size
        if len(self._held) < _LEAST_AHEAD:
            return not self._held or total <= limit or size > limit
        return total <= min(_AHEAD_BYTES, limit)

    def _take(self, number: int, keep: bool) -> None:
        """Read and index one tar."""
        try:
            if not keep and not self._told:
                self._told = True
                logger.warning(
                    "%s and all that is needed with it hold more than the %d bytes that are kept of tars without an "
                    "index: such tars are read twice. `curator-dali prepare` makes an index",
                    self._shards.urls[number],
                    self._storage.keep_limit,
                )
            self._shards.index(number, self._read_whole if keep else None)
        except BaseException as error:  # raised where somebody waits for the tar
            self._storage.forget(self._shards.urls[number])
            self._errors[number] = self._shards.explain(number, error)
        with self._changed:
            self._done.add(number)
            self._changed.notify_all()

    def _read_whole(self, url: str, stat: Stat) -> TarIndex:
        """Read a tar in large ranges at once, and walk through its headers as these arrive."""
        if stat.size == 0:
            return TarIndex.from_scan(Scan(ended=True), 0)
        reader = self._storage.reader(url, keep=True, stat=stat)
        step = -(-stat.size // max(1, stat.size // _RANGE_BYTES))

        def fetch(offset: int) -> bytes:
            length = min(step, stat.size - offset)
            data = reader(offset, length)
            if self._cancelled:
                self._storage.forget(url)
            if len(data) < length:
                raise SourceError(f"{url} was cut at byte {offset + len(data)} after it was opened: open it again")
            return data

        pieces = [self._ranges.submit(fetch, offset) for offset in range(0, stat.size, step)]
        try:
            index = TarIndex.from_scan(scan_tar(_read_from(pieces, step), stat.size, least=_WINDOW), stat.size)
            for piece in pieces:
                piece.exception()  # waits: the caller asks whether the tar has changed once all bytes are there
            return index
        finally:
            if isinstance(reader, RemoteReader):
                reader.close()


def _read_from(pieces: Sequence[Future[bytes]], step: int) -> Callable[[int, int], bytes]:
    """Make a function `(offset, length) -> bytes` over pieces of `step` bytes each, which waits for what it needs."""

    def read_at(offset: int, length: int) -> bytes:
        first, last = offset // step, min((offset + length - 1) // step, len(pieces) - 1)
        found = [memoryview(piece.result()) for piece in pieces[first : last + 1]]
        if not found:
            return b""
        begin = offset - first * step
        if len(found) == 1:
            return bytes(found[0][begin : begin + length])
        found[0] = found[0][begin:]
        return b"".join(found)[:length]

    return read_at
