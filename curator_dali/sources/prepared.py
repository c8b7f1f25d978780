"""Tars that the index of a data set knows: opened without looking at them, and looked up a batch at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import LRU, Stat, Storage, is_remote
from curator_dali.sources.base import HEADER_DTYPE, check_indices, quote
from curator_dali.sources.dataset_index import (
    PLACES,
    PLACES_OF_INDEX,
    RECORD_NUMBERS,
    DatasetIndex,
    Records,
    find_reference,
    open_index,
)
from curator_dali.sources.entries import (
    Entries,
    Items,
    MemberRows,
    empty_entries,
    expand,
    gather_loaded,
    join_members,
)
from curator_dali.sources.index_parts import IndexParts
from curator_dali.sources.tar_headers import is_header_of
from curator_dali.sources.tar_index import ENTRY, Summary, TarIndex
from curator_dali.sources.tar_shards import Shard, Shards, log_warnings

logger = logging.getLogger(__name__)

_STAT_THREADS = 8
_INDEX_MEMORY = 64 << 20  # bytes of the indexes of whole tars in memory
_PROBES = 3  # samples whose tar headers are looked at in a file that may be a copy
_AT = {name: number for number, name in enumerate(PLACES)}
_DAMAGED = "the index is damaged here: prepare it anew with `curator-dali prepare`"
_HEADER = 512


def open_shards(
    urls: Sequence[str], storage: Storage, index: str, known: Mapping[str, DatasetIndex | None]
) -> Shards | IndexedShards:
    """Open tars by the index of their data set where there is one, else by an index of each.

    Args:
        urls: The tars.
        storage: Reads them.
        index: "cache", "beside", "none", or the folder of an index.
        known: Folder of an index -> it, or None where there is none: what need not be looked for.

    Raises:
        SourceError: A tar cannot be read, or an index that was named.
    """
    urls = [url if is_remote(url) else os.path.abspath(url) for url in urls]
    keep: Any = index if index in PLACES_OF_INDEX else "cache"
    reference = find_reference(urls, index)
    if reference is None:
        return Shards(urls, storage, keep)
    found = known[reference.folder] if reference.folder in known else open_index(reference)
    if found is not None and found.kind != "tar":
        logger.info("the index %s is of %s files", found.folder, found.kind)
        found = None
    rows = np.full(len(urls), -1, np.int64) if found is None else found.find(urls)
    if found is None or not (rows >= 0).any():
        if found is not None:
            logger.warning("the index %s knows none of the %d files", found.folder, len(urls))
        return Shards(urls, storage, keep)
    return IndexedShards(urls, storage, keep, found, rows)


class IndexedShards:
    """Tars by number, of which the index of a data set knows all or some.

    A local tar of another size, or of another time whose headers are not those of the index, is indexed anew, as are
    tars that the index does not know. What remote tars are is believed, and shows when they are read.

    Args:
        urls: The tars; local ones as absolute paths.
        storage: Reads them.
        keep: Where indexes of single tars are kept; see `tar_index.index_path`.
        index: The index.
        rows: (S,) int64, the row of each tar in the index, -1 where it has none.

    Attributes:
        urls: The tars.
        remote: Whether any is remote.
        sizes: (S,) int64, samples in each.
        stats: Size and version of each.
        digests: (S,) int64, `Summary.digest` of each.
        duplicates: Samples that repeat a key of their own tar.
        keep: Where the index was looked for: what `open_shards` takes.
        prepared: (S,) bool, whether the index has the tar.

    Raises:
        SourceError: Tars that are not in the index are missing, unreadable or no tars; all are named.
    """

    def __init__(
        self, urls: Sequence[str], storage: Storage, keep: Any, index: DatasetIndex, rows: NDArray[np.int64]
    ) -> None:
        self.urls, self._storage, self._index_keep = list(urls), storage, keep
        self.remote = any(map(is_remote, self.urls))
        self._folder = index.folder
        self._parts = IndexParts(index.folder, index.parts, _part_sizes(index))
        known = np.maximum(rows, 0)
        # (S, len(PLACES)) and (S,): where the samples of each tar lie in the parts
        self._places, self._part = index.places[known], index.part_of[known]
        summaries, self.stats = index.summaries(known), index.stats(known)
        self.sizes = np.array([summary.samples for summary in summaries], np.int64)
        self.prepared = rows >= 0
        self._learnt: NDArray[np.void] | None = None
        self._start()
        self._compare()
        self._rest, self._rest_number = self._open_rest(keep)
        self.digests = np.array([summary.digest for summary in summaries], np.int64)
        for number, at in enumerate(self._rest_number.tolist()):
            if at >= 0 and self._rest is not None:
                self.sizes[number], self.digests[number] = self._rest.sizes[at], self._rest.digests[at]
                self.stats[number] = self._rest.stats[at]
        good = [(url, summary) for url, summary, ok in zip(urls, summaries, self.prepared, strict=True) if ok]
        self.duplicates = sum(summary.duplicates for _, summary in good)
        self.duplicates += 0 if self._rest is None else self._rest.duplicates
        log_warnings([url for url, _ in good], [summary for _, summary in good])
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._bytes = np.array([stat.size for stat in self.stats], np.int64)

    @property
    def keep(self) -> str:
        """Where the index is looked for by a source of some of the tars."""
        return self._folder

    def gather(self, indices: NDArray[np.int64], *, members: bool = False) -> Entries:
        """Gather entries of (N,) samples; see `gather_loaded`."""
        indices = check_indices(indices, int(self._starts[-1]))
        shard = np.searchsorted(self._starts, indices, "right") - 1
        prepared = self.prepared[shard]
        if prepared.all():
            return self._gather_prepared(indices, shard, members)
        found = empty_entries(len(indices))
        parts: list[MemberRows] = []
        for rows, is_prepared in ((prepared.nonzero()[0], True), ((~prepared).nonzero()[0], False)):
            if is_prepared:
                part = self._gather_prepared(indices[rows], shard[rows], members)
            else:
                part = self._gather_rest(indices[rows], shard[rows], members)
            found.shard[rows], found.limit[rows], found.samples[rows] = part.shard, part.limit, part.samples
            found.table[rows], found.headers[rows] = part.table, part.headers
            for row, name in zip(rows.tolist(), part.names, strict=True):
                found.names[row] = name
            found.failed.update({int(rows[row]): reason for row, reason in part.failed.items()})
            if part.members is not None:
                items, extensions = part.members
                parts.append(MemberRows(items._replace(row=rows[items.row]), extensions))
        found.members = join_members(parts) if members else None
        self._add_learnt(indices, found.headers)
        return found

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of (N,) samples."""
        return self._records(indices).headers

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) bytes in the samples' images; 0 where there is none, -1 where the index cannot be read."""
        found = self._records(indices)
        sizes = np.maximum(found.table[:, 1] - 1, 0)
        sizes[list(found.failed)] = -1
        return sizes

    def read_keys(self, indices: NDArray[np.int64]) -> Any:
        """(N,) keys of samples, a `pyarrow.LargeStringArray`.

        Raises:
            SourceError: The index cannot be read now.
        """
        import pyarrow as pa

        found = self.gather(indices)
        if found.failed:
            row = min(found.failed)
            raise SourceError(f"{self.urls[int(found.shard[row])]} cannot be read now: {found.failed[row]}")
        lengths = found.table[:, -2].tolist()
        pairs = zip(found.names, lengths, strict=True)
        return pa.array([(name or "")[:length] for name, length in pairs], pa.large_string())

    def learn_at(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers that the index does not have in memory."""
        if self._learnt is None:  # pages that nobody writes to take no memory
            self._learnt = np.zeros(len(self), HEADER_DTYPE)
        known = headers["codec"] != 0
        self._learnt[np.asarray(indices)[known]] = headers[known]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Shard:
        """A tar's whole index.

        Raises:
            OSError, SourceError: It cannot be read.
        """
        if not self.prepared[number]:
            assert self._rest is not None
            return self._rest[int(self._rest_number[number])]
        return self._loaded.get(number, lambda: self._load(number))

    def learn(self, shard: Shard, samples: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers of a tar's samples in memory."""
        known = headers["codec"] != 0
        shard.headers[samples[known]] = headers[known]

    def close(self) -> None:
        """Close the parts of the index, and forget what is in memory. A later look opens them again."""
        self._parts.close()
        self._loaded.clear()
        if self._rest is not None:
            self._rest.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        self._loaded: LRU[int, Shard] = LRU(_INDEX_MEMORY, lambda shard: shard.index.nbytes + shard.headers.nbytes)

    def _compare(self) -> None:
        """Compare local tars with the index: what is changed is not `prepared`."""
        local = [n for n, url in enumerate(self.urls) if self.prepared[n] and not is_remote(url)]
        if not local:
            return
        with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="curator-dali-stat") as pool:
            for number, stat in zip(local, pool.map(lambda n: self._look(n), local), strict=True):
                if stat is None:
                    self.prepared[number] = False
                else:
                    self.stats[number] = stat

    def _look(self, number: int) -> Stat | None:
        """What a local tar is now; None where it is not the one that was indexed."""
        url, then = self.urls[number], self.stats[number]
        try:
            now = self._storage.stat(url)
            same = now.size == then.size and (now.version == then.version or self._is_copy(number))
        except OSError:
            return None  # whoever indexes it meets the reason
        return now if same else None

    def _is_copy(self, number: int) -> bool:
        """Whether a tar of equal size has, where the index says, the headers of some images."""
        count = int(self.sizes[number])
        samples = np.unique(np.linspace(0, max(count - 1, 0), min(count, _PROBES)).astype(np.int64))
        found = self._read_prepared(np.full(len(samples), number), samples, names=True)
        if found.failed:
            return False
        read = self._storage.reader(self.urls[number])
        return all(
            size == 0 or is_header_of(read(max(offset - _HEADER, 0), _HEADER), str(name), size - 1)
            for name, (offset, size) in zip(found.names, found.table[:, :2].tolist(), strict=True)
        )

    def _open_rest(self, keep: Any) -> tuple[Shards | None, NDArray[np.int64]]:
        """Index tars that the index does not know, or not as they are: these, and (S,) their numbers."""
        numbers = (~self.prepared).nonzero()[0]
        place = np.full(len(self.urls), -1, np.int64)
        if not len(numbers):
            return None, place
        place[numbers] = np.arange(len(numbers))
        logger.warning(
            "%d of %d tars, such as %s, are new or have changed since the index %s was made, and are indexed now: "
            "`curator-dali prepare` brings it up to date",
            len(numbers), len(self.urls), quote(self.urls[numbers[0]]), self._folder,
        )  # fmt: skip
        return Shards([self.urls[number] for number in numbers.tolist()], self._storage, keep), place

    def _gather_rest(self, indices: NDArray[np.int64], shard: NDArray[np.int64], members: bool) -> Entries:
        assert self._rest is not None
        starts = np.concatenate([[0], np.cumsum(self._rest.sizes)])
        at = self._rest_number[shard]
        found = gather_loaded(self._rest, indices - self._starts[shard] + starts[at], starts, members=members)
        found.shard = shard
        return found

    def _gather_prepared(self, indices: NDArray[np.int64], shard: NDArray[np.int64], members: bool) -> Entries:
        found = self._read_prepared(shard, indices - self._starts[shard], names=True, members=members)
        self._add_learnt(indices, found.headers)
        return found

    def _records(self, indices: NDArray[np.int64]) -> Entries:
        """Gather numbers and headers, without names."""
        indices = check_indices(indices, int(self._starts[-1]))
        shard = np.searchsorted(self._starts, indices, "right") - 1
        if not self.prepared[shard].all():
            return self.gather(indices)
        found = self._read_prepared(shard, indices - self._starts[shard])
        self._add_learnt(indices, found.headers)
        return found

    def _add_learnt(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        if self._learnt is not None:
            unknown = headers["codec"] == 0
            headers[unknown] = self._learnt[indices[unknown]]

    def _read_prepared(
        self, shard: NDArray[np.int64], samples: NDArray[np.int64], *, names: bool = False, members: bool = False
    ) -> Entries:
        """Read what the parts say of (N,) samples of the tars (N,) `shard`."""
        places, part = self._places[shard], self._part[shard]  # (N, len(PLACES)), (N,)
        numbers, failed = self._read_numbers(part, places, samples)
        records = Records.parse(numbers)
        table = records.table
        bad = ~records.sound
        bad |= table[:, -4] + table[:, -3] > places[:, _AT["names_size"]]
        bad |= records.members.sum(1) > places[:, _AT["members"]]
        for row in bad.nonzero()[0].tolist():
            failed.setdefault(row, _DAMAGED)
        if failed:
            rows = list(failed)
            table[rows], records.headers[rows], records.members[rows] = 0, 0, 0
        found = Entries(shard, self._bytes_of(shard), table, records.headers, [None] * len(shard), samples, failed)
        if names:
            self._read_names(part, places, found)
        if members:
            found.members = self._read_members(part, places, records.members, found)
        return found

    def _bytes_of(self, shard: NDArray[np.int64]) -> NDArray[np.int64]:
        known: NDArray[np.int64] | None = getattr(self, "_bytes", None)  # not yet while tars are compared
        return np.array([self.stats[n].size for n in shard.tolist()], np.int64) if known is None else known[shard]

    def _read_numbers(
        self, part: NDArray[np.int64], places: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], dict[int, str]]:
        """Read (N, RECORD_NUMBERS) of the column `entry`; row -> why one cannot be read."""
        width = places[:, _AT["entry_bytes"]]
        size = width * RECORD_NUMBERS
        data, position, failed = self._parts.gather(part, places[:, _AT["entries"]] + samples * size, size)
        numbers = np.zeros((len(samples), RECORD_NUMBERS), np.int64)
        for bytes_each, kind in ((4, np.uint32), (8, np.int64)):
            rows = (width == bytes_each).nonzero()[0]
            if len(rows):
                values = data[: len(data) // bytes_each * bytes_each].view(kind)
                numbers[rows] = values[(position[rows] // bytes_each)[:, None] + np.arange(RECORD_NUMBERS)]
        return numbers, failed

    def _read_names(self, part: NDArray[np.int64], places: NDArray[np.int64], found: Entries) -> None:
        """Read the names of samples that are known."""
        entries = found.table.view(ENTRY)[:, 0]
        begins, sizes = places[:, _AT["names"]] + entries["name_start"], entries["name_size"]
        data, position, failed = self._parts.gather(part, begins, sizes)
        blob = data.tobytes()
        spans = zip(position.tolist(), (position + sizes).tolist(), strict=True)
        try:
            found.names = [blob[begin:end].decode() for begin, end in spans]
        except UnicodeDecodeError:
            found.names = [
                blob[begin : begin + size].decode("utf-8", "backslashreplace")
                for begin, size in zip(position.tolist(), sizes.tolist(), strict=True)
            ]
        found.failed.update(failed)
        for row in found.failed:
            found.names[row] = None
            found.table[row] = 0

    def _read_members(
        self, part: NDArray[np.int64], places: NDArray[np.int64], runs: NDArray[np.int64], found: Entries
    ) -> MemberRows:
        """Read all members of samples; `runs` are (N, 2), the first of each in its tar, and how many."""
        runs = np.where(np.isin(np.arange(len(runs)), list(found.failed))[:, None], 0, runs)
        first, counts = runs.T
        columns = []
        for name in ("member_offsets", "member_sizes"):
            data, position, failed = self._parts.gather(part, places[:, _AT[name]] + 8 * first, 8 * counts)
            columns.append(data.view(np.int64)[expand(position // 8, counts)])
            found.failed.update(failed)
        begins = places[:, _AT["extension_offsets"]] + 4 * first
        data, position, failed = self._parts.gather(part, begins, 4 * (counts + 1))
        bounds = data.view(np.int32)
        starts, ends = (bounds[expand(position // 4 + shift, counts)].astype(np.int64) for shift in (0, 1))
        row = np.repeat(np.arange(len(runs)), counts)
        sound = (starts >= 0) & (starts <= ends) & (ends <= places[row, _AT["extensions_size"]])
        found.failed.update(failed)
        for at in row[~sound].tolist():
            found.failed.setdefault(at, _DAMAGED)
        starts, lengths = np.where(sound, starts, 0), np.where(sound, ends - starts, 0)
        data, position, failed = self._parts.gather(part[row], places[row, _AT["extensions"]] + starts, lengths)
        found.failed.update({int(row[item]): reason for item, reason in failed.items()})
        for at in found.failed:
            found.names[at] = None
            found.table[at] = 0
        blob, spans = data.tobytes(), zip(position.tolist(), (position + lengths).tolist(), strict=True)
        extensions = [blob[begin:end].decode("utf-8", "backslashreplace") for begin, end in spans]
        if not found.failed:
            return MemberRows(Items(row, columns[0], columns[1]), extensions)
        kept = ~np.isin(row, list(found.failed))
        items = Items(row[kept], columns[0][kept], columns[1][kept])
        return MemberRows(items, [text for text, is_kept in zip(extensions, kept.tolist(), strict=True) if is_kept])

    def _load(self, number: int) -> Shard:
        """Read a tar's whole index."""
        count = int(self.sizes[number])
        found = self._read_prepared(np.full(count, number), np.arange(count), names=True, members=True)
        if found.failed:
            raise SourceError(f"{self.urls[number]}: {found.failed[min(found.failed)]}")
        assert found.members is not None
        items, extensions = found.members
        keys = [(name or "")[:length] for name, length in zip(found.names, found.table[:, -2].tolist(), strict=True)]
        names = [(name or "").encode() for name in found.names]
        further = [f"{keys[row]}.{extension}".encode() for row, extension in zip(items.row, extensions, strict=True)]
        sizes = np.array([len(name) for name in (*names, *further)], np.int64)
        starts = np.cumsum(sizes) - sizes
        table = found.table.copy()
        table[:, -4] = starts[:count]
        first = np.searchsorted(items.row, np.arange(count + 1))
        members = np.stack([items.offset, items.size, starts[count:], sizes[count:]], axis=1)
        summary = self._summary(number)
        return Shard(TarIndex(table, b"".join([*names, *further]), first, members, summary), found.headers.copy())

    def _summary(self, number: int) -> Summary:
        return Summary(int(self.sizes[number]), 0, int(self.digests[number]))


def _part_sizes(index: DatasetIndex) -> list[int]:
    """Bytes of each part."""
    sizes = np.zeros(len(index.parts), np.int64)
    sizes[index.part_of] = index.places[:, _AT["part_size"]]
    found: list[int] = sizes.tolist()
    return found
