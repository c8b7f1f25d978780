"""WebDataset tars as a source: looked up in an index, read with few system calls into lent buffers, in any order."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked, list_paths
from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError
from curator_dali.io import (
    LARGEST_FILE,
    Request,
    Storage,
    common_name,
    fingerprint,
    is_http,
    is_remote,
    one_line,
    parse_json,
    read_regular,
    strip_query,
)
from curator_dali.sources.base import (
    HEADER_DTYPE,
    TAIL_BYTES,
    EncodedBatch,
    Head,
    ShardRecord,
    Source,
    make_batch,
    order_ids,
    split_by_shard,
)
from curator_dali.sources.sidecars import parse_metadata
from curator_dali.sources.tar_index import ENTRY, ENTRY_NUMBERS, Status, TarIndex
from curator_dali.sources.tar_shards import Shard, Shards

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_TOO_LARGE = f", over the limit of {LARGEST_FILE:,}"
_LOCAL_GAP, _REMOTE_GAP = 16 << 10, 256 << 10  # a gap between members that is cheaper to read than to pass over
_SHARD_SPAN_BITS = 44  # of a place on a line of shards: 16 TiB, more than a store takes as one object
_RUN_BYTES = 1 << 26  # of a `run.json`, at the most


class TarSource(Source):
    """Images in WebDataset tars, local or remote, in any order.

    `TarIndex.from_scan` says what a sample is, `parse_metadata` what its metadata is. `image_id` is the key. The
    `image_path` is `tar://<member>::<shard>`, which `fsspec.open` opens; where a later member of the shard has the same
    name, that one would be opened, so the earlier one's path says where it lies instead (`tar://a.jpg#offset=512::...`)
    and cannot be opened by name. Samples of one key, in one shard or in several, are all kept: `image_path` tells them
    apart, and `duplicate_keys` counts those that repeat a key of their own shard.

    A sample without an image, one that the end of a cut tar takes part of, and one behind a damaged header are rows
    with an error. A sample of which any part cannot be read now is a row with an error, too, and is in
    `EncodedBatch.unread`. Shards are indexed at the first opening. The indexes are kept with their warnings, which each
    opening logs. All images of a batch are views of one buffer: who keeps one image keeps the batch's bytes.

    Args:
        urls: The tars; the order of the samples is theirs.
        name: The data set's name; by default that of the folder that the tars lie in.
        index: Where indexes are kept: `"cache"`, `"beside"` the tars, or `"none"`; see `tar_index.index_path`.

    Raises:
        SourceError: A tar is missing, unreadable or no tar; all of these are named.
    """

    _known: Sequence[ShardRecord] = ()  # records of the tars at an earlier place

    @checked
    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        index: Literal["cache", "beside", "none"] = "cache",
    ) -> None:
        self._storage, self._arenas = Storage(), Arenas()
        self._shards = Shards(list_paths(urls), self._storage, index)
        self._starts = np.concatenate([[0], np.cumsum(self._shards.sizes)])
        self.name = name or common_name(self._shards.urls)
        self.read_ahead = 8 if self._shards.remote else 1

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def has_known_ids(self) -> bool:
        """True: ids are names that the fingerprint is made of."""
        return True

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """(S,) int64: samples in each tar."""
        return self._shards.sizes

    @property
    def duplicate_keys(self) -> int:
        """How many samples repeat a key of their own tar."""
        return self._shards.duplicates

    @property
    def locations(self) -> Sequence[str]:
        """The tars."""
        return self._shards.urls

    @cached_property
    def fingerprint(self) -> str:
        """Of the tars' names, numbers of samples, sizes, and digests of their members (see `Summary.digest`).

        Folders and signatures of URLs are left out, so that a data set may move. The content hash of a remote tar goes
        in, where its store tells one.
        """
        facts = ((tar.name, tar.samples, tar.digest, (tar.size, tar.content)) for tar in self.shard_records)
        return fingerprint("tar", facts)

    @cached_property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """Names of the labels of each folder of tars, where a curation wrote the folder and recorded any."""
        found: dict[str, Sequence[str]] = {}
        for folder in dict.fromkeys(strip_query(url).rpartition("/")[0] for url in self._shards.urls):
            lists = _read_class_lists(folder, self._storage)
            found |= {f"{folder} {part}".rstrip(): names for part, names in lists.items()}
        return found

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples: a few large reads a shard into one buffer, which the images are views of."""
        return self.read_without(indices, np.zeros(len(indices), bool), members=members)

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read samples, of some the sidecars only; see `Source.read_without`."""
        indices = np.asarray(indices, np.int64)
        count = len(indices)
        table = np.zeros((count, ENTRY_NUMBERS), np.int64)
        headers = np.zeros(count, HEADER_DTYPE)
        shard_of, limit = np.zeros(count, np.int64), np.zeros(count, np.int64)
        batch = make_batch(indices, headers)
        errors, unread = batch.errors, batch.unread
        groups: list[_Group] = []
        for number, rows, samples in split_by_shard(indices, self._starts):
            shard_of[rows], limit[rows] = number, self._shards.stats[number].size
            try:
                shard = self._shards[number]
            except (OSError, SourceError) as error:
                errors.update(dict.fromkeys(rows.tolist(), one_line(error)))
                unread.update(rows.tolist())
                url = self._shards.urls[number]
                for at, sample in zip(rows.tolist(), samples.tolist(), strict=True):  # only where they are is known
                    batch.objects[at], batch.shards[at] = ImageObject(f"{url}#sample={sample}", f"#{sample}"), url
                continue
            table[rows], headers[rows] = shard.index.table[samples], shard.headers[samples]
            groups.append(_Group(number, rows, samples, shard.index))

        entries = table.view(ENTRY)[:, 0]  # (N,)
        # (N, 4) of image, json, txt, cls; a size of -1 is no member
        offsets, sizes = entries["members"]["offset"], entries["members"]["size_plus_one"] - 1
        whole = offsets + sizes <= limit[:, None]
        usable = whole & (sizes <= LARGEST_FILE)
        skipped = skipped & usable[:, 0] & (sizes[:, 0] > 0)
        sizes[skipped, 0] = -1
        row, role = ((sizes > 0) & usable).nonzero()
        items = _Items(row, offsets[row, role], sizes[row, role])
        extensions: list[str] = []
        if members:
            extra, extensions, large = _all_members(groups, limit, skipped)
            errors.update({r: f"a member beside the image has {size:,} bytes{_TOO_LARGE}" for r, size in large.items()})
            items = _Items(*(np.concatenate(pair) for pair in zip(items, extra, strict=True)))
        arena, position, lost = self._gather(shard_of[items.row], items)
        at = np.zeros((count, 4), np.int64)
        at[row, role] = position[: len(row)]

        for item, reason in lost.items():  # also of a sidecar: without it, the sample would be another one
            r = int(items.row[item])
            unread.add(r)
            if item < len(row):
                sizes[r, role[item]] = -1
            if item < len(row) and role[item] == 0:
                errors[r] = reason
            else:
                errors.setdefault(r, f"a member beside the image cannot be read: {reason}")
        problems: dict[int, str] = {}  # with sidecars: they cost no image
        if not usable.all():
            for r, c in np.argwhere((sizes > 0) & ~usable).tolist():
                too_large = f"{sizes[r, c]:,} bytes{_TOO_LARGE}" if whole[r, c] else ""
                sizes[r, c] = -1
                if c > 0:
                    problems[r] = f"a sidecar cannot be read: {too_large or 'the tar ends within it'}"
                elif too_large:
                    errors[r] = f"the image has {too_large}"
        if unread:  # what the index says of a sample holds whether or not its members can be read now
            unread.difference_update((entries["status"] & ~Status.SHADOWED).nonzero()[0].tolist())
        self._fill(batch, groups, table, arena, at, sizes, problems)
        if members:
            batch.members = _member_views(count, items, extensions, arena, position, lost)
        return batch

    @property
    def shard_records(self) -> Sequence[ShardRecord]:
        """The tars; see `Source.shard_records`."""
        shards = self._shards
        return self._known or [
            ShardRecord(strip_query(url).rpartition("/")[2], stat.size, stat.content, samples, digest)
            for url, stat, samples, digest in zip(
                shards.urls, shards.stats, shards.sizes.tolist(), shards.digests.tolist(), strict=True
            )
        ]

    def select_shards(self, numbers: Sequence[int], known: Sequence[ShardRecord]) -> TarSource:
        """Make a source of some of the tars; see `Source.select_shards`."""
        source = TarSource([self._shards.urls[number] for number in numbers], name=self.name, index=self._shards.keep)
        source._known = tuple(known)
        return source

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """Take keys from the indexes; see `Source.read_ids`."""
        parts: list[tuple[NDArray[np.int64], Any]] = []
        for number, rows, samples in split_by_shard(indices, self._starts):
            try:
                parts.append((rows, self._shards[number].index.read_keys(samples)))
            except OSError as error:
                raise SourceError(f"{self._shards.urls[number]} cannot be read now: {one_line(error)}") from error
        return order_ids(parts)

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) int64: bytes in each sample's image as the index has them, without reading it.

        0 where there is none, -1 for those of a shard that cannot be read.
        """
        sizes = np.full(len(indices), -1, np.int64)
        for shard, rows, samples in self._load(indices, "look up sizes"):
            sizes[rows] = shard.index.image_sizes(samples)
        return sizes

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples; those of a shard that cannot be read are unknown."""
        headers = np.zeros(len(indices), HEADER_DTYPE)
        for shard, rows, samples in self._load(indices, "look up headers"):
            headers[rows] = shard.headers[samples]
        return headers

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings and the last two bytes of images; see `Source.read_heads`."""
        count = len(indices)
        shard_of, offset, size = (np.zeros(count, np.int64) for _ in range(3))
        for number, rows, samples in split_by_shard(indices, self._starts):
            try:
                entries = self._shards[number].index.table[samples].astype(np.int64, copy=False).view(ENTRY)[:, 0]
            except (OSError, SourceError):
                continue
            begins, sizes = entries["members"]["offset"][:, 0], entries["members"]["size_plus_one"][:, 0] - 1
            whole = begins + sizes <= self._shards.stats[number].size
            usable = whole & (sizes <= LARGEST_FILE) & (entries["status"] & ~Status.SHADOWED == 0)
            shard_of[rows], offset[rows], size[rows] = number, begins, np.where(usable, sizes, 0)
        first, long = np.flatnonzero(size > 0), np.flatnonzero(size > length)  # rows with a head, and with a tail
        starts = np.concatenate([offset[first], (offset + size)[long] - TAIL_BYTES])
        items = _Items(
            np.concatenate([first, long]),
            starts,
            np.concatenate([np.minimum(size[first], length), np.full(len(long), TAIL_BYTES, np.int64)]),
        )
        arena, position, lost = self._gather(shard_of[items.row], items, keep=False)
        heads: list[Head | None] = [None] * count
        parts = zip(items.row.tolist(), position.tolist(), items.size.tolist(), strict=True)
        for number, (row, at, nbytes) in enumerate(parts):
            known = heads[row]
            if number in lost:
                heads[row] = None
            elif number < len(first):
                heads[row] = Head(
                    arena[at : at + nbytes], arena[at : at + nbytes][-TAIL_BYTES:].tobytes(), int(size[row])
                )
            elif known is not None:
                heads[row] = known._replace(tail=arena[at : at + nbytes].tobytes())
        return heads

    def learn(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers, in memory at once, and beside the index once the source is closed."""
        for shard, rows, samples in self._load(indices, "keep headers"):
            self._shards.learn(shard, samples, headers[rows])

    def _load(self, indices: NDArray[np.int64], purpose: str) -> Iterator[tuple[Shard, NDArray[Any], NDArray[Any]]]:
        """(shard, rows of `indices`, samples of the shard) of every shard that can be read."""
        for number, rows, samples in split_by_shard(indices, self._starts):
            try:
                shard = self._shards[number]
            except (OSError, SourceError) as error:
                logger.warning("cannot %s: %s", purpose, one_line(error))
            else:
                yield shard, rows, samples

    def close(self) -> None:
        """Write down headers that were learnt, and close files and threads. A later read opens them again."""
        self._shards.close()
        self._storage.close()
        self._arenas.clear()

    def _gather(
        self, shard: NDArray[np.int64], items: _Items, *, keep: bool = True
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
        """Read items into one buffer: it, (M,) where each item begins in it, item -> why it could not be read.

        `keep`: whether a cache downloads what it does not have.
        """
        # a cache reads whole blocks of a store, and what it has as fast as a local file
        is_far = self._shards.remote and self._storage.cache is None
        gap = _REMOTE_GAP if is_far else _LOCAL_GAP
        extent_of, shards, starts, ends, position = coalesce(shard, items.offset, items.size, gap)
        arena = self._arenas.allocate(int((ends - starts).sum()))
        view, begin = arena.data, 0
        requests = []
        for s, start, end in zip(shards.tolist(), starts.tolist(), ends.tolist(), strict=True):
            target = view[begin : begin + end - start]
            requests.append(Request(self._shards.urls[s], self._shards.stats[s], start, target))
            begin += end - start
        lost: dict[int, str] = {}
        for extent, outcome in enumerate(self._storage.fill(requests, keep=keep)):
            if outcome.reason:
                short = (extent_of == extent) & (items.offset + items.size > starts[extent] + outcome.done)
                lost.update(dict.fromkeys(short.nonzero()[0].tolist(), outcome.reason))
        return arena, position, lost

    def _fill(
        self,
        batch: EncodedBatch,
        groups: list[_Group],
        table: NDArray[np.int64],
        arena: NDArray[np.uint8],
        at: NDArray[np.int64],
        sizes: NDArray[np.int64],
        problems: dict[int, str],
    ) -> None:
        """Turn arrays into objects: the loop that Python's time a sample goes into."""
        objects, images, shards, errors, view = batch.objects, batch.images, batch.shards, batch.errors, arena.data
        for number, rows, _, index in groups:
            url, names = self._shards.urls[number], index.names
            tail = f"::{url}"
            columns = (
                table[rows, -4:].tolist(),  # name_start, name_size, key_length, status
                at[rows].tolist(),
                sizes[rows].tolist(),
            )
            for row, (start, size, key_length, status), (i, j, t, c), (i_size, j_size, t_size, c_size) in zip(
                rows.tolist(), *columns, strict=True
            ):
                name = names[start : start + size].decode()
                shards[row] = url
                if i_size > 0:
                    images[row] = arena[i : i + i_size]
                elif i_size == 0 and not status:
                    errors.setdefault(row, "the image has no bytes")
                metadata: Any = {}
                if j_size >= 0 or t_size >= 0 or c_size >= 0:
                    # Copies, so that metadata that is kept does not keep the images' buffer.
                    metadata = partial(
                        parse_metadata,
                        bytes(view[j : j + j_size]) if j_size >= 0 else None,
                        bytes(view[t : t + t_size]) if t_size >= 0 else None,
                        bytes(view[c : c + c_size]) if c_size >= 0 else None,
                    )
                if row in problems:
                    metadata = partial(metadata or parse_metadata, problem=problems[row])
                path = f"tar://{name}{tail}"
                if status:
                    if status != Status.SHADOWED:
                        errors[row] = self._explain(number, name, status)
                    if status & Status.SHADOWED:
                        path = f"tar://{name}#offset={table[row, 0]}{tail}"
                objects[row] = ImageObject(path, name[:key_length], metadata)

    def _explain(self, number: int, name: str, status: int) -> str:
        if status & Status.DAMAGED:
            return f"damaged tar: {name!r} cannot be read; recover what is left and pack it again"
        if status & Status.CUT:
            return f"truncated tar: it ends at byte {self._shards.stats[number].size}, within this sample"
        return f"no image member: the sample begins with {name!r}, and none of its members has an image extension"


class _Group(NamedTuple):
    """The samples of a batch that lie in one shard, and the shard's index."""

    shard: int
    rows: NDArray[np.int64]
    samples: NDArray[np.int64]
    entries: TarIndex


class _Items(NamedTuple):
    """Members to read: for which row of the batch, from where in its shard, how many bytes; (M,) int64 each."""

    row: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]


def coalesce(
    shard: NDArray[np.int64], offset: NDArray[np.int64], size: NDArray[np.int64], gap: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Join items (M of them) that lie within `gap` bytes of each other in one shard into extents (E of them).

    Returns:
        (M,) each item's extent; (E,) their shards, (E,) where they start and (E,) end in them; (M,) where each item
        begins when all extents are laid one after the other.
    """
    if len(offset) == 0:
        none = np.zeros(0, np.int64)
        return none, none, none, none, none
    order = np.lexsort((offset, shard))
    s, o = shard[order], offset[order]  # (M,) sorted by shard, then by place
    rank = np.zeros(len(s), np.int64)
    np.cumsum(s[1:] != s[:-1], out=rank[1:])
    # (M,) the start of each item's shard on one line of shards end to end, so that one running maximum serves all
    base = rank << _SHARD_SPAN_BITS
    reach = np.maximum.accumulate(base + o + size[order])  # (M,) how far the items up to each one reach on that line
    begins = np.ones(len(order), bool)  # (M,) whether an item begins an extent
    begins[1:] = base[1:] + o[1:] > reach[:-1] + gap
    begins[1:] |= rank[1:] != rank[:-1]
    first = begins.nonzero()[0]  # (E,) each extent's first item
    starts = o[first]
    ends = reach[np.append(first[1:], len(order)) - 1] - base[first]
    extent = np.empty(len(order), np.int64)
    extent[order] = np.cumsum(begins) - 1
    laid = np.zeros(len(first), np.int64)  # (E,) where each extent begins when all are laid end to end
    np.cumsum((ends - starts)[:-1], out=laid[1:])
    return extent, s[first], starts, ends, laid[extent] + offset - starts[extent]


def _all_members(
    groups: list[_Group], limit: NDArray[np.int64], skipped: NDArray[np.bool_]
) -> tuple[_Items, list[str], dict[int, int]]:
    """Find all members of samples that can be read.

    Args:
        groups: The samples.
        limit: (N,) bytes in the shard of each row.
        skipped: (N,) whether a sample's members are not wanted.

    Returns:
        Whole members; their extensions as the names have them (`jpg`, `left.JPG`); row -> bytes of a member that is
        too large to be read.
    """
    large: dict[int, int] = {}
    rows, columns, extensions = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.int64)], []
    for group in groups:
        first = group.entries.first[group.samples].astype(np.int64)
        counts = group.entries.first[group.samples + 1] - first
        ends = np.cumsum(counts)
        numbers = np.arange(ends[-1]) + np.repeat(first - (ends - counts), counts)
        found, row = group.entries.members[numbers].astype(np.int64), np.repeat(group.rows, counts)
        whole = (found[:, 0] + found[:, 1] <= limit[row]) & ~skipped[row]
        over = whole & (found[:, 1] > LARGEST_FILE)
        large |= zip(row[over].tolist(), found[over, 1].tolist(), strict=True)
        whole &= ~over
        rows.append(row[whole])
        columns.append(found[whole])
        for start, size in found[whole, 2:].tolist():
            name = group.entries.names[start : start + size].decode()
            extensions.append(name[name.find(".", name.rfind("/") + 1) + 1 :])
    table = np.concatenate(columns)
    return _Items(np.concatenate(rows), table[:, 0], table[:, 1]), extensions, large


def _read_class_lists(folder: str, storage: Storage) -> Mapping[str, Sequence[str]]:
    """Read the names of the labels from the record of the curation whose output a folder is; none where it has none."""
    url = f"{folder}/_manifest/run.json"
    try:
        data = storage.cat([(url, None, None)])[0] if is_remote(url) else read_regular(url, _RUN_BYTES)
        if isinstance(data, BaseException):
            raise data
        run = parse_json(data)
        lists = run.get("class_lists", {"": run.get("class_names", [])})
        if any(isinstance(names, str) or not all(isinstance(name, str) for name in names) for names in lists.values()):
            raise TypeError("names of classes must be lists of texts")
    except (FileNotFoundError, NotADirectoryError):
        return {"": []}
    except Exception as error:  # stores raise kinds of their own
        if isinstance(error, PermissionError) and is_http(url):  # a signature is of one file; S3 hides what is missing
            return {"": []}
        logger.warning("cannot read names of classes from %s: %s", url, one_line(error))
        return {"": []}
    return lists  # type: ignore[no-any-return]


def _member_views(
    count: int,
    items: _Items,
    extensions: list[str],
    arena: NDArray[np.uint8],
    position: NDArray[np.int64],
    lost: dict[int, str],
) -> list[Mapping[str, memoryview]]:
    """By row, {extension: bytes}; the members are the last of `items`. What could not be read is left out."""
    views: list[dict[str, memoryview]] = [{} for _ in range(count)]
    view, begin = arena.data, len(items.row) - len(extensions)
    places = zip(*(column[begin:].tolist() for column in (items.row, position, items.size)), strict=True)
    for number, (extension, (row, start, size)) in enumerate(zip(extensions, places, strict=True), begin):
        if number not in lost:
            views[row][extension] = view[start : start + size]
    return list(views)


_LEAST_ARENA = 1 << 20  # bytes; below, the allocator keeps memory itself
_MOST_ARENAS = 4
_MOST_SLACK = 8  # a buffer so many times larger than what is asked for is let go


class Arenas:
    """Hands out writable buffers. One comes back when the last view of it is gone, and is handed out again.

    New memory costs a page fault every 4 KiB, a third of what reading from the page cache costs in all; a warm loop
    over batches of like size takes none. Up to four buffers that nobody uses are kept. Thread-safe without a lock
    (list operations are atomic), as a buffer may come back in the midst of anything, by garbage collection.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def __reduce__(self) -> tuple[type[Arenas], tuple[()]]:
        return Arenas, ()

    def allocate(self, size: int) -> NDArray[np.uint8]:
        """(size,) uint8, not initialised."""
        if size < _LEAST_ARENA:
            return np.empty(size, np.uint8)
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        if not size <= len(buffer) <= _MOST_SLACK * size:
            buffer = np.empty(size + size // 8, np.uint8)  # room for the next batch, which may be a little larger
        # Over a memoryview, as numpy makes slices of an array over an *array* point at that one: then this array would
        # end before its slices do.
        arena = np.frombuffer(buffer.data, np.uint8, size)
        weakref.finalize(arena, _give_back, self._free, buffer).atexit = False
        return arena

    def clear(self) -> None:
        """Let go of the buffers that nobody uses."""
        self._free.clear()


def _give_back(free: list[NDArray[np.uint8]], buffer: NDArray[np.uint8]) -> None:
    if len(free) < _MOST_ARENAS:
        free.append(buffer)
