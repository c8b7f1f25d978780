"""Files written whole or not at all; the filesystem of a URL; regular files and JSON documents, read or refused.

Locally a file is written under a temporary name in its own folder, synced and renamed. A remote one is written to an
unlinked file in the temporary folder ($TMPDIR) and uploaded once it is complete: an object store (S3, GCS, Azure)
shows an object only when its upload is done; on any other filesystem it is uploaded under a temporary name and moved,
which is atomic where that filesystem's rename is (SFTP, HDFS) and may show a partial file where it copies instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from curator_dali.io.remote import is_http, is_remote, read_timeout, retry

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "mpo", "png", "apng", "webp", "tif", "tiff", "bmp"),
        *("dib", "gif", "jp2", "j2k", "j2c", "jpc", "jpx", "jpf", "avif", "avifs", "heic", "heif", "hif"),
        *("ppm", "pgm", "pbm", "pnm", "tga", "ico", "qoi", "dds", "pcx", "sgi", "psd"),
    ]
)
"""Extensions of images, in lower case; names are compared without regard to case."""

MAX_DEPTH = 100
"""Levels that lists and objects may lie in each other. Python compares and writes some hundreds at the most."""

DEEP = f"lists and objects lie in each other deeper than {MAX_DEPTH} levels"

_RETRY_DELAYS = (0.5, 2.0, 8.0)  # of a write
_PATIENCE = 120.0  # seconds after which a store that is silent is not written to again
_FINAL_ERRORS = (NotImplementedError, ValueError)  # trying again changes nothing
# An object is there when its upload is complete, and not before; renaming would copy it.
_OBJECT_STORES = frozenset(["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "r2", "hf"])
_LEFTOVER = re.compile(r"\..*\.(?P<host>[\w-]+)\.[0-9a-f]{16}\.partial", re.DOTALL)
_IDLE_SECONDS = 3600.0  # without a write until another machine's file counts as left behind
_MOST_BUFFERS = 1024  # IOV_MAX of Linux
_PROTOCOL = re.compile(r"(?:^|::)([a-z0-9+]+)(?=://|::)")
# protocols of stores that take a limit -> their names in fsspec's configuration
_PROTOCOL_ALIASES = {
    **dict.fromkeys(["http", "https"], ("http", "https")),
    **dict.fromkeys(["gs", "gcs"], ("gs", "gcs")),
    **dict.fromkeys(["s3", "s3a"], ("s3", "s3a")),
    **dict.fromkeys(["abfs", "abfss", "az"], ("abfs", "abfss", "az")),
}


class AtomicFile(io.RawIOBase):
    """A file being written, which nobody sees before `commit`; without one it is as if it had never been begun.

    As a context manager it commits at the end, or discards if the block raises. Not thread-safe. Until it is committed
    the file is locked (flock), so that `remove_leftovers` can tell it from what a killed process left.

    Args:
        url: Path or URL. A file that is there already is replaced.
        digest: Whether to compute the content's BLAKE2b on the way.
        sync: Whether the content must survive a power cut (fsync of the file and its folder); not for caches.

    Raises:
        OSError: The file cannot be created. All methods raise it too, for instance once the disk is full.
    """

    _fd = -1

    def __init__(self, url: str | os.PathLike[str], *, digest: bool = False, sync: bool = True) -> None:
        self.url = os.fspath(url)
        self.size = 0
        self._hash = hashlib.blake2b(digest_size=16) if digest else None
        self._remote, self._sync = is_remote(self.url), sync
        self._partial, self._pid = "", os.getpid()
        if self._remote:
            self._fd, spool = tempfile.mkstemp(prefix="curator-dali-")
            os.unlink(spool)  # so that a kill leaves nothing; it is read again through /proc/self/fd
        else:
            self._open_beside()

    @property
    def closed(self) -> bool:
        """Whether the file was committed or discarded."""
        return self._fd < 0

    def write(self, data: Any) -> int:
        """Append bytes (any contiguous buffer); returns how many."""
        return self.writev([memoryview(data).cast("B")])

    def writev(self, parts: Sequence[bytes | memoryview]) -> int:
        """Append buffers of bytes, without joining them; returns how many. If it fails, the file is discarded."""
        if self.closed:
            raise ValueError(f"{self.url} was committed or discarded already")
        total = 0
        try:
            for start in range(0, len(parts), _MOST_BUFFERS):
                chunk = parts[start : start + _MOST_BUFFERS]
                wanted = sum(map(len, chunk))
                done = os.writev(self._fd, chunk) if wanted else 0
                if done < wanted:  # a signal, a limit, or 2 GiB: go on, or learn the reason
                    self._write_rest(chunk, done)
                total += wanted
        except BaseException:  # an interrupt, too: what was written of these is unknown
            self.discard()
            raise
        self.size += total
        if self._hash is not None:
            for part in parts:
                self._hash.update(part)
        return total

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def writable(self) -> bool:
        """True until it is closed."""
        return not self.closed

    def close(self) -> None:
        """The same as `discard`, for what closes files by habit; nothing after a commit."""
        self.discard()

    def commit(self) -> Written:
        """Let the file appear under its name.

        Raises:
            OSError: It could not be written; it is discarded.
        """
        if self.closed:
            raise ValueError(f"{self.url} was committed or discarded already")
        try:
            if self._remote:
                _upload(f"/proc/self/fd/{self._fd}", self.url)
            else:
                if self._sync:
                    os.fsync(self._fd)
                os.replace(self._partial, self.url)
                self._partial = ""
                if self._sync:
                    _sync_folder(os.path.dirname(self.url) or ".")
        except BaseException:
            self.discard()
            raise
        self._close()
        return Written(self.url, self.size, self._hash.hexdigest() if self._hash is not None else "")

    def discard(self) -> None:
        """Forget what was written. May be called again, and after a commit, when it does nothing."""
        if self._partial and self._pid == os.getpid():  # not in a forked child
            with contextlib.suppress(OSError):
                os.unlink(self._partial)
        self._close()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and not self.closed:
            self.commit()
        else:
            self.discard()

    def _open_beside(self) -> None:
        folder, name = os.path.split(self.url)
        # 255 bytes are the usual limit of a name, so of a long one only the beginning.
        short = os.fsdecode(os.fsencode(name)[:150])
        while True:
            path = os.path.join(folder, f".{short}.{_host()}.{secrets.token_hex(8)}.partial")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with contextlib.suppress(OSError):  # a filesystem without locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                self._fd, self._partial = fd, path
                return
            os.close(fd)  # taken for a leftover before it was locked

    def _write_rest(self, parts: Sequence[bytes | memoryview], skip: int) -> None:
        for part in parts:
            view = memoryview(part)
            if skip >= len(view):
                skip -= len(view)
                continue
            view, skip = view[skip:], 0
            while view:
                count = os.write(self._fd, view)
                if count == 0:
                    raise OSError(errno.EIO, "nothing more can be written", self.url)
                view = view[count:]

    def _close(self) -> None:
        fd, self._fd, self._partial = self._fd, -1, ""
        if fd >= 0:
            os.close(fd)


class Written(NamedTuple):
    """A finished file: its path or URL, bytes, and BLAKE2b-128 of the content in hex (empty if not asked for)."""

    name: str
    size: int
    blake2b: str = ""


def write_file(url: str | os.PathLike[str], *parts: bytes, sync: bool = True) -> None:
    """Write a whole file, atomically; see `AtomicFile`."""
    with AtomicFile(url, sync=sync) as file:
        file.writev(parts)


def cache_path(kind: str, key: str, ending: str) -> str:
    """Where a file is kept that can be made again: in $CURATOR_DALI_CACHE, else below $XDG_CACHE_HOME or ~/.cache.

    Args:
        kind: A folder for files of one kind.
        key: A text that no other file of the kind has.
        ending: The end of the file's name.
    """
    folder = os.environ.get("CURATOR_DALI_CACHE")
    if not folder:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "curator_dali")
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return os.path.join(folder, kind, digest[:2], f"{digest}{ending}")  # folders of thousands, not of millions


def make_folder(url: str) -> None:
    """Make a folder (and those above it) and make sure that files can be written to it.

    Raises:
        OSError: It cannot be made, or not be written to.
        ValueError: fsspec cannot open the URL.
    """
    probe = f"{url.rstrip('/')}/.probe-{secrets.token_hex(8)}"
    if is_remote(url):
        fs, path = filesystem(url)
        fs.makedirs(path, exist_ok=True)
        write_file(probe, b"probe")
        fs.rm_file(filesystem(probe)[1])
    else:
        os.makedirs(url, exist_ok=True)
        with AtomicFile(probe, sync=False) as file:
            file.write(b"probe")
            file.discard()


def remove_leftovers(folder: str) -> list[str]:
    """Remove what killed writers left in a folder (not in those below it); returns the names removed.

    A file that is still being written is locked by its writer and stays. One of another machine must, besides, not
    have been written to for an hour: locks may not reach across a network filesystem. Remote folders are left to that
    rule alone, where the filesystem tells times; of object stores, interrupted uploads are no objects (set a
    lifecycle rule for incomplete uploads).
    """
    removed: list[str] = []
    if is_remote(folder):
        fs, path = filesystem(folder)
        with contextlib.suppress(FileNotFoundError):
            for info in fs.ls(path, detail=True):
                name = info["name"].rpartition("/")[2]
                if _LEFTOVER.fullmatch(name) and time.time() - _modified(info) > _IDLE_SECONDS:
                    with contextlib.suppress(OSError):
                        fs.rm_file(info["name"])
                        removed.append(name)
        return removed
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            match = _LEFTOVER.fullmatch(entry.name)
            if match is not None and _unlink_left(entry.path, match["host"]):
                removed.append(entry.name)
    if removed:
        logger.info("removed %d unfinished files of killed runs in %s", len(removed), folder)
    return removed


def _unlink_left(path: str, host: str) -> bool:
    """Unlink a file that nobody writes any more; returns whether that was so."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe of such a name is not waited for
    except OSError:
        return False
    try:
        left = time.time() - os.fstat(fd).st_mtime > _IDLE_SECONDS
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = left or host == _host()
        except BlockingIOError:
            return False
        except OSError:  # a filesystem without locks
            pass
        if left:  # with the lock in hand: who opened it just now will find that it is gone
            os.unlink(path)
        return left
    except OSError:
        return False
    finally:
        os.close(fd)


def _modified(info: dict[str, Any]) -> float:
    for field in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(field)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return time.time()


def _upload(path: str, url: str) -> None:
    fs, target = filesystem(url)
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & _OBJECT_STORES:
        retry(lambda: fs.put_file(path, target), _RETRY_DELAYS, _FINAL_ERRORS, url=url, patience=_PATIENCE)
        return
    folder, _, name = target.rpartition("/")
    partial = f"{folder}/.{name[:150]}.{_host()}.{secrets.token_hex(8)}.partial"
    try:
        retry(lambda: fs.put_file(path, partial), _RETRY_DELAYS, _FINAL_ERRORS, url=url, patience=_PATIENCE)
        retry(lambda: fs.mv(partial, target), _RETRY_DELAYS, _FINAL_ERRORS, url=url, patience=_PATIENCE)
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(partial)
        raise


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network filesystems cannot
            os.fsync(fd)
    finally:
        os.close(fd)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname(), flags=re.ASCII)[:40] or "host"


def filesystem(url: str, *, only_read: bool = False) -> tuple[Any, str]:
    """Make the fsspec filesystem of a URL; fsspec keeps it for the next time.

    Args:
        url: The URL.
        only_read: Whether nothing is written by it. A store that sends no byte for 10 seconds has failed then, which
            would be too soon for the answer to an upload. $CURATOR_DALI_TIMEOUT is another number of seconds, or 0 for
            no limit; what fsspec's own configuration says of a timeout goes first.

    Returns:
        The filesystem, and the path in it.

    Raises:
        ValueError: fsspec does not know the protocol, the package that it needs is missing, or the variable is bad.
    """
    import fsspec

    try:
        limited = [name for name in _PROTOCOL.findall(url) if name in _PROTOCOL_ALIASES] if only_read else ()
        options = {name: _make_options(name) for name in limited}
        if is_http(url) and "::" not in url:
            from fsspec.implementations.http import HTTPFileSystem

            from curator_dali.io.http import RangedHTTPFileSystem

            if fsspec.get_filesystem_class("http") is HTTPFileSystem:  # not another that somebody registered
                return RangedHTTPFileSystem(**next(iter(options.values()), {})), url
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {url!r}: {error}") from error
    return fs, path


def _make_options(protocol: str) -> dict[str, Any]:
    """Make options that limit how long a store may be silent; `protocol` is one of `_PROTOCOL_ALIASES`."""
    import fsspec

    seconds = read_timeout()
    known: dict[str, Any] = {}
    for name in _PROTOCOL_ALIASES[protocol]:
        known |= fsspec.config.conf.get(name, {})
    if protocol in ("http", "https", "gs", "gcs"):
        key = "client_kwargs" if protocol.startswith("http") else "session_kwargs"
        return {key: {"timeout": _make_client_timeout(seconds), **(known.get(key) or {})}}
    if not seconds:
        return {}
    if protocol in ("s3", "s3a"):
        # s3fs tries again what botocore has given up, and so do we: a silent store would be waited for for minutes
        limits = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": {**limits, **(known.get("config_kwargs") or {})}}
    return {name: known.get(name, seconds) for name in ("connection_timeout", "read_timeout")}


@lru_cache(maxsize=16)
def _make_client_timeout(seconds: float) -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=seconds or None, sock_read=seconds or None)


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> int:
    """Open a regular file for reading, and nothing else: no pipe is waited for, and no device is read.

    Args:
        path: The file; links are followed.
        limit: The most bytes that it may have; None for any number.

    Returns:
        A descriptor, for the caller to close.

    Raises:
        OSError: The file cannot be opened, is no regular file, or is larger than the limit.
    """
    path = os.fspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # a null character
        raise FileNotFoundError(errno.ENOENT, str(error), path) from error
    try:
        status = os.fstat(fd)  # of what was opened: the path may lead elsewhere by now
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENXIO, "a device, pipe or socket, and no regular file", path)
        if limit is not None and status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are over the limit of {limit:,}", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a whole regular file; see `open_regular`. At most `limit` bytes come, also of a file that grows."""
    with os.fdopen(open_regular(path, limit), "rb", buffering=0) as file:
        left = min(os.fstat(file.fileno()).st_size, limit)
        parts = []
        while left > 0 and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parse_json(data: str | bytes | bytearray) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: It is none, or lists and objects lie deeper in each other than `MAX_DEPTH`.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(DEEP) from None
    brackets = (b"[", b"{") if isinstance(data, (bytes, bytearray)) else ("[", "{")
    if sum(map(data.count, brackets)) > MAX_DEPTH:  # type: ignore[arg-type]
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Refuse lists and dicts that lie in each other deeper than `MAX_DEPTH`, by a ValueError.

    No list may be in the value twice, as aliases of YAML may be.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(DEEP)
