"""Rows of an output, read from Parquet a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import objects
from curator_dali.errors import OutputError
from curator_dali.io import is_remote, join, parse_json, store
from curator_dali.outputs.fields import FieldColumns
from curator_dali.outputs.manifest import IMAGES, Manifest
from curator_dali.outputs.parquet import EMBEDDING, FORMAT, METADATA_KEY

_HASH_COLUMNS = ("phash", "dhash")


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
        about = parse_json((self.schema.metadata or {})[METADATA_KEY])
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
        about = (parquet.schema_arrow.metadata or {}).get(METADATA_KEY)
        if about is None:
            raise OutputError(f"{url} was not written by a curation: its metadata has no {METADATA_KEY.decode()!r}")
        try:
            found = parse_json(about)
            version, format = found.get("version"), found["format"]
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise OutputError(f"{url} is damaged: its metadata {METADATA_KEY.decode()!r}: {error!r}") from error
        if format != FORMAT:
            raise OutputError(
                f"{url} was written in format {format} by curator_dali {version}; this version "
                f"reads format {FORMAT}: use that version, or curate again"
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
