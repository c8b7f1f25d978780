"""The tars of a source: how many samples each has, and the indexes of those in use."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.sources.base import HEADER_DTYPE
from curator_dali.sources.index_store import (
    index_path,
    load_headers,
    load_index,
    peek_index,
    save_headers,
    save_index,
)
from curator_dali.sources.storage import LRU, Stat, Storage, is_remote, one_line
from curator_dali.sources.tar_headers import NotATarError, OddTarError, Scan, scan_tar, scan_with_tarfile
from curator_dali.sources.tar_index import TarIndex

__all__ = ["Shard", "Shards"]

logger = logging.getLogger(__name__)

_MEMORY = 256 << 20  # bytes of indexes in memory: about two million samples with JSON
_LOCAL_WINDOW, _REMOTE_WINDOW = 4096, 1 << 20  # what is worth reading at once when looking for headers
_WORTH_WRITING = 8  # a shard dropped from memory writes its headers when one in so many was learnt anew
_NOT_READ = 1 << 20  # so much behind the end marker is no padding


class Shard:
    """A loaded shard: its index, and what is known of its images' headers (`learnt`: how many of them anew)."""

    __slots__ = ("headers", "index", "learnt")

    def __init__(self, index: TarIndex, headers: NDArray[np.void] | None) -> None:
        self.index = index
        self.headers = headers if headers is not None else np.zeros(len(index), HEADER_DTYPE)
        self.learnt = 0


class Shards:
    """Tars by number. Indexes are made at the first opening, kept on disk, and in memory while they are in use.

    Args:
        urls: The tars.
        keep: Where indexes are kept; see `index_store.index_path`.

    Attributes:
        urls: The tars; local ones as absolute paths.
        remote: Whether any is remote.
        sizes: (S,) int64, samples in each.
        stats: Size and version of each, as they were at the opening.
        duplicates: Samples that repeat a key of their own tar.

    Raises:
        SourceError: Tars are missing, unreadable or no tars; all are named.
    """

    def __init__(self, urls: Sequence[str], storage: Storage, keep: str) -> None:
        self.urls = [url if is_remote(url) else os.path.abspath(url) for url in urls]
        self.remote = any(map(is_remote, self.urls))
        self.sizes = np.zeros(len(self.urls), np.int64)
        self.stats = [Stat(0, 0)] * len(self.urls)
        self.duplicates = 0
        self._storage, self._keep = storage, keep
        self._start()
        self._open()

    def __getitem__(self, number: int) -> Shard:
        """A shard, loaded if it is not in memory.

        Raises:
            OSError: The tar cannot be read.
            SourceError: It changed after it was opened.
        """
        return self._loaded.get(number, lambda: self._load(number))

    def learn(self, number: int, samples: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers of a shard's samples in memory; `close` writes them down."""
        shard = self[number]
        with self._lock:
            fresh = (headers["codec"] != 0) & (shard.headers[samples] != headers)
            shard.headers[samples[fresh]] = headers[fresh]
            shard.learnt += int(np.count_nonzero(fresh))

    def close(self) -> None:
        """Forget what is in memory, and write down headers that were learnt."""
        self._closing = True
        self._loaded.clear()
        self._closing = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_loaded", "_closing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._closing = False
        self._loaded: LRU[int, Shard] = LRU(_MEMORY, lambda s: s.index.nbytes + s.headers.nbytes, self._drop)

    def _drop(self, number: int, shard: Shard) -> None:
        # In random order over more shards than memory holds, each is dropped after a few samples: not worth a file.
        if shard.learnt and (self._closing or shard.learnt * _WORTH_WRITING >= len(shard.headers)):
            with self._lock:
                headers, shard.learnt = shard.headers.copy(), 0
            save_headers(index_path(self.urls[number], self._keep), self.stats[number], headers)

    def _load(self, number: int) -> Shard:
        url, stat = self.urls[number], self.stats[number]
        path = index_path(url, self._keep)
        index = load_index(path, stat)
        if index is None:
            if self._storage.stat(url) != stat:
                raise SourceError(f"{url} changed after it was indexed: open the source again")
            try:
                index = self._scan(url, stat)
            except NotATarError as error:
                raise SourceError(f"{url} changed after it was indexed: it is no tar any more") from error
            save_index(path, stat, index)
        if len(index) != self.sizes[number]:
            raise SourceError(f"{url} changed after it was indexed: open the source again")
        return Shard(index, load_headers(path, stat, len(index)))

    def _scan(self, url: str, stat: Stat) -> TarIndex:
        if stat.size == 0:
            scan = Scan(ended=True)
        else:
            try:
                window = _REMOTE_WINDOW if is_remote(url) else _LOCAL_WINDOW
                scan = scan_tar(self._storage.reader(url), stat.size, window=window)
            except OddTarError:
                import fsspec

                with fsspec.open(url, "rb") as file:
                    scan = scan_with_tarfile(file)
        index = TarIndex.from_scan(scan, stat.size)
        for told, message in (
            (len(index) == 0, "it has no samples"),
            (len(scan.problems), "it is damaged or truncated: places that cannot be read: %d"),
            (not scan.ended and not scan.problems, "it has no end marker and may have lost samples at its end"),
            (stat.size - scan.end > _NOT_READ and stat.size - scan.end, "%d bytes behind its end marker are not read"),
            (index.duplicates, "samples that repeat a key (all are kept): %d"),
            (scan.skipped, "links and special members that are passed over: %d"),
        ):
            if told:
                logger.warning("%s: %s", url, message % told if "%d" in message else message)
        return index

    def _open(self) -> None:
        """Learn how many samples each shard has, from the kept indexes or by making them."""
        bad: dict[str, str] = {}
        told = time.monotonic()
        with ThreadPoolExecutor(32 if self.remote else 8, thread_name_prefix="curator-dali-index") as pool:
            numbers = {pool.submit(self._open_one, number): number for number in range(len(self.urls))}
            for done, future in enumerate(as_completed(numbers), 1):
                url = self.urls[numbers[future]]
                try:
                    self.duplicates += future.result()
                except NotATarError:
                    bad[url] = "not a tar (a compressed one must be unpacked first)"
                except (OSError, SourceError) as error:
                    bad[url] = one_line(error)
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    logger.info("indexed %d of %d tars", done, len(self.urls))
        if bad:
            shown = "; ".join(f"{url}: {reason}" for url, reason in sorted(bad.items())[:10])
            raise SourceError(
                f"{len(bad)} of {len(self.urls)} shards cannot be read: {shown}{'; ...' if len(bad) > 10 else ''}. "
                "Shards must be uncompressed tars: repair these or leave them out"
            )

    def _open_one(self, number: int) -> int:
        url = self.urls[number]
        stat = self.stats[number] = self._storage.stat(url)
        path = index_path(url, self._keep)
        if (peeked := peek_index(path, stat)) is not None:
            self.sizes[number], duplicates = peeked
            return duplicates
        index = self._scan(url, stat)
        save_index(path, stat, index)
        self.sizes[number] = len(index)
        self._loaded.put(number, Shard(index, load_headers(path, stat, len(index))))
        return index.duplicates
