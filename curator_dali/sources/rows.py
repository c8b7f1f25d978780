"""Further fields of samples: rows of an Arrow file that is mapped, looked up when somebody reads the metadata."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.io import AtomicFile, cache_path, one_line
from curator_dali.sources.base import EncodedBatch, Source, kind_of_type
from curator_dali.sources.sidecars import add_sidecars
from curator_dali.sources.subset import Subset

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 65_536  # of a record batch: of every one but the last, so that a row's number tells where it lies


class MappedRows:
    """Rows of columns, in an Arrow file in the cache folder that is mapped into memory.

    The file is made when a row is first read, and again where it is missing or damaged. Instances pickle without it.

    Args:
        key: A text that no other rows have; the file is found by it.
        make: A function that yields `pyarrow.RecordBatch`es of one schema, in order. It must pickle.
        columns: The columns' names; others are not read.
    """

    def __init__(self, key: str, make: Callable[[], Iterable[Any]], columns: Sequence[str]) -> None:
        self.key, self._make, self.columns = key, make, list(columns)
        self._start()

    def row(self, number: int) -> dict[str, Any]:
        """The fields of a row. A value that Python cannot hold, such as a date in the year 29349, is a text."""
        chunk, at = divmod(number, _CHUNK_ROWS)
        getters = self._getters.get(chunk) or self._read_chunk(chunk)
        try:
            return {name: get(at) for name, get in getters}
        except (ValueError, OverflowError):
            batch = self._open_reader().get_batch(chunk)
            return {name: _to_python(batch.column(name)[at]) for name in self.columns}

    def close(self) -> None:
        """Let the mapped file go. A later look opens it again."""
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"key": self.key, "_make": self._make, "columns": self.columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._reader: Any = None
        # chunk -> for each column a function from a row of the chunk to its value
        self._getters: dict[int, list[tuple[str, Callable[[int], Any]]]] = {}

    def _read_chunk(self, chunk: int) -> list[tuple[str, Callable[[int], Any]]]:
        batch = self._open_reader().get_batch(chunk)
        found = self._getters[chunk] = [(name, _make_getter(batch.column(name))) for name in self.columns]
        return found

    def take(self, name: str, rows: NDArray[np.int64]) -> Any:
        """Take (n,) values of a column, a `pyarrow.Array`; fast where `rows` ascend."""
        import pyarrow as pa

        chunks, parts = rows // _CHUNK_ROWS, []
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))  # where another chunk begins
        for start, stop in pairwise([*starts.tolist(), len(rows)]):
            chunk = int(chunks[start])
            column = self._open_reader().get_batch(chunk).column(name)
            parts.append(column.take(pa.array(rows[start:stop] - chunk * _CHUNK_ROWS)))
        return pa.concat_arrays(parts) if parts else pa.array([], pa.large_string())

    def blocks(self, name: str) -> Iterator[Any]:
        """Iterate over the values of a column, a `pyarrow.Array` for each chunk."""
        reader = self._open_reader()
        for chunk in range(reader.num_record_batches):
            yield reader.get_batch(chunk).column(name)

    def count(self) -> int:
        """Number of rows."""
        reader = self._open_reader()
        chunks = int(reader.num_record_batches)
        return (chunks - 1) * _CHUNK_ROWS + len(reader.get_batch(chunks - 1)) if chunks else 0

    def _open_reader(self) -> Any:
        with self._lock:
            if self._reader is None:
                self._reader = self._open()
        return self._reader

    def _open(self) -> Any:
        """Map the file, made anew where it is missing or damaged."""
        path = keep_file(self.key, ".arrow", self._write)
        try:
            return _map_file(path)
        except (OSError, ValueError):  # damaged
            self._write(path)
            return _map_file(path)

    def _write(self, path: str) -> None:
        with AtomicFile(path, sync=False) as file:
            write_chunks(file, self._make())


class HeldRows(MappedRows):
    """Rows of record batches in memory, which pickle with these.

    Args:
        key: See `MappedRows`.
        batches: The `pyarrow.RecordBatch`es.
        columns: The columns' names.
    """

    def __init__(self, key: str, batches: Sequence[Any], columns: Sequence[str]) -> None:
        super().__init__(key, partial(iter, batches), columns)

    def _open(self) -> Any:
        return _Batches(list(chunk_rows(self._make())))


class _Batches(list[Any]):
    """Record batches with the method by which a file is asked for one."""

    @property
    def num_record_batches(self) -> int:
        return len(self)

    def get_batch(self, number: int) -> Any:
        return self[number]


def keep_file(key: str, ending: str, write: Callable[[str], object]) -> str:
    """Find a file in the cache folder, or write it; where it has no room, into a folder that ends with the process.

    Args:
        key: A text that no other file of the ending has.
        ending: The end of its name.
        write: A function that writes a file of a path, whole or not at all.

    Returns:
        The file's path.
    """
    path = cache_path("rows", key, ending)
    if os.path.exists(path):
        return path
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write(path)
        return path
    except OSError as error:
        logger.warning("cannot keep rows in %s (%s): they are gathered again each time", path, one_line(error))
    path = os.path.join(_make_scratch().name, os.path.basename(path))
    if not os.path.exists(path):
        write(path)
    return path


@cache
def _make_scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="curator-dali-")


def _map_file(path: str) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(path))


def write_chunks(file: IO[bytes] | AtomicFile, batches: Iterable[Any]) -> None:
    """Write record batches as an Arrow file of chunks of equal numbers of rows; in memory is one at a time."""
    import pyarrow as pa

    writer = None
    for chunk in chunk_rows(batches):
        if writer is None:
            writer = pa.ipc.new_file(file, chunk.schema)
        writer.write_batch(chunk)
    if writer is None:
        writer = pa.ipc.new_file(file, pa.schema([]))
    writer.close()


def chunk_rows(batches: Iterable[Any]) -> Iterator[Any]:
    """Cut record batches anew: yield such of 65,536 rows, and at the end one of those that are left."""
    import pyarrow as pa

    held: list[Any] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += len(batch)
        while rows >= _CHUNK_ROWS:
            table = pa.Table.from_batches(held)
            yield _join_batches(table.slice(0, _CHUNK_ROWS))
            held, rows = table.slice(_CHUNK_ROWS).to_batches(), rows - _CHUNK_ROWS
    if rows:
        yield _join_batches(pa.Table.from_batches(held))


def _join_batches(table: Any) -> Any:
    """A table's rows as one record batch."""
    import pyarrow as pa

    (batch,) = table.combine_chunks().to_batches() if len(table) else (pa.RecordBatch.from_pylist([], table.schema),)
    return batch


_FORMATS = {
    "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q",
    "float": "f", "double": "d",
}  # fmt: skip


def _make_getter(column: Any) -> Callable[[int], Any]:
    """Make a function from the number of a row to its value in a `pyarrow.Array`; a tenth of what a scalar costs."""
    kind, start = str(column.type), column.offset
    if column.null_count == len(column):
        return lambda at: None
    if kind not in _FORMATS and kind not in ("string", "large_string"):
        return lambda at: column[at].as_py()
    valid, values, *rest = column.buffers()
    plain: Any = memoryview(values).cast("B")
    if kind not in _FORMATS:
        offsets = plain.cast("i" if kind == "string" else "q")[start:]
        data = memoryview(rest[0] or b"")
        get: Callable[[int], Any] = lambda at: str(data[offsets[at] : offsets[at + 1]], "utf-8")  # noqa: E731
    else:
        get = plain.cast(_FORMATS[kind])[start:].__getitem__
    if not column.null_count:
        return get
    bits = memoryview(valid).cast("B")
    return lambda at: get(at) if bits[(at + start) >> 3] >> ((at + start) & 7) & 1 else None


def _to_python(value: Any) -> Any:
    """The value of an Arrow scalar, or its text where Python has no such value."""
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        try:
            return str(value.cast("string").as_py())
        except Exception:  # text that is not UTF-8, among others
            buffer = getattr(value, "as_buffer", lambda: None)()
            return None if buffer is None else buffer.to_pybytes().decode("utf-8", "backslashreplace")


class RowSource(Subset):
    """Samples of a source, some or all of them, with the fields of rows among their metadata.

    Args:
        source: The whole.
        chosen: Which samples; see `Subset`.
        rows: The rows.
        numbers: (len(self),) the number of each sample's row, -1 where a sample has none.
        types: Types of the rows' columns, as `Source.arrow_fields` has them.
    """

    def __init__(
        self,
        source: Source,
        chosen: slice | NDArray[Any],
        rows: MappedRows,
        numbers: NDArray[np.int64],
        types: Mapping[str, Any],
    ) -> None:
        super().__init__(source, chosen)
        run = to_slice(numbers)
        self._numbers = range(len(self) + run.start)[run] if isinstance(run, slice) else numbers
        self._table, self._types = rows, dict(types)

    @property
    def fields(self) -> Mapping[str, str] | None:
        """The whole's and the columns', where the whole has a schema; a column goes over a field of its name."""
        known = self.source.fields
        kinds = {name: kind_of_type(kind) for name, kind in self._types.items()}
        return None if known is None else {**known, **kinds}

    @property
    def arrow_fields(self) -> Mapping[str, Any] | None:
        """The whole's and the columns', where the whole has a schema."""
        known = self.source.arrow_fields
        return None if known is None else {**known, **self._types}

    def read(self, indices: NDArray[np.int64], *, members: bool = False) -> EncodedBatch:
        """Read samples; see `Source.read`. Rows are looked up when somebody reads the metadata."""
        return self._add_fields(super().read(indices, members=members))

    def read_without(
        self, indices: NDArray[np.int64], skipped: NDArray[np.bool_], *, members: bool = False
    ) -> EncodedBatch:
        """Read samples, some of them without their images; see `Source.read_without`."""
        return self._add_fields(super().read_without(indices, skipped, members=members))

    def _add_fields(self, batch: EncodedBatch) -> EncodedBatch:
        """Put the fields of rows among the samples' metadata."""
        batch.objects = list(batch.objects)
        merge, table, create = self._merge, self._table, object.__new__
        # a sample may be an object that its source keeps, so another one gets the further fields; `batch.clone` would
        # take three times as long, for every image
        for place, number in enumerate(self._find_rows(batch.indices).tolist()):
            if number >= 0:
                item = batch.objects[place]
                known = item.__dict__
                new = batch.objects[place] = create(type(item))
                new.__dict__.update(known)
                new.__dict__["_metadata"] = partial(merge, known["_metadata"], table, number)
        if batch.members is not None:
            pairs = zip(batch.members, batch.objects, strict=True)
            batch.members = [add_sidecars(mine, item.metadata) if mine else mine for mine, item in pairs]
        return batch

    def close(self) -> None:
        """Close the whole, and let the mapped rows go. A later read opens both again."""
        super().close()
        self._table.close()

    def _find_rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) numbers of samples' rows, -1 where a sample has none."""
        numbers = self._numbers
        return numbers.start + indices if isinstance(numbers, range) else numbers[indices]

    @staticmethod
    def _merge(metadata: Any, rows: MappedRows, number: int) -> dict[str, Any]:
        """Put the fields of a row over a sample's own; `metadata` is a dict, or a function that makes it."""
        return {**(metadata() if callable(metadata) else metadata), **rows.row(number)}


def to_slice(numbers: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Numbers as a slice, which takes no memory, where they are one run of at least 1; else as they are."""
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers
