"""A cache of remote files on the node's own disk: the setting, its folder, and what is removed once it is full.

The folder has a file for every remote file, named by a hash of its URL, size and version; `blocks.py` says what is in
it. `lock` serves all processes of the node: who holds it (flock) may make and remove files, and count bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from curator_dali.arguments import parse_size
from curator_dali.errors import SourceError
from curator_dali.io.remote import is_remote, one_line

logger = logging.getLogger(__name__)

LEAST_LIMIT = 64_000_000  # bytes: some blocks of some files
_LOCK = "lock"
_ENTRY = re.compile(r"[0-9a-f]{32}\.blocks(\.new)?")
_SHELF = re.compile(r"[0-9a-f]{2}")
RECENT = 300  # seconds: a file that is removed so soon after its use has found no room
_ROOM = 16  # so much of the limit is free once files were removed: a sixteenth
_UNIT = 512  # bytes of `st_blocks`
_COUNTS = struct.Struct("<4q")


@dataclass(frozen=True)
class Cache:
    """A node-local cache of remote files, which all processes of the node share.

    Blocks of remote tars, Parquet files and image files are kept in a folder of a local disk as they are read. One
    process downloads a block, the others wait for it. The files that were not used for longest go first.

    Args:
        folder: The folder. It is made where there is none.
        limit: Bytes that the cache may take: a number, or a text such as "2TB" or "500 GiB"; at least 64 MB.

    Raises:
        ValueError: The limit is no size, or too small; the folder is a URL.

    Example:
        >>> loader = cd.ImageLoader("s3://bucket/shards/*.tar", cache=cd.Cache("/nvme/cache", limit="2TB"))
    """

    folder: str | os.PathLike[str]
    limit: int | str

    def __post_init__(self) -> None:
        folder = os.fspath(self.folder)
        if not isinstance(folder, str) or not folder or is_remote(folder):
            raise ValueError(f"folder is {folder!r}; give the path of a folder on a disk of this machine")
        limit = self.limit
        size = parse_size(limit) if isinstance(limit, str) else limit
        if not isinstance(size, int) or isinstance(size, bool) or size < LEAST_LIMIT:
            raise ValueError(
                f"limit is {limit!r}; allowed: bytes of at least {LEAST_LIMIT:,} (int), or a text such as '2TB', "
                "'500 GB' or '64GiB'"
            )
        object.__setattr__(self, "folder", os.path.abspath(os.path.expanduser(folder)))
        object.__setattr__(self, "limit", size)


_used: ContextVar[Cache | None] = ContextVar("_used", default=None)


@contextlib.contextmanager
def use_cache(cache: Cache | None) -> Iterator[None]:
    """Let every `Storage` that is made in the `with` block read through a cache; None for the one in use already.

    Raises:
        SourceError: The folder of the cache cannot be used.
    """
    if cache is None:
        yield
        return
    try:
        CacheFolder(str(cache.folder), int(cache.limit))
    except OSError as error:
        raise SourceError(
            f"the cache folder {cache.folder!r} cannot be used: {one_line(error)}. Choose one that you may write to"
        ) from error
    token = _used.set(cache)
    try:
        yield
    finally:
        _used.reset(token)


def current_cache() -> Cache | None:
    """Return the cache of the innermost `use_cache`."""
    return _used.get()


class CacheInfo(NamedTuple):
    """Files and bytes in the folder of a cache.

    Attributes:
        files: Remote files of which something is kept.
        bytes: Bytes on the disk.
        limit: Bytes of the limit that was used last.
        hits: Bytes that were read from the cache, since it was made.
        downloads: Bytes that were downloaded into it.
    """

    files: int
    bytes: int
    limit: int
    hits: int
    downloads: int


class Counts(NamedTuple):
    """The numbers in the lock file: bytes taken, and those of `CacheInfo`."""

    used: int = 0
    limit: int = 0
    hits: int = 0
    downloads: int = 0


class CacheFolder:
    """The folder of a cache, for one process.

    Args:
        folder: The folder.
        limit: Bytes that it may take.

    Attributes:
        pressed: Bytes of the remote files that were used in the last minutes, once such ones had to be removed.

    Raises:
        OSError: The folder cannot be made, or not be read.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.pressed = 0
        self._turn = threading.Lock()
        self._fd = self._open_lock()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._fd)

    def path_of(self, digest: str) -> str:
        """Return the path of the file of a digest; folders have thousands of files, not millions."""
        return os.path.join(self.folder, digest[:2], f"{digest}.blocks")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other thread or process of the node make, remove or count files meanwhile."""
        with self._turn:
            self._take_lock()
            while not self._is_current():  # the folder was removed, and others may have made it anew
                fd = self._open_lock()
                os.close(self._fd)
                self._fd = fd
                self._take_lock()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _open_lock(self) -> int:
        os.makedirs(self.folder, exist_ok=True)
        return os.open(os.path.join(self.folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _take_lock(self) -> None:
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def _is_current(self) -> bool:
        """Whether the file that is locked is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(os.path.join(self.folder, _LOCK)))
        except FileNotFoundError:
            return False

    def reserve(self, fd: int, path: str, place: int, size: int, hits: int = 0) -> bool:
        """Make room on the disk for bytes that are about to be written.

        Args:
            fd: The file that they belong to.
            path: Its path. The file is not removed for them.
            place: Where they begin in the file.
            size: How many.
            hits: Bytes that were read from the cache since the last call.

        Returns:
            Whether there is room.

        Raises:
            OSError: The disk is full.
        """
        with self.locked():
            counts = self._read_counts()
            used = counts.used
            if used + size > self.limit:
                used = self._remove_oldest(self.limit - size - self.limit // _ROOM, path)
            fits = used + size <= self.limit
            if fits:  # within the lock, so that whoever counts the bytes of files counts these
                os.posix_fallocate(fd, place, size)
            self._write_counts(
                Counts(used + size * fits, self.limit, counts.hits + hits, counts.downloads + size * fits)
            )
        return fits

    def add_used(self, size: int) -> None:
        """Count bytes of a new file; whoever makes it holds the lock."""
        counts = self._read_counts()
        self._write_counts(counts._replace(used=counts.used + size, limit=self.limit))

    def add_hits(self, hits: int) -> None:
        """Count bytes that were read from the cache."""
        if hits:
            with self.locked():
                counts = self._read_counts()
                self._write_counts(counts._replace(hits=counts.hits + hits))

    def _read_counts(self) -> Counts:
        data = os.pread(self._fd, _COUNTS.size, 0)
        if len(data) < _COUNTS.size:  # a new cache, or one whose lock file was removed
            return Counts(used=sum(size for _, size, _ in find_entries(self.folder)))
        return Counts(*_COUNTS.unpack(data))

    def _write_counts(self, counts: Counts) -> None:
        with contextlib.suppress(OSError):  # a full disk: the numbers are counted anew with the next removal
            os.pwrite(self._fd, _COUNTS.pack(*counts), 0)

    def _remove_oldest(self, most: int, keep: str) -> int:
        """Remove the files that were not used for longest, until the others take at most so many bytes.

        Returns:
            The bytes that the others take.
        """
        entries = sorted(find_entries(self.folder))
        used = sum(size for _, size, _ in entries)
        count, recent = 0, time.time_ns() - RECENT * 10**9
        if used > most and entries[0][0] > recent:
            self.pressed = sum(map(_size_of, (path for _, _, path in entries)))
        for _, size, path in entries:
            if used <= most:
                break
            if path != keep and remove_entry(path):
                used, count = used - size, count + 1
        if count:
            logger.info("removed %d files from the cache %s, which takes %d bytes now", count, self.folder, used)
        return used


def find_entries(folder: str) -> Iterator[tuple[int, int, str]]:
    """Find the files of a cache: when each was used last, in ns, its bytes on the disk, and its path."""
    for shelf in _scan(folder):
        if _SHELF.fullmatch(shelf.name):
            for entry in _scan(shelf.path):
                if _ENTRY.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        about = entry.stat(follow_symlinks=False)
                        yield about.st_mtime_ns, about.st_blocks * _UNIT, entry.path


def _size_of(path: str) -> int:
    """Bytes of the remote file that a file of the cache stands for, and of its header."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_entry(path: str) -> bool:
    """Remove a file of a cache, and return whether it is gone.

    Its space is free at once, also where a process has it open: such a process sees after each read that the file has
    no name any more, and does not use what it read.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        os.unlink(path)
        os.ftruncate(fd, 0)
    except OSError:
        return not os.path.exists(path)
    finally:
        os.close(fd)
    return True


def read_cache_info(folder: str) -> CacheInfo:
    """Count what is in the folder of a cache.

    Raises:
        SourceError: The folder is none of a cache.
    """
    counts = _counts_of(folder)
    sizes = [size for _, size, _ in find_entries(folder)]
    return CacheInfo(len(sizes), sum(sizes), counts.limit, counts.hits, counts.downloads)


def clear_cache(folder: str) -> CacheInfo:
    """Remove the files of a cache, and nothing else in its folder; return what was in it.

    Processes that use the cache go on.

    Raises:
        SourceError: The folder is none of a cache, or files cannot be removed.
    """
    before = read_cache_info(folder)
    try:
        files = CacheFolder(folder, before.limit)
        with files.locked():
            left = [path for _, _, path in find_entries(folder) if not remove_entry(path)]
            files._write_counts(Counts(0, before.limit))
            for shelf in _scan(folder):
                if _SHELF.fullmatch(shelf.name):
                    with contextlib.suppress(OSError):  # somebody else has a file there
                        os.rmdir(shelf.path)
    except OSError as error:
        raise SourceError(f"cannot clear the cache {folder!r}: {one_line(error)}") from error
    if left:
        raise SourceError(f"cannot remove {len(left)} files of the cache, such as {left[0]!r}: check its permissions")
    return before


def _counts_of(folder: str) -> Counts:
    try:
        with open(os.path.join(folder, _LOCK), "rb") as file:
            data = file.read(_COUNTS.size)
    except FileNotFoundError:
        if next(find_entries(folder), None) is not None:  # the file was lost
            return Counts()
        raise SourceError(f"{folder!r} is no folder of a cache: it has no file {_LOCK!r}") from None
    except OSError as error:
        raise SourceError(f"cannot read the cache {folder!r}: {one_line(error)}") from error
    return Counts(*_COUNTS.unpack(data)) if len(data) == _COUNTS.size else Counts()


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk, or a quota, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
