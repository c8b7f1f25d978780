"""The ids of rows of Parquet files: of a column, of the images' paths, or of the rows' places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("key", "__key__", "image_id", "id")
"""Columns that hold ids; the first that a file has counts."""


def read_names(reader: Any, group: int, image_column: str, samples: NDArray[np.int64]) -> tuple[Any, Any]:
    """Read the ids and the images' paths of rows of a row group, and no other column.

    Args:
        reader: The `pyarrow.parquet.ParquetFile`.
        group: The number of the row group.
        image_column: The column with the images.
        samples: (n,) rows of the row group.

    Returns:
        (n,) ids and (n,) paths; None where the file has no such column.
    """
    import pyarrow as pa

    schema = reader.schema_arrow
    name = next((name for name in ID_COLUMNS if name in schema.names and name != image_column), None)
    kind = schema.field(image_column).type
    has_path = pa.types.is_struct(kind) and "path" in [field.name for field in kind]
    wanted = [*([name] if name else []), *([f"{image_column}.path"] if has_path else [])]
    if not wanted:
        return None, None
    table = reader.read_row_group(group, columns=wanted, use_threads=False)
    if len(samples) != len(table) or (samples != np.arange(len(table))).any():
        table = table.take(pa.array(samples))
    ids = table.column(name).combine_chunks() if name else None
    paths = table.column(image_column).combine_chunks().flatten()[0] if has_path else None
    return ids, paths


def name_rows(ids: Any, paths: Any, names: Sequence[str]) -> pa.LargeStringArray:
    """Make the `image_id`s of rows.

    Args:
        ids: (n,) values of the column of ids, or None where there is no such column.
        paths: (n,) values of the images' paths, or None.
        names: n names for rows without either.
    """
    import pyarrow as pa
    import pyarrow.types as kinds

    if ids is not None and not ids.null_count:
        text = kinds.is_string(ids.type) or kinds.is_large_string(ids.type)
        if text or kinds.is_integer(ids.type):
            try:
                found = ids.cast(pa.large_string())
                found.validate(full=True)  # Arrow checks no text that it reads
                return found
            except pa.ArrowInvalid:
                pass
    given = [decode_cell(value) for value in ids] if ids is not None else [None] * len(names)
    if paths is not None:
        stems = ((path.rpartition(".")[0] or path) if path else None for path in map(decode_cell, paths))
        given = [stem if text is None else text for text, stem in zip(given, stems, strict=True)]
    return pa.array([name if text is None else text for text, name in zip(given, names, strict=True)], pa.large_string())


def decode_cell(value: Any) -> str | None:
    r"""An Arrow scalar as a text; bytes that are not UTF-8 show as `\xNN`. Arrow checks no text that it reads."""
    try:
        found = value.as_py()
    except UnicodeDecodeError:
        found = value.as_buffer().to_pybytes()
    except Exception:  # Python has no value for some dates
        return str(value.cast("string").as_py())
    if found is None:
        return None
    return found.decode("utf-8", "backslashreplace") if isinstance(found, bytes) else str(found)
