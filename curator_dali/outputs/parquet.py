"""Rows of an output in Parquet: written one a sample, read a bounded piece at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali._version import __version__
from curator_dali.arrays import objects
from curator_dali.errors import OutputError
from curator_dali.io import AtomicFile, Written, explained, is_remote, join, parse_json, printable, store
from curator_dali.outputs.fields import FieldColumns
from curator_dali.outputs.manifest import IMAGES, Manifest
from curator_dali.outputs.tar import FileWriter

# The contract of an output's rows: whoever writes or reads them takes these names from here.

LOADED = {"index": "int64", "image_id": "string", "image_path": "string", "width": "int32", "height": "int32"}
"""Columns that the loader fills for every image, with their types."""

DECIDED = {"status": "string", "stage": "string", "reason": "string", "reason_kind": "string"}
"""Columns of the decision on a sample: its status, the stage, the reason, and the kind by which reasons are counted."""

STATUSES = ("kept", "dropped", "failed")

DTYPES = ("bool", "int32", "int64", "uint64", "float32", "float64", "string")
"""Types of columns. A score that is undefined for an image is NaN in a float column, None in one of strings."""

DECODE = "decode"
"""The `stage` of samples that failed."""

EMBEDDING = "embedding"

_FORMAT = 1  # version of what the columns mean; readers refuse another
_METADATA_KEY = b"curator_dali"  # of the file's metadata: format, version, lineage

# Every output has these. `tar` and `key`: where the bytes of a kept sample are, if tars are written.
_BASE_COLUMNS = {
    **{name: LOADED[name] for name in ("image_id", "image_path", "index", "width", "height")},
    **DECIDED,
    "tar": "string",
    "key": "string",
}
FIXED_COLUMNS = (*_BASE_COLUMNS, EMBEDDING)
"""Columns whose names no stage may write."""

_REQUIRED_COLUMNS = ("image_id", "image_path", "index", "status")
_HASH_COLUMNS = ("phash", "dhash")
_ROW_GROUP_BYTES = 32 << 20  # roughly


@dataclass(frozen=True)
class RowSchema:
    """What the rows of an output have besides who the image is and what became of it.

    The columns `image_id`, `image_path` (string), `index` (int64, in the source), `width`, `height` (int32, upright),
    `status` ("kept", "dropped" or "failed"), `stage`, `reason`, `reason_kind`, `tar`, `key` (string) are always there.

    Args:
        columns: Name -> type, one of `DTYPES`, of further columns, as scores and hashes. All may be null.
        embedding_dim: Numbers in the column `embedding`; 0 for no such column.
        embedding_dtype: "float32" or "float16".
        reason_kind: Whether there is that column. False: for further parts of an output that an earlier version began.
        fields: Columns of fields of the metadata.

    Raises:
        ValueError: A name is taken, or a type is none of these.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    embedding_dim: int = 0
    embedding_dtype: str = "float32"
    reason_kind: bool = True
    fields: FieldColumns = field(default_factory=FieldColumns)

    def __post_init__(self) -> None:
        for name, kind in self.columns.items():
            if name in FIXED_COLUMNS or not name:
                raise ValueError(f"a column cannot be named {name!r}: every output has one of its own")
            if kind not in DTYPES:
                raise ValueError(f"column {name!r}: the type must be one of {', '.join(DTYPES)}, not {kind!r}")
        for name in self.fields.names:
            if name in FIXED_COLUMNS or name in self.columns or not name:
                raise ValueError(f"a field of the metadata cannot be the column {name!r}: there is one of that name")
        if self.embedding_dim < 0 or self.embedding_dtype not in ("float16", "float32"):
            raise ValueError(
                f"embeddings must be float16 or float32 with a positive number of dimensions (0: none), "
                f"not {self.embedding_dtype!r} with {self.embedding_dim}"
            )

    @property
    def names(self) -> list[str]:
        """All columns, in order."""
        return [*self._plain_columns, *self.fields.names, *([EMBEDDING] if self.embedding_dim else [])]

    @property
    def _plain_columns(self) -> dict[str, str]:
        """All columns but the embeddings and those of `fields`, with their types."""
        base = {name: kind for name, kind in _BASE_COLUMNS.items() if self.reason_kind or name != "reason_kind"}
        return base | dict(self.columns)

    def to_arrow(self, lineage: Mapping[str, Any] | None = None) -> Any:
        """The `pyarrow.Schema`, with the lineage, the format's and the package's version in its metadata."""
        import pyarrow as pa

        fields = [
            pa.field(name, getattr(pa, kind if kind != "bool" else "bool_")(), nullable=name not in _REQUIRED_COLUMNS)
            for name, kind in self._plain_columns.items()
        ]
        fields = [*map(self.fields.mark_read, fields), *self.fields.to_arrow()]
        if self.embedding_dim:
            kind = pa.float16() if self.embedding_dtype == "float16" else pa.float32()
            fields.append(pa.field(EMBEDDING, pa.list_(kind, self.embedding_dim)))
        about = {"format": _FORMAT, "version": __version__, "lineage": dict(lineage or {})}
        return pa.schema(fields, metadata={_METADATA_KEY: json.dumps(about, sort_keys=True).encode()})


class GroupWriter(FileWriter):
    """One Parquet file of record batches, in row groups of bounded rows and bytes. It appears when it is closed.

    Row groups follow from the rows alone, however these come.

    Args:
        url: Path or URL.
        schema: The `pyarrow.Schema`.
        rows: Rows of a row group, at the most.
        nbytes: Bytes of a row group; the row that passes them is its last.
        options: Arguments of `pyarrow.parquet.ParquetWriter`.

    Attributes:
        rows: Rows so far.

    Raises:
        OutputError: The file cannot be written. All methods raise it too.
    """

    def __init__(self, url: str, schema: Any, rows: int, nbytes: int, **options: Any) -> None:
        import pyarrow.parquet as pq

        self.url, self._group, self._group_bytes = url, rows, nbytes
        self.rows = 0
        self._batches: list[Any] = []
        self._sizes: list[NDArray[np.int64]] = []  # bytes of the rows of each
        self._held = self._held_bytes = 0
        with explained(url):
            self._file = AtomicFile(url, digest=True)
            self._writer = pq.ParquetWriter(self._file, schema, **options)

    def add(self, batch: Any, sizes: NDArray[np.int64]) -> None:
        """Append the n rows of a `pyarrow.RecordBatch`, of (n,) bytes each."""
        self._batches.append(batch)
        self._sizes.append(sizes)
        self._held += len(batch)
        self._held_bytes += int(sizes.sum())
        self.rows += len(batch)
        while self._held >= self._group or self._held_bytes >= self._group_bytes:
            self._flush()

    def close(self) -> Written:
        """Write what is left, and let the file appear."""
        while self._held:
            self._flush()
        with explained(self.url):
            self._writer.close()
            return self._file.commit()

    def discard(self) -> None:
        """Write no file. May be called again; after `close` it does nothing."""
        self._batches.clear()
        self._file.discard()
        self._writer.is_open = False  # else it would write a footer when it is collected

    @property
    def _is_closed(self) -> bool:
        return self._file.closed

    def _flush(self) -> None:
        """Write the rows that are held as one row group; if they are too many, or too large, the first of them."""
        import pyarrow as pa

        # In one piece, so that the file does not depend on how the rows came.
        table = pa.Table.from_batches(self._batches).combine_chunks()
        sizes = np.concatenate(self._sizes)
        within = int(np.searchsorted(np.cumsum(sizes), self._group_bytes))  # rows before the one that fills the group
        count = min(self._group, within + 1, self._held)
        with explained(self.url):
            self._writer.write_table(table.slice(0, count), row_group_size=self._group)
        self._batches, self._sizes = table.slice(count).to_batches(), [sizes[count:]]
        self._held, self._held_bytes = self._held - count, int(sizes[count:].sum())


class ParquetWriter(GroupWriter):
    """One Parquet file of rows, which appears when it is closed. Compressed with zstd, in row groups of about 32 MB.

    Args:
        url: Path or URL.
        schema: The columns.
        lineage: What the values were computed with (models and their hashes, ...), in JSON's types.
        row_group_rows: Rows of a row group; by default as many as make about 32 MB, 65,536 at the most.

    Raises:
        OutputError: It cannot be written. All methods raise it too.
    """

    def __init__(
        self,
        url: str,
        schema: RowSchema,
        *,
        lineage: Mapping[str, Any] | None = None,
        row_group_rows: int | None = None,
    ) -> None:
        self.schema, self._arrow = schema, schema.to_arrow(lineage)
        width = 256 + schema.embedding_dim * np.dtype(schema.embedding_dtype).itemsize
        texts = [name for name in schema.names if str(self._arrow.field(name).type) == "string"]
        super().__init__(
            url,
            self._arrow,
            row_group_rows or min(65_536, max(1024, _ROW_GROUP_BYTES // width)),
            _ROW_GROUP_BYTES,
            compression="zstd",
            use_dictionary=[name for name in texts if name not in ("image_id", "image_path", "key")],
            write_statistics=[name for name in schema.names if name != EMBEDDING],
            # The bytes of floats compress better one plane at a time (9% less, read 20% faster). Old readers know
            # that encoding for float32 only.
            column_encoding={f"{EMBEDDING}.list.element": "BYTE_STREAM_SPLIT"}
            if schema.embedding_dim and schema.embedding_dtype == "float32"
            else None,
        )

    def write(
        self,
        rows: Mapping[str, Any],
        embeddings: NDArray[Any] | None = None,
        embedded: NDArray[np.bool_] | None = None,
        fields: Any = None,
    ) -> None:
        """Append rows.

        Args:
            rows: Column -> n values: numpy arrays or sequences; None and NaN become null. `image_id`, `image_path`,
                `index` and `status` must be there; columns of the schema that are not are null. A fixed column that
                the schema lacks is left out.
            embeddings: (n, D), cast to the schema's type; needed only if the schema has embeddings and a row has one.
            embedded: (n,) which rows have an embedding; by default all, if `embeddings` are given.
            fields: A `pyarrow.RecordBatch` of the n rows' columns of `RowSchema.fields`; None: these are null.

        Raises:
            ValueError: A column is missing, unknown, of another length, or has values of another type.
        """
        self.append(self.to_arrow(rows, embeddings, embedded, fields))

    def append(self, batch: Any) -> None:
        """Append rows that `to_arrow` made."""
        self.add(batch, measure_rows([batch.column(name) for name in self.schema.fields.names], len(batch)))

    def to_arrow(
        self, rows: Mapping[str, Any], embeddings: NDArray[Any] | None, embedded: NDArray[np.bool_] | None, fields: Any
    ) -> Any:
        """Make a `pyarrow.RecordBatch` of rows, as `write` takes them."""
        import pyarrow as pa

        names = [name for name in self.schema.names if name != EMBEDDING and name not in self.schema.fields.names]
        if unknown := sorted(set(rows) - {*names, *_BASE_COLUMNS}):
            raise ValueError(
                f"{self.url} has no columns {unknown}: name them in RowSchema(columns=...); it has {names}"
            )
        if missing := [name for name in _REQUIRED_COLUMNS if name not in rows]:
            raise ValueError(f"rows need the columns {missing}")
        n = len(rows["image_id"])
        columns = []
        for name in names:
            kind = self._arrow.field(name).type
            if (values := rows.get(name)) is None:
                columns.append(pa.nulls(n, kind))
                continue
            if len(values) != n:
                raise ValueError(f"column {name!r} has {len(values)} values for {n} rows")
            columns.append(_to_array(name, values, kind))
        columns += [
            pa.nulls(n, self._arrow.field(name).type) if fields is None else fields.column(name)
            for name in self.schema.fields.names
        ]
        if odd := sorted({str(status) for status in rows["status"]} - set(STATUSES)):
            raise ValueError(f"the status of a row must be one of {', '.join(STATUSES)}, not {odd[0]!r}")
        if self.schema.embedding_dim:
            columns.append(self._embeddings(n, embeddings, embedded))
        elif embeddings is not None:
            raise ValueError(f"{self.url} has no embeddings: give RowSchema an embedding_dim")
        return pa.RecordBatch.from_arrays(columns, schema=self._arrow)

    def _embeddings(self, n: int, embeddings: NDArray[Any] | None, embedded: NDArray[np.bool_] | None) -> Any:
        import pyarrow as pa

        kind, dim = self._arrow.field(EMBEDDING).type, self.schema.embedding_dim
        if embeddings is None:
            return pa.nulls(n, kind)
        if embeddings.shape != (n, dim):
            raise ValueError(f"embeddings must be of shape {(n, dim)}, not {embeddings.shape}")
        values = pa.array(np.ascontiguousarray(embeddings, self.schema.embedding_dtype).reshape(-1))
        mask = None if embedded is None or all(embedded) else pa.array(~np.asarray(embedded, bool))
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)


def measure_rows(columns: Sequence[Any], count: int) -> NDArray[np.int64]:
    """(N,) bytes of the rows of some columns, each row by itself, so that they do not depend on how the rows came."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes = np.zeros(count, np.int64)
    for column in columns:
        if column.type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
            sizes += pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        elif pa.types.is_nested(column.type):
            sizes += [column.slice(row, 1).nbytes for row in range(count)]
        else:
            sizes += 8
    return sizes


def _to_array(name: str, values: Sequence[Any] | NDArray[Any], kind: Any) -> Any:
    import pyarrow as pa

    if str(kind) == "string":
        values = [None if value is None else printable(str(value)) for value in values]
    try:
        if isinstance(values, np.ndarray) and values.dtype == object:
            values = values.tolist()
        return pa.array(values, kind, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise ValueError(f"column {name!r} is of type {kind}: {error}") from error


class RowFiles:
    """The Parquet files of an output, read in order, row after row.

    Perceptual hashes are 16 hexadecimal digits, also those of earlier versions, which stored 64-bit integers.

    Args:
        url: An output folder (its finished parts, in order; without a manifest all `*.parquet` by name), or one file.

    Attributes:
        files: Their paths or URLs.
        schema: The `pyarrow.Schema`.
        lineage: What the values were computed with.
        embedding_dim: Numbers in an embedding; 0 where there are none.
        fields: The columns of fields of the metadata.

    Raises:
        OutputError: There are no rows, or the files are of another format or of different schemas.
    """

    def __init__(self, url: str) -> None:
        self.files = _find(url)
        if not self.files:
            raise OutputError(f"{url} has no rows: it is no output of a curation, or of one that has finished no part")
        with _open_parquet(self.files[0]) as parquet:
            self.schema = _spelt_schema(parquet.schema_arrow)
        about = parse_json((self.schema.metadata or {})[_METADATA_KEY])
        self.lineage: dict[str, Any] = about["lineage"]
        kind = self.schema.field(EMBEDDING).type if EMBEDDING in self.schema.names else None
        self.embedding_dim: int = 0 if kind is None else kind.list_size
        self.fields = FieldColumns.from_arrow(self.schema)

    def __len__(self) -> int:
        """Number of rows: of the files' footers."""
        return sum(self.counts())

    def counts(self) -> list[int]:
        """Number of rows of each file."""
        found = []
        for url in self.files:
            with _open_parquet(url) as parquet:
                found.append(int(parquet.metadata.num_rows))
        return found

    def batches(self, columns: Sequence[str] | None = None, *, rows: int = 65_536) -> Iterator[Any]:
        """`pyarrow.RecordBatch`es in order; in memory are one at a time and the row group that it is from.

        Args:
            columns: Which; by default all.
            rows: Rows of a batch, at the most.

        Raises:
            OutputError: A column is missing, or a file is of another format, of another schema, or damaged.
        """
        if missing := [name for name in columns or () if name not in self.schema.names]:
            raise OutputError(f"the output has no columns {missing}; it has {', '.join(self.schema.names)}")
        for url in self.files:
            with _open_parquet(url) as parquet:
                if not _spelt_schema(parquet.schema_arrow).equals(self.schema):
                    raise OutputError(f"{url} has other columns than {self.files[0]}: they are of different runs")
                found = parquet.iter_batches(rows, columns=None if columns is None else list(columns))
                yield from map(_spell_hashes, found)

    def columns(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Whole columns as numpy arrays: name -> (N,), null as NaN in floats and as None (object) elsewhere."""
        import pyarrow as pa

        fields = [self.schema.field(name) for name in names if name in self.schema.names]
        table = pa.Table.from_batches(self.batches(names), pa.schema(fields))
        return {name: to_numpy(table.column(name)) for name in names}

    def embeddings(self, *, rows: int = 65_536) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Embeddings in order, without the rows that have none.

        Args:
            rows: Rows of a piece, at the most.

        Yields:
            (n,) int64, the rows' numbers in this output (0 is the first row of the first file), and (n, D) float32.

        Raises:
            OutputError: There are none, or as `batches`.
        """
        if not self.embedding_dim:
            raise OutputError("the output has no embeddings: curate again, and have them written")
        at = 0
        for batch in self.batches([EMBEDDING], rows=rows):
            column = batch.column(0)
            present = np.arange(at, at + len(batch))
            if column.null_count:
                present = present[column.is_valid().to_numpy(zero_copy_only=False)]
            at += len(batch)
            yield present, _to_matrix(column, self.embedding_dim)


class RowSubset:
    """M rows of an output, in its order.

    Args:
        files: The output's rows.
        rows: (M,) int64, the numbers of the rows, ascending.
        kinds: Name -> type of the columns.
        workers: Other processes that may share the work on these rows.
    """

    def __init__(self, files: RowFiles, rows: NDArray[np.int64], kinds: Mapping[str, str], workers: Any = None) -> None:
        self.files, self.rows, self.kinds, self.workers = files, rows, kinds, workers

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Width of the embeddings; 0 where there are none."""
        return self.files.embedding_dim

    def column(self, name: str) -> NDArray[Any]:
        """(M,) values; of the column's type where none is missing."""
        values: NDArray[Any] = self.files.columns([name])[name][self.rows]
        whole = values.dtype == object and self.kinds.get(name, "string") != "string" and None not in values.tolist()
        return values.astype(self.kinds[name]) if whole else values

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """Blocks of (m, D), M rows in all."""
        wanted = np.zeros(len(self.files), bool)
        wanted[self.rows] = True
        for numbers, block in self.files.embeddings():
            yield block[wanted[numbers]]

    def reader(self, rows: NDArray[np.int64]) -> EmbeddingReader:
        """The embeddings of some of the M rows, by their numbers among these, ascending; nothing is read yet."""
        wanted = self.rows[rows]
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1  # of their files
        first = np.flatnonzero(np.diff(numbers, prepend=-1))  # where another file begins
        pieces = zip(numbers[first].tolist(), np.split(wanted, first[1:]), strict=True) if len(first) else ()
        return EmbeddingReader(tuple((self.files.files[n], some - self._starts[n]) for n, some in pieces), self.dim)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The first row of every file."""
        return np.cumsum([0, *self.files.counts()], dtype=np.int64)[:-1]


@dataclass(frozen=True)
class EmbeddingReader:
    """Embeddings of some rows of Parquet files, which another process may read.

    Attributes:
        pieces: File and (n,) rows of it, ascending.
        dim: D.
    """

    pieces: tuple[tuple[str, NDArray[np.int64]], ...]
    dim: int

    def read(self) -> NDArray[np.float32]:
        """(m, D)."""
        blocks = [read_embeddings(url, rows) for url, rows in self.pieces]
        return np.concatenate([np.empty((0, self.dim), np.float32), *blocks])


def read_types(url: str) -> dict[str, Any]:
    """Read the columns of a Parquet file of an output: name -> `pyarrow.DataType`.

    Raises:
        OutputError: It is damaged, or of another format.
    """
    with _open_parquet(url) as parquet:
        return {field.name: field.type for field in parquet.schema_arrow}


def read_embeddings(url: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Embeddings of some rows of one file, (n, D) float32; of the row groups that have none of them nothing is read.

    `rows` are their (n,) numbers in the file, ascending.

    Raises:
        OutputError: It is damaged, or of another format; a row has no embedding.
    """
    import pyarrow as pa

    blocks, at = [], 0
    with _open_parquet(url) as parquet:
        dim = parquet.schema_arrow.field(EMBEDDING).type.list_size
        for number in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(number).num_rows
            wanted = rows[np.searchsorted(rows, at) : np.searchsorted(rows, at + count)] - at
            at += count
            if not len(wanted):
                continue
            column = parquet.read_row_group(number, columns=[EMBEDDING]).column(0)
            if len(wanted) < count:
                column = column.take(pa.array(wanted))
            if column.null_count:
                raise OutputError(f"{url}: {column.null_count} of the rows that are wanted have no embedding")
            blocks += [_to_matrix(chunk, dim) for chunk in column.chunks]
    return np.concatenate([np.empty((0, dim), np.float32), *blocks])


def _to_matrix(column: Any, dim: int) -> NDArray[np.float32]:
    """(n, D) of a column of embeddings, without the rows that are null."""
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, dim).astype(np.float32, copy=False)


def to_numpy(column: Any) -> NDArray[Any]:
    """A `pyarrow.ChunkedArray` as a batch has a column: null is NaN among floats, None among objects elsewhere."""
    import pyarrow as pa

    kind = column.type
    plain = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind)
    # pyarrow makes floats of integers with nulls, and other values of 64-bit hashes
    if not pa.types.is_floating(kind) and (column.null_count or not plain):
        return objects(column.to_pylist())
    array: NDArray[Any] = column.to_numpy()
    return array


def _find(url: str) -> list[str]:
    if url.endswith(".parquet"):
        return [url]
    folder = url.rstrip("/") if is_remote(url) else url
    if store.read(join(folder, "_manifest/run.json")) is not None:
        parts = Manifest.load(folder).parts()
        names = [file.name for part in parts for file in part.files if file.name.endswith(".parquet")]
    else:
        names = sorted(name for name in store.listing(folder) if name.endswith(".parquet") and name[0] != ".")
    return [join(folder, name) for name in names if not name.endswith(IMAGES)]


@contextmanager
def _open_parquet(url: str) -> Iterator[Any]:
    """The opened file, if it is one of ours and of this format. Damage that reading it meets is an `OutputError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.open_input(url) as file:
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise OutputError(f"{url} is no Parquet file, or damaged: {error}") from error
        about = (parquet.schema_arrow.metadata or {}).get(_METADATA_KEY)
        if about is None:
            raise OutputError(f"{url} was not written by a curation: its metadata has no {_METADATA_KEY.decode()!r}")
        try:
            found = parse_json(about)
            version, format = found.get("version"), found["format"]
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise OutputError(f"{url} is damaged: its metadata {_METADATA_KEY.decode()!r}: {error!r}") from error
        if format != _FORMAT:
            raise OutputError(
                f"{url} was written in format {format} by curator_dali {version}; this version "
                f"reads format {_FORMAT}: use that version, or curate again"
            )
        try:
            yield parquet
        except (pa.ArrowInvalid, OSError) as error:
            raise OutputError(f"{url} is damaged: {error}") from error


def _spelt_schema(schema: Any) -> Any:
    """A schema in which perceptual hashes are text."""
    import pyarrow as pa

    for place in _places_of_integers(schema):
        schema = schema.set(place, schema.field(place).with_type(pa.string()))
    return schema


def _spell_hashes(batch: Any) -> Any:
    """A `pyarrow.RecordBatch` in which perceptual hashes are text: 16 hexadecimal digits, the highest bits first."""
    import pyarrow as pa

    for place in _places_of_integers(batch.schema):
        column = batch.column(place)
        digits = column.fill_null(0).to_numpy(zero_copy_only=False).astype(">u8").tobytes().hex()
        texts = [digits[start : start + 16] for start in range(0, len(digits), 16)]
        spelt = pa.array(texts, pa.string(), mask=column.is_null().to_numpy(zero_copy_only=False))
        batch = batch.set_column(place, batch.schema.field(place).with_type(pa.string()), spelt)
    return batch


def _places_of_integers(schema: Any) -> list[int]:
    """Places of the perceptual hashes that are integers, as earlier versions wrote them."""
    hashes = set(_HASH_COLUMNS).difference(FieldColumns.from_arrow(schema).types)  # those are the user's own
    return [place for place, field in enumerate(schema) if field.name in hashes and str(field.type) == "uint64"]
