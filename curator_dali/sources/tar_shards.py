"""The tars of a source: how many samples each has, and the indexes of those in use."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import PassEndedError, SourceError
from curator_dali.io import LRU, PermanentError, RemoteReader, Stat, Storage, is_remote, one_line
from curator_dali.sources.base import HEADER_DTYPE, group_rows, order_ids
from curator_dali.sources.entries import Entries, gather_loaded
from curator_dali.sources.foreign import ForeignIndexes
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
from curator_dali.sources.tar_stream import ShardStream

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_INDEX_MEMORY = 256 << 20  # bytes of indexes in memory: about two million samples with JSON
_WORTH_WRITING = 8  # a shard dropped from memory writes its headers when one in so many was learnt anew
_MOST_WARNED = 10  # shards whose warnings are logged; further ones are counted
_NOT_PICKLED = {"_foreign", "_same", "_lock", "_indexing", "_streams", "_loaded", "_closing", "_process"}
_NO_TAR = "not a tar (a compressed one must be unpacked first)"
_REPAIR = ". Shards must be uncompressed tars: repair these or leave them out"


class Shards:
    """Tars by number. Indexes are made when they are needed, kept on disk, and in memory while they are in use.

    The opening asks for the size and version of every tar, and looks for kept indexes. Local tars without one are
    indexed then. A remote tar without one is indexed by the first caller that asks for it: by `count` alone, by `sizes`
    with all others, or by a pass that reads ahead (`ShardStream`).

    Args:
        urls: The tars.
        keep: Where indexes are kept; see `tar_index.index_path`.

    Attributes:
        urls: The tars; local ones as absolute paths.
        remote: Whether any is remote.
        stats: Size and version of each, as they were at the opening.

    Raises:
        SourceError: Tars are missing or unreadable, or local ones are no tars; all are named.
    """

    _streams: list[ShardStream]

    def __init__(self, urls: Sequence[str], storage: Storage, keep: Literal["cache", "beside", "none"]) -> None:
        self.urls: Sequence[str] = [url if is_remote(url) else os.path.abspath(url) for url in urls]
        self.remote = any(map(is_remote, self.urls))
        self.stats: list[Stat] = [Stat(0, 0)] * len(self.urls)
        self._summaries: list[Summary | None] = [None] * len(self.urls)
        self._table: NDArray[np.int64] | None = None  # (S, 3) samples, digest, repeated keys, once all are known
        self._warned = 0  # shards with warnings so far
        self._storage, self._keep = storage, keep
        self._start()
        self._open()

    def __len__(self) -> int:
        return len(self.urls)

    def __getitem__(self, number: int) -> Shard:
        """A shard, loaded if it is not in memory.

        Raises:
            OSError: The tar cannot be read.
            SourceError: It changed after it was opened.
        """
        return self._loaded.get(number, lambda: self._load(number))

    @property
    def is_complete(self) -> bool:
        """Whether the number of samples is known of every shard."""
        if self._table is None and None not in self._summaries:
            self._complete()
        return self._table is not None

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(S,) int64, samples in each; waits until all are indexed.

        Raises:
            SourceError: Tars cannot be read; all are named.
        """
        return self._wait()[:, 0]

    @property
    def digests(self) -> NDArray[np.int64]:
        """(S,) int64, `Summary.digest` of each; waits as `sizes`."""
        return self._wait()[:, 1]

    @property
    def duplicates(self) -> int:
        """Samples that repeat a key of their own tar; waits as `sizes`."""
        return int(self._wait()[:, 2].sum())

    def is_known(self, number: int) -> bool:
        """Whether the number of samples of a shard is known, so that `count` does not wait."""
        return self._summaries[number] is not None

    def count(self, number: int) -> int:
        """Count the samples of a shard; it is indexed where it is not yet.

        Raises:
            SourceError: It cannot be read, or is no tar. Another call tries again.
        """
        if (known := self._summaries[number]) is not None:
            return known.samples
        for stream in self._streams:  # a pass reads the shard anyway
            with suppress(PassEndedError):
                stream.wait(number)
        try:
            return self.index(number).samples
        except Exception as error:  # whatever a hostile header or a store comes up with
            raise self.explain(number, error) from error

    def explain(self, number: int, error: BaseException) -> SourceError:
        """Make the exception that names a shard, and why it cannot be indexed."""
        url = self.urls[number]
        reason = _explain(url, error)
        return SourceError(f"{url} cannot be read: {reason}{_REPAIR * (reason == _NO_TAR)}")

    def index(self, number: int, scan: Callable[[str, Stat], TarIndex] | None = None) -> Summary:
        """Index a shard, unless that is done. One caller does it, however many ask.

        Args:
            number: Of the shard.
            scan: Makes the index of a URL and its `Stat`. By default it reads as little as the store allows.

        Raises:
            OSError, SourceError, NotATarError: It cannot be read, or is no tar.
        """
        if self._process != os.getpid():  # locks of threads that a fork left behind
            self._start()
        with self._lock:
            indexing = self._indexing.setdefault(number, threading.Lock())
        with indexing:
            if (known := self._summaries[number]) is not None:
                return known
            url, stat = self.urls[number], self.stats[number]
            index = (scan or self.scan)(url, stat)
            self._storage.check(url, stat)  # before anything of it is kept or used
            self._keep_index(number, index)
            self.adopt({number: index.summary})
        return index.summary

    def index_all(self, numbers: Iterable[int]) -> None:
        """Index some shards, many at once.

        Raises:
            SourceError: Some cannot be read, or are no tars; all are named.
        """
        self._do_all([number for number in numbers if self._summaries[number] is None], self.index)

    def adopt(self, summaries: Mapping[int, Summary]) -> None:
        """Take over what was found elsewhere of shards, by their numbers, and log their warnings."""
        for number, summary in summaries.items():
            if self._summaries[number] is None:
                self._summaries[number] = summary
                self._log_warnings([number])

    def summaries(self, numbers: Iterable[int]) -> dict[int, Summary]:
        """Summaries of those shards that are indexed, by their numbers."""
        return {number: summary for number in numbers if (summary := self._summaries[number]) is not None}

    def stream(self, numbers: Iterable[int]) -> ShardStream | None:
        """Begin to read remote shards whose samples are not counted, whole and ahead of a pass, in the order given.

        Returns:
            None where there is none of these. Close it at the end of the pass.
        """
        new = [n for n in numbers if self._summaries[n] is None and is_remote(self.urls[n])]
        if not new:
            return None
        stream = ShardStream(self, self._storage, new)
        self._streams = [*self._streams, stream]
        return stream

    def end(self, stream: ShardStream) -> None:
        """No longer wait for a stream."""
        self._streams = [other for other in self._streams if other is not stream]

    @property
    def keep(self) -> str:
        """Where indexes are kept; see `tar_index.index_path`."""
        return self._keep

    def gather(self, shard: NDArray[np.int64], samples: NDArray[np.int64], *, members: bool = False) -> Entries:
        """Gather what the indexes say of samples, by (N,) tars and (N,) numbers in these; see `Entries`."""
        return gather_loaded(self, shard, samples, members=members)

    def read_keys(self, shard: NDArray[np.int64], samples: NDArray[np.int64]) -> pa.LargeStringArray:
        """(N,) keys of samples.

        Raises:
            SourceError: A tar cannot be read now.
        """
        parts: list[tuple[NDArray[np.int64], Any]] = []
        for rows in group_rows(shard):
            number = int(shard[rows[0]])
            try:
                parts.append((rows, self[number].index.read_keys(samples[rows])))
            except OSError as error:
                raise SourceError(f"{self.urls[number]} cannot be read now: {one_line(error)}") from error
        return order_ids(parts)

    def image_sizes(self, shard: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) bytes in the images of samples; 0 where there is none, -1 for a tar that cannot be read."""
        sizes = np.full(len(shard), -1, np.int64)
        for rows, loaded in self._load_each(shard, "look up sizes"):
            sizes[rows] = loaded.index.image_sizes(samples[rows])
        return sizes

    def headers(self, shard: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.void]:
        """(N,) known headers of samples; those of a tar that cannot be read are unknown."""
        headers = np.zeros(len(shard), HEADER_DTYPE)
        for rows, loaded in self._load_each(shard, "look up headers"):
            headers[rows] = loaded.headers[samples[rows]]
        return headers

    def learn_all(self, shard: NDArray[np.int64], samples: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers of samples in memory; `close` writes them down."""
        for rows, loaded in self._load_each(shard, "keep headers"):
            self.learn(loaded, samples[rows], headers[rows])

    def check(self, numbers: Iterable[int]) -> dict[int, str]:
        """Compare tars with what they were, before bytes of these are read; number -> why one is not to be read.

        A tar that was looked at when the source was opened is believed.
        """
        return {}

    def advise(self, reason: str) -> str:
        """Say what to do where a tar cannot be read for a reason; "" where the reason says it."""
        return ""

    def _load_each(self, shard: NDArray[np.int64], purpose: str) -> Iterator[tuple[NDArray[np.int64], Shard]]:
        """Load every tar that can be read: the rows of `shard` that are its own, and it."""
        for rows in group_rows(shard):
            try:
                loaded = self[int(shard[rows[0]])]
            except (OSError, SourceError) as error:
                logger.warning("cannot %s: %s", purpose, one_line(error))
            else:
                yield rows, loaded

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
        return {name: value for name, value in vars(self).items() if name not in _NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "sizes" in state:  # of an earlier version, which knew all shards after the opening
            sizes, digests, repeated = state.pop("sizes"), state.pop("digests"), state.pop("duplicates")
            state |= {"_table": None, "_warned": 0}
            state["_summaries"] = [
                Summary(size, repeated * (number == 0), digest)
                for number, (size, digest) in enumerate(zip(sizes.tolist(), digests.tolist(), strict=True))
            ]
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._foreign = ForeignIndexes(self._storage)
        self._indexing: dict[int, threading.Lock] = {}
        self._streams = []
        self._process = os.getpid()
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
                index = self.scan(url, stat)
            except NotATarError as error:
                raise SourceError(f"{url} changed after it was indexed: it is no tar any more") from error
            self._storage.check(url, stat)
            save_index(path, stat, index)
        if len(index) != self.count(number):
            raise SourceError(f"{url} changed after it was indexed: open the source again")
        return Shard(index, load_headers(path, stat, len(index)))

    def scan(self, url: str, stat: Stat, *, keep: bool = False) -> TarIndex:
        """Make the index of a tar by its headers; see `Storage.reader` for `keep`."""
        if stat.size == 0:
            return TarIndex.from_scan(Scan(ended=True), 0)
        try:
            reader = self._storage.reader(url, keep=keep, stat=stat)
            if not isinstance(reader, RemoteReader):
                return TarIndex.from_scan(scan_tar(reader, stat.size), stat.size)
            with closing(reader):
                places = self._foreign.find
                scan = scan_tar(reader, stat.size, remote=reader, find_places=lambda: places(url).tolist())
                return TarIndex.from_scan(scan, stat.size)
        except (OSError, SourceError, NotATarError):
            raise
        except Exception as error:
            raise SourceError(f"{url} cannot be indexed: {one_line(error)}") from error

    def _open(self) -> None:
        """Ask for every shard's size and version, and find kept indexes; index local tars without one."""
        self._do_all(range(len(self.urls)), self._open_one)
        self._log_warnings([number for number, summary in enumerate(self._summaries) if summary is not None])
        if None not in self._summaries:
            self._complete()

    def _open_one(self, number: int) -> None:
        url = self.urls[number]
        stat = self.stats[number] = self._storage.stat(url)
        summary = peek_index(index_path(url, self._keep), stat)
        if summary is None and not is_remote(url):
            self._keep_index(number, index := self.scan(url, stat))
            summary = index.summary
        self._summaries[number] = summary

    def _keep_index(self, number: int, index: TarIndex) -> None:
        """Keep a new index on disk and in memory."""
        stat = self.stats[number]
        path = index_path(self.urls[number], self._keep)
        save_index(path, stat, index)
        self._loaded.put(number, Shard(index, load_headers(path, stat, len(index))))

    def _wait(self) -> NDArray[np.int64]:
        """Index all shards; (S, 3) int64 samples, digest and repeated keys of each."""
        if not self.is_complete:
            logger.info(
                "%d of %d tars are indexed now, as the number of all samples is needed; `curator-dali prepare` makes "
                "an index once for all",
                self._summaries.count(None),
                len(self.urls),
            )
            self.index_all(range(len(self.urls)))
            self._complete()
        assert self._table is not None
        return self._table

    def _do_all(self, numbers: Sequence[int], work: Callable[[int], object]) -> None:
        """Do work for shards, many at once; once all are tried, refuse those for which it raised."""
        bad: dict[str, str] = {}
        told = time.monotonic()
        silent = threading.Event()  # set once the store was silent for as long as it is waited for: no more shards then

        def attempt(number: int) -> str:
            try:
                if silent.is_set() and is_remote(self.urls[number]):
                    raise TimeoutError("not asked for, as the store is silent")
                work(number)
            except Exception as error:  # whatever a hostile header or a store comes up with costs one shard
                if isinstance(error, TimeoutError):
                    silent.set()
                return _explain(self.urls[number], error)
            return ""

        with ThreadPoolExecutor(32 if self.remote else 8, thread_name_prefix="curator-dali-index") as pool:
            for number, reason in zip(numbers, pool.map(attempt, numbers), strict=True):
                if reason:
                    bad[self.urls[number]] = reason
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    known = len(self.urls) - self._summaries.count(None)
                    logger.info("indexed %d of %d tars", known, len(self.urls))
        if bad:
            shown = "; ".join(f"{url}: {reason}" for url, reason in sorted(bad.items())[:10])
            raise SourceError(
                f"{len(bad)} of {len(self.urls)} shards cannot be read: {shown}{'; ...' if len(bad) > 10 else ''}"
                f"{_REPAIR * (_NO_TAR in bad.values())}"
            )

    def _complete(self) -> None:
        """All shards are known: make the table, and log what was not logged shard by shard."""
        rows = [(s.samples, s.digest, s.duplicates) for s in self._summaries if s is not None]
        with self._lock:
            if self._table is not None:
                return
            self._table = np.array(rows, np.int64).reshape(-1, 3)
        if self._warned > _MOST_WARNED:
            logger.warning("%d more shards have warnings: log level DEBUG shows them", self._warned - _MOST_WARNED)
        noted = [(url, s.note) for url, s in zip(self.urls, self._summaries, strict=True) if s is not None and s.note]
        if noted:
            logger.info("%s: %s (such shards: %d of %d)", *noted[0], len(noted), len(self.urls))

    def _log_warnings(self, numbers: Sequence[int]) -> None:
        """Log the warnings of shards, without a flood of lines."""
        for number in numbers:
            summary = self._summaries[number]
            if summary is not None and summary.warnings:
                level = logging.WARNING if self._warned < _MOST_WARNED else logging.DEBUG
                logger.log(level, "%s: %s", self.urls[number], "; ".join(summary.warnings))
                self._warned += 1


def _explain(url: str, error: BaseException) -> str:
    """Say why a tar cannot be read, in a message that names its URL."""
    if isinstance(error, NotATarError):
        return _NO_TAR
    text = one_line(str(error) if isinstance(error, (PermanentError, SourceError)) else error)
    for part in (f"cannot read {url!r}: ", f"{url} cannot be indexed: ", f"{url}: ", f"{url} "):
        text = text.replace(part, "")
    return text.removesuffix(f": {url}").removesuffix(f": {url!r}").replace(f"{PermanentError.__name__}: ", "")


class Shard:
    """A loaded shard: its index, and what is known of its images' headers (`learnt`: how many of them anew)."""

    __slots__ = ("headers", "index", "learnt")

    def __init__(self, index: TarIndex, headers: NDArray[np.void] | None) -> None:
        self.index = index
        self.headers = headers if headers is not None else np.zeros(len(index), HEADER_DTYPE)
        self.learnt = 0
