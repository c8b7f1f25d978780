"""The columns of a Parquet file that hold images, and ids: of a column, of images' paths, or of the rows' places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.errors import SourceError
from curator_dali.io import IMAGE_EXTENSIONS, strip_query
from curator_dali.outputs import MEMBERS, METADATA, FieldColumns
from curator_dali.sources.annotations import ClassNames, add_class_names
from curator_dali.sources.base import kind_of_type
from curator_dali.sources.listing import common_folder
from curator_dali.sources.row_groups import is_binary, read_row
from curator_dali.sources.sidecars import merge_rest

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("key", "__key__", "image_id", "id")
"""Columns that hold ids; the first that a file has counts."""

_IMAGE_COLUMNS = ("image", "img", "image_bytes", "bytes", "content", "data")  # beside the names of image extensions


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
    names = find_ids(schema)
    kind = schema.field(image_column).type
    has_path = pa.types.is_struct(kind) and "path" in [field.name for field in kind]
    wanted = [*names, *([f"{image_column}.path"] if has_path else [])]
    if not wanted:
        return None, None
    table = reader.read_row_group(group, columns=wanted, use_threads=False)
    if len(samples) != len(table) or (samples != np.arange(len(table))).any():
        table = table.take(pa.array(samples))
    ids = table.column(names[0]).combine_chunks() if names else None
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
    return pa.array(
        [name if text is None else text for text, name in zip(given, names, strict=True)], pa.large_string()
    )


def unique_stems(urls: Sequence[str]) -> list[str]:
    """Make the beginnings of ids: the files' stems or, if these repeat, their paths below the common folder."""
    paths = [strip_query(url) for url in urls]
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    root = common_folder(paths)
    names = [path[len(root) :].lstrip("/") for path in paths]
    stems = [name.rpartition(".")[0] for name in names]
    return stems if len(set(stems)) == len(stems) else names


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


def is_image_type(kind: Any) -> bool:
    """Whether a type is one of bytes, or a struct with such `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_binary(field.type) for field in kind)
    return is_binary(kind)


def find_image_column(schema: Any, url: str) -> str:
    """The column with images: the only one that can be, or the one with the most usual name."""
    found = [field.name for field in schema if is_image_type(field.type)]
    usual = [name for name in (*_IMAGE_COLUMNS, *sorted(IMAGE_EXTENSIONS)) if name in found]
    if len(found) == 1 or usual:
        return found[0] if len(found) == 1 else usual[0]
    has = f"binary columns {', '.join(found)}" if found else f"no binary column, only {', '.join(schema.names)}"
    raise SourceError(f"{url} has {has}: name the one that holds the images with image_column=")


def check_columns(columns: Sequence[str] | None, schemas: Sequence[Any], name: str) -> None:
    """Refuse a column that no file has."""
    known = list(dict.fromkeys(column for schema in schemas for column in schema.names))
    for column in columns or () if schemas else ():
        if column not in known:
            raise SourceError(f"columns= names {column!r}, which {name} does not have; it has {', '.join(known)}")


def find_ids(schema: Any) -> list[str]:
    """The column that ids are from: one name, or none. In a file that a curation wrote, `image_id` is its own."""
    own = FieldColumns.from_arrow(schema).layout
    return [name for name in (*sorted(own), *ID_COLUMNS) if name in ID_COLUMNS and name in schema.names][:1]


def metadata_types(
    schema: Any, image_column: str, columns: Sequence[str] | None, *, with_rest: bool = False
) -> dict[str, Any]:
    """Column -> `pyarrow.DataType`, of the columns that are metadata, and further parts of the images' struct.

    Args:
        schema: A file's `pyarrow.Schema`.
        image_column: The column with the images.
        columns: The columns that may be metadata; None for all.
        with_rest: Whether to name, too, the columns of further fields and members in a file that a curation wrote.
    """
    import pyarrow as pa

    found = {field.name: field.type for field in schema if columns is None or field.name in columns}
    own = FieldColumns.from_arrow(schema)
    if not with_rest and own.rest:
        found.pop(METADATA, None)
    if columns is None:
        kept = {MEMBERS} if with_rest else set()
        found = {name: kind for name, kind in found.items() if name not in own.layout - kept}
    if image_column in found:
        kind = found.pop(image_column)
        said = {"bytes", *(() if find_ids(schema) else ("path",))}
        parts = [field for field in kind if field.name not in said] if pa.types.is_struct(kind) else []
        if parts:
            found[image_column] = pa.struct(parts)
    return found


def cut_struct(column: Any, kind: Any) -> Any:
    """Some parts of a column of structs, as one of structs of the type `kind`."""
    import pyarrow as pa

    names = [field.name for field in column.type]
    chunks = []
    for chunk in column.chunks:
        parts = chunk.flatten()
        wanted = [parts[names.index(field.name)] for field in kind]
        chunks.append(pa.StructArray.from_arrays(wanted, fields=list(kind), mask=chunk.is_null()))
    return pa.chunked_array(chunks, kind)


def kinds_of(types: Mapping[str, Any]) -> dict[str, str]:
    """Fields with their types as `Source.fields` has them, without those that are null."""
    import pyarrow as pa

    return {name: kind_of_type(kind) for name, kind in types.items() if not pa.types.is_null(kind)}


def row_metadata(table: Any, own: FieldColumns, partition: Mapping[str, Any], classes: ClassNames, row: int) -> Any:
    """A sample's metadata. The table has no images in it, so that metadata that is not read yet keeps none."""
    return finish_fields(read_row(table, row), own, partition, classes)


def finish_fields(
    fields: dict[str, Any], own: FieldColumns, partition: Mapping[str, Any], classes: ClassNames
) -> dict[str, Any]:
    """A sample's metadata from its cells: of a curation's file as they were, with what folders and labels say."""
    if own or own.layout:
        absent = set() if own.nulls else {name for name in (*own.types, *own.read) if fields.get(name) is None}
        absent |= own.layout
        rest = fields.pop(METADATA, None) if own.rest else None
        fields = merge_rest({name: value for name, value in fields.items() if name not in absent}, rest)
    return add_class_names({**partition, **fields}, classes)


def extra_types(partition: Mapping[str, Any], classes: ClassNames) -> dict[str, Any]:
    """Arrow types of the fields that are in no column: those of a partition, and names of classes."""
    import pyarrow as pa

    kinds = {int: pa.int64(), str: pa.string(), type(None): pa.null()}
    return {f"{column}_name": pa.string() for column in classes} | {
        name: kinds[type(value)] for name, value in partition.items()
    }
