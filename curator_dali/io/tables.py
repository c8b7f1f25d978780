"""`Table`: columns beside a data set, in files or in memory, read a block at a time."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from curator_dali.arguments import list_paths
from curator_dali.errors import SourceError
from curator_dali.io.files import open_regular
from curator_dali.io.lru import LRU
from curator_dali.io.ranges import ask, filesystem, fingerprint, strip_query
from curator_dali.io.remote import is_remote, one_line
from curator_dali.io.stats import Stat, stat_of

_LINE = "line"  # the only column of a file of plain text

_ACCEPTED = (
    "a .parquet, .csv, .jsonl, .arrow or .feather file, a URL or glob of such files, a list of these, a pyarrow.Table, "
    "or a frame of pandas or polars"
)
_KINDS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_NO_TABLES = frozenset([".json", ".gz", ".zip", ".xz", ".bz2", ".zst", ".xlsx", ".npy", ".sqlite", ".pkl"])
_BLOCK_ROWS = 65_536
_PROBED_BYTES = 1 << 16
_CSV_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_CSV_NUMBER = r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"  # its whole part fits a float
_CSV_BOOL = "^([tT]rue|[fF]alse)$"


@dataclass(frozen=True)
class Table:
    """Rows of named columns.

    Attributes:
        name: The files' names, for messages.
        schema: The `pyarrow.Schema`.
        unit: "line" of a file of plain text, else "row".
        has_header: Whether the columns have their names from a first line, as in CSV.
        version: A text that changes with the content and the place of a file; empty for a table in memory.
        identity: A text that changes with the content: of sizes and content hashes or, where a store tells none, of the
            beginnings and ends of files. A copy elsewhere, under any names, is the same table.
    """

    name: str
    schema: Any
    unit: str
    version: str
    identity: str
    _read: Callable[[Sequence[str]], Iterable[Any]] = field(repr=False)
    has_header: bool = False

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Iterate over `pyarrow.RecordBatch`es in order, each of at most 65,536 rows.

        Args:
            columns: Names of columns; None for all.

        Raises:
            SourceError: A file cannot be read, is damaged, or has other columns than the first one.
            KeyError: The table has no such column.
        """
        import pyarrow as pa

        names = list(self.schema.names if columns is None else columns)
        for name in names:
            self.check_column(name)
        schema = pa.schema([self.schema.field(name) for name in names])
        for batch in self._read(names):
            for start in range(0, len(batch), _BLOCK_ROWS):
                part = batch.slice(start, _BLOCK_ROWS)
                yield pa.RecordBatch.from_arrays([part.column(name) for name in names], schema=schema)

    def check_column(self, name: str) -> None:
        """Refuse a name that no column has.

        Raises:
            SourceError: No column has the name; those that the table has are named.
        """
        if name not in self.schema.names:
            raise SourceError(f"{self.name} has no column {name!r}; it has {', '.join(self.schema.names)}")


def open_table(table: Any, *, text: bool = False) -> Table:
    """Open a table of files, or of memory.

    A column of a CSV has a type where all its values are spelt so: integers of 64 bits, numbers, true and false. Any
    other column is text, and an empty value is null.

    Args:
        table: A path or URL of a Parquet, CSV, TSV, JSON lines or Arrow (Feather) file; a glob; a list of these; a
            `pyarrow.Table`; a frame of pandas or polars.
        text: Whether a file of any other ending is plain text, a table of the one column `line`.

    Raises:
        SourceError: There is no such file, or it is no table, or damaged.
    """
    import pyarrow as pa

    if isinstance(table, (pa.Table, pa.RecordBatch)) or hasattr(table, "__arrow_c_stream__"):
        found = pa.table(table)
        found = found.drop_columns([name for name in found.column_names if name.startswith("__index_level_")])
        _check_names("the table", found.schema)
        return Table("the table", found.schema, "row", "", "", lambda names: found.select(names).to_batches())
    if not isinstance(table, (str, os.PathLike)) and not (isinstance(table, Sequence) and table):
        raise SourceError(f"cannot open {table!r:.80} as a table: give {_ACCEPTED}")
    urls = [url for path in list_paths(table) for url in _find(path)]
    kinds = {_kind(url, text) for url in urls}
    if len(kinds) > 1:
        raise SourceError(f"tables of one kind are read together, not {' and '.join(sorted(kinds))} files: {urls[:5]}")
    kind = kinds.pop()
    files = [_File(url, kind) for url in urls]
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    schema = files[0].schema
    _check_names(urls[0], schema)
    stats = [file.stat() for file in files]
    version = fingerprint("table", [(strip_query(file.url), stat) for file, stat in zip(files, stats, strict=True)])
    identity = fingerprint(
        "table", [(stat.size, stat.content or file.probe(stat.size)) for file, stat in zip(files, stats, strict=True)]
    )

    def read(names: Sequence[str]) -> Iterator[Any]:
        for file in files:
            yield from file.read(names, schema)

    return Table(name, schema, "line" if kind == "text" else "row", version, identity, read, kind == "csv")


def _check_names(name: str, schema: Any) -> None:
    """Refuse several columns of one name."""
    if repeated := [column for column, times in Counter(schema.names).items() if times > 1]:
        raise SourceError(f"{name} has several columns {repeated[0]!r}: give each a name of its own")


def _find(path: str) -> list[str]:
    """Find the files of a path, URL or glob."""
    has_wildcard = any(letter in path for letter in "*?[")
    if is_remote(path):
        if not has_wildcard:
            return [path]
        fs, inner = filesystem(path)
        found = [fs.unstrip_protocol(match) for match in sorted(ask(path, lambda: fs.glob(inner)))]
    else:
        path = os.path.abspath(os.path.expanduser(path))
        found = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True)) if has_wildcard else []
    if not found:
        raise SourceError(f"no table there: {path!r}. A table is {_ACCEPTED}")
    return found


def _kind(url: str, text: bool) -> str:
    ending = os.path.splitext(strip_query(url).lower())[1]
    if ending in _NO_TABLES or (ending not in _KINDS and not text):
        more = "; a list may be a text file, too" if text else ""
        raise SourceError(f"cannot read {url!r}, which ends in {ending!r}: a table is {_ACCEPTED}{more}")
    return _KINDS.get(ending, "text")


class _File:
    """One file of a table. Parquet and Arrow are read a block at a time, text is parsed as a whole, and kept."""

    def __init__(self, url: str, kind: str) -> None:
        self.url, self.kind = url, kind
        self.name = strip_query(url).rpartition("/")[2]
        self._parsed: LRU[str, Any] = LRU(1)

    def stat(self) -> Stat:
        """The file's size and version."""
        with _explained(self.url):
            if not is_remote(self.url):
                return Stat.of_local(os.stat(self.url))
            fs, path = filesystem(self.url)
            return stat_of(ask(self.url, lambda: fs.info(path)))

    def probe(self, size: int) -> str:
        """A digest of the beginning and the end, in which Parquet and Arrow say where all their columns lie."""
        found = hashlib.blake2b(digest_size=16)
        with _explained(self.url), self._open() as file:
            found.update(file.read(_PROBED_BYTES))
            file.seek(max(0, size - _PROBED_BYTES))
            found.update(file.read(_PROBED_BYTES))
        return found.hexdigest()

    @property
    def schema(self) -> Any:
        """The columns' names and types."""
        with self._read() as (schema, _):
            return schema.remove_metadata()

    def read(self, names: Sequence[str], schema: Any) -> Iterator[Any]:
        """Iterate over record batches of some columns, cast to a schema."""
        import pyarrow as pa

        wanted = pa.schema([schema.field(name) for name in names])
        with self._read() as (found, blocks):
            if missing := [name for name in names if name not in found.names]:
                raise SourceError(f"{self.url} has no column {missing[0]!r}; it has {', '.join(found.names)}")
            for batch in blocks(list(names)):
                yield from pa.Table.from_batches([batch]).select(list(names)).cast(wanted).to_batches()

    @contextmanager
    def _read(self) -> Iterator[tuple[Any, Callable[[list[str]], Iterable[Any]]]]:
        """Open the file: its schema, and a function from columns to record batches. A failure is a `SourceError`."""
        import pyarrow.parquet as pq

        with _explained(self.url):
            if self.kind not in ("parquet", "arrow"):
                table = self._parsed.get("table", self._parse)
                yield table.schema, lambda names: table.to_batches()
                return
            with self._open() as file:
                if self.kind == "parquet":
                    parquet = pq.ParquetFile(file)
                    yield parquet.schema_arrow, lambda names: parquet.iter_batches(_BLOCK_ROWS, columns=names)
                else:
                    reader = _open_arrow(file)
                    yield reader.schema, lambda names: _iterate(reader)

    def _open(self) -> Any:
        if not is_remote(self.url):
            return os.fdopen(open_regular(self.url), "rb")
        fs, path = filesystem(self.url)
        return ask(self.url, lambda: fs.open(path, "rb"))

    def _parse(self) -> Any:
        with self._open() as file:
            data = file.read()
        if self.kind == "jsonl":
            return parse_json_lines(data)
        try:
            text = data.decode(json.detect_encoding(data))
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.url} is no UTF-8 text ({error}): save it as UTF-8") from error
        if self.kind == "text":
            return parse_text(text.encode())
        delimiter = "\t" if self.name.lower().endswith(".tsv") else ","
        return parse_csv(text.encode(), read_names(text, delimiter), delimiter=delimiter)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raise failures as a `SourceError` that names the table."""
    try:
        yield
    except (SourceError, GeneratorExit):
        raise
    except Exception as error:  # Arrow raises ArrowInvalid, OSError and more; stores have kinds of their own
        raise SourceError(f"cannot read the table {url!r}: {one_line(error)}") from error


def _open_arrow(file: Any) -> Any:
    """Open a file of Arrow or, where it is none, a stream."""
    import pyarrow as pa

    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)


def _iterate(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def parse_text(data: bytes) -> Any:
    """Parse plain text as a `pyarrow.Table` of one column `line`, without white space at the ends of lines."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    if not data.strip():
        return pa.table({_LINE: pa.array([], pa.string())})
    table = pyarrow.csv.read_csv(
        io.BytesIO(data),
        read_options=pa.csv.ReadOptions(column_names=[_LINE]),
        parse_options=pa.csv.ParseOptions(delimiter="\x1f", quote_char=False, ignore_empty_lines=False),
        convert_options=pa.csv.ConvertOptions(column_types={_LINE: pa.string()}, strings_can_be_null=False),
    )
    return table.set_column(0, _LINE, pc.utf8_trim_whitespace(table.column(0)))


def parse_json_lines(data: bytes) -> Any:
    """Parse JSON lines as a `pyarrow.Table`. Text stays text, also where it is spelt as a date.

    Raises:
        pyarrow.ArrowInvalid: It is none, or a field is of several types.
    """
    import pyarrow as pa
    import pyarrow.json

    if not data.strip():
        return pa.table({})
    table = pyarrow.json.read_json(io.BytesIO(data))
    schema = pa.schema([field.with_type(_without_dates(field.type)) for field in table.schema])
    if schema.equals(table.schema):
        return table
    return pyarrow.json.read_json(io.BytesIO(data), parse_options=pa.json.ParseOptions(explicit_schema=schema))


def _without_dates(kind: Any) -> Any:
    """An Arrow type of JSON in which dates, which JSON has not, are text."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dates(field.type)) for field in kind])
    return kind


def parse_csv(data: bytes, columns: Sequence[str], *, texts: Sequence[str] = (), delimiter: str = ",") -> Any:
    """Parse a CSV as a `pyarrow.Table`; a column has a type where no value changes by it.

    Args:
        data: Its content, in UTF-8.
        columns: The names in its first line, by `read_names`.
        texts: Columns that stay text.
        delimiter: What stands between values.

    Raises:
        pyarrow.ArrowInvalid: It is no CSV; the row is named.
    """
    import pyarrow as pa
    import pyarrow.csv

    table = pa.csv.read_csv(
        io.BytesIO(data),
        read_options=pa.csv.ReadOptions(use_threads=False),  # only one thread knows the row of an error
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )
    for at, name in enumerate(table.column_names):
        if name not in texts:
            table = table.set_column(at, name, _convert(table.column(at)))
    return table


def read_names(text: str, delimiter: str = ",") -> list[str]:
    """Read the names of the columns of a CSV: its first line that is not blank."""
    return next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])


def _convert(column: Any) -> Any:
    """A column of texts as integers, numbers or bools if all values are spelt so, else as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for pattern, kind in ((_CSV_INTEGER, pa.int64()), (_CSV_NUMBER, pa.float64()), (_CSV_BOOL, pa.bool_())):
        if pc.all(pc.match_substring_regex(column, pattern), min_count=1).as_py():
            try:
                converted = column.cast(kind)
            except pa.ArrowInvalid:  # beyond 64 bits
                return column
            infinite = kind == pa.float64() and pc.any(pc.is_inf(converted)).as_py()
            return column if infinite else converted
    return column
