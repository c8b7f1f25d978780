"""Fields of the metadata as columns: of a stage that reads them, and of an output that keeps them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import missing, objects
from curator_dali.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.io import printable
from curator_dali.outputs import FIXED_COLUMNS, LOADED, METADATA, FieldColumns, stored_type
from curator_dali.sources import ABSENT, Source, dump_fields, is_same, merge_rest, merge_types, to_text
from curator_dali.stages import Plan, Stage, written

Misfits = dict[str, tuple[int, str]]
"""Field -> how many values do not fit its column's type, and the first of these."""

LOOKED_AT = 256  # samples whose metadata says what type a field has
_READ_AT_ONCE = 32  # of these, whose images are in memory at once
_MOST_COLUMNS = 1000  # of fields that no schema names; the JSON of some samples has ids for names
_DEEPEST = 8  # lists and structs in each other, of columns that no schema names


def look_at_fields(source: Source) -> list[Mapping[str, Any]]:
    """Read the metadata of at most 256 samples: the first ones, and without a schema others spread evenly.

    Raises:
        SourceError: A sample cannot be read now.
    """
    rows = _rows_to_look_at(len(source), spread=source.fields is None)
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(rows), _READ_AT_ONCE):
        some = rows[start : start + _READ_AT_ONCE]
        batch = source.read_without(some, np.ones(len(some), bool))
        batch.check_read()
        found += [item.metadata for item in batch.objects]
    return found


def field_types(
    source: Source, stages: Sequence[Stage], looked: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, str]:
    """Find the fields of the metadata, each with the type of its column.

    A field is what its data set's schema says. Where there is no schema it is of the type that its values have in the
    samples looked at, numbers always as "float64". Of a field with values of several types, or with none, the stages'
    conditions decide, then "string".

    Args:
        source: The data set.
        stages: What reads the fields.
        looked: What `look_at_fields` found; it is read here if it is left out.

    Returns:
        Name -> one of `FIELD_TYPES`.

    Raises:
        StageError: A stage compares texts with a number.
        SourceError: A sample cannot be read now.
    """
    schema, seen, texts = source.fields, dict[str, set[str]](), dict[str, Any]()
    for fields in look_at_fields(source) if looked is None else looked:
        for name, value in fields.items():
            kinds = seen.setdefault(str(name), set())
            if value is not None:
                kinds.add(_kind(value))
                texts.setdefault(str(name), value) if _kind(value) == "string" else None
    types = {name: merge_types(kinds) if kinds else "" for name, kinds in seen.items()} | dict(schema or {})
    made = {*LOADED, *(name for stage in stages for name in written(stage))}
    for stage in stages:
        for name, kind in stage.expects.items():
            if name in made:
                continue
            if types.get(name) == "" or (types.get(name) == "string" and kind in seen.get(name, ())):
                types[name] = kind
            elif types.get(name) == "string" and kind == "float64":
                example = f", as {texts[name]!r}" if name in texts else ""
                raise StageError(
                    f"{stage.name} compares with a number, and {name!r} is a text in the samples looked at{example}: "
                    f"use equals= with texts or where=; or say metadata={{{name!r}: 'float64'}} if others have numbers"
                )
    return {name: kind or "string" for name, kind in types.items()}


def _rows_to_look_at(count: int, spread: bool) -> NDArray[np.int64]:
    """(M,) int64, ascending: the first rows, and as many others spread evenly."""
    first = np.arange(min(LOOKED_AT // 2 if spread else LOOKED_AT, count), dtype=np.int64)
    others = np.linspace(0, count - 1, LOOKED_AT // 2 if spread and count else 0).astype(np.int64)
    return np.union1d(first, others)


def add_columns(batch: ImageBatch, fields: Collection[str], types: Mapping[str, str]) -> Misfits:
    """Turn fields of the metadata into columns of the batch.

    Args:
        batch: Gets the columns.
        fields: Names of fields.
        types: Field -> type, as `field_types` has them.

    Returns:
        What does not fit, and so counts as missing.
    """
    misfits: Misfits = {}
    for name in fields:
        found = objects([item.metadata.get(name) for item in batch.data])
        batch.columns[name], odd = to_column(found, types[name])
        if len(odd):
            misfits[name] = (len(odd), _shorten(found[odd[0]]))
    return misfits


def add_misfits(total: Misfits, more: Mapping[str, Sequence[Any]]) -> None:
    """Add misfits to others; the example of a field stays the first one."""
    for name, (count, example) in more.items():
        before, first = total.get(name, (0, example))
        total[name] = (before + count, first)


def to_column(values: NDArray[np.object_], kind: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values of any type as a column of one. `arrays.with_gaps` takes values that are of one type already.

    Args:
        values: (N,) objects.
        kind: One of `FIELD_TYPES`.

    Returns:
        (N,): float64 with NaN where a value is missing, else objects with None there; and (M,) int64, the rows whose
        value is not of that type, and so is missing.
    """
    column = missing(len(values), kind)
    odd = []
    for row, value in enumerate(values.tolist()):
        if value is None:
            continue
        if (converted := _convert(value, kind)) is None:
            odd.append(row)
        else:
            column[row] = converted
    return column, np.array(odd, np.int64)


def _convert(value: Any, kind: str) -> Any:
    """A value as a column of a type holds it; None where it cannot."""
    if kind == "string":
        return to_text(value)
    found = _kind(value)
    if kind == "bool":
        return bool(value) if found == "bool" else None
    if found != "float64":
        return None
    if kind == "int64":
        return int(value) if value == value // 1 and -(2**63) <= value < 2**63 else None
    return float(value)


def _kind(value: Any) -> str:
    """The type of a column that a value alone would make."""
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if not isinstance(value, (Real, Decimal)):
        return "string"
    try:
        float(value)
    except (OverflowError, ValueError):  # a whole number of more than 308 digits
        return "string"
    return "float64"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plan_fields(
    source: Source,
    plan: Plan,
    wanted: bool | Sequence[str] | Mapping[str, str],
    looked: Sequence[Mapping[str, Any]],
    reserved: Collection[str] = (),
    is_usable: Callable[[Any], bool] | None = None,
) -> FieldColumns:
    """Choose the columns for fields of the metadata that an output keeps.

    A column has the type that its data set's schema says. Without a schema it has the type that most values have in
    the samples looked at. A field gets no column where the output has another of its name, or no column can hold it.

    Args:
        source: The data set.
        plan: The stages.
        wanted: Names; names with one of `FIELD_TYPES` each; or True for all fields.
        looked: What `look_at_fields` found; nothing where the source has a schema.
        reserved: Names of further columns that the output has.
        is_usable: Tells of a `pyarrow.DataType` whether readers of the output know it; None where they know all.

    Raises:
        StageError: A name is none of a field; or, where no types are given, a stage has a column named `metadata`.
    """
    import pyarrow as pa

    if METADATA in plan.columns and not isinstance(wanted, Mapping):
        raise StageError(
            f"a stage has a column {METADATA!r}, and metadata= needs that name for fields without a column of their "
            "own: leave metadata= out, or give the stage's column another name"
        )
    schema = source.arrow_fields
    types = infer_types(looked) if schema is None else schema
    unknown = {name for name, kind in types.items() if schema is None and pa.types.is_null(kind)}
    if isinstance(wanted, Mapping):
        types = {name: getattr(pa, kind if kind != "bool" else "bool_")() for name, kind in wanted.items()}
    elif wanted is not True:
        assert not isinstance(wanted, bool)
        _check_names(wanted, types, bool(len(source)))
        types = {name: pa.string() if name in unknown else types.get(name, pa.string()) for name in wanted}
    else:
        types = {name: kind for name, kind in types.items() if name not in unknown}
    taken = {*plan.columns, *FIXED_COLUMNS, METADATA, *reserved}
    stored = {name: stored_type(kind) for name, kind in types.items() if _is_column_name(name) and name not in taken}
    names = plan.metadata if wanted is True else wanted
    return FieldColumns(
        types={name: k for name, k in stored.items() if k is not None and (is_usable is None or is_usable(k))},
        read=frozenset(plan.metadata).intersection(names),
        rest=METADATA not in plan.columns,
        nulls=schema is not None,
    )


def infer_types(looked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Infer the Arrow types of fields of samples.

    Args:
        looked: The fields of N samples.

    Returns:
        Name -> `pyarrow.DataType`, of null where no value tells; of the most frequent names, where they are many.
    """
    import pyarrow as pa

    values: dict[str, list[Any]] = {}
    for fields in looked:
        for name, value in fields.items():
            values.setdefault(str(name), []).append(value)
    names = sorted(values, key=lambda name: -len(values[name]))[:_MOST_COLUMNS]
    found = {}
    for name in values.keys() & names:
        known = [value for value in values[name] if value is not None]
        kinds = [float if type(value) is int else type(value) for value in known]  # 1 is a score among 0.5
        usual = Counter(kinds).most_common(1)[0][0] if kinds else None
        chosen = [value for value, kind in zip(known, kinds, strict=True) if kind is usual]
        found[name] = _infer_type(chosen) if chosen else pa.null()
    return {name: found[name] for name in values if found.get(name) is not None}


def make_fields(
    metadata: Sequence[Mapping[str, Any]],
    columns: Mapping[str, NDArray[Any]],
    fields: FieldColumns,
    wanted: Collection[str] | None = None,
) -> Any:
    """Make the columns of N samples' fields. What a column cannot hold exactly is in the last one, `metadata`.

    Args:
        metadata: The fields of N samples.
        columns: Name -> (N,) values of the fields that stages read.
        fields: The columns.
        wanted: The fields to keep; None for all.

    Returns:
        A `pyarrow.RecordBatch` of N rows, with the columns `fields.names`.
    """
    import pyarrow as pa

    left = [
        {str(name): value for name, value in found.items() if wanted is None or str(name) in wanted}
        for found in metadata
    ]
    arrays = [_take_column(left, name, kind, fields.nulls) for name, kind in fields.types.items()]
    for name in fields.read:
        held = columns[name].tolist()
        _take_held(left, name, [_as_stored(value) for value in held], fields.nulls, exact=False)
    rest = [dump_fields(found, ascii=True) if found else None for found in left]
    arrays += [pa.array(rest, pa.string())] if fields.rest else []
    return pa.RecordBatch.from_arrays(arrays, names=fields.names)


def read_fields(rows: Any, fields: FieldColumns | None = None) -> list[dict[str, Any]]:
    """Read the fields of samples back from rows of an output.

    Args:
        rows: N rows, a `pyarrow.Table` or a `pyarrow.RecordBatch`.
        fields: The columns; by default those that the schema marks.

    Returns:
        The fields of N samples, equal to those that went in where all were kept.
    """
    fields = FieldColumns.from_arrow(rows.schema) if fields is None else fields
    found: list[dict[str, Any]] = [{} for _ in range(rows.num_rows)]
    for name in [*fields.types, *sorted(fields.read)]:
        for row, value in enumerate(rows.column(name).to_pylist()):
            if value is not None or fields.nulls:
                found[row][name] = value
    return found if not fields.rest else list(map(merge_rest, found, rows.column(METADATA).to_pylist()))


def _take_column(left: Sequence[dict[str, Any]], name: str, kind: Any, nulls: bool) -> Any:
    """Make a field's column, and take its values out of what is left, where the column holds them exactly."""
    import pyarrow as pa

    values = [found.get(name) for found in left]
    array = _to_arrow(values, kind)
    if array is None:
        values = [value if _to_arrow([value], kind) is not None else None for value in values]
        array = _to_arrow(values, kind)
    odd = _take_held(left, name, [None] * len(values) if array is None else array.to_pylist(), nulls)
    if array is None:
        return pa.nulls(len(values), kind)
    return array if not odd else _to_arrow([None if row in odd else value for row, value in enumerate(values)], kind)


def _take_held(
    left: Sequence[dict[str, Any]], name: str, held: Sequence[Any], nulls: bool, exact: bool = True
) -> set[int]:
    """Take a field's values out of what is left, where a column holds them. Returns the rows where it holds another."""
    odd = set()
    for row, (found, value) in enumerate(zip(left, held, strict=True)):
        if name not in found:
            if nulls:
                found[name] = ABSENT
        elif found[name] is None:
            if nulls and value is None:
                del found[name]
        elif (type(value) in _PLAIN_TYPES and type(value) is type(found[name]) and value == found[name]) or is_same(
            found[name], value, exact
        ):
            del found[name]
        elif value is not None and not is_same(found[name], value, exact=False):
            odd.add(row)  # an integer may stand in a column of floats, and is left for its type
    return odd


_PLAIN_TYPES = frozenset([str, int, float, bool])


def _to_arrow(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of a type; None where a value does not go into one."""
    import pyarrow as pa

    try:
        array = pa.array(values, kind)
        array.to_pylist()  # Python has no value for some dates
        return None if isinstance(array, pa.ChunkedArray) else array
    except Exception:  # Arrow raises ArrowInvalid, TypeError, OverflowError, UnicodeError, RecursionError and more
        return None


def _as_stored(value: Any) -> Any:
    """A value of a stage's column as a file has it."""
    return printable(value) if isinstance(value, str) else None if value != value else value


def _infer_type(values: Sequence[Any]) -> Any:
    """The Arrow type of values, or of most of them; None where there is none, or it is nested very deep."""
    import pyarrow as pa

    try:
        kind = pa.array(values).type
    except Exception:  # as `_to_arrow`
        kinds = [_infer_type([value]) for value in values] if len(values) > 1 else []
        return next((kind for kind, _ in Counter(kinds).most_common() if kind is not None), None)
    level = [kind]
    for _ in range(_DEEPEST):
        level = [inner.field(number).type for inner in level for number in range(inner.num_fields)]
    return None if level else kind


def _check_names(wanted: Sequence[str], types: Mapping[str, Any], present: bool) -> None:
    """Refuse names that are no fields, where there are samples to tell."""
    for name in wanted:
        if name not in types and present:
            close = difflib.get_close_matches(name, types, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise StageError(
                f"metadata= names {name!r}, which none of the samples looked at has{meant}; they have "
                f"{', '.join(sorted(types)) or 'no fields'}. If it is rare, say its type, as "
                f"metadata={{{name!r}: 'string'}}"
            )


def _is_column_name(name: str) -> bool:
    """Whether a Parquet file can have a column of that name."""
    return bool(name) and "\0" not in name and printable(name) == name
