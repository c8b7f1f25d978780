"""WebDataset tars as a source: looked up in an index, read with few system calls into lent buffers, in any order."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked, list_paths
from curator_dali.batch import ImageObject
from curator_dali.io import (
    LARGEST_FILE,
    Outcome,
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
    use_cache,
)
from curator_dali.sources.base import (
    TAIL_BYTES,
    EncodedBatch,
    Head,
    ShardRecord,
    Source,
    check_indices,
    make_batch,
)
from curator_dali.sources.buffers import Arenas
from curator_dali.sources.entries import Entries, Items, coalesce, drop_unreadable, join_members
from curator_dali.sources.prepared import open_shards
from curator_dali.sources.sidecars import parse_metadata
from curator_dali.sources.tar_index import ENTRY, Status, TarIndex
from curator_dali.sources.tar_places import StreamedTars, name_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_TOO_LARGE = f", over the limit of {LARGEST_FILE:,}"
_LOCAL_GAP, _REMOTE_GAP = 16 << 10, 256 << 10  # a gap between members that is cheaper to read than to pass over
_LEAST_OPEN, _MOST_OPEN = 64, 2048  # tars that stay open
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
    `EncodedBatch.unread`. Local shards are indexed at the first opening, remote ones when their samples are needed. The
    indexes are kept with their warnings, which each opening logs. All images of a batch are views of one buffer: who
    keeps one image keeps the batch's bytes.

    Args:
        urls: The tars; the order of the samples is theirs.
        name: The data set's name; by default that of the folder that the tars lie in.
        index: Where indexes of single tars are kept: `"cache"`, `"beside"` the tars, or `"none"`; see
            `tar_index.index_path`. The index of the data set that `curator_dali.prepare` made is used where it lies in
            the folder that all tars lie in, but with `"none"`; any other text is the folder or URL of such an index.
        indexes: Folders of such indexes that were looked into already, with what was found there; None for nothing.

    Raises:
        SourceError: A tar is missing or unreadable, or a local one is no tar; all of these are named. A remote one that
            is no tar raises where its samples are needed.
    """

    _known: Sequence[ShardRecord] = ()  # records of the tars at an earlier place
    _starts = np.zeros(1, np.int64)  # (K + 1,) the first samples of the tars that are counted, from the first tar on

    @checked
    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        name: str | None = None,
        index: str | os.PathLike[str] = "cache",
        indexes: Mapping[str, Any] | None = None,
    ) -> None:
        self._storage, self._arenas = Storage(_count_open_files()), Arenas()
        self._shards = open_shards(list_paths(urls), self._storage, os.fspath(index), indexes or {})
        self.name = name or common_name(self._shards.urls)
        self.read_ahead = 8 if self._shards.remote else 1

    def __len__(self) -> int:
        return int(self._shards.sizes.sum())

    def __repr__(self) -> str:
        if self._shards.is_complete:
            return super().__repr__()
        return f"{type(self).__name__}({self.name!r}, {len(self._shards):,} tars that are not all indexed)"

    @property
    def streamed(self) -> StreamedTars:
        """The tars, of which remote ones may not be indexed yet."""
        return StreamedTars(self, self._shards, self._find_starts)

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
        return self._read(indices, np.zeros(len(indices), bool), members)

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read samples, of some the sidecars only; see `Source.read_without`."""
        if type(self).read is not TarSource.read:  # a subclass has its own way
            return self.read(indices, members=members)
        return self._read(indices, skipped, members)

    def _read(self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], members: bool) -> EncodedBatch:
        """Read samples, those that are `skipped` (N,) without their images."""
        indices = np.asarray(indices, np.int64)
        count = len(indices)
        found = self._shards.gather(*self._locate(indices), members=members)
        batch = make_batch(indices, found.headers)
        errors, unread, limit = batch.errors, batch.unread, found.limit
        errors.update(found.failed)
        unread.update(found.failed)

        entries = found.table.view(ENTRY)[:, 0]  # (N,)
        # (N, 4) of image, json, txt, cls; a size of -1 is no member
        offsets, sizes = entries["members"]["offset"], entries["members"]["size_plus_one"] - 1
        whole = offsets + sizes <= limit[:, None]
        usable = whole & (sizes <= LARGEST_FILE)
        skipped = skipped & usable[:, 0] & (sizes[:, 0] > 0)
        sizes[skipped, 0] = -1
        row, role = ((sizes > 0) & usable).nonzero()
        items = Items(row, offsets[row, role], sizes[row, role])
        extensions: list[str] = []
        if members:
            every = found.members or join_members([])
            extra, extensions, large = drop_unreadable(every, limit, skipped)
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
            ShardRecord(name_of(url), stat.size, stat.content, samples, digest)
            for url, stat, samples, digest in zip(
                shards.urls, shards.stats, shards.sizes.tolist(), shards.digests.tolist(), strict=True
            )
        ]

    def select_shards(self, numbers: Sequence[int], known: Sequence[ShardRecord]) -> TarSource:
        """Make a source of some of the tars; see `Source.select_shards`."""
        urls = [self._shards.urls[number] for number in numbers]
        with use_cache(self._storage.cache):
            source = TarSource(urls, name=self.name, index=self._shards.keep)
        source._known = tuple(known)
        return source

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """Take keys from the indexes; see `Source.read_ids`."""
        return self._shards.read_keys(*self._locate(indices))

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) int64: bytes in each sample's image as the index has them, without reading it.

        0 where there is none, -1 for those of a shard that cannot be read.
        """
        return self._shards.image_sizes(*self._locate(indices))

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples; those of a shard that cannot be read are unknown."""
        return self._shards.headers(*self._locate(indices))

    def read_heads(self, indices: NDArray[np.int64], length: int) -> list[Head | None]:
        """Read the beginnings and the last two bytes of images; see `Source.read_heads`."""
        count = len(indices)
        found = self._shards.gather(*self._locate(indices))
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
        arena, position, lost = self._gather(found.shard[items.row], items, keep=False)
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
        self._shards.learn_all(*self._locate(indices), headers)

    def _locate(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) the tars of samples, and (N,) their numbers in these; waits for the tars up to the last sample."""
        indices = np.asarray(indices, np.int64)
        is_outside = bool(indices.min(initial=0) < 0)  # which the message says of all samples
        starts = self._find_starts(sys.maxsize if is_outside else int(indices.max(initial=-1)))
        shard = np.searchsorted(starts, check_indices(indices, int(starts[-1])), "right") - 1
        return shard, indices - starts[shard]

    def _find_starts(self, index: int, wait: bool = True) -> NDArray[np.int64]:
        """(K + 1,) int64: the first sample of each of the first K tars, and the number of samples in these.

        They hold the sample `index`, unless all tars have fewer samples or, without `wait`, are not counted yet.
        """
        starts, shards = self._starts, self._shards
        if index < starts[-1] or len(starts) > len(shards):
            return starts
        if shards.is_complete:
            starts = np.concatenate([[0], np.cumsum(shards.sizes)])
        else:
            found = [int(starts[-1])]
            for number in range(len(starts) - 1, len(shards)):
                if found[-1] > index or not (wait or shards.is_known(number)):
                    break
                found.append(found[-1] + shards.count(number))
            starts = np.concatenate([starts, found[1:]])
        if len(starts) > len(self._starts):  # of several threads, the one that knows most
            self._starts = starts
        return starts

    def close(self) -> None:
        """Write down headers that were learnt, and close files and threads. A later read opens them again."""
        self._shards.close()
        self._storage.close()
        self._arenas.clear()

    def _gather(
        self, shard: NDArray[np.int64], items: Items, *, keep: bool = True
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, str]]:
        """Read items into one buffer: it, (M,) where each item begins in it, item -> why it could not be read.

        `keep`: whether a cache downloads what it does not have.
        """
        # a cache reads whole blocks of a store, and what it has as fast as a local file
        is_far = self._shards.remote and self._storage.cache is None
        gap = _REMOTE_GAP if is_far else _LOCAL_GAP
        gap = 0 if self._storage.keeps_pieces and not keep else gap  # heads that are kept, and not what is between
        extent_of, shards, starts, ends, position = coalesce(shard, items.offset, items.size, gap)
        arena = self._arenas.allocate(int((ends - starts).sum()))
        view, begin = arena.data, 0
        requests, refused = [], self._shards.check(np.unique(shards).tolist())
        for s, start, end in zip(shards.tolist(), starts.tolist(), ends.tolist(), strict=True):
            target = view[begin : begin + end - start]
            requests.append(Request(self._shards.urls[s], self._shards.stats[s], start, target))
            begin += end - start
        lost: dict[int, str] = {}
        same = [request for request, s in zip(requests, shards.tolist(), strict=True) if s not in refused]
        outcomes = iter(self._storage.fill(same, keep=keep))
        for extent, s in enumerate(shards.tolist()):
            outcome = Outcome(0, refused[s]) if s in refused else next(outcomes)
            if outcome.reason:
                outcome = outcome._replace(reason=f"{outcome.reason}{self._shards.advise(outcome.reason)}")
                short = (extent_of == extent) & (items.offset + items.size > starts[extent] + outcome.done)
                lost.update(dict.fromkeys(short.nonzero()[0].tolist(), outcome.reason))
        return arena, position, lost

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


def _count_open_files() -> int:
    """Number of tars that stay open, an eighth of the system's limit. To open one costs as much as to read a sample."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if allowed < 0 else max(_LEAST_OPEN, min(allowed // 8, _MOST_OPEN))


def index_of(source: TarSource, number: int, *, keep: bool = False) -> tuple[Stat, TarIndex]:
    """Return size and version of a tar at the opening of its source, and the tar's index.

    Args:
        source: The source.
        number: Of the tar.
        keep: Whether what is read of a remote tar for its index stays in memory until the source is closed.

    Raises:
        OSError, SourceError: It cannot be read now.
    """
    shards = source._shards
    try:
        shards.index(number, partial(shards.scan, keep=True) if keep else None)
    except Exception as error:  # whatever a hostile header or a store comes up with
        raise shards.explain(number, error) from error
    return shards.stats[number], shards[number].index


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
