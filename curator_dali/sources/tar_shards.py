"""The tars of a source: how many samples each has, and the indexes of those in use."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import LRU, RemoteReader, Stat, Storage, is_remote, one_line
from curator_dali.sources.base import HEADER_DTYPE
from curator_dali.sources.tar_headers import NotATarError, Scan, scan_tar
from curator_dali.sources.tar_index import (
    Summary,
    TarIndex,
    index_path,
    load_headers,
    load_index,
    peek_index,
    save_headers,
    save_index,
)

logger = logging.getLogger(__name__)

_INDEX_MEMORY = 256 << 20  # bytes of indexes in memory: about two million samples with JSON
_WORTH_WRITING = 8  # a shard dropped from memory writes its headers when one in so many was learnt anew
_MOST_WARNED = 10  # shards whose warnings are logged; further ones are counted


class Shards:
    """Tars by number. Indexes are made at the first opening, kept on disk, and in memory while they are in use.

    Args:
        urls: The tars.
        keep: Where indexes are kept; see `tar_index.index_path`.

    Attributes:
        urls: The tars; local ones as absolute paths.
        remote: Whether any is remote.
        sizes: (S,) int64, samples in each.
        stats: Size and version of each, as they were at the opening.
        digests: (S,) int64, `Summary.digest` of each.
        duplicates: Samples that repeat a key of their own tar.

    Raises:
        SourceError: Tars are missing, unreadable or no tars; all are named.
    """

    def __init__(self, urls: Sequence[str], storage: Storage, keep: Literal["cache", "beside", "none"]) -> None:
        self.urls = [url if is_remote(url) else os.path.abspath(url) for url in urls]
        self.remote = any(map(is_remote, self.urls))
        self.stats = [Stat(0, 0)] * len(self.urls)
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

    @property
    def keep(self) -> Literal["cache", "beside", "none"]:
        """Where indexes are kept; see `tar_index.index_path`."""
        return self._keep

    def learn(self, shard: Shard, samples: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers of a shard's samples in memory; `close` writes them down."""
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
        self._loaded: LRU[int, Shard] = LRU(_INDEX_MEMORY, lambda s: s.index.nbytes + s.headers.nbytes, self._drop)

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
            return TarIndex.from_scan(Scan(ended=True), 0)
        try:
            reader = self._storage.reader(url, stat=stat)
            if not isinstance(reader, RemoteReader):
                return TarIndex.from_scan(scan_tar(reader, stat.size), stat.size)
            with closing(reader):
                return TarIndex.from_scan(scan_tar(reader, stat.size, remote=reader), stat.size)
        except (OSError, SourceError, NotATarError):
            raise
        except Exception as error:
            raise SourceError(f"{url} cannot be indexed: {one_line(error)}") from error

    def _open(self) -> None:
        """Learn how many samples each shard has, from the kept indexes or by making them."""
        found: list[Summary | str] = []
        told = time.monotonic()
        silent = threading.Event()
        with ThreadPoolExecutor(32 if self.remote else 8, thread_name_prefix="curator-dali-index") as pool:
            for result in pool.map(lambda number: self._open_one(number, silent), range(len(self.urls))):
                found.append(result)
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    logger.info("indexed %d of %d tars", len(found), len(self.urls))
        summaries = [Summary() if isinstance(result, str) else result for result in found]
        self.sizes = np.array([summary.samples for summary in summaries], np.int64)
        self.digests = np.array([summary.digest for summary in summaries], np.int64)
        self.duplicates = sum(summary.duplicates for summary in summaries)
        self._log_warnings(summaries)
        bad = {url: result for url, result in zip(self.urls, found, strict=True) if isinstance(result, str)}
        if bad:
            shown = "; ".join(f"{url}: {reason}" for url, reason in sorted(bad.items())[:10])
            raise SourceError(
                f"{len(bad)} of {len(self.urls)} shards cannot be read: {shown}{'; ...' if len(bad) > 10 else ''}. "
                "Shards must be uncompressed tars: repair these or leave them out"
            )

    def _open_one(self, number: int, silent: threading.Event) -> Summary | str:
        """Learn what each opening needs of a shard, or why the shard cannot be read.

        `silent` is set once the store was silent for as long as it is waited for: no other shard is waited for then.
        """
        url = self.urls[number]
        try:
            if silent.is_set() and is_remote(url):
                raise TimeoutError("not asked for, as the store is silent")
            stat = self.stats[number] = self._storage.stat(url)
            path = index_path(url, self._keep)
            if (summary := peek_index(path, stat)) is not None:
                return summary
            index = self._scan(url, stat)
            save_index(path, stat, index)
            self._loaded.put(number, Shard(index, load_headers(path, stat, len(index))))
            return index.summary
        except NotATarError:
            return "not a tar (a compressed one must be unpacked first)"
        except Exception as error:  # whatever a hostile header or a store comes up with costs one shard
            if isinstance(error, TimeoutError):
                silent.set()
            return one_line(error)

    def _log_warnings(self, summaries: Sequence[Summary]) -> None:
        """Log the warnings of shards, without a flood of lines."""
        warned = [(url, about.warnings) for url, about in zip(self.urls, summaries, strict=True) if about.warnings]
        for place, (url, warnings) in enumerate(warned):
            logger.log(logging.WARNING if place < _MOST_WARNED else logging.DEBUG, "%s: %s", url, "; ".join(warnings))
        if len(warned) > _MOST_WARNED:
            logger.warning("%d more shards have warnings: log level DEBUG shows them", len(warned) - _MOST_WARNED)
        noted = [(url, about.note) for url, about in zip(self.urls, summaries, strict=True) if about.note]
        if noted:
            logger.info("%s: %s (such shards: %d of %d)", *noted[0], len(noted), len(self.urls))


class Shard:
    """A loaded shard: its index, and what is known of its images' headers (`learnt`: how many of them anew)."""

    __slots__ = ("headers", "index", "learnt")

    def __init__(self, index: TarIndex, headers: NDArray[np.void] | None) -> None:
        self.index = index
        self.headers = headers if headers is not None else np.zeros(len(index), HEADER_DTYPE)
        self.learnt = 0
