"""WebDataset tars as a source: looked up in an index, read with few system calls, whatever the order."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError
from curator_dali.sources.base import HEADER_DTYPE, EncodedBatch, Source
from curator_dali.sources.index_store import (
    index_path,
    load_headers,
    load_index,
    peek_index,
    save_headers,
    save_index,
)
from curator_dali.sources.samples import parse_metadata
from curator_dali.sources.storage import LRU, Request, Stat, Storage, is_remote, one_line
from curator_dali.sources.tar_headers import NotATarError, OddTarError, scan_tar, scan_with_tarfile
from curator_dali.sources.tar_index import COLUMNS, Status, TarIndex

__all__ = ["TarSource"]

logger = logging.getLogger(__name__)

_INDEX_MEMORY = 256 << 20  # bytes of loaded indexes: about 2.5 million samples with JSON
_LOCAL_GAP, _REMOTE_GAP = 16 << 10, 256 << 10  # a gap between members that is cheaper to read than to pass over
_REMOTE_WINDOW = 1 << 20
_WORTH_WRITING = 8  # a shard dropped from memory writes its headers when one in so many was learnt anew


class _Shard:
    """A loaded shard: its index, and what is known of its images' headers."""

    __slots__ = ("headers", "index", "learnt")

    def __init__(self, index: TarIndex, headers: NDArray[np.void] | None) -> None:
        self.index = index
        self.headers = headers if headers is not None else np.zeros(len(index), HEADER_DTYPE)
        self.learnt = 0


class _Group(NamedTuple):
    """The samples of a batch that lie in one shard."""

    shard: int
    rows: NDArray[np.int64]
    samples: NDArray[np.int64]


class TarSource(Source):
    """Images in WebDataset tars, local or remote, in any order.

    `TarIndex.from_scan` says what a sample is, `parse_metadata` what its metadata is. `image_id` is the key. The
    `image_path` is `tar://<member>::<shard>`, which `fsspec.open` opens; where a later member of the shard has the same
    name, that one would be opened, so the earlier one's path says where it lies instead (`tar://a.jpg#offset=512::...`)
    and cannot be opened by name. Samples of one key, in one shard or in several, are all kept; `image_path` tells them
    apart, and `duplicate_keys` counts those that repeat a key of their own shard.

    A sample without an image, one that the end of a cut tar takes part of, and one behind a damaged header are rows
    with an error. Shards are indexed at the first opening, and the indexes kept.

    Args:
        urls: The tars; the order of the samples is theirs.
        name: The data set's name; by default that of the folder that the tars lie in.
        index: Where indexes are kept: `"cache"`, `"beside"` the tars, or `"none"`; see `index_store.index_path`.

    Raises:
        SourceError: A tar is missing, unreadable or no tar; all of these are named.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        name: str | None = None,
        index: Literal["cache", "beside", "none"] = "cache",
    ) -> None:
        if index not in ("cache", "beside", "none"):
            raise ValueError(f"index must be 'cache', 'beside' or 'none', not {index!r}")
        self._storage = Storage()
        self._shards = Shards([urls] if isinstance(urls, str) else urls, self._storage, index)
        self._starts = np.concatenate([[0], np.cumsum(self._shards.sizes)])
        self.name = name or common_name(self._shards.urls)
        self.read_ahead = 8 if self._shards.remote else 1

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """(S,) int64: samples in each tar."""
        return self._shards.sizes

    @property
    def duplicate_keys(self) -> int:
        """How many samples repeat a key of their own tar."""
        return self._shards.duplicates

    @property
    def fingerprint(self) -> str:
        """Of the tars' names (without folders, so that a data set may move) and their numbers of samples."""
        names = (url.rpartition("/")[2] for url in self._shards.urls)
        return fingerprint("tar", zip(names, self._shards.sizes.tolist(), strict=True))

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples: a few large reads a shard into one new buffer, which the images are views of."""
        indices = np.asarray(indices, np.int64)
        count = len(indices)
        table = np.zeros((count, len(COLUMNS)), np.int64)
        headers = np.zeros(count, HEADER_DTYPE)
        shard_of, limit = np.zeros(count, np.int64), np.zeros(count, np.int64)
        errors: dict[int, str] = {}
        groups: list[_Group] = []
        for number, rows, samples in self._locate(indices):
            shard_of[rows], limit[rows] = number, self._shards.stats[number].size
            try:
                shard = self._shards[number]
            except (OSError, SourceError) as error:
                errors.update(dict.fromkeys(rows.tolist(), one_line(error)))
                groups.append(_Group(number, rows, samples, None))
                continue
            table[rows] = shard.index.table[samples]
            headers[rows] = shard.headers[samples]
            groups.append(_Group(number, rows, samples, shard.index))

        offsets, sizes = table[:, 0:8:2], table[:, 1:8:2] - 1
        whole = offsets + sizes <= limit[:, None]
        row, role = ((sizes > 0) & whole).nonzero()
        known = len(row)
        items = _Items(row, offsets[row, role], sizes[row, role])
        if members:
            extra, extensions = _all_members(groups, limit)
            items = _Items(*map(np.concatenate, zip(items, extra, strict=True)))
        arena, position, lost = self._gather(shard_of[items.row], items)

        at = np.zeros((count, 4), np.int64)
        at[row, role] = position[:known]
        problems: dict[int, str] = {}  # of sidecars
        for r, kind in (~whole).nonzero() if not whole.all() else ():
            pass
        batch = EncodedBatch(indices, [], [], [], headers, errors)
        return batch

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples: a few large reads a shard into one new buffer, which the images are views of."""
        indices = np.asarray(indices, np.int64)
        count = len(indices)
        table = np.zeros((count, len(COLUMNS)), np.int64)
        headers = np.zeros(count, HEADER_DTYPE)
        shard_of, limit = np.zeros(count, np.int64), np.zeros(count, np.int64)
        errors: dict[int, str] = {}
        groups: list[tuple[_Group, TarIndex | None]] = []
        for group in self._locate(indices):
            shard_of[group.rows], limit[group.rows] = group.shard, self._stats[group.shard].size
            try:
                shard = self._shard(group.shard)
            except (OSError, SourceError) as error:
                errors.update(dict.fromkeys(group.rows.tolist(), one_line(error)))
                groups.append((group, None))
                continue
            table[group.rows] = shard.index.table[group.samples]
            headers[group.rows] = shard.headers[group.samples]
            groups.append((group, shard.index))

        offsets, sizes = table[:, 0:8:2], table[:, 1:8:2] - 1
        wanted = (sizes > 0) & (offsets + sizes <= limit[:, None])
        row, role = wanted.nonzero()
        item_offset, item_size = offsets[row, role], sizes[row, role]
        if members:
            more = [_all_members(group, index) for group, index in groups if index is not None]
            row = np.concatenate([row, *(rows for rows, _ in more)])
            item_offset = np.concatenate([item_offset, *(columns[:, 0] for _, columns in more)])
            item_size = np.concatenate([item_size, *(columns[:, 1] for _, columns in more)])
            item_size = np.minimum(item_size, np.maximum(limit[row] - item_offset, 0))
        arena, position, reasons = self._gather(shard_of[row], item_offset, item_size)
        at = np.zeros((count, 4), np.int64)
        at[wanted] = position[: np.count_nonzero(wanted)]
        sizes[~wanted] = np.minimum(sizes[~wanted], 0)  # 0: empty or cut off, -1: not there

        failed: dict[tuple[int, int], str] = {}
        for item, reason in reasons.items():
            if item < np.count_nonzero(wanted):
                failed[int(row[item]), int(role[item])] = reason
        batch = self._assemble(indices, groups, table, at, sizes, arena, failed, errors)
        batch.headers = headers
        if members:
            batch.members = _member_views(groups, more, arena, position[np.count_nonzero(wanted) :], count)
        return batch

    def _assemble(
        self,
        indices: NDArray[np.int64],
        groups: list[tuple[_Group, TarIndex | None]],
        table: NDArray[np.int64],
        at: NDArray[np.int64],
        sizes: NDArray[np.int64],
        arena: NDArray[np.uint8],
        failed: dict[tuple[int, int], str],
        errors: dict[int, str],
    ) -> EncodedBatch:
        """Turn arrays into objects. This is the loop that Python's time a sample goes into."""
        count = len(indices)
        nothing = np.empty(0, np.uint8)
        objects: list[Any] = [None] * count
        images: list[NDArray[np.uint8]] = [nothing] * count
        shards = [""] * count
        view = memoryview(arena)
        for group, index in groups:
            url = self._urls[group.shard]
            rows = group.rows.tolist()
            if index is None:  # not even its index can be had
                for row, sample in zip(rows, group.samples.tolist(), strict=True):
                    objects[row] = ImageObject(f"{url}#sample={sample}", f"#{sample}")
                    shards[row] = url
                continue
            names, tail = index.names, f"::{url}"
            lines = zip(
                rows,
                table[group.rows, 8:].tolist(),
                at[group.rows].tolist(),
                sizes[group.rows].tolist(),
                strict=True,
            )
            for row, (name_start, name_size, key_length, status), (i, j, t, c), (i_size, j_size, t_size, c_size) in lines:
                name = names[name_start : name_start + name_size].decode()
                shards[row] = url
                if i_size > 0:
                    images[row] = arena[i : i + i_size]
                elif not status:
                    errors[row] = "the image has no bytes"
                if j_size < 0 and t_size < 0 and c_size < 0:
                    metadata: Any = {}
                else:  # copies, so that metadata kept for long does not keep the images' buffer
                    metadata = partial(
                        parse_metadata,
                        bytes(view[j : j + j_size]) if j_size >= 0 else None,
                        bytes(view[t : t + t_size]) if t_size >= 0 else None,
                        bytes(view[c : c + c_size]) if c_size >= 0 else None,
                    )
                if status:
                    if status != Status.SHADOWED:
                        errors[row] = self._explain(group.shard, name, status)
                    if status & Status.SHADOWED:
                        name = f"{name}#offset={table[row, 0]}"
                objects[row] = ImageObject(f"tar://{name}{tail}", name[:key_length], metadata)
        for (row, role), reason in failed.items():
            if role == 0:
                images[row] = nothing
                errors[row] = reason
            else:
                objects[row].metadata = partial(parse_metadata, problem=f"a sidecar cannot be read: {reason}")
        return EncodedBatch(indices, objects, images, shards, np.zeros(0, HEADER_DTYPE), errors)

    def _gather(
        self, shard: NDArray[np.int64], offset: NDArray[np.int64], size: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
        """Read items (M of them, by shard, offset and size) into one buffer.

        Returns:
            The buffer; (M,) where each item begins in it; item -> why it could not be read.
        """
        extent_of, starts, ends, extent_shard, position = coalesce(
            shard, offset, size, _REMOTE_GAP if self._remote else _LOCAL_GAP
        )
        lengths = ends - starts
        arena = np.empty(int(lengths.sum()), np.uint8)
        view = memoryview(arena)
        requests = []
        begin = 0
        for s, start, length in zip(extent_shard.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            requests.append(Request(self._urls[s], self._stats[s], start, view[begin : begin + length]))
            begin += length
        reasons: dict[int, str] = {}
        for extent, outcome in enumerate(self._storage.fill(requests)):
            if outcome.reason:
                short = (extent_of == extent) & (offset + size > starts[extent] + outcome.count)
                reasons.update(dict.fromkeys(short.nonzero()[0].tolist(), outcome.reason))
        return arena, position, reasons

    def _explain(self, shard: int, name: str, status: int) -> str:
        where = f"{self._urls[shard]} ends at byte {self._stats[shard].size}"
        if status & Status.DAMAGED:
            return f"damaged tar: members at {name.rpartition('@')[2]} cannot be read (or are sparse: repack the tar)"
        if status & Status.CUT:
            return f"truncated tar: {where}, within this sample"
        return f"no image member: the sample begins with {name!r} and has none with an image extension"

    # -- headers -------------------------------------------------------------------------------------------------------

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples; a shard that cannot be read has none."""
        headers = np.zeros(len(indices), HEADER_DTYPE)
        for shard, rows, samples in self._locate(np.asarray(indices, np.int64)):
            try:
                headers[rows] = self._shard(shard).headers[samples]
            except (OSError, SourceError) as error:
                logger.warning("cannot look up headers: %s", one_line(error))
        return headers

    def learn(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers in memory, and on disk once the source is closed or the shard dropped from memory."""
        for number, rows, samples in self._locate(np.asarray(indices, np.int64)):
            try:
                shard = self._shard(number)
            except (OSError, SourceError):
                continue  # its rows carry that error already
            with self._lock:
                known = headers[rows]["codec"] != 0
                fresh = known & (shard.headers[samples] != headers[rows])
                shard.headers[samples[fresh]] = headers[rows][fresh]
                shard.learnt += int(np.count_nonzero(fresh))

    def close(self) -> None:
        """Write down headers that were learnt, and close files and threads. Reading goes on if asked for."""
        self._closing = True
        self._shards.clear()
        self._closing = False
        self._storage.close()

    def _drop(self, number: int, shard: _Shard) -> None:
        if shard.learnt and (self._closing or shard.learnt * _WORTH_WRITING >= len(shard.headers)):
            with self._lock:
                headers, shard.learnt = shard.headers.copy(), 0
            save_headers(index_path(self._urls[number], self._keep), self._stats[number], headers)

    # -- shards --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._closing = False
        self._shards: LRU[int, _Shard] = LRU(
            _INDEX_MEMORY, lambda shard: shard.index.nbytes + shard.headers.nbytes, self._drop
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_shards", "_closing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _locate(self, indices: NDArray[np.int64]) -> Iterator[_Group]:
        """The samples of each shard: their rows in `indices`, and their numbers in the shard.

        Raises:
            IndexError: An index is outside of the source.
        """
        if len(indices) == 0:
            return
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"sample indices must be in [0, {len(self)}), not {indices.min()} to {indices.max()}")
        shard = np.searchsorted(self._starts, indices, "right") - 1
        order = np.argsort(shard, kind="stable")
        ordered = shard[order]
        bounds = [0, *(np.flatnonzero(np.diff(ordered)) + 1).tolist(), len(ordered)]
        for begin, end in zip(bounds, bounds[1:], strict=False):
            number, rows = int(ordered[begin]), order[begin:end]
            yield _Group(number, rows, indices[rows] - self._starts[number])

    def _shard(self, number: int) -> _Shard:
        return self._shards.get(number, lambda: self._load(number))

    def _load(self, number: int) -> _Shard:
        """Load a shard's index, or make it again where it was not kept.

        Raises:
            OSError: The tar cannot be read.
            SourceError: It is no tar, or changed after it was opened.
        """
        url, stat = self._urls[number], self._stats[number]
        path = index_path(url, self._keep)
        index = load_index(path, stat)
        if index is None:
            if (now := self._storage.stat(url)) != stat:
                raise SourceError(f"{url} changed after it was indexed ({stat} became {now}): open the source again")
            index = self._index(url, stat)
            save_index(path, stat, index)
        if len(index) != self._sizes[number] and self._sizes[number] >= 0:
            raise SourceError(f"{url} changed after it was indexed: open the source again")
        return _Shard(index, load_headers(path, stat, len(index)))

    def _index(self, url: str, stat: Stat) -> TarIndex:
        if stat.size == 0:
            logger.warning("%s is empty (0 bytes): it has no samples", url)
            return _EMPTY
        try:
            scan = scan_tar(self._storage.reader(url), stat.size, window=_REMOTE_WINDOW if is_remote(url) else 4096)
        except OddTarError:
            import fsspec

            with fsspec.open(url, "rb") as file:
                scan = scan_with_tarfile(file)
        index = TarIndex.from_scan(scan, stat.size)
        if scan.problems:
            logger.warning("%s is damaged or truncated: %d places cannot be read", url, len(scan.problems))
        elif not scan.ended:
            logger.warning("%s has no end marker: it may have lost samples at its end", url)
        elif len(index) == 0:
            logger.warning("%s has no samples", url)
        if stat.size - scan.end > _REMOTE_WINDOW:
            logger.warning("%s: %d bytes behind its end marker are not read", url, stat.size - scan.end)
        if index.duplicates:
            logger.warning("%s: %d samples repeat a key; all are kept", url, index.duplicates)
        if scan.skipped:
            logger.warning("%s: %d links and special members are passed over", url, scan.skipped)
        return index

    def _open_shards(self) -> None:
        """Learn how many samples each shard has, of the kept indexes or by making them."""
        stats: list[Stat | None] = [None] * len(self._urls)
        bad: dict[str, str] = {}
        self._sizes[:] = -1

        def open_shard(number: int) -> tuple[Stat, tuple[int, int]]:
            url = self._urls[number]
            stat = self._storage.stat(url)
            path = index_path(url, self._keep)
            peeked = peek_index(path, stat)
            if peeked is None:
                index = self._index(url, stat)
                save_index(path, stat, index)
                self._shards.put(number, _Shard(index, None))
                peeked = len(index), index.duplicates
            return stat, peeked

        told = time.monotonic()
        with ThreadPoolExecutor(32 if self._remote else 8, thread_name_prefix="curator-dali-index") as pool:
            numbers = {pool.submit(open_shard, number): number for number in range(len(self._urls))}
            for done, future in enumerate(as_completed(numbers), 1):
                number = numbers.pop(future)
                try:
                    stats[number], (self._sizes[number], duplicates) = future.result()
                    self.duplicate_keys += duplicates
                except NotATarError:
                    bad[self._urls[number]] = "not a tar"
                except (OSError, SourceError) as error:
                    bad[self._urls[number]] = one_line(error)
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    logger.info("indexed %d of %d tars", done, len(self._urls))
        if bad:
            shown = "; ".join(f"{url}: {reason}" for url, reason in sorted(bad.items())[:10])
            raise SourceError(
                f"{len(bad)} of {len(self._urls)} tars cannot be read: {shown}{'; ...' if len(bad) > 10 else ''}. "
                "Shards must be uncompressed tars: leave these out, or repair them"
            )
        self._stats = [stat for stat in stats if stat is not None]


_EMPTY = TarIndex(
    np.zeros((0, len(COLUMNS)), np.uint32), b"", np.zeros(1, np.uint32), np.zeros((0, 4), np.uint32)
)


def coalesce(
    shard: NDArray[np.int64], offset: NDArray[np.int64], size: NDArray[np.int64], gap: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Join items (M of them) that lie within `gap` bytes of each other in one shard into extents (E of them).

    Returns:
        (M,) each item's extent; (E,) where extents start and (E,) end in their shards; (E,) their shards; (M,) where
        each item lies when all extents are laid one after the other.
    """
    if len(offset) == 0:
        return (np.zeros(0, np.int64),) * 5  # type: ignore[return-value]
    order = np.lexsort((offset, shard))
    s, o = shard[order], offset[order]
    base = (s - s[0]) << 48  # shards far apart on one line: one running maximum for all
    reach = np.maximum.accumulate(base + o + size[order])
    new = np.empty(len(order), bool)
    new[0] = True
    new[1:] = base[1:] + o[1:] > reach[:-1] + gap
    first = new.nonzero()[0]
    starts = o[first]
    ends = reach[np.append(first[1:], len(order)) - 1] - base[first]
    extent = np.empty(len(order), np.int64)
    extent[order] = np.cumsum(new) - 1
    begins = np.zeros(len(first), np.int64)
    np.cumsum((ends - starts)[:-1], out=begins[1:])
    return extent, starts, ends, s[first], begins[extent] + offset - starts[extent]


def _all_members(group: _Group, index: TarIndex) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All members of a group's samples: (M,) the row each is for, and (M, 4) its columns in `TarIndex.members`."""
    first = index.first[group.samples].astype(np.int64)
    counts = index.first[group.samples + 1] - first
    ends = np.cumsum(counts)
    numbers = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
    return np.repeat(group.rows, counts), index.members[numbers].astype(np.int64)


def _member_views(
    groups: list[tuple[_Group, TarIndex | None]],
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    arena: NDArray[np.uint8],
    position: NDArray[np.int64],
    count: int,
) -> list[Mapping[str, memoryview]]:
    """A sample's members by extension, as the name has it (`jpg`, `left.JPG`)."""
    views: list[Mapping[str, memoryview]] = [{} for _ in range(count)]
    view = memoryview(arena)
    starts = iter(position.tolist())
    indexes = [index for _, index in groups if index is not None]
    for index, (rows, columns) in zip(indexes, found, strict=True):
        for row, (_, size, name_start, name_size) in zip(rows.tolist(), columns.tolist(), strict=True):
            start = next(starts)
            name = index.names[name_start : name_start + name_size].decode()
            extension = name[name.find(".", name.rfind("/") + 1) + 1 :]
            views[row][extension] = view[start : start + size]  # type: ignore[index]
    return views
