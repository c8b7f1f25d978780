"""The index of a data set: one folder that says where the members of all samples of all files lie.

`files.arrow` has a row a file, and is all that an opening reads. `samples-*.arrow`, the parts, have a row a sample,
those of a file in one record batch. Parts are never parsed: `files.arrow` says at which byte of a part each column of a
file begins, so that a batch costs a few bytes a sample however many samples there are. Parts are read by `pread`, as
data are, and not mapped: a mapped part that another machine removes from a shared disk would end the process.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import (
    Stat,
    filesystem,
    is_http,
    is_remote,
    join,
    one_line,
    parse_json,
    read_regular,
    strip_signature,
)
from curator_dali.sources.base import HEADER_DTYPE, quote
from curator_dali.sources.entries import extension_of
from curator_dali.sources.folder_index import FolderTable, read_folder_table
from curator_dali.sources.header_columns import CHECK, ROW_NUMBERS, Codecs, header_fields, make_header_columns
from curator_dali.sources.listing import common_folder
from curator_dali.sources.summed_tables import METADATA, check_sum, write_table
from curator_dali.sources.tar_index import ENTRY_NUMBERS, Summary, TarIndex, take_texts

logger = logging.getLogger(__name__)

FOLDER = ".curator_dali_index"
"""The folder of an index beside its data; hidden, so that folders and globs pass over it."""

PLACES_OF_INDEX = ("cache", "beside", "none")
"""Values of `index=` besides a folder."""

FOLDER_KIND = "folder"
"""The kind of an index of a folder of images, whose `files.arrow` has a row a file of the folder, and no parts."""

FILES = "files.arrow"
"""The table of the files, which is written last."""

MEMBERS = ("first", "count")
RECORD_NUMBERS = ENTRY_NUMBERS + 2 + 3 + len(MEMBERS) + 1
"""Numbers of the column `entry`.

Those of `tar_index.ENTRY`; CRC-32 of the name, and of the members; height, width, codec + 256 * orientation; the number
of the sample's first member in its file, and how many it has; and a number by which the exclusive or of all is `CHECK`.
"""

PLACES = (
    *("part_size", "entry_bytes", "entries", "names", "names_size"),
    *("member_offsets", "member_sizes", "members", "extension_offsets", "extensions", "extensions_size"),
)
"""Of a file, about the part that has its samples: bytes in the part, bytes of a number of `entry`, and where in the
part the values of columns begin, with the lengths of those that vary."""

_VERSION = 2
_MOST_BYTES = 4 << 30  # of `files.arrow`: ten million files
_ARROW_MAGIC = b"ARROW1"
_SMALL = 2**32 - 1


class Reference(NamedTuple):
    """An index that is to be opened: its folder, and whether it has to be there."""

    folder: str
    must_exist: bool


@dataclass(frozen=True)
class DatasetIndex:
    """The table of the files of an index.

    Attributes:
        folder: The index's folder.
        root: The folder that names of files count from, as it was when the index was made.
        kind: "tar", "parquet" or "folder".
        covers: Patterns, relative to the root, of which the index has all files; "" is the root itself.
        table: The rows, a `pyarrow.Table`; of a folder of images, a `FolderTable`.
        column: The column of the images, of Parquet files.
        former: Parts that only the table before this one had, for sources that were opened by that one.
    """

    folder: str
    root: str
    kind: str
    covers: tuple[str, ...]
    table: Any
    column: str = ""
    former: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @cached_property
    def names(self) -> list[str]:
        """F names of files, relative to the root."""
        names: list[str] = self.table.column("name").to_pylist()
        return names

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Name -> row."""
        return {name: row for row, name in enumerate(self.names)}

    @cached_property
    def parts(self) -> list[str]:
        """Names of the parts, each once."""
        names: list[str] = self.table.column("part").unique().to_pylist()
        return names

    @cached_property
    def part_of(self) -> NDArray[np.int64]:
        """(F,) int64: the number of each file's part in `parts`."""
        import pyarrow.compute as pc

        values = pc.index_in(self.table.column("part"), self.table.column("part").unique())
        found: NDArray[np.int64] = values.to_numpy().astype(np.int64)
        return found

    @cached_property
    def part_sizes(self) -> list[int]:
        """Bytes of each of `parts`."""
        sizes = np.zeros(len(self.parts), np.int64)
        sizes[self.part_of] = self.places[:, PLACES.index("part_size")]
        found: list[int] = sizes.tolist()
        return found

    def numbers(self, column: str) -> NDArray[np.int64]:
        """(F,) int64 values of a column of whole numbers."""
        values: NDArray[np.int64] = self.table.column(column).to_numpy().astype(np.int64)
        return values

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """(F, len(PLACES)) int64."""
        values = self.table.column("places").combine_chunks()
        found: NDArray[np.int64] = np.asarray(values.flatten()).reshape(len(self), len(PLACES))
        return found

    def stats(self, rows: NDArray[np.int64]) -> list[Stat]:
        """Sizes and versions of files when they were indexed."""
        columns = [self.table.column(name).take(rows).to_pylist() for name in ("size", "version", "content", "etag")]
        return [Stat(*values) for values in zip(*columns, strict=True)]

    def summaries(self, rows: NDArray[np.int64]) -> list[Summary]:
        """Summaries of files, which each opening needs."""
        names = ("samples", "duplicates", "digest", "warnings", "note")
        columns = [self.table.column(name).take(rows).to_pylist() for name in names]
        return [
            Summary(samples, duplicates, digest, tuple(warnings), note)
            for samples, duplicates, digest, warnings, note in zip(*columns, strict=True)
        ]

    def find(self, urls: Sequence[str]) -> NDArray[np.int64]:
        """(len(urls),) int64: the row of each file, -1 for a file that the index does not know.

        Where the data set was moved, names count from the deepest folder that all files lie in.
        """
        known = self.row_of
        for root in dict.fromkeys([self.root, *([common_folder(urls)] if urls else [])]):
            rows = np.array([known.get(_relative(url, root), -1) for url in urls], np.int64)
            if (rows >= 0).any():
                return rows
        return np.full(len(urls), -1, np.int64)


def find_reference(urls: Sequence[str], index: str) -> Reference | None:
    """Find where the index of files is, or would be.

    Args:
        urls: Files, or one folder with a slash at its end.
        index: "cache" or "beside": in the folder that all files lie in. "none": nowhere. Else the index's own folder.
    """
    if index == "none" or not urls:
        return None
    if index not in ("cache", "beside"):
        return Reference(index if is_remote(index) else os.path.abspath(os.path.expanduser(index)), True)
    if any(is_http(url) and "?" in url for url in urls):  # a signature is of one file
        return None
    folder = common_folder(urls)
    if not folder or folder.endswith((":", ":/")):  # files that have nothing in common
        return None
    return Reference(join(folder, FOLDER), False)


def open_index(reference: Reference) -> DatasetIndex | None:
    """Open an index, by one request where it is remote; None where there is none.

    Raises:
        SourceError: It was named, and is missing or damaged.
    """
    folder, must_exist = reference
    try:
        return read_index(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        if must_exist:
            raise SourceError(
                f"index={folder!r} holds no index of a data set: `curator-dali prepare SRC --index {folder}` makes "
                'one. Else allowed: "cache", "beside", "none"'
            ) from error
    except Exception as error:
        if must_exist:
            raise SourceError(f"the index {folder!r} cannot be read: {one_line(error)}") from error
        if is_remote(folder) and not isinstance(error, _Damaged):  # a store may forbid what it does not have
            logger.info("no index at %s: %s", folder, one_line(error))
        else:
            logger.warning("the index %s cannot be read, and the data set is opened without it: %s", folder, error)
    return None


def find_folder(root: str, index: str, known: Mapping[str, DatasetIndex | None]) -> FolderTable | None:
    """Find what an index has of a folder of images; None where there is none.

    Args:
        root: The folder.
        index: See `find_reference`.
        known: Folders of indexes that were looked into, with what was found there.

    Raises:
        SourceError: See `open_index`.
    """
    reference = find_reference([f"{root.rstrip('/')}/"], index)
    found = None if reference is None else open_known(reference, known, FOLDER_KIND)
    return None if found is None else found.table


def open_known(reference: Reference, known: Mapping[str, DatasetIndex | None], kind: str) -> DatasetIndex | None:
    """Take an index of a kind that was looked for already, or open it; None where there is none.

    Raises:
        SourceError: See `open_index`; or the index that was named is of another kind.
    """
    found = known[reference.folder] if reference.folder in known else open_index(reference)
    if found is None or found.kind == kind:
        return found
    if reference.must_exist:
        raise SourceError(
            f"index={reference.folder!r} is the index of a data set of kind {found.kind!r}, and not of {kind!r}: give "
            "that of these files, or leave it out"
        )
    logger.info("the index %s is of another kind: %s", found.folder, found.kind)
    return None


class _Damaged(SourceError):
    """A file that begins like an index and is none, or one of a later version."""


def read_index(folder: str, name: str = FILES) -> DatasetIndex:
    """Read the table of the files of an index, or another table of its columns.

    Raises:
        OSError: It cannot be read.
        SourceError: It is damaged.
    """
    url = join(folder, name)
    if is_remote(url):
        fs, path = filesystem(url)
        fs.invalidate_cache(path.rpartition("/")[0])  # s3fs asks a listing for the size
        data = fs.cat_file(path)
    else:
        data = read_regular(url, _MOST_BYTES)
    if not data.startswith(_ARROW_MAGIC):
        raise SourceError("it is no Arrow file")
    import pyarrow as pa

    try:
        check_sum(data)
        reader = pa.ipc.open_file(pa.py_buffer(data))
        about = parse_json((reader.schema.metadata or {})[METADATA])
        if about["version"] != _VERSION:
            raise _Damaged(f"it is of version {about['version']}, and this one reads {_VERSION}: prepare it anew")
        kind = str(about["kind"])
        table: Any = read_folder_table(reader, about) if kind == FOLDER_KIND else reader.read_all()
        beside = about["root"] == ".."
        root = folder.rpartition("/")[0] if beside else str(about["root"])
        covers, column = tuple(map(str, about["covers"])), str(about.get("column", ""))
        index = DatasetIndex(folder, root, kind, covers, table, column, tuple(map(str, about.get("former", ()))))
        if kind != FOLDER_KIND:
            table.validate(full=True)
            _check_places(index)
        return index
    except (pa.ArrowException, LookupError, TypeError, ValueError) as error:
        if isinstance(error, _Damaged):
            raise
        raise _Damaged(f"it is damaged: {one_line(error)}") from error


def _check_places(index: DatasetIndex) -> None:
    """Refuse a table by which bytes would be read that no part has."""
    places = dict(zip(PLACES, index.places.T, strict=True))
    samples, members = index.numbers("samples"), places["members"]
    numbers = RECORD_NUMBERS if index.kind == "tar" else ROW_NUMBERS
    ends = [
        (places["entries"], samples * places["entry_bytes"] * numbers),
        (places["names"], places["names_size"]),
        (places["member_offsets"], members * 8),
        (places["member_sizes"], members * 8),
        (places["extension_offsets"], (members + 1) * 4),
        (places["extensions"], places["extensions_size"]),
    ]
    fits = np.isin(places["entry_bytes"], (4, 8)) & (samples >= 0) & (members >= 0)
    for begin, size in ends:
        fits &= (begin >= 0) & (size >= 0) & (begin + size <= places["part_size"])
    if not fits.all():
        raise ValueError(f"what it says of {quote(index.names[int(np.argmin(fits))])} cannot be")


def _relative(url: str, root: str) -> str:
    """The name of a file below a root; the URL itself where it lies elsewhere."""
    url = strip_signature(url) if is_remote(url) else url
    prefix = f"{root.rstrip('/')}/"
    return url[len(prefix) :] if url.startswith(prefix) else url


def relative_names(urls: Sequence[str], root: str) -> list[str]:
    """Names of files below a root."""
    return [_relative(url, root) for url in urls]


FILE_FIELDS = (
    *(("name", "string"), ("size", "int64"), ("version", "int64"), ("content", "string"), ("etag", "string")),
    *(("samples", "int64"), ("digest", "int64"), ("duplicates", "int64"), ("note", "string")),
    *(("refused", "int64"), ("part", "string"), ("row", "int64"), ("headers", "bool_")),
)
"""Names and types of the plain columns of `files.arrow`."""


def file_schema() -> Any:
    """The columns of `files.arrow`."""
    import pyarrow as pa

    plain = [pa.field(name, getattr(pa, kind)()) for name, kind in FILE_FIELDS]
    further = {
        "warnings": pa.list_(pa.string()),
        "reasons": pa.map_(pa.string(), pa.int64()),
        "places": pa.list_(pa.int64(), len(PLACES)),
        "footer": pa.large_binary(),
    }
    return pa.schema([*plain, *(pa.field(name, kind) for name, kind in further.items())])


def write_files(file: Any, table: Any, about: Mapping[str, Any]) -> None:
    """Write `files.arrow` to an open file, compressed.

    `about` are `root`, `kind`, `covers`, `column` and `former` of the index.
    """
    schema = file_schema()
    write_table(file, schema, table.cast(schema).to_batches(), {"version": _VERSION, **about})


def write_folder(file: Any, table: FolderTable, about: Mapping[str, Any], codecs: Codecs) -> None:
    """Write `files.arrow` of a folder of images to an open file, compressed.

    `about` are `root` and `covers` of the index.
    """
    facts = {"version": _VERSION, "kind": FOLDER_KIND, "listed": table.root, "folders": list(table.folders), **about}
    write_table(file, table.schema, table.batches(codecs), facts)


def sample_schema(small: bool) -> Any:
    """The columns of a part; `small`: whether all numbers of an entry are below 2**32."""
    import pyarrow as pa

    member = pa.struct([("extension", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
    return pa.schema(
        [
            ("key", pa.large_string()),
            ("file", pa.dictionary(pa.int32(), pa.string())),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("codec", pa.dictionary(pa.int8(), pa.string())),
            ("orientation", pa.uint8()),
            ("problem", pa.string()),
            ("members", pa.list_(member)),
            ("name", pa.large_string()),
            ("entry", pa.list_(pa.uint32() if small else pa.int64(), RECORD_NUMBERS)),
        ]
    )


def make_batch(
    number: int,
    files: Sequence[str],
    index: TarIndex,
    headers: NDArray[np.void],
    problems: Mapping[int, str],
    codecs: Codecs,
    small: bool,
) -> Any:
    """Make the record batch of a tar's samples.

    Args:
        number: The tar's number among the files of its part.
        files: Names of these.
        index: The tar's index, of S samples.
        headers: (S,) `HEADER_DTYPE`, codec 0 where nothing is known.
        problems: Sample -> why its image is refused.
        codecs: Names of formats.
        small: See `sample_schema`.
    """
    import pyarrow as pa

    count = len(index)
    table = index.table.astype(np.int64)
    first = index.first.astype(np.int64)
    names, keys = take_texts(index.names, table[:, -4], table[:, -3]), index.read_keys(np.arange(count))
    entries = np.zeros((count, RECORD_NUMBERS), np.int64)
    entries[:, :ENTRY_NUMBERS] = table
    members = index.members.astype(np.int64)
    extensions = [extension_of(index.names[start : start + size]) for start, size in members[:, 2:].tolist()]
    entries[:, ENTRY_NUMBERS] = sum_texts(index.names, table[:, -4], table[:, -3])
    entries[:, ENTRY_NUMBERS + 1] = sum_members(members[:, 0], members[:, 1], extensions, np.diff(first))
    entries[:, ENTRY_NUMBERS - 4] = np.cumsum(table[:, -3]) - table[:, -3]  # where names begin in their own column
    entries[:, -6], entries[:, -5] = headers["height"], headers["width"]
    entries[:, -4] = headers["codec"] + 256 * headers["orientation"].astype(np.int64)
    entries[:, -3], entries[:, -2] = first[:-1], np.diff(first)
    if small:  # only a member that the end of its tar cuts has more bytes
        np.minimum(entries, _SMALL, out=entries)
    entries[:, -1] = np.bitwise_xor.reduce(entries[:, :-1], axis=1) ^ CHECK
    numbers = entries.astype(np.uint32 if small else np.int64)

    unknown, absent = headers["codec"] == 0, table[:, 1] == 0
    format_of = np.array([codecs.numbers.get(value, 0) for value in headers["codec"].tolist()], np.int8)
    schema = sample_schema(small)
    child = pa.StructArray.from_arrays(
        [pa.array(extensions, pa.string()), pa.array(members[:, 0]), pa.array(members[:, 1])],
        fields=list(schema.field("members").type.value_type),
    )
    columns = [
        keys,
        pa.DictionaryArray.from_arrays(pa.array(np.full(count, number, np.int32)), pa.array(files, pa.string())),
        pa.array(table[:, 0], mask=absent),
        pa.array(np.maximum(table[:, 1] - 1, 0), mask=absent),
        pa.array(headers["width"].astype(np.int32), mask=unknown),
        pa.array(headers["height"].astype(np.int32), mask=unknown),
        pa.DictionaryArray.from_arrays(pa.array(format_of, mask=unknown), pa.array(codecs.names, pa.string())),
        pa.array(headers["orientation"], mask=unknown),
        pa.array([problems.get(sample) for sample in range(count)] if problems else [None] * count, pa.string()),
        pa.ListArray.from_arrays(pa.array(first.astype(np.int32)), child),
        names,
        pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), RECORD_NUMBERS),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def sum_texts(blob: bytes | memoryview, begins: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) int64 CRC-32s of texts: where each begins in a blob, and its bytes."""
    spans = zip(begins.tolist(), (begins + sizes).tolist(), strict=True)
    return np.fromiter((zlib.crc32(blob[begin:end]) for begin, end in spans), np.int64, len(begins))


def sum_members(
    offsets: NDArray[np.int64], sizes: NDArray[np.int64], extensions: Sequence[str], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) int64 CRC-32s of all members of samples, from those of (M,) members; (N,) how many each sample has."""
    places = np.stack([offsets, sizes], axis=1).tobytes()
    found, begin = np.zeros(len(counts), np.int64), 0
    for row, count in enumerate(counts.tolist()):
        end = begin + count
        texts = "\0".join(extensions[begin:end]).encode("utf-8", "backslashreplace")
        found[row] = zlib.crc32(texts, zlib.crc32(places[16 * begin : 16 * end]))
        begin = end
    return found


def row_schema() -> Any:
    """The columns of a part of Parquet files."""
    import pyarrow as pa

    fields = [field for field in sample_schema(True) if field.name in ("key", "file", "size")]
    *fields_of_headers, entry = header_fields()
    return pa.schema([*fields, *fields_of_headers, ("row", pa.int64()), entry])


def make_row_batch(
    number: int,
    files: Sequence[str],
    keys: Any,
    sizes: NDArray[np.int64],
    headers: NDArray[np.void],
    problems: Mapping[int, str],
    codecs: Codecs,
) -> Any:
    """Make the record batch of a Parquet file's rows.

    Args:
        number: The file's number among the files of its part.
        files: Names of these.
        keys: (S,) ids, an Arrow array.
        sizes: (S,) bytes of the images, -1 where that is not known.
        headers: (S,) `HEADER_DTYPE`, codec 0 where nothing is known.
        problems: Row -> why its image is refused.
        codecs: Names of formats.
    """
    import pyarrow as pa

    count, schema = len(headers), row_schema()
    numbers = pa.array(np.full(count, number, np.int32))
    columns = {
        "key": keys.cast(pa.large_string()),
        "file": pa.DictionaryArray.from_arrays(numbers, pa.array(files, pa.string())),
        "size": pa.array(sizes, mask=sizes < 0),
        "row": pa.array(np.arange(count)),
        **make_header_columns(sizes, headers, problems, codecs),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _map_part(path: str) -> tuple[Any, int, int]:
    """Map a part: its reader, its bytes, and the address that it begins at."""
    import pyarrow as pa

    mapped = pa.memory_map(path)
    size = mapped.size()
    base: int = mapped.read_buffer(size).address
    return pa.ipc.open_file(mapped), size, base


def locate_rows(path: str) -> NDArray[np.int64]:
    """(B, len(PLACES)): as `locate_columns`, for a part of Parquet files, which have an `entry` and nothing else."""
    reader, size, base = _map_part(path)
    places = np.zeros((reader.num_record_batches, len(PLACES)), np.int64)
    for number in range(len(places)):
        buffer = reader.get_batch(number).column("entry").values.buffers()[1]
        places[number, :3] = size, 4, buffer.address - base if buffer is not None and buffer.size else 0
    return places


def locate_columns(path: str) -> NDArray[np.int64]:
    """(B, len(PLACES)): where the columns of each record batch of a part lie in it."""
    reader, size, base = _map_part(path)
    places = np.zeros((reader.num_record_batches, len(PLACES)), np.int64)

    def begin(buffer: Any) -> int:
        return buffer.address - base if buffer is not None and buffer.size else 0

    for number in range(len(places)):
        batch = reader.get_batch(number)
        entry, names = batch.column("entry").values, batch.column("name").buffers()
        extension, offset, length = batch.column("members").values.flatten()
        texts = extension.buffers()
        places[number] = (
            *(size, entry.type.bit_width // 8, begin(entry.buffers()[1]), begin(names[2])),
            *(names[2].size if names[2] is not None else 0, begin(offset.buffers()[1]), begin(length.buffers()[1])),
            *(len(extension), begin(texts[1]), begin(texts[2]), texts[2].size if texts[2] is not None else 0),
        )
    return places


class Records(NamedTuple):
    """Rows of the column `entry`.

    Attributes:
        table: (N, 12) numbers of `ENTRY`.
        sums: (N, 2) of the name, and of the members.
        headers: (N,) `HEADER_DTYPE`.
        members: (N, 2) the first one, and how many.
        sound: (N,) whether the row is not damaged.
    """

    table: NDArray[np.int64]
    sums: NDArray[np.int64]
    headers: NDArray[np.void]
    members: NDArray[np.int64]
    sound: NDArray[np.bool_]

    @classmethod
    def parse(cls, numbers: NDArray[np.int64]) -> Records:
        """Take rows of (N, RECORD_NUMBERS) apart."""
        headers = np.zeros(len(numbers), HEADER_DTYPE)
        headers["height"], headers["width"] = numbers[:, -6], numbers[:, -5]
        headers["codec"], headers["orientation"] = numbers[:, -4] & 0xFF, numbers[:, -4] >> 8
        sound = np.bitwise_xor.reduce(numbers, axis=1) == CHECK
        sums = numbers[:, ENTRY_NUMBERS : ENTRY_NUMBERS + 2]
        return cls(numbers[:, :ENTRY_NUMBERS], sums, headers, numbers[:, -3:-1], sound)
