"""Rows to Parquet: one a sample, with a schema that is known before the first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali._version import __version__
from curator_dali.io.files import AtomicFile, Written
from curator_dali.io.store import explained, printable

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EMBEDDING", "FORMAT", "METADATA_KEY", "STATUSES", "ParquetWriter", "RowSchema"]

FORMAT = 1
"""Version of what the columns mean; readers refuse another."""

METADATA_KEY = b"curator_dali"
EMBEDDING = "embedding"
STATUSES = ("kept", "dropped", "failed")

# Every output has these. `tar` and `key`: where the bytes of a kept sample are, if tars are written.
_BASE = {
    "image_id": "string",
    "image_path": "string",
    "index": "int64",
    "width": "int32",
    "height": "int32",
    "status": "string",
    "stage": "string",
    "reason": "string",
    "tar": "string",
    "key": "string",
}
_REQUIRED = ("image_id", "image_path", "index", "status")
_TYPES = ("bool", "int32", "int64", "uint64", "float32", "float64", "string", "list<string>", "binary[N]")
_BINARY = re.compile(r"binary\[([1-9]\d*)\]")
_BUFFER = 32 << 20  # bytes of a row group, roughly


@dataclass(frozen=True)
class RowSchema:
    """What the rows of an output have besides who the image is and what became of it.

    The columns `image_id`, `image_path` (string), `index` (int64, in the source), `width`, `height` (int32, upright),
    `status` ("kept", "dropped" or "failed"), `stage`, `reason`, `tar` and `key` (string) are always there.

    Args:
        columns: Name -> type of further columns: scores ("float32"), hashes ("uint64", or "binary[16]" for 16 bytes),
            and "bool", "int32", "int64", "float64", "string", "list<string>". All may be null.
        embedding_dim: Numbers in the column `embedding`; 0 for no such column.
        embedding_dtype: "float32" or "float16".

    Raises:
        ValueError: A name is taken, or a type is none of these.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    embedding_dim: int = 0
    embedding_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, kind in self.columns.items():
            if name in _BASE or name == EMBEDDING or not name:
                raise ValueError(f"a column cannot be named {name!r}: every output has one of its own")
            if kind not in _TYPES[:-1] and not _BINARY.fullmatch(kind):
                raise ValueError(f"column {name!r}: the type must be one of {', '.join(_TYPES)}, not {kind!r}")
        if self.embedding_dim < 0 or self.embedding_dtype not in ("float16", "float32"):
            raise ValueError(
                f"embeddings must be float16 or float32 with a positive number of dimensions (0: none), "
                f"not {self.embedding_dtype!r} with {self.embedding_dim}"
            )

    @property
    def names(self) -> list[str]:
        """All columns, in order."""
        return [*_BASE, *self.columns, *([EMBEDDING] if self.embedding_dim else [])]

    def to_arrow(self, lineage: Mapping[str, Any] | None = None) -> Any:
        """The `pyarrow.Schema`, with the lineage, the format's and the package's version in its metadata."""
        import pyarrow as pa

        fields = [
            pa.field(name, _arrow_type(kind), nullable=name not in _REQUIRED)
            for name, kind in (_BASE | dict(self.columns)).items()
        ]
        if self.embedding_dim:
            kind = pa.float16() if self.embedding_dtype == "float16" else pa.float32()
            fields.append(pa.field(EMBEDDING, pa.list_(kind, self.embedding_dim)))
        about = {"format": FORMAT, "version": __version__, "lineage": dict(lineage or {})}
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(about, sort_keys=True).encode()})


class ParquetWriter:
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
        import pyarrow.parquet as pq

        self.url, self.schema = url, schema
        self.rows = 0
        self._arrow = schema.to_arrow(lineage)
        width = 256 + schema.embedding_dim * np.dtype(schema.embedding_dtype).itemsize
        self._group = row_group_rows or min(65_536, max(1024, _BUFFER // width))
        self._batches: list[Any] = []
        self._held = 0
        texts = [name for name in schema.names if name != EMBEDDING and "string" in str(self._arrow.field(name).type)]
        with explained(url):
            self._file = AtomicFile(url, digest=True)
            self._writer = pq.ParquetWriter(
                self._file,
                self._arrow,
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
    ) -> None:
        """Append rows.

        Args:
            rows: Column -> n values: numpy arrays or sequences; None and NaN become null. `image_id`, `image_path`,
                `index` and `status` must be there; columns of the schema that are not are null.
            embeddings: (n, D), cast to the schema's type; needed only if the schema has embeddings and a row has one.
            embedded: (n,) which rows have an embedding; by default all, if `embeddings` are given.

        Raises:
            ValueError: A column is missing, unknown, of another length, or has values of another type.
        """
        batch = self._to_arrow(rows, embeddings, embedded)
        self._batches.append(batch)
        self._held += len(batch)
        self.rows += len(batch)
        if self._held >= self._group:
            self._flush(self._held - self._held % self._group)

    def close(self) -> Written:
        """Write what is left, and let the file appear."""
        self._flush(self._held)
        with explained(self.url):
            self._writer.close()
            return self._file.commit()

    def discard(self) -> None:
        """Write no file. May be called again; after `close` it does nothing."""
        self._batches.clear()
        self._file.discard()
        self._writer.is_open = False  # else it would write a footer when it is collected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and not self._file.closed:
            self.close()
        else:
            self.discard()

    def _flush(self, count: int) -> None:
        """Write the first `count` rows that are held, in row groups."""
        import pyarrow as pa

        if count:
            # In one piece, so that the file does not depend on how the rows came.
            table = pa.Table.from_batches(self._batches).combine_chunks()
            with explained(self.url):
                self._writer.write_table(table.slice(0, count), row_group_size=self._group)
            self._batches = table.slice(count).to_batches()
            self._held -= count

    def _to_arrow(
        self, rows: Mapping[str, Any], embeddings: NDArray[Any] | None, embedded: NDArray[np.bool_] | None
    ) -> Any:
        import pyarrow as pa

        names = [name for name in self.schema.names if name != EMBEDDING]
        if unknown := sorted(set(rows) - set(names)):
            raise ValueError(
                f"{self.url} has no columns {unknown}: name them in RowSchema(columns=...); it has {names}"
            )
        if missing := [name for name in _REQUIRED if name not in rows]:
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


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    if match := _BINARY.fullmatch(kind):
        return pa.binary(int(match[1]))
    return pa.list_(pa.string()) if kind == "list<string>" else getattr(pa, {"bool": "bool_"}.get(kind, kind))()


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
