"""Fields of the samples' metadata as columns: what type they are, and how each value becomes one."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch import ImageBatch
from curator_dali.fields import objects
from curator_dali.sources import Source

__all__ = ["add_columns", "field_types", "to_column"]

logger = logging.getLogger(__name__)

_LOOKED_AT = 256  # samples whose metadata says what type a field has


def field_types(source: Source) -> dict[str, str]:
    """The fields that the first samples' metadata has, each with the type that all its values there have.

    Args:
        source: Its first 256 samples are read.

    Returns:
        Name -> "bool", "int64", "float64" or "string"; "string" also where there are values of several types.
    """
    rows = np.arange(min(_LOOKED_AT, len(source)), dtype=np.int64)
    kinds: dict[str, set[str]] = {}
    for item in source.read(rows).objects:
        for name, value in item.metadata.items():
            if value is not None:
                kinds.setdefault(str(name), set()).add(_kind(value))
            else:
                kinds.setdefault(str(name), set())
    return {name: _common(found) for name, found in kinds.items()}


def add_columns(batch: ImageBatch, fields: Collection[str], types: Mapping[str, str]) -> None:
    """Turn fields of the metadata into columns of the batch.

    Args:
        batch: Gets the columns.
        fields: Which.
        types: Field -> type, as `field_types` has them.
    """
    for name in fields:
        found = objects([item.metadata.get(name) for item in batch.data])
        batch.columns[name] = to_column(name, found, types[name])


def to_column(name: str, values: NDArray[np.object_], kind: str) -> NDArray[Any]:
    """Values of any type as a column of one; what cannot be of that type counts as missing.

    Args:
        name: The field, for the log.
        values: (N,) objects.
        kind: "bool", "int64", "float64" or "string".

    Returns:
        (N,): float64 with NaN where a value is missing, else objects with None there.
    """
    column = np.full(len(values), np.nan) if kind == "float64" else np.full(len(values), None, object)
    for row, value in enumerate(values.tolist()):
        if value is None:
            continue
        if kind == "string":
            column[row] = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        elif (found := _kind(value)) == kind or (kind == "float64" and found == "int64"):
            column[row] = value
        else:
            logger.debug("%s is %r, and no %s as with the first samples: taken as missing", name, value, kind)
    return column


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return "int64"
    return "float64" if isinstance(value, (int, float)) else "string"


def _common(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    return "float64" if kinds and kinds <= {"int64", "float64"} else "string"
