"""Rows of an output in Parquet, one a sample: their columns, and the files that are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali._version import __version__
from curator_dali.io import AtomicFile, Written, explained, printable
from curator_dali.outputs.fields import FieldColumns
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

FORMAT = 1
"""Version of the meaning of the columns; readers refuse another."""

METADATA_KEY = b"curator_dali"
"""Key of a file's metadata: format, version, lineage."""

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
        about = {"format": FORMAT, "version": __version__, "lineage": dict(lineage or {})}
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(about, sort_keys=True).encode()})


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
