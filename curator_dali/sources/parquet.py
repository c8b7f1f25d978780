"""Parquet files with a column of encoded images, as img2dataset and Hugging Face write them, as a source."""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import checked, list_paths
from curator_dali.batch import ImageObject
from curator_dali.errors import SourceError
from curator_dali.io import (
    IMAGE_EXTENSIONS,
    LRU,
    PermanentError,
    Stat,
    Storage,
    ask,
    common_name,
    filesystem,
    fingerprint,
    is_remote,
    one_line,
    open_regular,
    strip_query,
    use_cache,
)
from curator_dali.outputs import MEMBERS, FieldColumns
from curator_dali.sources.annotations import partition_fields, read_class_names
from curator_dali.sources.base import (
    HEADER_DTYPE,
    EncodedBatch,
    ShardRecord,
    Source,
    make_batch,
    merge_arrow_types,
    merge_schemas,
    order_ids,
    sniff_extension,
    split_by_shard,
)
from curator_dali.sources.parquet_columns import (
    check_columns,
    cut_struct,
    decode_cell,
    extra_types,
    find_ids,
    find_image_column,
    finish_fields,
    is_image_type,
    kinds_of,
    metadata_types,
    name_rows,
    read_names,
    row_metadata,
    unique_stems,
)
from curator_dali.sources.prepared_rows import IndexedRows, open_rows, parse_footer, stat_open_file
from curator_dali.sources.row_groups import (
    NamedFiles,
    RowGroupTooLarge,
    check_sizes,
    combine,
    read_named,
    read_row_group,
    read_rows,
)
from curator_dali.sources.sidecars import make_sidecars

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_GROUP_MEMORY = 1 << 30  # bytes of row groups kept decoded


class ParquetSource(Source):
    """Images in a binary column (img2dataset's `jpg`), or a struct `{bytes, path}` (Hugging Face's `image`).

    Row groups are read as a whole when a sample of theirs is asked for, and the latest are kept (up to 1 GiB). A random
    sample thus costs a row group: shuffle by windows of row groups (which `shard_sizes` counts), not over everything.

    The other columns become metadata under their names, also binary ones, and so do the fields that partitioned files
    have in their folders' names (`partition_fields`), unless a column has the name. Further parts of the struct are a
    field of the column's name, with the path where a column says the id. A column that Hugging Face's `datasets` wrote
    as a `ClassLabel` has the class's name beside it, as `label_name`. Of files that a curation wrote, the column
    `metadata` is the fields that it holds. `image_id` is the column `key`,
    `__key__`, `image_id` or `id`, else the struct's path without its extension, else `<file stem>-<row>`; where files
    of one stem lie in several folders, with the path below their common folder instead of the stem. `image_path` is
    `<file>#row=<row>`: it tells every sample apart, but no filesystem opens it. Where a struct has a path and no bytes,
    that file is read if it lies in the Parquet file's folder (`NamedFiles`), which relative paths count from.

    Args:
        urls: The files; the order of the samples is theirs.
        image_column: The column with the images; found by its type and name if left out.
        name: The data set's name; by default that of the folder.
        allow_outside: Whether images are also read that rows name by paths or URLs outside the Parquet file's folder.
            Whoever made the file then chooses what this process reads: give it only for files that you trust.
        columns: The columns that become metadata; others are not read. None: all.
        index: Where the index of the data set lies that `curator_dali.prepare` made; see `open_source`.
        indexes: Folders of such indexes that were looked into already, with what was found there; None for nothing.

    Raises:
        SourceError: A file cannot be read, or the column is missing or not clear.
    """

    _known: Sequence[ShardRecord] = ()  # records of the files at an earlier place
    _indexed: IndexedRows | None = None

    @checked
    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        image_column: str | None = None,
        name: str | None = None,
        allow_outside: bool = False,
        columns: Sequence[str] | None = None,
        index: str | os.PathLike[str] = "cache",
        indexes: Mapping[str, Any] | None = None,
    ) -> None:
        self._columns = None if columns is None else tuple(columns)
        self._urls = [url if is_remote(url) else os.path.abspath(url) for url in list_paths(urls)]
        self.name = name or common_name(self._urls)
        remote = any(map(is_remote, self._urls))
        self.read_ahead = 4 if remote else 1
        self._named = [NamedFiles(url, allow_outside) for url in self._urls]
        self._storage = Storage()
        self._start()
        self._indexed, known = open_rows(self._urls, os.fspath(index), indexes or {})
        with ThreadPoolExecutor(16 if remote else 4, thread_name_prefix="curator-dali-parquet") as pool:
            read = partial(self._read_footer, silent=threading.Event())
            footers = list(pool.map(read, self._urls, range(len(self._urls)), known))
        bad = [f"{url}: {footer}" for url, footer in zip(self._urls, footers, strict=True) if isinstance(footer, str)]
        if bad:
            raise SourceError(
                f"{len(bad)} of {len(footers)} Parquet files cannot be read: {'; '.join(bad[:10])}. "
                "Repair these or leave them out"
            )
        schemas = [footer.schema for footer in footers]
        self._column = image_column or (find_image_column(schemas[0], self._urls[0]) if schemas else "")
        for url, schema in zip(self._urls, schemas, strict=True):
            if repeated := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise SourceError(f"{url} has several columns of the name {repeated[0]!r}: give each a name of its own")
            if self._column not in schema.names or not is_image_type(schema.field(self._column).type):
                raise SourceError(
                    f"{url} has no image column {self._column!r} (binary, or a struct with binary 'bytes'); it "
                    f"has {', '.join(schema.names)}: name the right one with image_column="
                )
        check_columns(self._columns, schemas, self.name)
        self._groups = [(file, group) for file, footer in enumerate(footers) for group in range(len(footer.rows))]
        self._sizes = np.array([size for footer in footers for size in footer.rows], np.int64)
        if not self._sizes.sum():
            logger.warning("%s has no rows", self.name)
        self._bytes = [(footer.stat.size, footer.stat.content, *footer.bytes) for footer in footers]
        self._stats: list[tuple[Any, ...]] = [footer.stat for footer in footers]
        if self._indexed is not None:
            self._stats = self._indexed.known_stats(self._urls, self._stats)
        self._partitions = partition_fields(self._urls)
        cache: dict[Any, dict[str, list[str]]] = {}
        self._classes = [cache.setdefault(repr(classes), classes) for classes in map(read_class_names, schemas)]
        types = [
            {**extra_types(partition, classes), **metadata_types(schema, self._column, self._columns)}
            for schema, partition, classes in zip(schemas, self._partitions, self._classes, strict=True)
        ]
        self._arrow_fields: Mapping[str, Any] | None = merge_arrow_types(types)
        self._fields = merge_schemas(map(kinds_of, types))
        self._stems = unique_stems(self._urls)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        files = np.array([file for file, _ in self._groups], np.int64)
        self._file_starts = self._starts[np.searchsorted(files, np.arange(len(self._urls)))] if self._groups else files
        self._headers: dict[int, NDArray[np.void]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """(S,) int64: samples in each row group."""
        return self._sizes

    @property
    def image_column(self) -> str:
        """The column with the images."""
        return self._column

    @property
    def fields(self) -> Mapping[str, str]:
        """The columns and partitions' fields that become metadata; types as `merge_types` has them for all files."""
        return self._fields

    @property
    def arrow_fields(self) -> Mapping[str, Any] | None:
        """The columns and partitions' fields that become metadata, with types for all files."""
        return self._arrow_fields

    @property
    def class_lists(self) -> Mapping[str, Sequence[str]]:
        """Names of the classes in the column `label`; of each file, where these differ."""
        lists = [classes.get("label", []) for classes in self._classes]
        return (
            dict(zip(self._urls, lists, strict=True))
            if any(names != lists[0] for names in lists)
            else {self.name: lists[0] if lists else []}
        )

    @property
    def locations(self) -> Sequence[str]:
        """The files."""
        return self._urls

    @cached_property
    def fingerprint(self) -> str:
        """Of the image column, the files' names and bytes, their row groups' rows and bytes, and partitions' fields.

        Names are without folders and queries, so that a data set may move and its URLs may be signed anew.
        """
        names = (strip_query(url).rpartition("/")[2] for url in self._urls)
        known: Sequence[tuple[Any, ...]] = self._bytes
        if self._known:
            names = (record.name for record in self._known)
            pairs = zip(self._known, known, strict=True)
            known = [(record.size, record.content, *groups) for record, (_, _, *groups) in pairs]
        parts = [self._column, *names, *self._sizes.tolist(), *known, *self._partitions]
        return fingerprint("parquet", [*parts, *([] if self._columns is None else [sorted(self._columns)])])

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples into one new buffer, row groups that are not in memory first; see `Source.read`."""
        batch = make_batch(np.asarray(indices, np.int64), self.headers(indices))
        images, errors = batch.images, batch.errors
        named: dict[int, tuple[NamedFiles, str]] = {}  # row -> the file that the image lies in
        others: dict[int, Sequence[Mapping[str, Any]]] = {}  # row -> members that a curation kept in a column
        for number, in_batch, in_group in split_by_shard(batch.indices, self._starts):
            rows, file = in_batch.tolist(), self._groups[number][0]
            url, stem, partition = self._urls[file], self._stems[file], self._partitions[file]
            classes = self._classes[file]
            try:
                group: _RowGroup | None = self._loaded.get(number, lambda number=number: self._load(number))  # type: ignore[misc]
            except Exception as error:  # Arrow raises OSError, ArrowInvalid and more for a damaged row group
                group = None
                reason = f"cannot read row group {self._groups[number][1]}: {one_line(error)}"
                errors.update(dict.fromkeys(rows, reason))
                batch.unread.update(rows if not self._is_damaged(file, error) else ())
            fields = read_rows(group.rest, in_group) if members and group is not None else []
            for place, (row, at) in enumerate(zip(rows, in_group.tolist(), strict=True)):
                batch.shards[row] = url
                in_file = int(batch.indices[row] - self._file_starts[file])
                path, key = f"{url}#row={in_file}", f"{stem}-{in_file}"
                metadata: Any = {}
                if group is not None:
                    file_path = decode_cell(group.paths[at]) if group.paths is not None else None
                    given = decode_cell(group.ids[at]) if group.ids is not None else None
                    if given is not None:
                        key = given
                    elif file_path:
                        key = file_path.rpartition(".")[0] or file_path
                    if members and MEMBERS in group.own.layout:
                        others[row] = fields[place].get(MEMBERS) or ()
                    metadata = (
                        finish_fields(fields[place], group.own, partition, classes)
                        if members
                        else partial(row_metadata, group.rest, group.own, partition, classes, at)
                    )
                    if group.present[at]:
                        images[row] = group.data[group.begins[at] : group.ends[at]]
                        if len(images[row]) == 0:
                            errors[row] = "the image has no bytes"
                    elif file_path:
                        named[row] = self._named[file], file_path
                    else:
                        errors[row] = f"no image bytes: column {self._column!r} is null in row {in_file}"
                batch.objects[row] = ImageObject(path, key, metadata)
        self._copy(images)
        for row, (data, is_unread) in read_named(named, self._storage).items():
            if isinstance(data, str):
                errors[row] = data
                batch.unread.update([row] if is_unread else ())
            else:
                images[row] = data
        if members:
            pairs = zip(images, batch.objects, strict=True)
            batch.members = [self._members(image, item, others.get(row, ())) for row, (image, item) in enumerate(pairs)]
        return batch

    @property
    def shard_records(self) -> Sequence[ShardRecord]:
        """The files; see `Source.shard_records`."""
        if self._known:
            return self._known
        found = []
        rows_of: list[list[int]] = [[] for _ in self._urls]
        for (file, _), rows in zip(self._groups, self._sizes.tolist(), strict=True):
            rows_of[file].append(rows)
        for file, (url, (size, content, *groups)) in enumerate(zip(self._urls, self._bytes, strict=True)):
            rows = rows_of[file]
            digest = zlib.crc32(repr([self._column, rows, groups, self._partitions[file]]).encode())
            found.append(ShardRecord(strip_query(url).rpartition("/")[2], size, content, sum(rows), digest))
        return found

    def select_shards(self, numbers: Sequence[int], known: Sequence[ShardRecord]) -> ParquetSource:
        """Make a source of some of the files; see `Source.select_shards`. Ids that come of names are the known ones."""
        urls = [self._urls[number] for number in numbers]
        outside = any(files.allow_outside for files in self._named)
        index = "cache" if self._indexed is None else self._indexed.folder
        options: Any = {"image_column": self._column, "name": self.name, "allow_outside": outside, "index": index}
        with use_cache(self._storage.cache):
            source = ParquetSource(urls, **options)
        source._known = tuple(known)
        stems = [record.name.rpartition(".")[0] for record in known]
        source._stems = stems if len(set(stems)) == len(stems) else source._stems
        return source

    def read_ids(self, indices: NDArray[np.int64]) -> pa.LargeStringArray:
        """Read the column of ids, and nothing else; see `Source.read_ids`.

        A row group that is damaged elsewhere, or too large to be read, has the ids of its column here.
        """
        parts: list[tuple[NDArray[np.int64], Any]] = []
        for number, rows, samples in split_by_shard(indices, self._starts):
            file = self._groups[number][0]
            in_file = samples + (self._starts[number] - self._file_starts[file])
            names = [f"{self._stems[file]}-{row}" for row in in_file.tolist()]
            try:
                ids, paths = self._read_names(number, samples)
            except Exception as error:  # as `_load`
                if not self._is_damaged(file, error):
                    raise SourceError(f"{self._urls[file]} cannot be read now: {one_line(error)}") from error
                ids, paths = None, None  # `read` names such samples by their rows
            parts.append((rows, name_rows(ids, paths, names)))
        return order_ids(parts)

    def headers(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """Known headers of samples."""
        found, _ = self._look_up(indices)
        for number, rows, samples in split_by_shard(indices, self._starts):
            if (known := self._headers.get(number)) is not None:
                fresh = known["codec"][samples] != 0
                found[rows[fresh]] = known[samples[fresh]]
        return found

    def image_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encoded bytes of samples' images where the index of the data set has them; -1 elsewhere."""
        return self._look_up(indices)[1]

    def _look_up(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """Headers and bytes of images that the index of the data set has."""
        indices = np.asarray(indices, np.int64)
        if self._indexed is None or self._indexed.column != self._column:
            return np.zeros(len(indices), HEADER_DTYPE), np.full(len(indices), -1, np.int64)
        ends = np.append(self._file_starts[1:], len(self))
        file = np.searchsorted(ends, indices, "right")
        return self._indexed.look_up(file, indices - self._file_starts[file])

    def learn(self, indices: NDArray[np.int64], headers: NDArray[np.void]) -> None:
        """Keep headers for as long as this object lives."""
        for number, rows, samples in split_by_shard(indices, self._starts):
            known = self._headers.setdefault(number, np.zeros(int(self._sizes[number]), HEADER_DTYPE))
            if not known.flags.writeable:  # see `LearningSource.learn`
                known = self._headers[number] = known.copy()
            fresh = headers["codec"][rows] != 0
            known[samples[fresh]] = headers[rows[fresh]]

    def close(self) -> None:
        """Forget row groups, and close files and threads. A later read opens them again."""
        self._loaded.clear()
        self._files.clear()
        self._storage.close()
        if self._indexed is not None:
            self._indexed.close()

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in ("_loaded", "_files", "_refused")}
        # Another machine may have a copy of local files, with times of its own.
        stats = zip(self._urls, self._stats, strict=True)
        return {**state, "_stats": [stat if is_remote(url) else stat[:1] for url, stat in stats]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"_arrow_fields": None, "_columns": None, **state})  # an earlier version had none
        self._start()

    def _start(self) -> None:
        self._loaded: LRU[int, _RowGroup] = LRU(_GROUP_MEMORY, lambda group: group.nbytes)
        self._refused: dict[int, str] = {}  # row group -> reason, so that it is unpacked once
        self._files: LRU[str, Any] = LRU(64)  # footers; a reader of its own for every read, as these are not shared

    def _open(self, url: str, known: tuple[Any, ...] | None = None) -> tuple[Any, Stat]:
        """Open a file; return its reader and its `Stat`. A file that is gone or changed is an `OSError`."""
        import pyarrow.parquet as pq

        fs, path = filesystem(url)
        if is_remote(url) and self._storage.cache is not None:
            now = self._storage.stat(url) if known is None else Stat(*known)
            file: Any = self._storage.open(url, now)
        else:
            # Arrow asks for what it needs, and for neighbours at once; reading ahead would fetch these again and again
            file = fs.open(path, "rb", cache_type="none") if is_remote(url) else os.fdopen(open_regular(path), "rb")
            now = stat_open_file(url, file, fs, path)
        if known is not None and now[: len(known)] != known:
            file.close()
            raise _Changed(f"{url} changed after it was opened: open the source again")
        try:
            # of the open file: by its path, Arrow takes a server that does not answer for a missing file
            footer = self._files.get(url, lambda: pq.ParquetFile(file).metadata)
            return pq.ParquetFile(file, metadata=footer, pre_buffer=is_remote(url)), now
        except BaseException:
            file.close()
            raise

    def _read_footer(self, url: str, number: int, known: bytes | None, silent: threading.Event) -> Any:
        """A `_Footer`, or why it cannot be read; once a store was silent for too long, no other file is waited for.

        `known` is what the index of the data set has of the file, as a Parquet file without rows.
        """
        if known is not None and self._indexed is not None:
            file = parse_footer(known)
            self._files.put(url, file.metadata)
            groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
            rows, sizes = [group.num_rows for group in groups], [group.total_byte_size for group in groups]
            return _Footer(rows, sizes, file.schema_arrow, self._indexed.stats[number])
        if silent.is_set() and is_remote(url):
            return "not asked for, as the store is silent"
        try:
            file, stat = ask(url, lambda: self._open(url), (ValueError,)) if is_remote(url) else self._open(url)
            groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
            rows, sizes = [group.num_rows for group in groups], [group.total_byte_size for group in groups]
            if min(rows, default=0) < 0 or sum(rows) != file.metadata.num_rows:
                return f"damaged: its row groups have {sum(rows):,} rows, and the file {file.metadata.num_rows:,}"
            check_sizes(rows, sizes)
            return _Footer(rows, sizes, file.schema_arrow, stat)
        except Exception as error:  # OSError, ArrowInvalid, and whatever a remote filesystem raises
            if isinstance(error, TimeoutError):
                silent.set()
            return one_line(error)

    def _is_damaged(self, file: int, error: Exception) -> bool:
        """Whether a row group cannot be read because of what its file holds: the file is as it was, and was read."""
        import pyarrow as pa

        # Arrow raises a bare OSError for what it cannot decompress; those of a disk or a network say which they are.
        known = isinstance(error, (pa.ArrowException, ValueError, LookupError, TypeError))
        if isinstance(error, MemoryError) or not (known or (type(error) is OSError and error.errno is None)):
            return False
        try:
            reader, _ = self._open(self._urls[file], self._stats[file])
            reader.close(force=True)
        except Exception as gone:
            logger.info("%s: %s", self._urls[file], one_line(gone))
            return False
        return True

    def _read_group(self, number: int) -> Any:
        """A row group as an Arrow table; of a remote file, it is tried again."""
        import pyarrow as pa

        file, group = self._groups[number]

        def read() -> Any:
            reader, _ = self._open(self._urls[file], self._stats[file])
            try:
                names = reader.schema_arrow.names
                metadata = names if self._columns is None else self._columns
                return read_row_group(reader, group, {self._column, *metadata, *find_ids(reader.schema_arrow)})
            finally:
                reader.close(force=True)

        url = self._urls[file]
        final = (pa.ArrowException, ValueError, LookupError, TypeError, RowGroupTooLarge)
        return ask(url, read, final) if is_remote(url) else read()

    def _read_names(self, number: int, samples: NDArray[np.int64]) -> tuple[Any, Any]:
        """(n,) ids and (n,) paths of rows of a row group, as `_RowGroup` has these; each None where there is none."""
        file, group = self._groups[number]
        url = self._urls[file]

        def read() -> tuple[Any, Any]:
            reader, _ = self._open(url, self._stats[file])
            try:
                return read_names(reader, group, self._column, samples)
            finally:
                reader.close(force=True)

        return ask(url, read, (ValueError, LookupError)) if is_remote(url) else read()

    def _load(self, number: int) -> _RowGroup:
        import pyarrow as pa

        if (refused := self._refused.get(number)) is not None:
            raise RowGroupTooLarge(refused)
        try:
            table = self._read_group(number)
        except RowGroupTooLarge as error:
            self._refused[number] = str(error)  # not itself: its traceback would keep what was unpacked
            raise
        images = table.column(self._column)
        chunks, paths = images.chunks, None
        if pa.types.is_struct(images.type):
            names = [field.name for field in images.type]
            parts = [chunk.flatten() for chunk in chunks]
            chunks = [part[names.index("bytes")] for part in parts]
            paths = pa.chunked_array([part[names.index("path")] for part in parts]) if "path" in names else None
            paths = None if paths is None else paths.combine_chunks()
        column = pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in chunks])
        _, offsets, data = column.buffers()
        bounds = np.frombuffer(offsets, np.int64, len(column) + 1, column.offset * 8)
        ids = next((table.column(name).combine_chunks() for name in find_ids(table.schema)), None)
        types = metadata_types(table.schema, self._column, self._columns, with_rest=True)
        others = {name: table.column(name) for name in types}
        if self._column in types:
            others[self._column] = cut_struct(images, types[self._column])
        rest = combine(pa.table(others) if others else table.select([]))
        return _RowGroup(
            data=np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8),
            begins=bounds[:-1],
            ends=bounds[1:],
            present=np.asarray(column.is_valid()),
            paths=paths,
            ids=ids,
            rest=rest,
            own=FieldColumns.from_arrow(table.schema),
            nbytes=table.nbytes,
        )

    def _copy(self, images: list[NDArray[np.uint8]]) -> None:
        """Replace views of Arrow's memory, which is read-only, by views of one new buffer."""
        arena = np.empty(sum(map(len, images)), np.uint8)
        begin = 0
        for row, image in enumerate(images):
            arena[begin : begin + len(image)] = image
            images[row] = arena[begin : begin + len(image)]
            begin += len(image)

    def _members(
        self, image: NDArray[np.uint8], item: ImageObject, others: Sequence[Mapping[str, Any]]
    ) -> dict[str, memoryview]:
        if len(image) == 0:
            return {}
        known = self._column.lower()
        found = {extension: memoryview(data) for extension, data in make_sidecars(item.metadata).items()}
        found |= {member["extension"]: memoryview(member["bytes"]) for member in others}
        return {known if known in IMAGE_EXTENSIONS else sniff_extension(image.data): image.data, **found}


class _RowGroup(NamedTuple):
    """A row group in memory: (R,) where images begin and end in `data`, which rows have one, and all the rest."""

    data: NDArray[np.uint8]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    present: NDArray[np.bool_]
    paths: Any  # Arrow array of text, or None
    ids: Any  # Arrow array, or None
    rest: Any  # Arrow table of the metadata
    own: FieldColumns  # of a file that a curation wrote
    nbytes: int


class _Footer(NamedTuple):
    """A file as it was opened: rows and bytes of each row group, the Arrow schema, and the file's `Stat`."""

    rows: list[int]
    bytes: list[int]
    schema: Any
    stat: Stat


class _Changed(PermanentError):
    """A file is not the one that was opened."""


def describe_parquet(source: ParquetSource) -> tuple[Stat, bytes, int]:
    """Describe the only file of a source: size and version, its footer without rows, and a digest of its structure.

    Raises:
        OSError, SourceError: It cannot be read now.
    """
    import pyarrow as pa

    (url,), (record,) = source._urls, source.shard_records
    reader, stat = source._open(url)
    sink = pa.BufferOutputStream()
    try:
        reader.metadata.write_metadata_file(sink)
    finally:
        reader.close(force=True)
    return stat, sink.getvalue().to_pybytes(), record.digest
