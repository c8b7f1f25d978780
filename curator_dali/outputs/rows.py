"""Reading what a curation wrote: rows and embeddings, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import objects
from curator_dali.errors import OutputError
from curator_dali.io import store
from curator_dali.io.files import parse_json
from curator_dali.io.remote import is_remote
from curator_dali.io.store import join
from curator_dali.outputs.manifest import Manifest
from curator_dali.outputs.parquet import EMBEDDING, FORMAT, METADATA_KEY

__all__ = ["RowFiles", "RowSubset", "read_embeddings", "read_types"]

_HASHES = ("phash", "dhash")


class RowFiles:
    """The Parquet files of an output, read in order, row after row.

    Args:
        url: An output folder (its finished parts, in order; without a manifest all `*.parquet` by name), or one file.

    Perceptual hashes are 16 hexadecimal digits, also those of earlier versions, which stored 64-bit integers.

    Attributes:
        files: Their paths or URLs.
        schema: The `pyarrow.Schema`.
        lineage: What the values were computed with.
        embedding_dim: Numbers in an embedding; 0 where there are none.

    Raises:
        OutputError: There are no rows, or the files are of another format or of different schemas.
    """

    def __init__(self, url: str) -> None:
        import pyarrow.parquet as pq

        self.files = _find(url)
        if not self.files:
            raise OutputError(f"{url} has no rows: it is no output of a curation, or of one that has finished no part")
        with store.open_input(self.files[0]) as file:
            self.schema = _spelt_schema(_checked(self.files[0], pq, file).schema_arrow)
        about = parse_json((self.schema.metadata or {})[METADATA_KEY])
        self.lineage: dict[str, Any] = about["lineage"]
        kind = self.schema.field(EMBEDDING).type if EMBEDDING in self.schema.names else None
        self.embedding_dim: int = 0 if kind is None else kind.list_size

    def require(self, names: Sequence[str]) -> None:
        """Make sure that columns are there.

        Raises:
            OutputError: Some are not; names those that are.
        """
        if missing := [name for name in names if name not in self.schema.names]:
            raise OutputError(f"the output has no columns {missing}; it has {', '.join(self.schema.names)}")

    def __len__(self) -> int:
        """Number of rows: of the files' footers."""
        return sum(self.counts())

    def counts(self) -> list[int]:
        """Number of rows of each file."""
        import pyarrow.parquet as pq

        found = []
        for url in self.files:
            with store.open_input(url) as file:
                found.append(int(_checked(url, pq, file).metadata.num_rows))
        return found

    def batches(self, columns: Sequence[str] | None = None, *, rows: int = 65_536) -> Iterator[Any]:
        """`pyarrow.RecordBatch`es in order; in memory are one at a time and the row group that it is from.

        Args:
            columns: Which; by default all.
            rows: Rows of a batch, at the most.

        Raises:
            OutputError: A column is missing, or a file is of another format, of another schema, or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if columns is not None:
            self.require(columns)
        for url in self.files:
            with store.open_input(url) as file:
                parquet = _checked(url, pq, file)
                if not _spelt_schema(parquet.schema_arrow).equals(self.schema):
                    raise OutputError(f"{url} has other columns than {self.files[0]}: they are of different runs")
                try:
                    found = parquet.iter_batches(rows, columns=None if columns is None else list(columns))
                    yield from map(_spell_hashes, found)
                except (pa.ArrowInvalid, OSError) as error:
                    raise OutputError(f"{url} is damaged: {error}") from error

    def columns(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Whole columns as numpy arrays: name -> (N,), null as NaN in floats and as None (object) elsewhere."""
        import pyarrow as pa

        fields = [self.schema.field(name) for name in names if name in self.schema.names]
        table = pa.Table.from_batches(self.batches(names), pa.schema(fields))
        return {name: to_numpy(table.column(name)) for name in names}

    def embeddings(
        self, *, rows: int = 65_536, dtype: str = "float32"
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Embeddings in order, without the rows that have none.

        Args:
            rows: Rows of a piece, at the most.
            dtype: What to give them as: "float32" or "float16".

        Yields:
            (n,) int64, the rows' numbers in this output (0 is the first row of the first file), and (n, D).

        Raises:
            OutputError: There are none, or as `batches`.
        """
        if not self.embedding_dim:
            raise OutputError("the output has no embeddings: curate again, and have them written")
        at = 0
        for batch in self.batches([EMBEDDING], rows=rows):
            column = batch.column(0)
            there = np.arange(at, at + len(batch))
            if column.null_count:
                there = there[column.is_valid().to_numpy(zero_copy_only=False)]
            at += len(batch)
            values = column.flatten().to_numpy(zero_copy_only=False)  # without those of null rows
            yield there, values.reshape(-1, self.embedding_dim).astype(dtype, copy=False)


class RowSubset:
    """Some rows of an output, in its order.

    Args:
        files: The output's rows.
        rows: (M,) int64, the numbers of the rows, ascending.
        kinds: Name -> type of the columns.
    """

    def __init__(self, files: RowFiles, rows: NDArray[np.int64], kinds: Mapping[str, str]) -> None:
        self.files, self.rows, self.kinds = files, rows, kinds

    def __len__(self) -> int:
        return len(self.rows)

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


def read_types(url: str) -> dict[str, Any]:
    """Read the columns of a Parquet file of an output: name -> `pyarrow.DataType`.

    Raises:
        OutputError: It is damaged, or of another format.
    """
    import pyarrow.parquet as pq

    with store.open_input(url) as file:
        return {field.name: field.type for field in _checked(url, pq, file).schema_arrow}


def read_embeddings(url: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Embeddings of some rows of one file; of the row groups that have none of them nothing is read.

    Args:
        url: The Parquet file.
        rows: (n,) their numbers in it, ascending.

    Returns:
        (n, D) float32.

    Raises:
        OutputError: It is damaged, or of another format; a row has no embedding.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    blocks, at = [], 0
    with store.open_input(url) as file:
        parquet = _checked(url, pq, file)
        dim = parquet.schema_arrow.field(EMBEDDING).type.list_size
        for number in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(number).num_rows
            wanted = rows[np.searchsorted(rows, at) : np.searchsorted(rows, at + count)] - at
            at += count
            if not len(wanted):
                continue
            try:
                column = parquet.read_row_group(number, columns=[EMBEDDING]).column(0)
            except (pa.ArrowInvalid, OSError) as error:
                raise OutputError(f"{url} is damaged: {error}") from error
            if len(wanted) < count:
                column = column.take(pa.array(wanted))
            for chunk in column.chunks:
                if chunk.null_count:
                    raise OutputError(f"{url}: {chunk.null_count} of the rows that are wanted have no embedding")
                values = chunk.flatten().to_numpy(zero_copy_only=False)
                blocks.append(values.reshape(-1, dim).astype(np.float32, copy=False))
    return np.concatenate([np.empty((0, dim), np.float32), *blocks])


def to_numpy(column: Any) -> NDArray[Any]:
    """A `pyarrow.ChunkedArray` as a batch has a column: null is NaN among floats, None among objects elsewhere."""
    import pyarrow as pa

    if column.null_count and not pa.types.is_floating(column.type):  # integers would become floats, hashes others
        return objects(column.to_pylist())
    array: NDArray[Any] = column.to_numpy()
    return array


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
    return [place for place, field in enumerate(schema) if field.name in _HASHES and str(field.type) == "uint64"]


def _find(url: str) -> list[str]:
    if url.endswith(".parquet"):
        return [url]
    folder = url.rstrip("/") if is_remote(url) else url
    if store.read(join(folder, "_manifest/run.json")) is not None:
        parts = Manifest.load(folder).parts()
        names = [file.name for part in parts for file in part.files if file.name.endswith(".parquet")]
    else:
        names = sorted(name for name in store.listing(folder) if name.endswith(".parquet") and name[0] != ".")
    return [join(folder, name) for name in names]


def _checked(url: str, pq: Any, file: Any) -> Any:
    """The opened file, if it is one of ours and of this format."""
    import pyarrow as pa

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
    return parquet
