"""One field of many images as an array, wherever it is kept: a column, an `ImageObject`'s attribute or its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.arrays import objects
from curator_dali.batch.image import ImageObject

__all__ = ["order", "values"]

_ATTRIBUTES = ("image_id", "image_path", "aesthetic_score", "nsfw_score")


def values(data: Sequence[ImageObject], columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """A field's value for each image.

    Looks into `columns` first, then at the attributes that have a value, then into the metadata.

    Args:
        data: N images.
        columns: Name -> (N,) values.
        name: The field.

    Returns:
        (N,): numbers as float64 with NaN where an image has none, int64 or bool where all have one; else objects, with
        None where an image has none.

    Raises:
        KeyError: No image has the field; the message names those that there are.
    """
    if name in columns:
        return columns[name]
    found: list[Any] = [getattr(item, name) for item in data] if name in _ATTRIBUTES else [None] * len(data)
    if all(value is None for value in found):
        found = [item.metadata.get(name) for item in data]
    if data and all(value is None for value in found):
        there = {*columns, *_ATTRIBUTES[:2], *(key for item in data for key in item.metadata)}
        there |= {field for field in _ATTRIBUTES[2:] if any(getattr(item, field) is not None for item in data)}
        raise KeyError(f"no image has a field {name!r}; there are {', '.join(sorted(map(str, there)))}")
    kinds = {type(value) for value in found if value is not None}
    if kinds and kinds <= {bool, int, float, np.float32, np.float64, np.int64}:
        if None in found or kinds & {float, np.float32, np.float64}:
            return np.array([np.nan if value is None else value for value in found], np.float64)
        if kinds == {bool} or all(isinstance(v, bool) or -(2**63) <= v < 2**63 for v in found):
            return np.array(found, bool if kinds == {bool} else np.int64)
    return objects(found)


def order(values: NDArray[Any], descending: bool = False) -> NDArray[np.int64]:
    """Row numbers that sort values; equal ones keep their order, missing ones (None, NaN) come last either way.

    Raises:
        TypeError: Values of different kinds that cannot be compared.
    """
    missing = np.array([value is None or value != value for value in values.tolist()], bool)
    there = np.flatnonzero(~missing)
    ranks = np.unique(values[there], return_inverse=True)[1].ravel()
    sort = np.argsort(-ranks if descending else ranks, kind="stable")
    return np.concatenate([there[sort], np.flatnonzero(missing)]).astype(np.int64)
