"""Metadata files of image folders, as Hugging Face has them: `metadata.jsonl`, `.csv` or `.parquet`."""

from __future__ import annotations

import io
import json
import logging
import posixpath
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.sources.storage import one_line

__all__ = ["Annotations"]

logger = logging.getLogger(__name__)

_NAME = "file_name"
_FIX = "mend it, or move the file out of the folder"


_Fields = Callable[[int], dict[str, Any]]
"""The fields of a row of one metadata file."""


class Annotations:
    """Fields of images, by the metadata files in their folder or in one above it.

    The file that lies nearest to an image is the one that counts. Rows stay as they are in the files (lines of JSON,
    Arrow tables) until somebody asks for one.

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
        numbers = {path: number for number, path in enumerate(paths)}
        self._tables: list[_Fields] = []
        self._rows = np.full(len(paths), -1, np.int64)  # of all tables, one after the other
        starts, unmatched = [0], 0
        for file in sorted(files, key=lambda file: file.count("/")):  # deeper ones come later, and count
            try:
                names, fields = _parse(f"{root}/{file}", read(file))
            except KeyError:
                logger.warning("%s/%s has no column %r: it says nothing of images", root, file, _NAME)
                continue
            folder = posixpath.dirname(file)
            for row, name in enumerate(names):
                number = numbers.get(posixpath.normpath(posixpath.join(folder, name)))
                if number is None:
                    unmatched += 1
                else:
                    self._rows[number] = starts[-1] + row
            starts.append(starts[-1] + len(names))
            self._tables.append(fields)
        self._starts = np.array(starts, np.int64)
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
        SourceError: The file is damaged.
    """
    return _parse_lines(where, data) if where.endswith(".jsonl") else _parse_columns(where, data)


def _parse_lines(where: str, data: bytes) -> tuple[list[str], _Fields]:
    names: list[str] = []
    bounds: list[tuple[int, int]] = []
    begin = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    number = 0
    while begin < len(data):
        number += 1
        end = data.find(b"\n", begin)
        end = len(data) if end < 0 else end
        if line := data[begin:end].strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
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
    fields: dict[str, Any] = json.loads(data[bounds[row, 0] : bounds[row, 1]])
    del fields[_NAME]
    return fields


def _parse_columns(where: str, data: bytes) -> tuple[list[str], _Fields]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if where.endswith(".csv") and _NAME.encode() not in data.partition(b"\n")[0]:  # also of another encoding
        raise KeyError(_NAME)
    try:
        if where.endswith(".csv"):
            table = pa.csv.read_csv(
                io.BytesIO(data),
                read_options=pa.csv.ReadOptions(use_threads=False),  # only one thread knows the row of an error
                parse_options=pa.csv.ParseOptions(newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(column_types={_NAME: pa.string()}),
            )
        else:
            table = pq.read_table(io.BytesIO(data))
    except Exception as error:  # ArrowInvalid, OSError and more; of a CSV it names the row
        raise SourceError(f"{where} is damaged: {one_line(error)}: {_FIX}") from error
    names = table.column(_NAME).to_pylist()
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise SourceError(f"{where}, row {row + 1}: {_NAME} is {name!r}, not the name of a file: {_FIX}")
    return names, partial(_fields_of_row, table.drop_columns([_NAME]))


def _fields_of_row(table: Any, row: int) -> dict[str, Any]:
    return table.slice(row, 1).to_pylist()[0] if table.num_columns else {}
