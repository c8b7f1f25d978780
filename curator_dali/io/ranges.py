"""Bytes by range from local files and, through fsspec, from remote ones; file names and fingerprints; a cache."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

from curator_dali.errors import SourceError
from curator_dali.io import files
from curator_dali.io.links import Connections, RemoteReader
from curator_dali.io.pieces import Pieces
from curator_dali.io.remote import PATIENCE, explain, find_wait, is_http, is_remote, one_line, retry

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_RETRY_DELAYS = (0.1, 0.5, 2.0)  # seconds before the 2nd, 3rd and 4th try
_REMOTE_THREADS = 16
_KEEP_LIMIT = 512 << 20  # bytes of pieces that are kept in memory

_VERSION_FIELDS = (
    *("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated", "created"),
    "Last-Modified",
)
_HASH_FIELDS = ("md5Hash", "crc32c", "Content-MD5", "blob_id", "ETag", "etag")
_HASH_ETAG = re.compile(r'"?[0-9a-fA-F]{32,}(-\d+)?"?')  # S3's; those of web servers and Azure tell a time

# Parameters of signed URLs: of S3, GCS, OSS and COS, CloudFront, Azure; a token. The first pattern tells such a URL.
_SIGNATURE = re.compile(r"(x-(amz|goog|oss|cos)-)?signature|q-signature|sig|token|access_token")
_SIGNING = re.compile(
    r"x-(amz|goog|oss|cos)-.*|q-.*|(aws|oss)accesskeyid|googleaccessid|signature|expires|policy|key-pair-id|"
    r"hash-algorithm|security-token|sig|s[eiprstv]|spr|srt|sip|sk(oid|tid|[test]|v)|token|access_token"
)


class Storage:
    """Reads ranges and whole files; a failure is an `Outcome`, not an exception. Thread-safe.

    Local files are read with `preadv` and never mapped: a mapped file that shrinks ends the process with SIGBUS.
    Descriptors are kept open, the latest `max_open`. Remote requests run at the same time, and are tried again.

    Args:
        max_open: Local files that stay open.
        keep_limit: Bytes of remote files that `reader` keeps in memory.
    """

    def __init__(self, max_open: int = 64, keep_limit: int = _KEEP_LIMIT) -> None:
        self._max_open, self._pieces = max_open, Pieces(keep_limit)
        self._files: LRU[str, _File] = LRU(max_open)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._connections = Connections()

    def __reduce__(self) -> tuple[type[Storage], tuple[int, int]]:
        return Storage, (self._max_open, self._pieces.limit)

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

    def reader(self, url: str, *, keep: bool = False) -> Callable[[int, int], bytes]:
        """A function `(offset, length) -> bytes`, for going through one file; it returns less at the file's end.

        Args:
            url: The file.
            keep: Whether what is read of a remote file stays in memory, for `fill` and `cat`, until `forget`.

        Returns:
            The function; of a remote file a `RemoteReader`, which the caller closes.

        Raises:
            OSError: The file cannot be opened. The function raises it too, once trying again did not help.
            SourceError: The store fails.
        """
        if not is_remote(url):
            file = _File(url)
            return lambda offset, length: os.pread(file.fd, length, offset)
        fs, path = filesystem(url)

        def fetch(offset: int, length: int) -> bytes:
            data: bytes = self._connections.ask(url, lambda: fs.cat_file(path, start=offset, end=offset + length))
            return data

        def read(offset: int, length: int) -> bytes:
            if (found := self._pieces.find(url, offset, offset + length)) is not None:
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

    def fill(self, requests: Sequence[Request]) -> list[Outcome]:
        """Read ranges into their views, all as far as they can be read."""
        local = iter(self._fill_all_local([request for request in requests if not is_remote(request.url)]))
        remote = iter(self._fill_all_remote([request for request in requests if is_remote(request.url)]))
        return [next(remote if is_remote(request.url) else local) for request in requests]

    def cat(
        self, ranges: Sequence[tuple[str, int | None, int | None]], known: Mapping[str, tuple[int, str]] | None = None
    ) -> list[bytes | BaseException]:
        """Fetch ranges of remote files at the same time.

        Args:
            ranges: `(url, start, end)`; (None, None) for the whole file.
            known: URL -> size and ETag that a file of a web server has to have still.
        """
        results: list[bytes | BaseException] = [RuntimeError("not fetched")] * len(ranges)
        left = []
        for number, (url, start, end) in enumerate(ranges):
            kept = None if start is None or end is None else self._pieces.find(url, start, end)
            if kept is None:
                left.append(number)
            else:
                results[number] = kept
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
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _fill_all_remote(self, requests: Sequence[Request]) -> list[Outcome]:
        known = {request.url: (request.stat.size, request.stat.etag) for request in requests}
        found = self.cat([(r.url, r.offset, r.offset + len(r.view)) for r in requests], known) if requests else ()
        return [_accept(request, data) for request, data in zip(requests, found, strict=True)]

    def _fill_all_local(self, requests: Sequence[Request]) -> list[Outcome]:
        outcomes = [self._fill_local(request) for request in requests]
        for url, stat in {(request.url, request.stat) for request in requests}:
            if self._is_changed(url, stat):  # written to while it was open
                changed = Outcome(0, _changed(url))
                pairs = zip(requests, outcomes, strict=True)
                outcomes = [changed if r.url == url and not o.reason else o for r, o in pairs]
        return outcomes

    def _fill_local(self, request: Request) -> Outcome:
        url, stat, offset, view = request
        done = 0
        try:
            file = self._files.get(url, lambda: _File(url))
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

    def _is_changed(self, url: str, stat: Stat) -> bool:
        """Whether an open file is another one than it was; false where it is not open, as its outcomes tell more."""
        try:
            return Stat.of_local(os.fstat(self._files.get(url, lambda: _File(url)).fd)) != stat
        except OSError:
            return False

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
        from fsspec.asyn import AsyncFileSystem

        try:
            if isinstance(fs, AsyncFileSystem):
                options = {"known": known} if known and getattr(fs, "takes_known", False) else {}
                return list(fs.cat_ranges(paths, starts, ends, on_error="return", **options))
            with self._lock:
                self._pool = self._pool or ThreadPoolExecutor(_REMOTE_THREADS, thread_name_prefix="curator-dali-remote")
                pool = self._pool
            return list(pool.map(lambda path, start, end: _caught(fs.cat_file, path, start, end), paths, starts, ends))
        except Exception as error:
            return [error] * len(paths)


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

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


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


class Stat(NamedTuple):
    """A file as it was when it was looked at.

    Attributes:
        size: Size in bytes.
        version: A number that changes with the content: mtime in ns, or a hash of a remote ETag.
        content: The content hash of a remote file whose store tells one.
        etag: The ETag of a file of a web server.
    """

    size: int
    version: int
    content: str = ""
    etag: str = ""

    @classmethod
    def of_local(cls, status: os.stat_result) -> Stat:
        """Make it of what the system tells of a local file."""
        return cls(status.st_size, status.st_mtime_ns)


def stat_of(info: Mapping[str, Any]) -> Stat:
    """Make the `Stat` of a remote file of what fsspec's `info`, or a detailed listing, tells of it."""
    version = repr([info.get(field) for field in _VERSION_FIELDS])
    digest = hashlib.blake2b(version.encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little", signed=True)
    return Stat(int(info["size"]), number, content_hash(info), str(info.get("ETag") or ""))


def content_hash(info: Mapping[str, Any]) -> str:
    """Return the content hash in what fsspec tells of a file; "" where the store tells none."""
    for field in _HASH_FIELDS:
        value = str(info.get(field) or "")
        if value and (field.lower() != "etag" or _HASH_ETAG.fullmatch(value)):
            return value.strip('"')
    return ""


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


def strip_signature(url: str) -> str:
    """Return a web URL without the parameters that sign it, which change while the file stays; others as they are.

    Parameters that name a content stay: `versionId` of S3, `id`.
    """
    if "?" not in url or not is_http(url):
        return url
    path, _, query = url.partition("?")
    parameters = query.split("&")
    names = [parameter.partition("=")[0].lower() for parameter in parameters]
    if not any(map(_SIGNATURE.fullmatch, names)):
        return url
    kept = [text for text, name in zip(parameters, names, strict=True) if not _SIGNING.fullmatch(name)]
    return f"{path}?{'&'.join(kept)}" if kept else path


def fingerprint(kind: str, parts: Iterable[object]) -> str:
    """A short text that changes when any of `parts` does."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode())
    return f"{kind}-{digest.hexdigest()}"


class LRU(Generic[K, V]):
    """A thread-safe mapping that drops the least recently used values once their weights pass `limit`.

    A value is loaded once however many threads ask for it, and loads of different keys run at the same time.
    """

    def __init__(
        self,
        limit: int,
        weigh: Callable[[V], int] = lambda value: 1,
        dropped: Callable[[K, V], None] | None = None,
    ) -> None:
        self._limit, self._weigh, self._dropped = limit, weigh, dropped
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()
        self._loading: dict[K, threading.Lock] = {}

    def get(self, key: K, load: Callable[[], V]) -> V:
        """The value of `key`, loaded if it is not there."""
        with self._lock:
            if (item := self._items.get(key)) is not None:
                self._items.move_to_end(key)
                return item[0]
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                if (item := self._items.get(key)) is not None:
                    return item[0]
            try:
                value = load()
                self.put(key, value)
            finally:
                with self._lock:
                    self._loading.pop(key, None)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep `value`, and drop the oldest ones (never the one just put)."""
        out: list[tuple[K, V]] = []
        with self._lock:
            self._weight -= self._items.pop(key, (None, 0))[1]
            weight = self._weigh(value)
            self._items[key] = value, weight
            self._weight += weight
            while self._weight > self._limit and len(self._items) > 1:
                old, (gone, weight) = self._items.popitem(last=False)
                self._weight -= weight
                out.append((old, gone))
        if self._dropped is not None:
            for old, gone in out:
                self._dropped(old, gone)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            items, self._items, self._weight = self._items, OrderedDict(), 0
        if self._dropped is not None:
            for key, (value, _) in items.items():
                self._dropped(key, value)
