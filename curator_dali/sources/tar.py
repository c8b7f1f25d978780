"""WebDataset tars as a source: looked up in an index, read with few system calls into lent buffers, in any order."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked, list_paths
from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError
from curator_dali.io import (
    LARGEST_FILE,
    Request,
    Stat,
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
from curator_dali.sources.entries import Entries, Items, coalesce, drop_unreadable, gather_loaded, join_members
from curator_dali.sources.prepared import IndexedShards, open_shards
from curator_dali.sources.sidecars import parse_metadata
from curator_dali.sources.tar_index import ENTRY, Status, TarIndex
from curator_dali.sources.tar_shards import Shard, Shards

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_TOO_LARGE = f", over the limit of {LARGEST_FILE:,}"
_LOCAL_GAP, _REMOTE_GAP = 16 << 10, 256 << 10  # a gap between members that is cheaper to read than to pass over
_PREPARE_AGAIN = ". The index of the data set is older: `curator-dali prepare` brings it up to date"
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
        index: Where indexes of single tars are kept: `"cache"`, `"beside"` the tars, or `"none"`; see
            `tar_index.index_path`. The index of the data set that `curator_dali.prepare` made is used where it lies in
            the folder that all tars lie in, but with `"none"`; any other text is the folder or URL of such an index.
        indexes: Folders of such indexes that were looked into already, with what was found there; None for nothing.

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
        index: str | os.PathLike[str] = "cache",
        indexes: Mapping[str, Any] | None = None,
    ) -> None:
        self._storage, self._arenas = Storage(), Arenas()
        paths = list_paths(urls)
        self._shards: Shards | IndexedShards = open_shards(paths, self._storage, os.fspath(index), indexes or {})
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
        indices = np.asarray(indices, np.int64)
        count = len(indices)
        found = self._find_entries(indices, members)
        batch = make_batch(indices, found.headers)
        errors, unread, limit = batch.errors, batch.unread, found.limit
        errors.update(found.failed)
        unread.update(found.failed)

        entries = found.table.view(ENTRY)[:, 0]  # (N,)
        # (N, 4) of image, json, txt, cls; a size of -1 is no member
        offsets, sizes = entries["members"]["offset"], entries["members"]["size_plus_one"] - 1
        whole = offsets + sizes <= limit[:, None]
        usable = whole & (sizes <= LARGEST_FILE)
        row, role = ((sizes > 0) & usable).nonzero()
        items = Items(row, offsets[row, role], sizes[row, role])
        extensions: list[str] = []
        if members:
            extra, extensions, large = drop_unreadable(found.members or join_members([]), limit)
            errors.update({r: f"a member beside the image has {size:,} bytes{_TOO_LARGE}" for r, size in large.items()})
            items = Items(*(np.concatenate(pair) for pair in zip(items, extra, strict=True)))
        arena, position, lost = self._gather(found.shard[items.row], items)
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
        self._fill(batch, found, arena, at, sizes, problems)
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
        if isinstance(self._shards, IndexedShards):
            return self._shards.read_keys(indices)
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
        if isinstance(self._shards, IndexedShards):
            return self._shards.image_sizes(indices)
        sizes = np.full(len(indices), -1, np.int64)
        for shard, rows, samples in self._load(indices, "look up sizes"):
            sizes[rows] = shard.index.image_sizes(samples)
        return sizes

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples; those of a shard that cannot be read are unknown."""
        if isinstance(self._shards, IndexedShards):
            return self._shards.headers(indices)
        headers = np.zeros(len(indices), HEADER_DTYPE)
        for shard, rows, samples in self._load(indices, "look up headers"):
            headers[rows] = shard.headers[samples]
        return headers

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings and the last two bytes of images; see `Source.read_heads`."""
        count = len(indices)
        found = self._find_entries(np.asarray(indices, np.int64), False)
        entries = found.table.view(ENTRY)[:, 0]
        offset, size = entries["members"]["offset"][:, 0], entries["members"]["size_plus_one"][:, 0] - 1
        usable = (offset + size <= found.limit) & (size <= LARGEST_FILE) & (entries["status"] & ~Status.SHADOWED == 0)
        size = np.where(usable, size, 0)
        first, long = np.flatnonzero(size > 0), np.flatnonzero(size > length)  # rows with a head, and with a tail
        starts = np.concatenate([offset[first], (offset + size)[long] - TAIL_BYTES])
        items = Items(
            np.concatenate([first, long]),
            starts,
            np.concatenate([np.minimum(size[first], length), np.full(len(long), TAIL_BYTES, np.int64)]),
        )
        arena, position, lost = self._gather(found.shard[items.row], items)
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
        if isinstance(self._shards, IndexedShards):
            self._shards.learn_at(indices, headers)
            return
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
        self, shard: NDArray[np.int64], items: Items
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
        """Read items into one buffer: it, (M,) where each item begins in it, item -> why it could not be read."""
        gap = _REMOTE_GAP if self._shards.remote else _LOCAL_GAP
        extent_of, shards, starts, ends, position = coalesce(shard, items.offset, items.size, gap)
        arena = self._arenas.allocate(int((ends - starts).sum()))
        view, begin = arena.data, 0
        requests = []
        for s, start, end in zip(shards.tolist(), starts.tolist(), ends.tolist(), strict=True):
            target = view[begin : begin + end - start]
            requests.append(Request(self._shards.urls[s], self._shards.stats[s], start, target))
            begin += end - start
        lost: dict[int, str] = {}
        for extent, outcome in enumerate(self._storage.fill(requests)):
            if outcome.reason:
                if isinstance(self._shards, IndexedShards) and "changed after" in outcome.reason:
                    outcome = outcome._replace(reason=f"{outcome.reason}{_PREPARE_AGAIN}")
                short = (extent_of == extent) & (items.offset + items.size > starts[extent] + outcome.done)
                lost.update(dict.fromkeys(short.nonzero()[0].tolist(), outcome.reason))
        return arena, position, lost

    def _find_entries(self, indices: NDArray[np.int64], members: bool) -> Entries:
        """Gather what the indexes say of samples."""
        if isinstance(self._shards, IndexedShards):
            return self._shards.gather(indices, members=members)
        return gather_loaded(self._shards, indices, self._starts, members=members)

    def _fill(
        self,
        batch: EncodedBatch,
        found: Entries,
        arena: NDArray[np.uint8],
        at: NDArray[np.int64],
        sizes: NDArray[np.int64],
        problems: dict[int, str],
    ) -> None:
        """Turn arrays into objects: the loop that Python's time a sample goes into."""
        objects, images, shards, errors, view = batch.objects, batch.images, batch.shards, batch.errors, arena.data
        urls = self._shards.urls
        # names, tars, (key_length, status), and where the image and the sidecars begin in the arena, with their sizes
        columns = (found.names, found.shard.tolist(), found.table[:, -2:].tolist(), at.tolist(), sizes.tolist())
        for row, (name, number, (key_length, status), (i, j, t, c), (i_size, j_size, t_size, c_size)) in enumerate(
            zip(*columns, strict=True)
        ):
            url = shards[row] = urls[number]
            if name is None:  # only where the sample is is known
                sample = int(found.samples[row])
                objects[row] = ImageObject(f"{url}#sample={sample}", f"#{sample}")
                continue
            if i_size > 0:
                images[row] = arena[i : i + i_size]
            elif not status:
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
            path = f"tar://{name}::{url}"
            if status:
                if status != Status.SHADOWED:
                    errors[row] = self._explain(number, name, status)
                if status & Status.SHADOWED:
                    path = f"tar://{name}#offset={found.table[row, 0]}::{url}"
            objects[row] = ImageObject(path, name[:key_length], metadata)

    def _explain(self, number: int, name: str, status: int) -> str:
        if status & Status.DAMAGED:
            return f"damaged tar: {name!r} cannot be read; recover what is left and pack it again"
        if status & Status.CUT:
            return f"truncated tar: it ends at byte {self._shards.stats[number].size}, within this sample"
        return f"no image member: the sample begins with {name!r}, and none of its members has an image extension"


def index_of(source: TarSource, number: int) -> tuple[Stat, TarIndex]:
    """What a tar of a source was when it was opened, and its index.

    Raises:
        OSError, SourceError: It cannot be read now.
    """
    return source._shards.stats[number], source._shards[number].index


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
    items: Items,
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
