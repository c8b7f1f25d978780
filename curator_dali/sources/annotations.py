"""Metadata files of image folders, as Hugging Face has them: `metadata.jsonl`, `.csv` or `.parquet`."""

from __future__ import annotations

import csv
import io
import json
import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io.files import parse_json
from curator_dali.io.remote import one_line
from curator_dali.sources.row_groups import read_row_group

__all__ = ["Annotations"]

logger = logging.getLogger(__name__)

_NAME = "file_name"
_FIX = "mend it, or move the file out of the folder"
_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"  # any whole part of it fits a float
_BOOL = "^([tT]rue|[fF]alse)$"


_Fields = Callable[[int], dict[str, Any]]
"""The fields of a row of one metadata file."""


class Annotations:
    """Fields of images, by the metadata files in their folder or in one above it.

    The file that lies nearest to an image is the one that counts; of several in one folder, the last by name, and of
    several rows in one file, the last. Rows stay as they are in the files (lines of JSON, Arrow tables) until somebody
    asks for one. A column of a CSV has a type where all its values are spelt so: canonical integers of 64 bits, plain
    numbers, or true and false. Any other column is text as it is spelt, and an empty value is None.

    Args:
        root: The folder, for messages.
        files: Paths of metadata files below the root.
        paths: N paths of images below the root.
        read: A function that reads one of `files`.
        whole: Whether `paths` are all images there are, so that rows without one are worth a warning.

    Raises:
        SourceError: A metadata file is damaged or cannot be read; names the line.
    """

    def __init__(
        self, root: str, files: Sequence[str], paths: Sequence[str], read: Callable[[str], bytes], whole: bool
    ) -> None:
        numbers = {path: number for number, path in enumerate(paths)} if files else {}
        self._tables: list[_Fields] = []
        self._rows = np.full(len(paths), -1, np.int64)  # of all tables, one after the other
        starts, unmatched, repeated = [0], 0, 0
        folder_starts: dict[str, int] = {}  # folder -> its first row
        for file in sorted(files, key=lambda file: (file.count("/"), file)):  # deeper ones come later, and count
            try:
                names, fields = _parse(f"{root}/{file}", read(file))
            except KeyError:
                logger.warning("%s/%s has no column %r: it says nothing of images", root, file, _NAME)
                continue
            folder = posixpath.dirname(file)
            folder_start = folder_starts.setdefault(folder, starts[-1])
            for row, name in enumerate(names):
                number = numbers.get(posixpath.normpath(posixpath.join(folder, name)))
                if number is None:
                    unmatched += 1
                else:
                    repeated += bool(self._rows[number] >= folder_start)
                    self._rows[number] = starts[-1] + row
            starts.append(starts[-1] + len(names))
            self._tables.append(fields)
        self._starts = np.array(starts, np.int64)
        if repeated:
            logger.warning(
                "%d rows of the metadata files in %s are not used, as later ones name the same images: the last row "
                "counts, and of several metadata files in one folder the last by name",
                repeated,
                root,
            )
        bare = int((self._rows < 0).sum())
        if whole and self._tables and (unmatched or bare):
            logger.warning(
                "%d rows of the metadata files in %s have no image, and %d of %d images have no row",
                unmatched,
                root,
                bare,
                len(paths),
            )

    def __bool__(self) -> bool:
        return bool(self._tables)

    def fields(self, number: int) -> dict[str, Any]:
        """The fields of an image, by its number; none where no row names the image."""
        row = int(self._rows[number])
        if row < 0:
            return {}
        table = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._tables[table](row - int(self._starts[table]))


def _parse(where: str, data: bytes) -> tuple[list[str], _Fields]:
    """Parse a metadata file.

    Returns:
        The values of `file_name`, and a function from a row to its other fields.

    Raises:
        KeyError: The file has no `file_name`.
        SourceError: The file is damaged, or no Unicode text.
    """
    if where.lower().endswith(".parquet"):
        return _parse_parquet(where, data)
    encoding = json.detect_encoding(data)  # UTF-8, also with a byte-order mark, UTF-16 or UTF-32
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is no UTF-8 text ({error}): save it as UTF-8") from error
    data = data if encoding == "utf-8" else text.encode()
    return _parse_lines(where, data) if where.lower().endswith(".jsonl") else _parse_csv(where, text, data)


def _parse_lines(where: str, data: bytes) -> tuple[list[str], _Fields]:
    names: list[str] = []
    bounds: list[tuple[int, int]] = []
    begin = number = 0
    while begin < len(data):
        number += 1
        end = data.find(b"\n", begin)
        end = len(data) if end < 0 else end
        if line := data[begin:end].strip():
            try:
                value = parse_json(line)
            except ValueError as error:
                raise SourceError(f"{where}, line {number}: {line[:80]!r} is no JSON ({error}): {_FIX}") from error
            name = value.get(_NAME) if isinstance(value, dict) else None
            if not isinstance(name, str):
                if not names:
                    raise KeyError(_NAME)
                raise SourceError(f"{where}, line {number}: {line[:80]!r} has no text {_NAME!r}: {_FIX}")
            names.append(name)
            bounds.append((begin, end))
        begin = end + 1
    return names, partial(_fields_of_line, data, np.array(bounds, np.int64).reshape(-1, 2))


def _fields_of_line(data: bytes, bounds: NDArray[np.int64], row: int) -> dict[str, Any]:
    fields: dict[str, Any] = parse_json(data[bounds[row, 0] : bounds[row, 1]])
    del fields[_NAME]
    return fields


def _parse_csv(where: str, text: str, data: bytes) -> tuple[list[str], _Fields]:
    """Parse a CSV, of which all columns are read as text, and get a type where no value changes by it."""
    import pyarrow as pa
    import pyarrow.csv

    try:
        columns: list[str] = next(filter(None, csv.reader(io.StringIO(text, newline=""))), [])
        _check_columns(where, columns)
        table = pa.csv.read_csv(
            io.BytesIO(data),
            read_options=pa.csv.ReadOptions(use_threads=False),  # only one thread knows the row of an error
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, csv.Error) as error:  # the former names the row
        raise SourceError(f"{where} is damaged: {one_line(error)}: {_FIX}") from error
    for at, name in enumerate(columns):
        if name != _NAME:
            table = table.set_column(at, name, _convert(table.column(at)))
    return _fields_of_table(where, table)


def _convert(column: Any) -> Any:
    """A column of text as integers, numbers or bools if all values are spelt so, else as it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64()), (_BOOL, pa.bool_())):
        if pc.all(pc.match_substring_regex(column, pattern), min_count=1).as_py():
            try:
                converted = column.cast(kind)
            except pa.ArrowInvalid:  # beyond 64 bits
                return column
            infinite = kind == pa.float64() and pc.any(pc.is_inf(converted)).as_py()
            return column if infinite else converted
    return column


def _parse_parquet(where: str, data: bytes) -> tuple[list[str], _Fields]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        names = file.schema_arrow.names
        parts = [read_row_group(file, group, names) for group in range(file.num_row_groups)]
        table = pa.concat_tables([file.schema_arrow.empty_table(), *parts])
    except Exception as error:  # ArrowInvalid, OSError and more
        raise SourceError(f"{where} is damaged: {one_line(error)}: {_FIX}") from error
    _check_columns(where, table.column_names)
    return _fields_of_table(where, table)


def _check_columns(where: str, columns: Sequence[str]) -> None:
    """Raise where a file has no `file_name` (KeyError), or several columns of one name (SourceError)."""
    if _NAME not in columns:
        raise KeyError(_NAME)
    if repeated := [name for name, times in Counter(columns).items() if times > 1]:
        raise SourceError(f"{where} has several columns {repeated[0]!r}: give each a name of its own")


def _fields_of_table(where: str, table: Any) -> tuple[list[str], _Fields]:
    names = table.column(_NAME).to_pylist()
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise SourceError(f"{where}, row {row + 1}: {_NAME} is {name!r}, not the name of a file: {_FIX}")
    return names, partial(_fields_of_row, table.drop_columns([_NAME]))


def _fields_of_row(table: Any, row: int) -> dict[str, Any]:
    return table.slice(row, 1).to_pylist()[0] if table.num_columns else {}
