"""`Filter`: drop images by the value of one field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curator_dali.arguments import list_items
from curator_dali.batch import ImageBatch
from curator_dali.errors import StageError
from curator_dali.sources import to_text
from curator_dali.stages.base import Reason, Selector, checked_stage

_VALUE_KINDS = {bool: "bool", int: "float64", float: "float64", str: "string"}


@checked_stage
@dataclass(frozen=True)
class Filter(Selector):
    """Keep the images whose field passes every condition that is given.

    Args:
        field: A score, another column (`width`, `height`, `index`), or a field of the metadata (`caption`), whose
            numbers are compared as float64: whole ones are exact up to 2**53.
        min: Smallest value that stays.
        max: Largest value that stays.
        equals: The value that stays, or several: a tuple, a list, a set or an array of them.
        where: A function from the (N,) values of a batch to N booleans, true for what stays.
        missing: What becomes of an image whose value is None, NaN, or of another type than its column (a text among
            numbers): "drop" (the reason says so) or "keep".

    Raises:
        StageError: No condition, or one that nothing can pass.
    """

    field: str
    min: float | None = None
    max: float | None = None
    equals: Any = None
    where: Callable[[NDArray[Any]], Any] | None = None
    missing: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        if not self.field:
            raise StageError(f"Filter.field is {self.field!r}; give a field's name, as 'aesthetic_score'")
        object.__setattr__(self, "equals", _plain_values(self.equals))
        if all(condition is None for condition in (self.min, self.max, self.equals, self.where)):
            raise StageError(f"Filter({self.field!r}) has no condition; give min=, max=, equals= or where=")
        for name in ("min", "max"):
            limit = getattr(self, name)
            if limit is not None and limit != limit:
                raise StageError(f"Filter({self.field!r}).{name} is {limit!r}; allowed: a number")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise StageError(f"Filter({self.field!r}) keeps nothing: min={self.min} is above max={self.max}")

    @property
    def reads(self) -> frozenset[str]:
        """The field."""
        return frozenset([self.field])

    @property
    def expects(self) -> Mapping[str, str]:
        """The field, with the type that the conditions tell; nothing where they tell none."""
        kinds = {"float64" for limit in (self.min, self.max) if limit is not None}
        kinds |= {_VALUE_KINDS.get(type(value), "") for value in self._wanted if value is not None}
        return {self.field: kinds.pop()} if len(kinds) == 1 and "" not in kinds else {}

    @property
    def name(self) -> str:
        """`Filter(field)`."""
        return f"Filter({self.field})"

    def judge(self, batch: ImageBatch) -> NDArray[np.object_]:
        """None, or as "aesthetic_score 3.21 < 5.0"; see `Selector.judge`.

        Raises:
            StageError: A value cannot be compared with a limit, or `where` does not give N booleans.
        """
        values = batch.values(self.field)
        reasons = self.reasons(values)
        if self.missing == "drop":
            self._explain_misfits(batch, values, reasons)
        return reasons

    def reasons(self, values: NDArray[Any]) -> NDArray[np.object_]:
        """The same for (N,) values that are at hand."""
        reasons = np.full(len(values), None, object)
        absent = _missing(values)
        if self.missing == "drop":
            reasons[absent] = f"{self.field} is missing"
        rows = np.flatnonzero(~absent)
        present = values[rows]
        for passes, failing in self._conditions(present):
            kind = f"{self.field} {failing}"  # as "aesthetic_score < 5.0"
            for row, value in zip(rows[~passes].tolist(), present[~passes].tolist(), strict=True):
                if reasons[row] is None:
                    reasons[row] = Reason(f"{self.field} {self._shown(value)} {failing}", kind)
        return reasons

    def _explain_misfits(self, batch: ImageBatch, values: NDArray[Any], reasons: NDArray[np.object_]) -> None:
        """Say of missing values which of them the metadata has, in a type that their column cannot hold."""
        for row in np.flatnonzero(_missing(values)).tolist():
            value = batch.data[row].metadata.get(self.field)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is None or (values.dtype.kind == "f" and is_number):
                continue
            misfit = "not a number" if values.dtype.kind == "f" else "of another type than its column"
            reasons[row] = Reason(f"{self.field} is {_text(value)}, {misfit}", f"{self.field} is {misfit}")

    def _shown(self, value: Any) -> str:
        text = _text(value)
        # 4.9999998 is no "5 < 5.0"
        return repr(value) if isinstance(value, float) and float(text) in (self.min, self.max) else text

    @property
    def _wanted(self) -> tuple[Any, ...]:
        """The values of `equals`."""
        return self.equals if isinstance(self.equals, tuple) else (self.equals,)

    def _conditions(self, values: NDArray[Any]) -> list[tuple[NDArray[np.bool_], str]]:
        """Of (M,) values that are there: (M,) whether they pass, and what a reason says of one that does not."""
        found: list[tuple[NDArray[np.bool_], str]] = []
        try:
            if self.min is not None:
                found.append((np.asarray(values >= self.min, bool), f"< {self.min}"))
            if self.max is not None:
                found.append((np.asarray(values <= self.max, bool), f"> {self.max}"))
        except TypeError as error:
            odd = next((value for value in values.tolist() if not isinstance(value, (int, float))), None)
            raise StageError(
                f"{self.name} compares with a number, and a value of {self.field!r} is {odd!r}; use equals= or where="
            ) from error
        if self.where is not None:
            flags = np.asarray(self.where(values))
            if flags.shape != values.shape or (len(values) and flags.dtype != bool):
                raise StageError(
                    f"{self.name}: where() must give {len(values)} booleans for an array of as many values, "
                    f"not {flags.dtype} of shape {flags.shape}"
                )
            found.append((flags.astype(bool), f"fails {getattr(self.where, '__name__', 'where')}()"))
        if self.equals is not None:
            passes = np.logical_or.reduce([_equal(values, value) for value in self._wanted])
            found.append((passes, f"is not {' or '.join(map(_text, self._wanted))}"))
        return found


def _plain_values(equals: Any) -> Any:
    """One value of Python, or a tuple of them, in the same order in every process."""
    if isinstance(equals, Set):
        return tuple(sorted(equals, key=repr))
    if getattr(equals, "ndim", None) == 0:  # a number of numpy or torch
        return equals.item()
    if isinstance(equals, Iterable) and not isinstance(equals, (str, bytes, Mapping)):
        return tuple(map(_plain_values, list_items(equals)))
    return equals


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype == object:
        return np.array([value is None or value != value for value in values.tolist()], bool)
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


def _equal(values: NDArray[Any], value: Any) -> NDArray[np.bool_]:
    if values.dtype == object:
        # a field of mixed types is a column of texts, in which 1 stands as "1"
        text = None if isinstance(value, str) else to_text(value)
        return np.array([item == value or (text is not None and item == text) for item in values.tolist()], bool)
    return np.broadcast_to(np.asarray(values == value, bool), values.shape)  # float32 against float32


def _text(value: Any) -> str:
    """A value in a reason: numbers with the digits that one can compare, other things quoted and short."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 2**53 else f"{value:.6g}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
