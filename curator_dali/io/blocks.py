"""Blocks of remote files, kept in files of a cache, and read from there.

A file of the cache begins with a line of JSON (URL, size, version, bytes of a block, and the boot of the machine that
wrote last), padded to 2 KiB. CRC-32s of the blocks follow, 4 bytes each, little-endian; 0 for a block that is not
there. From the next multiple of 4 KiB on it is the remote file itself, with holes for blocks that are not there.

A block is written before its CRC-32: a process that is killed leaves no half block that counts. After a power cut the
blocks of a file are compared with their CRC-32s when it is opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from curator_dali.io.cache import RECENT, Cache, CacheFolder, is_full, remove_entry
from curator_dali.io.files import parse_json
from curator_dali.io.lru import LRU
from curator_dali.io.remote import one_line, strip_signature

logger = logging.getLogger(__name__)

# Bytes, the least that is downloaded and kept. Over 30 ms and 100 MB/s, blocks of 2 and 4 MiB fill a cache fastest:
# 1 MiB took half as long again in random order, 16 MiB a fifth longer.
BLOCK = 4 << 20
SMALL_PART = 8  # a range of an eighth of its blocks is worth that these are kept
_RUN = 4  # blocks that one request asks for, at the most
_HEADER = 2048  # bytes of the line of JSON
_PAGE = 4096
_MAGIC = "curator_dali cache 1"
_MOST_URL = 1000  # characters of a URL in the header, which is for people
_PATIENCE = 60.0  # seconds that a block is waited for which another process downloads
_PAUSES = (0.002, 0.02)  # seconds between two looks whether it is there: the first, and the longest
_TOUCH = 60.0  # seconds after which a file in use is marked as used again
_REST = 60.0  # seconds that nothing is written after a failure
_MOST_OPEN = 256
_LOCK_PLACE = 1 << 62  # where the locks of blocks lie, behind all bytes of a file
_CHANGED = "changed after"
_FLOCK = struct.Struct("hhqqi4x")

Fetch = Callable[[str, Any, int, int], bytes]
"""Downloads the bytes [start, end) of a URL with a `Stat`; raises what the store raises."""

RunAll = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]


class CachedFiles:
    """Reads ranges of remote files from a cache, and downloads blocks that are not there.

    Thread-safe. Pickled, it is its setting. After a fork, files are opened anew.

    Args:
        setting: The cache.
    """

    def __init__(self, setting: Cache) -> None:
        self.setting = setting
        self._start()

    def __reduce__(self) -> tuple[type[CachedFiles], tuple[Cache]]:
        return CachedFiles, (self.setting,)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._entries: LRU[tuple[str, Any], Entry] = LRU(_MOST_OPEN)
        self._folder: CacheFolder | None = None
        self._lock = threading.Lock()
        self._idle_until = self._pressed_until = 0.0
        self._told: set[str] = set()
        self._warned = False
        self._hits = 0

    def open(self, url: str, stat: Any) -> Entry | None:
        """Open the file of a URL; None where that fails, and the store has to be read without a cache."""
        if self._pid != os.getpid():
            self._start()
        if stat.size > int(self.setting.limit):
            self._warn_once(
                "large",
                f"is smaller than {strip_signature(url)} ({stat.size:,} bytes): such files are read from the store",
            )
            return None
        try:
            entry = self._entries.get((url, stat), lambda: Entry(self._open_folder(), url, stat))
        except OSError as error:
            self._warn(error)
            return None
        entry.touch()
        return entry

    def discard(self, url: str, stat: Any) -> None:
        """Remove what is kept of a file, which turned out to be another one."""
        if (entry := self.open(url, stat)) is None:
            return
        self._entries.drop((url, stat))
        try:
            with self._open_folder().locked():
                remove_entry(entry.path)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Close files; they come back when they are needed."""
        if self._pid != os.getpid():  # a lock may have been held when this process was forked
            self._start()
        self._entries.clear()
        with self._lock:
            hits, self._hits = self._hits, 0
            folder = self._folder
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.add_hits(hits)

    def fill(
        self, requests: Sequence[Any], fetch: Fetch, run_all: RunAll, *, keep: bool = True
    ) -> list[tuple[int, str] | None]:
        """Read ranges into their views.

        Args:
            requests: Of remote files; see `Request`.
            fetch: Downloads.
            run_all: Calls a function with each of several tuples of arguments, at the same time or not.
            keep: Whether blocks that are missing are downloaded; else such requests are left alone.

        Returns:
            For each request how many bytes were read, and why not all; None where the store has to be asked itself.
        """
        outcomes: list[tuple[int, str] | None] = [None] * len(requests)
        used: dict[Entry, list[int]] = {}  # entry -> the numbers of its requests
        left: list[tuple[int, Entry]] = []
        missing: dict[Entry, set[int]] = {}
        for number, (url, stat, offset, view) in enumerate(requests):
            size = len(view)
            entry = self.open(url, stat) if size else None
            if entry is None:
                continue
            blocks = entry.blocks_of(offset, size)
            if entry.holds(blocks):
                outcomes[number] = (size, "") if entry.read(offset, view) == size else None
                self._hits += size
            else:
                if entry.is_removed():
                    self._entries.drop((url, stat))
                    entry = self.open(url, stat)
                    if entry is None:
                        continue
                left.append((number, entry))
                if (wanted := entry.look(blocks)) and self._is_kept(entry, offset, size):
                    missing.setdefault(entry, set()).update(wanted)
            used.setdefault(entry, []).append(number)
        held = self._load_all(missing, fetch, run_all) if keep else {}
        for number, entry in left:
            outcomes[number] = self._copy(entry, requests[number], held.get(entry, {}))
        for entry, numbers in used.items():
            if entry.is_removed():  # what was read of it a moment ago may be of no file any more
                self._entries.drop((entry.url, entry.stat))
                # nor is the store to be asked for what turned out to be another file
                reasons = [found[1] for number in numbers if (found := outcomes[number]) and _CHANGED in found[1]]
                for number in numbers:
                    outcomes[number] = (0, reasons[0]) if reasons else None
        return outcomes

    def _is_kept(self, entry: Entry, offset: int, size: int) -> bool:
        """Whether blocks of a range would be kept, so that whole blocks are to be downloaded."""
        now = time.monotonic()
        if not entry.writable or now < max(self._idle_until, entry.idle_until):
            return False
        return now >= self._pressed_until or SMALL_PART * size >= span_of(offset, size, entry.size)

    def _load_all(
        self, missing: dict[Entry, set[int]], fetch: Fetch, run_all: RunAll
    ) -> dict[Entry, dict[int, bytes | Exception]]:
        """Load blocks of several files at the same time; returns those that could not be kept."""
        jobs = [
            (entry, range(first, last + 1), fetch)
            for entry, blocks in missing.items()
            for first, last in split_runs(sorted(blocks))
        ]
        held: dict[Entry, dict[int, bytes | Exception]] = {}
        for (entry, _, _), found in zip(jobs, run_all(self.load, jobs), strict=True):
            held.setdefault(entry, {}).update(found)
        return held

    def _copy(self, entry: Entry, request: Any, held: dict[int, bytes | Exception]) -> tuple[int, str] | None:
        """Copy a range from blocks in the file, and from those that could not be kept."""
        offset, view = request.offset, request.view
        done = 0
        for block in entry.blocks_of(offset, len(view)):
            begin, end = offset + done, min((block + 1) * BLOCK, offset + len(view))
            found = held.get(block)
            if isinstance(found, Exception):
                return done, one_line(found)
            if found is None:
                if not entry.have[block] or entry.read(begin, view[done : done + end - begin]) < end - begin:
                    return None
                done += end - begin
                continue
            part = found[begin - block * BLOCK : end - block * BLOCK]
            view[done : done + len(part)] = part
            done += len(part)
            if len(part) < end - begin:
                return None  # the store says what it is
        return (done, "") if done == len(view) else None

    def load(self, entry: Entry, blocks: Iterable[int], fetch: Fetch) -> dict[int, bytes | Exception]:
        """Download blocks that are not there, and wait for those that others download.

        Returns:
            Blocks that could not be kept, or the reason why one could not be read.
        """
        held: dict[int, bytes | Exception] = {}
        waiting = self._load_free(entry, list(blocks), fetch, held)
        begun, pause = time.monotonic(), _PAUSES[0]
        while waiting:
            time.sleep(pause)
            pause = min(1.5 * pause, _PAUSES[1])
            if time.monotonic() - begun > _PATIENCE:
                logger.warning("%s: another process has been downloading for long: reading through", entry.url)
                self._download(entry, waiting, fetch, held, store=False)
                break
            waiting = self._load_free(entry, waiting, fetch, held)
        return held

    def _load_free(
        self, entry: Entry, blocks: list[int], fetch: Fetch, held: dict[int, bytes | Exception]
    ) -> list[int]:
        """Download those blocks that nobody else downloads now, and return the others."""
        if time.monotonic() < self._idle_until or not entry.writable:
            self._download(entry, entry.look(blocks), fetch, held, store=False)
            return []
        mine, others = entry.claim(blocks)
        try:
            self._download(entry, entry.look(mine), fetch, held, store=True)
        finally:
            entry.release(mine)
        return entry.look(others)

    def _download(
        self, entry: Entry, blocks: list[int], fetch: Fetch, held: dict[int, bytes | Exception], store: bool
    ) -> None:
        for first, last in split_runs(blocks):
            start, end = first * BLOCK, min((last + 1) * BLOCK, entry.size)
            try:
                data = fetch(entry.url, entry.stat, start, end)
            except Exception as error:  # stores raise kinds of their own
                held.update((block, error) for block in range(first, last + 1))
                continue
            kept = store and len(data) == end - start and self._store(entry, first, data)
            if not kept:
                for block in range(first, last + 1):
                    begin = (block - first) * BLOCK
                    held[block] = data[begin : begin + BLOCK]

    def _store(self, entry: Entry, first: int, data: bytes) -> bool:
        """Write blocks, and return whether that was possible."""
        try:
            hits, self._hits = self._hits, 0
            place = entry.place_of(first)
            if entry.is_removed():
                return False
            folder = self._open_folder()
            fits = folder.reserve(entry.fd, entry.path, place, len(data), hits)
            if folder.pressed:
                self._pressed_until = time.monotonic() + RECENT
                self._warn_once(
                    "pressed",
                    f"is smaller than the files that were read in the last minutes ({folder.pressed:,} bytes and "
                    "more): blocks go before they are used again, and short ranges are read from the store",
                )
                folder.pressed = 0
            if fits:
                entry.write(first, data)
            else:
                entry.idle_until = time.monotonic() + _REST
            return fits
        except OSError as error:
            self._warn(error)
            return False

    def _open_folder(self) -> CacheFolder:
        with self._lock:
            if self._folder is None:
                self._folder = CacheFolder(str(self.setting.folder), int(self.setting.limit))
            return self._folder

    def _warn_once(self, kind: str, reason: str) -> None:
        """Say once why the limit is too small."""
        if kind not in self._told:
            self._told.add(kind)
            logger.warning(
                "the limit of the cache %s, %s bytes, %s", self.setting.folder, f"{self.setting.limit:,}", reason
            )

    def _warn(self, error: OSError) -> None:
        """Say once why nothing is kept, and write nothing for a while."""
        self._idle_until = time.monotonic() + _REST
        reason = "its disk is full" if is_full(error) else one_line(error)
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(level, "the cache %s keeps nothing now, the store is read instead: %s", self.setting.folder, reason)


class Entry:
    """The file of a cache for one remote file. Thread-safe.

    Attributes:
        have: A byte for each block, 1 where it is known to be there.
        size: Bytes in the remote file.
        writable: Whether blocks may be added.
        idle_until: When blocks may be added again, by `time.monotonic`.
    """

    fd = -1

    def __init__(self, folder: CacheFolder, url: str, stat: Any) -> None:
        self.url, self.stat, self.size = url, stat, int(stat.size)
        name = f"{strip_signature(url)}\0{stat.size}\0{stat.version}"
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        self.path = folder.path_of(digest)
        self._count = -(-self.size // BLOCK)
        self._data = -(-(_HEADER + 4 * self._count) // _PAGE) * _PAGE  # where the remote file begins
        self.have = bytearray(self._count)
        self.writable = True
        self.idle_until = 0.0
        self._lock = threading.Lock()
        self._loading: set[int] = set()
        self._touched = time.monotonic()
        self._open(folder)
        self._check()
        self.look(range(self._count))
        with contextlib.suppress(OSError):
            os.utime(self.fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def touch(self) -> None:
        """Say now and then that the file is in use."""
        now = time.monotonic()
        if now - self._touched > _TOUCH:
            self._touched = now
            with contextlib.suppress(OSError):
                os.utime(self.fd)

    def is_removed(self) -> bool:
        """Whether the file is no longer in the cache: what was read of it a moment ago may be wrong, too."""
        return os.fstat(self.fd).st_nlink == 0

    def blocks_of(self, offset: int, length: int) -> range:
        """Return the blocks that a range lies in."""
        end = offset + length
        return range(offset // BLOCK, ((end if end < self.size else self.size) + BLOCK - 1) // BLOCK)

    def place_of(self, block: int) -> int:
        """Return where a block begins in the file of the cache."""
        return self._data + block * BLOCK

    def holds(self, blocks: range) -> bool:
        """Whether all blocks of a range are known to be there."""
        return self.have.find(0, blocks.start, blocks.stop) < 0

    def look(self, blocks: Sequence[int]) -> list[int]:
        """Look which blocks of an increasing sequence are there by now, and return the others."""
        if blocks:
            first, last = blocks[0], blocks[-1]
            sums = os.pread(self.fd, 4 * (last + 1 - first), _HEADER + 4 * first)
            for block in blocks:
                at = 4 * (block - first)
                if sums[at : at + 4].strip(b"\0"):
                    self.have[block] = 1
        return [block for block in blocks if not self.have[block]]

    def read(self, offset: int, view: memoryview) -> int:
        """Read bytes of blocks that are there; returns how many."""
        place = self._data + offset
        done = os.preadv(self.fd, [view], place)
        while 0 < done < len(view):
            count = os.preadv(self.fd, [view[done:]], place + done)
            if count == 0:
                break
            done += count
        return done

    def write(self, first: int, data: bytes) -> None:
        """Write whole blocks, and say then that they are there."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], self.place_of(first) + done)
        sums = [_checksum(view[begin : begin + BLOCK]) for begin in range(0, len(view), BLOCK)]
        os.pwrite(self.fd, struct.pack(f"<{len(sums)}I", *sums), _HEADER + 4 * first)
        self.have[first : first + len(sums)] = b"\1" * len(sums)

    def claim(self, blocks: Iterable[int]) -> tuple[list[int], list[int]]:
        """Take blocks for downloading: those that are ours now, and those that others have taken.

        Other processes see it by locks of open files (OFD), which end with the process.
        """
        mine, others = [], []
        with self._lock:
            for block in blocks:
                if block not in self._loading and _lock_byte(self.fd, block):
                    self._loading.add(block)
                    mine.append(block)
                else:
                    others.append(block)
        return mine, others

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back that were taken."""
        with self._lock:
            for block in blocks:
                _unlock_byte(self.fd, block)
                self._loading.discard(block)

    def _open(self, folder: CacheFolder) -> None:
        """Open the file, make it where there is none, and make it anew where it is damaged."""
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            self.fd, self.writable = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), False
        except FileNotFoundError:
            pass
        if self.fd >= 0 and self._is_whole():
            return
        with folder.locked():
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            if os.path.exists(self.path):  # another process has made it, or it is damaged
                self._reopen()
                if self._is_whole():
                    return
                os.unlink(self.path)
            new = f"{self.path}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)  # left by a process that was killed
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                os.pwrite(fd, self._make_header().ljust(self._data, b"\0"), 0)
                os.ftruncate(fd, self._data + self.size)
                os.rename(new, self.path)
                folder.add_used(self._data)
            finally:
                os.close(fd)
            self._reopen()

    def _reopen(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def _make_header(self) -> bytes:
        about = {"format": _MAGIC, "url": strip_signature(self.url)[:_MOST_URL], "size": self.size, "block": BLOCK}
        about |= {"version": self.stat.version, "boot": read_boot_id()}
        return json.dumps(about).encode()[: _HEADER - 1].ljust(_HEADER - 1) + b"\n"

    def _read_header(self) -> dict[str, Any]:
        try:
            about = parse_json(os.pread(self.fd, _HEADER, 0))
        except ValueError:
            return {}
        return about if isinstance(about, dict) else {}

    def _is_whole(self) -> bool:
        about = self._read_header()
        facts = (about.get("format"), about.get("size"), about.get("block"))
        return facts == (_MAGIC, self.size, BLOCK) and os.fstat(self.fd).st_size == self._data + self.size

    def _check(self) -> None:
        """Compare blocks with their CRC-32s where the machine was started anew since they were written."""
        if not self.writable or self._read_header().get("boot") == read_boot_id():
            return
        stored = os.pread(self.fd, 4 * self._count, _HEADER)
        sums = struct.unpack(f"<{len(stored) // 4}I", stored)  # none of a file that was removed just now
        for block in (block for block, checksum in enumerate(sums) if checksum):
            data = os.pread(self.fd, min(BLOCK, self.size - block * BLOCK), self.place_of(block))
            if _checksum(data) != sums[block]:
                os.pwrite(self.fd, bytes(4), _HEADER + 4 * block)
        os.pwrite(self.fd, self._make_header(), 0)


def span_of(offset: int, length: int, size: int) -> int:
    """Count the bytes of the blocks that a range lies in, of a file of `size` bytes."""
    return min(-(-(offset + length) // BLOCK) * BLOCK, size) - offset // BLOCK * BLOCK


def split_runs(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Split increasing blocks into runs without gaps, the first and last block of each; runs are not too long."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1 and block - runs[-1][0] < _RUN:
            runs[-1] = runs[-1][0], block
        else:
            runs.append((block, block))
    return runs


@cache
def read_boot_id() -> str:
    """Return a text that is another one once the machine was started anew; empty where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _checksum(data: bytes | memoryview) -> int:
    return zlib.crc32(data) or 1  # 0 is a block that is not there


def _lock_byte(fd: int, block: int) -> bool:
    """Lock a block, and return whether no other process has it. A filesystem without locks has them all."""
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCK_PLACE + block, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _unlock_byte(fd: int, block: int) -> None:
    with contextlib.suppress(OSError):
        request = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, _LOCK_PLACE + block, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
