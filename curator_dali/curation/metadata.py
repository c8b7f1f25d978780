"""Fields of the samples' metadata as columns: what type they are, and how each value becomes one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import objects
from curator_dali.batch.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.sources.base import Source, merge_types, to_text
from curator_dali.stages.base import Stage
from curator_dali.stages.plan import LOADED, written

__all__ = ["FIELD_TYPES", "LOOKED_AT", "Misfits", "add_columns", "add_misfits", "field_types", "to_column"]

FIELD_TYPES = ("bool", "int64", "float64", "string")
"""Types of the columns that fields of the metadata become."""

LOOKED_AT = 256  # samples whose metadata says what type a field has
_AT_ONCE = 32  # samples whose images are in memory

Misfits = dict[str, tuple[int, str]]
"""Field -> how many values do not fit its column's type, and the first of these."""


def field_types(source: Source, stages: Sequence[Stage]) -> dict[str, str]:
    """The fields of the metadata, each with the type of its column.

    A field is what its data set's schema says. Where there is no schema it is of the type that its values have in the
    samples looked at, numbers always as "float64". Of a field with values of several types, or with none, the stages'
    conditions decide, then "string".

    Args:
        source: At most 256 samples are read: the first ones, and without a schema others spread evenly.
        stages: What reads the fields.

    Returns:
        Name -> one of `FIELD_TYPES`.

    Raises:
        StageError: A stage compares texts with a number.
        SourceError: A sample cannot be read now.
    """
    schema, seen, texts = source.fields, dict[str, set[str]](), dict[str, Any]()
    rows = _rows_to_look_at(len(source), spread=schema is None)
    for start in range(0, len(rows), _AT_ONCE):
        batch = source.read(rows[start : start + _AT_ONCE])
        batch.check_read()
        for item in batch.objects:
            for name, value in item.metadata.items():
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
    """Values of any type as a column of one.

    Args:
        values: (N,) objects.
        kind: One of `FIELD_TYPES`.

    Returns:
        (N,): float64 with NaN where a value is missing, else objects with None there; and (M,) int64, the rows whose
        value is not of that type, and so is missing.
    """
    column = np.full(len(values), np.nan) if kind == "float64" else np.full(len(values), None, object)
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
