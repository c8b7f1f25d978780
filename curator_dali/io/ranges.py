"""Bytes by range from local files and, through fsspec, from remote ones; file names and fingerprints; a cache."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple, TypeVar

from curator_dali.errors import SourceError
from curator_dali.io import files
from curator_dali.io.blocks import BLOCK, SMALL_PART, CachedFiles, span_of
from curator_dali.io.cache import Cache, current_cache
from curator_dali.io.links import Connections, RemoteReader
from curator_dali.io.lru import LRU
from curator_dali.io.pieces import Pieces
from curator_dali.io.remote import (
    PATIENCE,
    PermanentError,
    explain,
    find_deadline,
    find_wait,
    is_http,
    is_remote,
    one_line,
    retry,
)
from curator_dali.io.stats import Stat, stat_of

logger = logging.getLogger(__name__)

V = TypeVar("V")

_RETRY_DELAYS = (0.1, 0.5, 2.0)  # seconds before the 2nd, 3rd and 4th try
_REMOTE_THREADS = 16
_AT_ONCE = 128  # requests of one read, where fsspec's configuration does not say
_KEEP_LIMIT = 512 << 20  # bytes of pieces that are kept in memory
_STREAM_BUFFER = 256 << 10
_CHECKED = 1.0  # seconds for which a comparison of a file with what it was counts
_MOST_CHECKED = 1024


class Storage:
    """Reads ranges and whole files; a failure is an `Outcome`, not an exception. Thread-safe.

    Local files are read with `preadv` and never mapped: a mapped file that shrinks ends the process with SIGBUS.
    Descriptors are kept open, the latest `max_open`. Remote requests run at the same time, and are tried again.

    Args:
        max_open: Local files that stay open.
        keep_limit: Bytes of remote files that `reader` keeps in memory.
        cache: Where blocks of remote files are kept; None for the one of `use_cache`, if there is any.
    """

    def __init__(self, max_open: int = 64, keep_limit: int = _KEEP_LIMIT, cache: Cache | None = None) -> None:
        self._max_open, self._pieces = max_open, Pieces(keep_limit)
        cache = cache or current_cache()
        self._cached = None if cache is None else CachedFiles(cache)
        self._files: LRU[str, _File] = LRU(max_open)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._connections = Connections()
        self._checked: LRU[str, float] = LRU(_MOST_CHECKED)  # URL -> when its file was last compared

    def __reduce__(self) -> tuple[type[Storage], tuple[int, int, Cache | None]]:
        return Storage, (self._max_open, self._pieces.limit, self.cache)

    @property
    def cache(self) -> Cache | None:
        """Where blocks of remote files are kept."""
        return None if self._cached is None else self._cached.setting

    @property
    def keep_limit(self) -> int:
        """Bytes of remote files that `reader` keeps in memory."""
        return self._pieces.limit

    @property
    def keeps_pieces(self) -> bool:
        """Whether anything that `reader` read is kept now."""
        return self._pieces.nbytes > 0

    def stat(self, url: str) -> Stat:
        """Size and version of a file.

        Raises:
            OSError: It is not there, or may not be read.
            SourceError: The store fails, or does not tell its size.
        """
        if not is_remote(url):
            return Stat.of_local(os.stat(url))
        fs, path = filesystem(url)

        info = ask(url, lambda: self._connections.ask(url, lambda: fs.info(path)))
        if info.get("size") is None:
            raise SourceError(f"cannot read {url!r}: its server does not tell its size. Download it, and open the copy")
        return stat_of(info)

    def check(self, url: str, stat: Stat, *, by_version: bool = True) -> None:
        """Ask a store whether a file is what it was. Local files and those of web servers show it in each read.

        Args:
            url: The file.
            stat: What it was.
            by_version: Whether the version counts where there is neither content hash nor ETag.

        Raises:
            PermanentError: It is another one. What was kept of it is gone.
            OSError, SourceError: It cannot be asked for.
        """
        if not is_remote(url):
            return
        fs, path = filesystem(url)
        if getattr(fs, "takes_known", False):
            return
        fs.invalidate_cache(path)  # a listing may be old
        if not (stat if by_version else stat._replace(version=0)).is_same(self.stat(url)):
            self.forget(url)
            if self._cached is not None:
                self._cached.discard(url, stat)
            raise PermanentError(f"{url} changed after it was opened: open the source again")

    def reader(self, url: str, *, keep: bool = False, stat: Stat | None = None) -> Callable[[int, int], bytes]:
        """A function `(offset, length) -> bytes`, for going through one file; it returns less at the file's end.

        Args:
            url: The file.
            keep: Whether what is read of a remote file stays in memory, for `fill` and `cat`, until `forget`. What the
                cache keeps does not.
            stat: What the file is. A web server's file has to be that still, and the cache has to know it. Ranges that
                are a small part of their blocks are read from the cache, but not added to it.

        Returns:
            The function; of a remote file a `RemoteReader`, which the caller closes.

        Raises:
            OSError: The file cannot be opened. The function raises it too, once trying again did not help.
            SourceError: The store fails.
        """
        if not is_remote(url):
            file = _File(url)
            return lambda offset, length: os.pread(file.fd, length, offset)
        filesystem(url)  # a wrong URL is told at once
        known = None if stat is None else {url: (stat.size, stat.etag)}

        def fetch(offset: int, length: int) -> bytes:
            found = self._connections.ask(url, lambda: self._cat_once([(url, offset, offset + length)], known)[0])
            if isinstance(found, BaseException):
                raise found
            return found

        def read(offset: int, length: int) -> bytes:
            if (found := self._pieces.find(url, offset, offset + length)) is not None:
                return found
            if stat is not None and (found := self._read_cached(url, stat, offset, length)) is not None:
                return found
            data = ask(url, lambda: fetch(offset, length))
            if len(data) > length:
                raise SourceError(f"{url}: its store sent {len(data):,} bytes for a range of {length:,}")
            if keep:
                self._pieces.put(url, offset, data)
            return data

        return RemoteReader(url, read, self._connections)

    def forget(self, url: str) -> None:
        """Let what `reader` kept of a file go."""
        self._pieces.forget(url)

    def open(self, url: str, stat: Stat) -> IO[bytes]:
        """Open a remote file, for reading it through the cache; there has to be one."""
        return io.BufferedReader(_CachedStream(self, url, stat), _STREAM_BUFFER)

    def fill(self, requests: Sequence[Request], *, keep: bool = True) -> list[Outcome]:
        """Read ranges into their views, all as far as they can be read.

        Args:
            requests: The ranges.
            keep: Whether the cache downloads the blocks of ranges that it does not have; else it keeps nothing of
                them, as of headers between which most of a file is not read.
        """
        local = iter(self._fill_all_local([request for request in requests if not is_remote(request.url)]))
        remote = iter(self._fill_all_remote([request for request in requests if is_remote(request.url)], keep))
        return [next(remote if is_remote(request.url) else local) for request in requests]

    def cat(
        self,
        ranges: Sequence[tuple[str, int | None, int | None]],
        known: Mapping[str, tuple[int, str]] | None = None,
        stats: Mapping[str, Stat] | None = None,
    ) -> list[bytes | BaseException]:
        """Fetch ranges of remote files at the same time.

        Args:
            ranges: `(url, start, end)`; (None, None) for the whole file.
            known: URL -> size and ETag that a file of a web server has to have still.
            stats: URL -> what a file is. Such files come from the cache, if there is one, where they are read whole.
        """
        results: list[bytes | BaseException] = [RuntimeError("not fetched")] * len(ranges)
        left = []
        for number, (url, start, end) in enumerate(ranges):
            kept = None if start is None or end is None else self._pieces.find(url, start, end)
            if kept is None:
                left.append(number)
            else:
                results[number] = kept
        if self._cached is not None and stats:
            left = self._cat_cached(ranges, left, stats, results)
        if not left:
            return results
        begun = time.monotonic()
        # `retry` is of one call; here only those ranges are asked for again that failed, and all of them at once
        for delay in (*_RETRY_DELAYS, None):
            for number, result in zip(left, self._cat_once([ranges[n] for n in left], known), strict=True):
                results[number] = result
            failures = {n: result for n in left if isinstance(result := results[n], BaseException)}
            found = {n: find_wait(failure, delay, begun, (SourceError,)) for n, failure in failures.items()}
            waits = {n: wait for n, wait in found.items() if wait is not None}
            if not waits:
                return results
            reason = one_line(results[next(iter(waits))])
            logger.warning("%d of %d remote reads failed, trying again: %s", len(waits), len(left), reason)
            time.sleep(max(waits.values()))
            left = list(waits)
        return results

    def close(self) -> None:
        """Close files and threads; both come back when they are needed."""
        self._files.clear()
        self._pieces.clear()
        self._connections.close()
        if self._cached is not None:
            self._cached.close()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _fill_all_remote(self, requests: Sequence[Request], keep: bool) -> list[Outcome]:
        if not requests:
            return []
        outcomes: list[Outcome | None] = [None] * len(requests)
        if self._cached is not None:
            is_kept = [bool(self._pieces.nbytes) and self._is_kept(request) for request in requests]
            some = [request for request, kept in zip(requests, is_kept, strict=True) if not kept]
            found = iter(self._cached.fill(some, self._fetch, self._run_all, keep=keep))
            outcomes = [None if kept or (outcome := next(found)) is None else Outcome(*outcome) for kept in is_kept]
        left = [request for request, outcome in zip(requests, outcomes, strict=True) if outcome is None]
        known = {request.url: (request.stat.size, request.stat.etag) for request in left}
        data = self.cat([(r.url, r.offset, r.offset + len(r.view)) for r in left], known)
        direct = iter(map(_accept, left, data))
        return [next(direct) if outcome is None else outcome for outcome in outcomes]

    def _is_kept(self, request: Request) -> bool:
        """Whether a range is in memory."""
        return self._pieces.find(request.url, request.offset, request.offset + len(request.view)) is not None

    def _fetch(self, url: str, stat: Stat, start: int, end: int) -> bytes:
        """Download a range for the cache, once a connection is free, of a file that is what it was before and after."""
        # a file that is fetched by one request is compared after it
        checked = self._checked.get(url, lambda: time.monotonic() if end - start == stat.size else -math.inf)
        if time.monotonic() - checked > _CHECKED:
            self.check(url, stat, by_version=False)
        found = self._connections.ask(url, lambda: self.cat([(url, start, end)], {url: (stat.size, stat.etag)})[0])
        if isinstance(found, BaseException):
            raise found
        self.check(url, stat, by_version=False)
        self._checked.put(url, time.monotonic())
        return found

    def _run_all(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a function with each tuple of arguments, on threads where there are several."""
        if len(jobs) < 2:
            return [function(*job) for job in jobs]
        return [future.result() for future in [self._connections.submit(function, *job) for job in jobs]]

    def _read_cached(self, url: str, stat: Stat, offset: int, length: int, part: int = SMALL_PART) -> bytes | None:
        """Read a range through the cache; None where that is not possible.

        A range that is not there, and of which the blocks have more than `part` times its bytes, is left alone, too.
        """
        length = min(length, stat.size - offset)
        if self._cached is None or length <= 0:
            return None
        data = bytearray(length)
        keep = part * length >= span_of(offset, length, stat.size)
        request = Request(url, stat, offset, memoryview(data))
        outcome = self._cached.fill([request], self._fetch, _run_here, keep=keep)[0]
        if outcome is not None and outcome[1]:
            raise SourceError(outcome[1] if url in outcome[1] else f"cannot read {url!r}: {outcome[1]}")
        return None if outcome is None else bytes(data)

    def _cat_cached(
        self,
        ranges: Sequence[tuple[str, int | None, int | None]],
        numbers: list[int],
        stats: Mapping[str, Stat],
        results: list[bytes | BaseException],
    ) -> list[int]:
        """Read whole files through the cache; returns the numbers of the ranges that are left."""
        assert self._cached is not None
        some = [n for n in numbers if ranges[n][1] is None and (stat := stats.get(ranges[n][0])) and stat.size > 0]
        data = [bytearray(stats[ranges[n][0]].size) for n in some]
        requests = [
            Request(ranges[n][0], stats[ranges[n][0]], 0, memoryview(d)) for n, d in zip(some, data, strict=True)
        ]
        done = set()
        for n, d, outcome in zip(some, data, self._cached.fill(requests, self._fetch, self._run_all), strict=True):
            if outcome is not None and not outcome[1]:  # the reason of a failure comes from the store itself
                results[n] = bytes(d)
                done.add(n)
        return [n for n in numbers if n not in done]

    def _fill_all_local(self, requests: Sequence[Request]) -> list[Outcome]:
        opened: dict[str, _File] = {}
        outcomes = [self._fill_local(request, opened) for request in requests]
        for url, stat in {request.url: request.stat for request in requests}.items():
            if url in opened and opened[url].is_changed(stat):  # written to while it was open
                changed = Outcome(0, _changed(url))
                pairs = zip(requests, outcomes, strict=True)
                outcomes = [changed if r.url == url and not o.reason else o for r, o in pairs]
        return outcomes

    def _fill_local(self, request: Request, opened: dict[str, _File]) -> Outcome:
        """Read a range; the file that it is read from goes into `opened`."""
        url, stat, offset, view = request
        done = 0
        try:
            file = opened.get(url)
            if file is None:
                file = opened[url] = self._files.get(url, lambda: _File(url))
            if file.stat != stat:
                return Outcome(0, _changed(url))
            while done < len(view):
                count = os.preadv(file.fd, [view[done:] if done else view], offset + done)
                if count == 0:  # and what is left may be another file's
                    return Outcome(0, f"{url} was cut at byte {offset + done} after it was indexed")
                done += count
        except OSError as error:
            return Outcome(done, one_line(error))
        return Outcome(done, "")

    def _cat_once(
        self, ranges: list[tuple[str, int | None, int | None]], known: Mapping[str, tuple[int, str]] | None
    ) -> list[bytes | BaseException]:
        """One try at each range. Filesystems with an event loop get them all at once, the others from threads."""
        results: dict[int, bytes | BaseException] = {}
        groups: dict[int, tuple[Any, list[int], list[str]]] = {}
        web: Any = None  # one filesystem serves all web servers; asking fsspec for it costs more than reading a URL
        for number, (url, _, _) in enumerate(ranges):
            try:
                is_web = url.startswith(("http://", "https://")) and "::" not in url
                fs, path = (web, url) if is_web and web is not None else filesystem(url)
                web = fs if is_web and getattr(fs, "takes_known", False) else web
            except SourceError as error:
                results[number] = error
                continue
            _, numbers, paths = groups.setdefault(id(fs), (fs, [], []))
            numbers.append(number)
            paths.append(path)
        for fs, numbers, paths in groups.values():
            starts, ends = [ranges[n][1] for n in numbers], [ranges[n][2] for n in numbers]
            for n, result in zip(numbers, self._cat_group(fs, paths, starts, ends, known), strict=True):
                results[n] = explain(result, ranges[n][0]) if isinstance(result, BaseException) else result
        return [results[number] for number in range(len(ranges))]

    def _cat_group(
        self,
        fs: Any,
        paths: list[str],
        starts: list[int | None],
        ends: list[int | None],
        known: Mapping[str, tuple[int, str]] | None,
    ) -> list[bytes | BaseException]:
        from fsspec import asyn as fs_asyn
        from fsspec.asyn import AsyncFileSystem

        try:
            if isinstance(fs, AsyncFileSystem):
                options = {"known": known} if known and getattr(fs, "takes_known", False) else {}
                if options or type(fs)._cat_ranges is not AsyncFileSystem._cat_ranges:
                    return list(fs.cat_ranges(paths, starts, ends, on_error="return", **options))
                return list(fs_asyn.sync(fs.loop, _cat_within, fs, paths, starts, ends))
            with self._lock:
                self._pool = self._pool or ThreadPoolExecutor(_REMOTE_THREADS, thread_name_prefix="curator-dali-remote")
                pool = self._pool
            return list(pool.map(lambda path, start, end: _caught(fs.cat_file, path, start, end), paths, starts, ends))
        except Exception as error:
            return [error] * len(paths)


class _CachedStream(io.RawIOBase):
    """A remote file, read through a cache."""

    def __init__(self, storage: Storage, url: str, stat: Stat) -> None:
        self._storage, self._url, self._stat = storage, url, stat
        self._reader, self._at = storage.reader(url, stat=stat), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(offset + (0, self._at, self._stat.size)[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(min(len(view), self._stat.size - self._at), 0)
        data = self._storage._read_cached(self._url, self._stat, self._at, length, part=BLOCK) if length else b""
        data = self._reader(self._at, length) if data is None else data
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if isinstance(self._reader, RemoteReader):
            self._reader.close()
        super().close()


class Request(NamedTuple):
    """Fill `view` with the bytes of `url` from `offset` on; `stat` is what the file was when it was indexed."""

    url: str
    stat: Stat
    offset: int
    view: memoryview


class Outcome(NamedTuple):
    """How many bytes of a request were read, and why not all of them."""

    done: int
    reason: str


class _File:
    """An open file descriptor that closes with its last user, so that a cache may drop it while others read."""

    __slots__ = ("fd", "stat")

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.stat = Stat.of_local(os.fstat(self.fd))

    def is_changed(self, stat: Stat) -> bool:
        """Whether the file is another one than it was; false where that cannot be asked."""
        try:
            now = os.fstat(self.fd)
        except OSError:
            return False
        return now.st_mtime_ns != stat.version or now.st_size != stat.size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


async def _cat_within(
    fs: Any, paths: list[str], starts: list[int | None], ends: list[int | None]
) -> list[bytes | BaseException]:
    """Read ranges at the same time, each within a time: a store may send a byte now and then for ever."""
    import asyncio  # a tenth of what importing the loader takes; local data need none of it

    turn = asyncio.Semaphore(fs.batch_size if fs.batch_size and fs.batch_size > 0 else _AT_ONCE)

    async def read(path: str, start: int | None, end: int | None) -> bytes:
        limit = None if start is None or end is None else find_deadline(end - start)
        async with turn:
            data: bytes = await asyncio.wait_for(fs._cat_file(path, start=start, end=end), limit)
            return data

    return await asyncio.gather(*map(read, paths, starts, ends), return_exceptions=True)


def _run_here(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [function(*job) for job in jobs]


def _caught(function: Callable[..., bytes], *args: Any) -> bytes | BaseException:
    try:
        return function(*args)
    except Exception as error:
        return error


def _changed(url: str) -> str:
    return f"{url} changed after it was indexed: open the source again"


def _accept(request: Request, data: bytes | BaseException) -> Outcome:
    if isinstance(data, BaseException):
        return Outcome(0, one_line(data))
    wanted = len(request.view)
    if len(data) > wanted:
        return Outcome(0, f"{request.url}: its store sent {len(data):,} bytes for a range of {wanted:,}")
    request.view[: len(data)] = data
    if len(data) < wanted:  # and what is left may be another file's
        return Outcome(0, f"{request.url} was cut at byte {request.offset + len(data)} after it was indexed")
    return Outcome(wanted, "")


def filesystem(url: str) -> tuple[Any, str]:
    """Make the fsspec filesystem of a URL, and return it with the path in it; a failure is a `SourceError`."""
    try:
        return files.filesystem(url, only_read=True)
    except ValueError as error:
        raise SourceError(str(error)) from error


def ask(url: str, function: Callable[[], V], final: tuple[type[Exception], ...] = ()) -> V:
    """Call a function that asks a remote filesystem for a file or folder, again where it fails; return its result.

    Args:
        url: What is asked for.
        function: The function.
        final: Exceptions that come out at once, as they are.

    Raises:
        OSError, SourceError: The function fails for good, with whatever exception of the store's own.
    """
    try:
        return retry(function, _RETRY_DELAYS, (SourceError, *final), url=url, patience=PATIENCE)
    except Exception as error:
        if isinstance(error, (OSError, SourceError, *final)):
            raise
        raise SourceError(f"cannot read {url!r}: {one_line(error)}") from error


def ask_listing(url: str, function: Callable[[], V]) -> V:
    """Call a function that lists a remote folder, as `ask`; any failure is a SourceError."""
    try:
        return retry(function, _RETRY_DELAYS, (SourceError,), url=url, patience=PATIENCE)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"cannot list {url!r}: {one_line(error)}") from error


def common_name(urls: Sequence[str]) -> str:
    """A data set's name: the stem of its only file, or the folder of the first."""
    if not urls:
        return "images"
    folder, _, file = strip_query(urls[0]).rpartition("/")
    return (file.partition(".")[0] if len(urls) == 1 else folder.rpartition("/")[2]) or "images"


def strip_query(url: str) -> str:
    """Return a web URL without its query, which often is a signature; paths and names in other stores as they are."""
    return url.partition("?")[0] if is_http(url) else url


def fingerprint(kind: str, parts: Iterable[object]) -> str:
    """A short text that changes when any of `parts` does."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode())
    return f"{kind}-{digest.hexdigest()}"
