"""Tars that the index of a data set knows: opened without looking at them, and looked up a batch at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import Storage, is_remote, one_line
from curator_dali.sources.base import HEADER_DTYPE, group_rows, quote
from curator_dali.sources.dataset_index import (
    PLACES,
    PLACES_OF_INDEX,
    RECORD_NUMBERS,
    DatasetIndex,
    Records,
    find_reference,
    open_known,
    sum_members,
    sum_texts,
)
from curator_dali.sources.entries import (
    Entries,
    Items,
    MemberRows,
    empty_entries,
    expand,
    join_members,
)
from curator_dali.sources.index_parts import IndexParts
from curator_dali.sources.tar_index import ENTRY, TarIndex
from curator_dali.sources.tar_shards import Shard, Shards

logger = logging.getLogger(__name__)

_STAT_THREADS = 16
_AT = {name: number for number, name in enumerate(PLACES)}
_PREPARE_AGAIN = ". The index of the data set is older: `curator-dali prepare` brings it up to date"
_DAMAGED = "the index is damaged here: `curator-dali prepare --anew` repairs it"


def open_shards(urls: Sequence[str], storage: Storage, index: str, known: Mapping[str, DatasetIndex | None]) -> Shards:
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
    found = open_known(reference, known, "tar")
    rows = np.full(len(urls), -1, np.int64) if found is None else found.find(urls)
    if found is None or not (rows >= 0).any():
        if found is not None:
            logger.warning("the index %s knows none of the %d files", found.folder, len(urls))
        return Shards(urls, storage, keep)
    return IndexedShards(urls, storage, keep, found, rows)


class IndexedShards(Shards):
    """Tars by number, of which the index of a data set knows all or some.

    A local tar of another size, or of another time and with other members, is indexed by itself, as are tars that the
    index does not know. What remote tars are is believed, and compared when their first bytes are read.

    Args:
        urls: The tars; local ones as absolute paths.
        storage: Reads them.
        keep: Where indexes of single tars are kept; see `tar_index.index_path`.
        index: The index.
        rows: (S,) int64, the row of each tar in the index, -1 where it has none.

    Attributes:
        prepared: (S,) bool, whether the index has the tar.

    Raises:
        SourceError: See `Shards`, for tars that are not in the index.
    """

    def __init__(
        self, urls: Sequence[str], storage: Storage, keep: Any, index: DatasetIndex, rows: NDArray[np.int64]
    ) -> None:
        self._folder = index.folder
        self._parts = IndexParts(index.folder, index.parts, index.part_sizes)
        known = np.maximum(rows, 0)
        # (S, len(PLACES)) and (S,): where the samples of each tar lie in the parts
        self._places, self._part = index.places[known], index.part_of[known]
        self.prepared = rows >= 0
        self._bytes = index.numbers("size")[known]  # (S,) as `stats` has it
        self._learnt: dict[int, NDArray[np.void]] = {}  # headers that the index does not have, by tar
        self._then = index.stats(known), index.summaries(known)
        super().__init__(urls, storage, keep)

    @property
    def keep(self) -> str:
        """Where the index is looked for by a source of some of the tars."""
        return self._folder

    def gather(self, shard: NDArray[np.int64], samples: NDArray[np.int64], *, members: bool = False) -> Entries:
        """Gather what the index says of samples; see `Shards.gather`."""
        prepared = self.prepared[shard]
        if prepared.all():
            return self._read_prepared(shard, samples, names=True, members=members)
        found = empty_entries(shard, samples)
        parts: list[MemberRows] = []
        for rows, is_prepared in ((prepared.nonzero()[0], True), ((~prepared).nonzero()[0], False)):
            if is_prepared:
                part = self._read_prepared(shard[rows], samples[rows], names=True, members=members)
            else:
                part = super().gather(shard[rows], samples[rows], members=members)
            found.limit[rows], found.table[rows], found.headers[rows] = part.limit, part.table, part.headers
            for row, name in zip(rows.tolist(), part.names, strict=True):
                found.names[row] = name
            found.failed.update({int(rows[row]): reason for row, reason in part.failed.items()})
            if part.members is not None:
                items, extensions = part.members
                parts.append(MemberRows(items._replace(row=rows[items.row]), extensions))
        found.members = join_members(parts) if members else None
        return found

    def read_keys(self, shard: NDArray[np.int64], samples: NDArray[np.int64]) -> Any:
        """(N,) keys of samples; see `Shards.read_keys`."""
        import pyarrow as pa

        found = self.gather(shard, samples)
        if found.failed:
            row = min(found.failed)
            raise SourceError(f"{self.urls[int(shard[row])]} cannot be read now: {found.failed[row]}")
        lengths = found.table[:, -2].tolist()
        pairs = zip(found.names, lengths, strict=True)
        return pa.array([(name or "")[:length] for name, length in pairs], pa.large_string())

    def image_sizes(self, shard: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) bytes in the images of samples; see `Shards.image_sizes`."""
        found = self._read_numbers_of(shard, samples)
        sizes: NDArray[np.int64] = np.maximum(found.table[:, 1] - 1, 0)
        sizes[list(found.failed)] = -1
        return sizes

    def headers(self, shard: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.void]:
        """(N,) known headers of samples."""
        return self._read_numbers_of(shard, samples).headers

    def learn_all(self, shard: NDArray[np.int64], samples: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers in memory, those of tars that the index does not have as `Shards.learn_all`."""
        others = ~self.prepared[shard]
        if others.any():
            super().learn_all(shard[others], samples[others], headers[others])
        known = ~others & (headers["codec"] != 0)
        for rows in group_rows(shard[known]):
            at = known.nonzero()[0][rows]
            number = int(shard[at[0]])
            if number not in self._learnt:
                self._learnt[number] = np.zeros(self.count(number), HEADER_DTYPE)
            elif not self._learnt[number].flags.writeable:  # Ray hands arrays to other processes as views of one copy
                self._learnt[number] = self._learnt[number].copy()
            self._learnt[number][samples[at]] = headers[at]

    def check(self, numbers: Iterable[int]) -> dict[int, str]:
        """Compare remote tars with the index, once a process; see `Shards.check`."""
        new = [n for n in numbers if n not in self._same and self.prepared[n] and is_remote(self.urls[n])]
        found: dict[int, str] = {}

        def check_one(number: int) -> None:
            try:
                # an index that was made of local files has other versions
                self._storage.check(self.urls[number], self.stats[number], by_version=False)
                self._same.add(number)
            except (OSError, SourceError) as error:
                found[number] = one_line(error)

        if len(new) == 1:
            check_one(new[0])
        elif new:
            with ThreadPoolExecutor(min(len(new), _STAT_THREADS), thread_name_prefix="curator-dali-stat") as pool:
                list(pool.map(check_one, new))
        return found

    def advise(self, reason: str) -> str:
        """Say that an index is older than a tar."""
        return _PREPARE_AGAIN if "changed after" in reason else ""

    def close(self) -> None:
        """Close the parts of the index, and what `Shards.close` closes. A later look opens them again."""
        self._parts.close()
        super().close()

    def _open(self) -> None:
        """Compare local tars with the index; index those that it does not have, or not as they are."""
        self.stats, summaries = self._then
        local = [n for n, url in enumerate(self.urls) if self.prepared[n] and not is_remote(url)]
        if local:
            with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="curator-dali-stat") as pool:
                self.prepared[local] = list(pool.map(self._is_same, local))
        triples = zip(summaries, self.prepared.tolist(), self._summaries, strict=True)
        self._summaries = [summary if is_prepared else own for summary, is_prepared, own in triples]
        others = (~self.prepared).nonzero()[0].tolist()
        if others:
            logger.warning(
                "%d of %d tars, such as %s, are new or have changed since the index %s was made, and are indexed by "
                "themselves: `curator-dali prepare` brings it up to date",
                len(others), len(self.urls), quote(self.urls[others[0]]), self._folder,
            )  # fmt: skip
            self._do_all([number for number in others if self._summaries[number] is None], self._open_one)
        del self._then
        self._bytes = np.array([stat.size for stat in self.stats], np.int64)
        self._log_warnings([number for number, summary in enumerate(self._summaries) if summary is not None])
        if None not in self._summaries:
            self._complete()

    def _start(self) -> None:
        super()._start()
        self._same: set[int] = set()  # tars that are as in the index, or are compared with each read

    def _load(self, number: int) -> Shard:
        return self._load_prepared(number) if self.prepared[number] else super()._load(number)

    def _is_same(self, number: int) -> bool:
        """Whether a local tar is the one that was indexed: of equal size, and of equal time or with the same members.

        Its members are those of its own index, which is kept as that of any other tar.
        """
        then, summary = self.stats[number], self._then[1][number]
        try:
            now = self._storage.stat(self.urls[number])
            if now.size != then.size or now.version == then.version:
                self.stats[number] = now
                return now.size == then.size
            self._open_one(number)
        except Exception:  # whoever indexes it meets the reason
            return False
        own = self._summaries[number]
        return own is not None and (own.samples, own.digest) == (summary.samples, summary.digest)

    def _read_numbers_of(self, shard: NDArray[np.int64], samples: NDArray[np.int64]) -> Entries:
        """Gather numbers and headers, of tars that the index has without names."""
        if not self.prepared[shard].all():
            return self.gather(shard, samples)
        return self._read_prepared(shard, samples)

    def _add_learnt(self, found: Entries) -> None:
        """Add headers that were learnt to those of the index."""
        unknown = (found.headers["codec"] == 0).nonzero()[0]
        for rows in group_rows(found.shard[unknown]):
            at = unknown[rows]
            learnt = self._learnt.get(int(found.shard[at[0]]))
            if learnt is not None:
                found.headers[at] = learnt[found.samples[at]]

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
        found = Entries(shard, self._bytes[shard], table, records.headers, [None] * len(shard), samples, failed)
        if names:
            self._read_names(part, places, found, records.sums[:, 0])
        if members:
            found.members = self._read_members(part, places, records, found)
        if self._learnt:
            self._add_learnt(found)
        return found

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

    def _read_names(
        self, part: NDArray[np.int64], places: NDArray[np.int64], found: Entries, sums: NDArray[np.int64]
    ) -> None:
        """Read the names of samples that are known; `sums` are (N,) those of the names."""
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
        for row in (sum_texts(blob, position, sizes) != sums).nonzero()[0].tolist():
            found.failed.setdefault(row, _DAMAGED)
        for row in found.failed:
            found.names[row] = None
            found.table[row] = 0

    def _read_members(
        self, part: NDArray[np.int64], places: NDArray[np.int64], records: Records, found: Entries
    ) -> MemberRows:
        """Read all members of samples."""
        is_lost = np.isin(np.arange(len(part)), list(found.failed))
        runs = np.where(is_lost[:, None], 0, records.members)  # (N, 2), the first of each in its tar, and how many
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
        blob, spans = data.tobytes(), zip(position.tolist(), (position + lengths).tolist(), strict=True)
        extensions = [blob[begin:end].decode("utf-8", "backslashreplace") for begin, end in spans]
        sums = sum_members(columns[0], columns[1], extensions, counts)
        for at in (sums != records.sums[:, 1]).nonzero()[0].tolist():
            found.failed.setdefault(at, _DAMAGED)
        for at in found.failed:
            found.names[at] = None
            found.table[at] = 0
        if not found.failed:
            return MemberRows(Items(row, columns[0], columns[1]), extensions)
        kept = ~np.isin(row, list(found.failed))
        items = Items(row[kept], columns[0][kept], columns[1][kept])
        return MemberRows(items, [text for text, is_kept in zip(extensions, kept.tolist(), strict=True) if is_kept])

    def _load_prepared(self, number: int) -> Shard:
        """Read a tar's whole index."""
        count = self.count(number)
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
        summary = self.summaries([number])[number]
        return Shard(TarIndex(table, b"".join([*names, *further]), first, members, summary), found.headers.copy())
