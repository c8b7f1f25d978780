"""What a network is to learn of each image, as one array: from the metadata or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.batch.image import ImageObject
from curator_dali.sources.base import Source
from curator_dali.sources.mixture import Mixture

__all__ = ["TargetError", "Targets"]

_PROBES = 8
_FIX = "give target= another field, a function of the ImageObject, or None for images alone"


class TargetError(ValueError):
    """An image has no target, or one of another kind than the others."""


class Targets:
    """Collects the targets of batches.

    Args:
        target: A field of the metadata (`label` is the folder's, the `.cls` member's or the JSON's), or a function
            that takes an `ImageObject` and returns a number or an array of numbers.
        classes: Values of the field, in the order of their numbers: `["cat", "dog"]` makes a 1 of "dog".
        floats: True makes float32 of all numbers, False int64 and refuses what is none; None goes by the first ones.
    """

    def __init__(
        self,
        target: str | Callable[[ImageObject], Any],
        classes: Sequence[Any] | None = None,
        floats: bool | None = None,
    ) -> None:
        if not (isinstance(target, str) or callable(target)):
            raise TypeError(f"target is {target!r}; give the name of a metadata field, a function, or None for none")
        if classes is not None and (isinstance(classes, str) or len(set(classes)) != len(classes) or not classes):
            raise ValueError(f"classes is {classes!r}; give different values of the field, as ['cat', 'dog']")
        self._target, self._floats = target, floats
        self._numbers = None if classes is None else {value: number for number, value in enumerate(classes)}
        self._shape: tuple[int, ...] | None = None

    def probe(self, source: Source) -> None:
        """Look at the targets of a few samples, so that what is wrong with all is told before any batch.

        Raises:
            TargetError: One of them has none, or they are of different kinds.
        """
        named = {part: names for part, names in source.class_lists.items() if names}
        if self._target == "label" and self._numbers is None and len(set(map(tuple, named.values()))) > 1:
            raise TargetError(
                f"the parts of {source.name!r} number different classes: {named}; give target='label_name' and "
                "classes=[...], or a function of the ImageObject"
            )
        parts = list(source.sources.values()) if isinstance(source, Mixture) else [source]
        items = []
        for part in parts:
            if len(part):
                chosen = np.unique(np.linspace(0, len(part) - 1, min(_PROBES, len(part))).astype(np.int64))
                items += part.read(chosen).objects
        if not items:
            return
        values = [self._value(item) for item in items]
        if self._floats is None:
            self._floats = any(value.dtype.kind == "f" for value in values)
        self(items)

    def __call__(self, items: Sequence[ImageObject]) -> NDArray[Any]:
        """The targets of some images: (N,) int64 or float32, or (N, ...) where each is an array.

        Raises:
            TargetError: Names the image, its value and the fix.
        """
        values = [self._value(item) for item in items]
        if values and self._floats is None:
            self._floats = values[0].dtype.kind == "f"
        if values and self._shape is None:
            self._shape = values[0].shape
        for item, value in zip(items, values, strict=True):
            if not self._floats and value.dtype.kind == "f":
                raise TargetError(
                    f"{self._of(item)} is {value.tolist()}, the others are whole numbers; give "
                    "target_dtype=torch.float32 to make all of them floats, or mend it"
                )
            if value.shape != self._shape:
                raise TargetError(f"{self._of(item)} has the shape {value.shape}, the others {self._shape}")
        shape = (len(values), *(self._shape or ()))
        return np.array(values, np.float32 if self._floats else np.int64).reshape(shape)

    def _of(self, item: ImageObject) -> str:
        name = repr(self._target) if isinstance(self._target, str) else "the target"
        return f"{name} of image {item.image_id!r} ({item.image_path})"

    def _value(self, item: ImageObject) -> NDArray[Any]:
        if isinstance(self._target, str):
            metadata = item.metadata
            if self._target not in metadata:
                trouble = f" ({metadata['metadata_error']})" if "metadata_error" in metadata else ""
                raise TargetError(
                    f"image {item.image_id!r} ({item.image_path}) has no {self._target!r} in its metadata{trouble}; "
                    f"the fields there: {', '.join(map(str, metadata)) or 'none'}; {_FIX}"
                )
            value = metadata[self._target]
        else:
            value = self._target(item)
        if self._numbers is not None:
            try:
                value = self._numbers[value]
            except (KeyError, TypeError):
                raise TargetError(f"{self._of(item)} is {value!r}; classes has {list(self._numbers)}") from None
        number = np.asarray(value) if value is not None and not isinstance(value, (str, bytes)) else None
        if number is None or number.dtype.kind not in "biuf":
            fix = "give classes=[...] to number them" if isinstance(value, str) else _FIX
            raise TargetError(f"{self._of(item)} is {value!r} ({type(value).__name__}), not a number; {fix}")
        return number
