"""Labels and metadata beside images: annotation files, class folders, class names of schemas, partitions."""

from __future__ import annotations

import csv
import io
import json
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import one_line, parse_csv, parse_json, read_names, strip_query
from curator_dali.sources.listing import common_folder, list_names, warn_of_split_folders
from curator_dali.sources.paths import Paths
from curator_dali.sources.row_groups import read_row, read_row_group
from curator_dali.sources.sidecars import restore_types

logger = logging.getLogger(__name__)

_Fields = Callable[[int], dict[str, Any]]
"""The fields of a row of one metadata file."""

ClassNames = Mapping[str, Sequence[str]]
"""Column of integers -> names, by integer."""

_NAME_COLUMN = "file_name"
_FIX = "mend it, or move the file out of the folder"

_FEATURES_KEY = b"huggingface"  # of the metadata of a schema

_PARTITION_FIELD = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_PARTITION_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_PARTITION_NULL = "__HIVE_DEFAULT_PARTITION__"


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
                logger.warning("%s/%s has no column %r: it says nothing of images", root, file, _NAME_COLUMN)
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
    """Parse a metadata file: the values of `file_name`, and a function from a row to its other fields.

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
            name = value.get(_NAME_COLUMN) if isinstance(value, dict) else None
            if not isinstance(name, str):
                if not names:
                    raise KeyError(_NAME_COLUMN)
                raise SourceError(f"{where}, line {number}: {line[:80]!r} has no text {_NAME_COLUMN!r}: {_FIX}")
            names.append(name)
            bounds.append((begin, end))
        begin = end + 1
    return names, partial(_fields_of_line, data, np.array(bounds, np.int64).reshape(-1, 2))


def _fields_of_line(data: bytes, bounds: NDArray[np.int64], row: int) -> dict[str, Any]:
    fields = restore_types(parse_json(data[bounds[row, 0] : bounds[row, 1]]))
    del fields[_NAME_COLUMN]
    return fields


def _parse_csv(where: str, text: str, data: bytes) -> tuple[list[str], _Fields]:
    """Parse a CSV, of which all columns are read as text, and get a type where no value changes by it."""
    import pyarrow as pa

    try:
        columns = read_names(text)
        _check_columns(where, columns)
        table = parse_csv(data, columns, texts=[_NAME_COLUMN])
    except (pa.ArrowException, csv.Error) as error:  # the former names the row
        raise SourceError(f"{where} is damaged: {one_line(error)}: {_FIX}") from error
    return _fields_of_table(where, table)


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
    if _NAME_COLUMN not in columns:
        raise KeyError(_NAME_COLUMN)
    if repeated := [name for name, times in Counter(columns).items() if times > 1]:
        raise SourceError(f"{where} has several columns {repeated[0]!r}: give each a name of its own")


def _fields_of_table(where: str, table: Any) -> tuple[list[str], _Fields]:
    names = table.column(_NAME_COLUMN).to_pylist()
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise SourceError(f"{where}, row {row + 1}: {_NAME_COLUMN} is {name!r}, not the name of a file: {_FIX}")
    return names, partial(_fields_of_row, table.drop_columns([_NAME_COLUMN]))


def _fields_of_row(table: Any, row: int) -> dict[str, Any]:
    return read_row(table, row)


def number_classes(paths: Sequence[str], folders: Iterable[str], root: str) -> tuple[list[str], NDArray[np.int32]]:
    """Number the folders right below the root by name, if every image lies in one.

    Folders without images are classes too: training and validation data then agree on the numbers.

    Args:
        paths: N paths of images below the root.
        folders: Names of all folders right below the root.
        root: Its path, for warnings.

    Returns:
        Names by label, and (N,) int32 labels; no names and -1 where there are no class folders.
    """
    filled: dict[str, int] = {}  # folder -> its number in the order of the paths; "" for the root
    names, numbers = (paths if isinstance(paths, Paths) else Paths(paths)).folders
    used, places = np.unique(numbers, return_inverse=True)
    tops = [filled.setdefault(names[number].partition("/")[0], len(filled)) for number in used.tolist()]
    above = np.array(tops, np.int32)[places]  # (N,) the number of each path's folder right below the root
    none = np.full(len(paths), -1, np.int32)
    if "" in filled or not filled:
        if len(filled) > 1:
            logger.warning(
                "no labels are made of the folders in %s: %d of %d images lie beside the folders %s, in no class. Move "
                "these images into a folder, or give label_from_folder=False if folders are no classes",
                root,
                int((above == filled[""]).sum()),
                len(above),
                list_names(filled.keys() - {""}),
            )
        return [], none
    names = sorted({*filled, *folders})
    if empty := [name for name in names if name not in filled]:
        logger.warning(
            "%d of %d class folders in %s have no images: %s. Each keeps its label; remove these folders if they are "
            "no classes, or give label_from_folder=False",
            len(empty),
            len(names),
            root,
            list_names(empty),
        )
    warn_of_split_folders(names, root)
    labels = np.searchsorted(names, list(filled)) if names else none
    return names, np.asarray(labels, np.int32)[above]


def read_class_names(schema: Any) -> dict[str, list[str]]:
    """Read which columns of a file are numbers of classes: column -> names of the classes, by number.

    What is damaged in the metadata of the `pyarrow.Schema` counts as absent.
    """
    import pyarrow as pa

    found: dict[str, list[str]] = {}
    try:
        features: dict[str, Any] = parse_json((schema.metadata or {}).get(_FEATURES_KEY, b"{}"))["info"]["features"]
        for column, feature in features.items():
            if not isinstance(feature, dict):  # a list is a sequence
                continue
            names: Any = feature.get("names") if feature.get("_type") == "ClassLabel" else None
            known = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if known and column in schema.names and pa.types.is_integer(schema.field(column).type):
                found[column] = names
    except (ValueError, KeyError, TypeError, AttributeError):  # of another tool, or damaged
        return {}
    return found


def add_class_names(fields: dict[str, Any], classes: ClassNames) -> dict[str, Any]:
    """Put the name of each class beside its number in a row, as `COLUMN_name`; a field of that name stays.

    The row itself is changed, and returned.
    """
    for column, names in classes.items():
        number = fields.get(column)
        if isinstance(number, int) and 0 <= number < len(names):  # -1 is no class: of test data, say
            fields.setdefault(f"{column}_name", names[number])
    return fields


def partition_fields(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Read key -> value in the names of each file's folders: those below the common folder of all files.

    The `key=value` names that this folder's own path ends with say fields, too. Those further up say none, so that a
    copy of a data set elsewhere is the same data set. A value is an integer where all values of its key are such, else
    text. `__HIVE_DEFAULT_PARTITION__` is None.
    """
    found: list[dict[str, Any]] = []
    cache: dict[str, dict[str, Any]] = {}  # by folder: most files share theirs
    paths = list(map(strip_query, urls))
    above = common_folder(paths) if paths else ""
    while _PARTITION_FIELD.fullmatch(above.rpartition("/")[2]):
        above = above.rpartition("/")[0]
    for path in paths:
        folder = path.rpartition("/")[0]
        if folder not in cache:
            below = folder[len(above) :].split("/") if "=" in folder else ()
            matches = filter(None, map(_PARTITION_FIELD.fullmatch, below))
            cache[folder] = {unquote(m[1]): None if m[2] == _PARTITION_NULL else unquote(m[2]) for m in matches}
        found.append(cache[folder])
    texts: dict[str, set[str]] = {}
    for fields in cache.values():
        for key, value in fields.items():
            texts.setdefault(key, set()).update(() if value is None else (value,))
    integers = {key for key, values in texts.items() if all(map(_PARTITION_INTEGER.fullmatch, values))}
    for fields in cache.values():
        fields.update({key: int(value) for key, value in fields.items() if key in integers and value is not None})
    return found
