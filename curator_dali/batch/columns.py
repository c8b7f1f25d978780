"""`Columns`: the columns of a batch, each with a value an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali import arrays

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Columns"]


class Columns(dict[str, NDArray[Any]]):
    """Name -> (N,) numpy, of N images. A list, a tensor or an array on a GPU becomes a numpy array.

    Pickled and copied it is a plain dict.

    Args:
        data: The N images; a list that grows takes longer columns.
        columns: Name -> N values.

    Raises:
        ValueError: A column has not a value an image; on every assignment.
    """

    def __init__(self, data: Sequence[Any], columns: Mapping[str, Any]) -> None:
        self.data = data
        self.update(columns)

    def __setitem__(self, name: str, values: Any) -> None:
        column = values if isinstance(values, np.ndarray) else _to_column(values)
        count = len(self.data)
        if column.ndim == 0 or len(column) != count:
            found = f"one {type(values).__name__}, {values!r:.60}," if column.ndim == 0 else f"{len(column)} values"
            raise ValueError(
                f"column {name!r}: {found} for {count} images; give one value an image, as np.full({count}, 1.0)"
            )
        super().__setitem__(name, column)

    def update(self, *others: Mapping[str, Any] | Iterable[tuple[str, Any]], **columns: Any) -> None:  # type: ignore[override]
        """Add columns, as `dict.update`."""
        for name, values in dict(*others, **columns).items():
            self[name] = values

    def setdefault(self, name: str, values: Any = None) -> NDArray[Any]:  # noqa: D102 - as a dict's
        if name not in self:
            self[name] = values
        return self[name]

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _to_column(values: Any) -> NDArray[Any]:
    """An array of values that are none yet; a scalar becomes an array without dimensions."""
    if hasattr(values, "device") and not isinstance(values, np.generic):
        return np.asarray(arrays.to_host(values))
    if isinstance(values, (list, tuple)) and not all(
        isinstance(value, (bool, int, float, np.generic)) for value in values
    ):
        return arrays.objects(values)  # texts, None, lists
    return np.asarray(values)
