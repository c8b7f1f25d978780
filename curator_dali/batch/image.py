"""`ImageObject`: one image, with the names and meanings of NeMo Curator's. Import it from `curator_dali.batch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curator_dali.view.sheets import draw_image, size_of

__all__ = ["ImageObject", "clone"]


@dataclass(repr=False)
class ImageObject:
    """One image: who it is, what came beside it, what was computed of it, and its pixels once they are on the host.

    Attributes:
        image_path: URL that `fsspec.open` opens; tells every sample of a source apart.
        image_id: The sample's key.
        metadata: What came beside the image. The constructor (and assignment) also takes a function without arguments
            that returns the dict: it is called when `metadata` is first read, compared or pickled, and never again.
        image_data: (H, W, 3) uint8 RGB on the host, or None.
        embedding: (D,) float on the host, or None.
        aesthetic_score: LAION aesthetic score, or None.
        nsfw_score: Probability in [0, 1], or None.
    """

    image_path: str = ""
    image_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    image_data: NDArray[Any] | None = None
    embedding: NDArray[Any] | None = None
    aesthetic_score: float | None = None
    nsfw_score: float | None = None

    if TYPE_CHECKING:  # what the generated __init__ takes; the field's own annotation stays NeMo Curator's

        def __init__(
            self,
            image_path: str = "",
            image_id: str = "",
            metadata: dict[str, Any] | Callable[[], dict[str, Any]] = ...,
            image_data: NDArray[Any] | None = None,
            embedding: NDArray[Any] | None = None,
            aesthetic_score: float | None = None,
            nsfw_score: float | None = None,
        ) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        _get_metadata(self)  # a function over open files would not pickle
        return self.__dict__

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __repr__(self) -> str:
        parts = [f"{self.image_id!r}, path {self.image_path!r}"]
        metadata = self.__dict__["_metadata"]
        parts.append("metadata not read yet" if callable(metadata) else f"metadata {sorted(map(str, metadata))}")
        parts += [
            f"{name} {'x'.join(map(str, np.shape(value)))}"
            for name, value in (("pixels", self.image_data), ("embedding", self.embedding))
            if value is not None
        ]
        parts += [
            f"{name} {value:.3g}"
            for name, value in (("aesthetic", self.aesthetic_score), ("nsfw", self.nsfw_score))
            if value is not None
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        pixels, embedding = self.image_data, self.embedding
        size = () if pixels is None else size_of(pixels.shape)
        facts = {
            "id": self.image_id,
            "path": self.image_path,
            "pixels": " × ".join(map(str, reversed(size))),
            "aesthetic score": self.aesthetic_score,
            "nsfw score": self.nsfw_score,
            "embedding": None if embedding is None else f"{embedding.size} {embedding.dtype}",
            **{f"metadata {key}": value for key, value in self.metadata.items()},
        }
        return draw_image(pixels, self.image_id, facts)


def _get_metadata(self: ImageObject) -> dict[str, Any]:
    value = self.__dict__["_metadata"]
    if callable(value):
        value = self.__dict__["_metadata"] = value()
    return value  # type: ignore[no-any-return]


def _set_metadata(self: ImageObject, value: dict[str, Any] | Callable[[], dict[str, Any]]) -> None:
    self.__dict__["_metadata"] = value


# Put in place after @dataclass has read the fields, so that the default stays `field(default_factory=dict)`.
ImageObject.metadata = property(_get_metadata, _set_metadata)  # type: ignore[assignment]


def _same(a: Any, b: Any) -> bool:
    """Equality of two field values that may be arrays."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is b or (a is not None and b is not None and np.array_equal(a, b))
    return bool(a == b)


def clone(item: ImageObject, changes: Mapping[str, Any]) -> ImageObject:
    """A copy of an image that leaves lazy metadata unread; `dataclasses.replace` would read it."""
    new = object.__new__(type(item))
    new.__dict__.update(item.__dict__)
    new.__dict__.update(changes)
    metadata = new.__dict__["_metadata"]
    new.__dict__["_metadata"] = metadata if callable(metadata) else dict(metadata)
    return new
